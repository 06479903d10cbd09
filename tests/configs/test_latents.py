"""Stored latents must be those of the configuration's autoencoder, sizes and text encoder; each difference is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")

from configs.assembly import Assembly
from configs.assembly.adapters import build_adapters
from configs.assembly.latents import check_latents, latent_digests, media_settings
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from modalities.latents.format import Manifest, StoredPart, TextFeatures
from tests.autoencoders.small import pretrained, save
from tests.modalities.data.sources.test_stored import manifest, stored_part
from tests.tools.tiny import CONFIG

MEDIA = "streams.image.media={size: [32], patch: 2, autoencoder: {kind: sd_vae, path: vae}}"


class Stored:
    """A source of latents that says what it holds."""

    def __init__(self, *manifests: Manifest):
        self.manifests = manifests

    def stored(self) -> list[Manifest]:
        return list(self.manifests)


def configuration(*overrides: str) -> Config:
    return load_config(CONFIG, ["streams={video: null, audio: null}", MEDIA, *overrides])


def image_part(**changes) -> StoredPart:
    autoencoder = {"kind": "sd_vae", "path": "vae", "digest": "aa"}
    normalization = {"mean": [0.0] * 16, "std": [1.0] * 16, "measured": False}
    plain = {"grid": (1, 2, 2), "channels": 16, "autoencoder": autoencoder, "normalization": normalization}
    return stored_part(**plain | {"media": media_settings(configuration().streams["image"].media)} | changes)


def of_image(text: TextFeatures | None = None, **changes) -> Manifest:
    return manifest(parts={"image": image_part(**changes)}, text=text)


def part_of(config: Config, stream: str, part: str, **changes) -> StoredPart:
    """Latents of an autoencoder without weights, made with a configuration."""
    adapter = build_adapters(config, Path())[stream][part]
    media = config.streams[stream].named_parts(stream)[part].media
    plain = {"modality": adapter.modality, "grid": adapter.grid(), "channels": adapter.channels, "deviation": False}
    plain["normalization"] = {"mean": [0.0] * adapter.channels, "std": [1.0] * adapter.channels, "measured": True}
    plain |= {"autoencoder": {"kind": media.autoencoder.kind, "digest": ""}, "media": media_settings(media)}
    return stored_part(**plain | changes)


def problems(config: Config, *manifests: Manifest, root: Path = Path()) -> str:
    """The message of the refusal; "" where everything fits."""
    name = next(iter(config.streams))
    try:
        check_latents(config, {name: Stored(*manifests)}, build_adapters(config, root), root)
    except ConfigError as error:
        return str(error)
    return ""


def test_latents_of_the_configuration_fit_without_any_weights():
    assert problems(configuration(), of_image()) == ""
    assert problems(configuration("streams.image.media.crop=random"), of_image()) == ""
    adapters = {"image": {"image": None}, "video": {"video": None}}
    assert latent_digests({"image": Stored(of_image()), "video": object()}, adapters) == {"image": {"image": "aa"}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"autoencoder": {"kind": "flux2", "digest": "aa"}},
            "media.autoencoder.kind: 'sd_vae', and the latents are of",
        ),
        ({"grid": (1, 4, 4)}, "makes 1 x 2 x 2 tokens (t, h, w) of 16 channels, and the latents are 1 x 4 x 4 tokens"),
        ({"channels": 4}, "of 16 channels, and the latents are 1 x 2 x 2 tokens (t, h, w) of 4 channels"),
        ({"deviation": False}, "posterior: 'sample', and the latents were stored without a deviation; set it to mean"),
    ],
)
def test_what_differs_is_named(changes, reason):
    found = problems(configuration(), of_image(**changes))
    assert f"streams.image.media{'.autoencoder' * reason.startswith('posterior')}" in found
    assert reason in found
    assert "encode the media again" in found


def test_latents_without_a_deviation_serve_where_the_mean_is_trained_on():
    assert problems(configuration("streams.image.media.autoencoder.posterior=mean"), of_image(deviation=False)) == ""


def test_the_meaning_of_audio_is_compared_beyond_its_grid():
    config = load_config(CONFIG, ["streams={video: null, image: null}"])
    stored = part_of(config, "audio", "audio")
    assert (stored.media["hop"], stored.media["exponent"]) == (64, 0.5)
    assert problems(config, manifest(parts={"audio": stored})) == ""
    for key, value in (("exponent", 1.0), ("sample_rate", 8000)):
        found = problems(config, manifest(parts={"audio": replace(stored, media=stored.media | {key: value})}))
        assert f"streams.audio.media.{key}: {stored.media[key]}, and the latents were made with {value}" in found


def test_the_meaning_of_blocks_of_pixels_is_compared_beyond_their_grid():
    """Nine frames of which the first is alone make as many tokens, of as many channels, as ten without."""
    alone = load_config(CONFIG, ["streams={image: null, audio: null}"])
    media = alone.streams["video"].media
    patch_frames = media.autoencoder.own_settings(media)["patch_frames"]
    even = f"{{frames: {media.frames + patch_frames - 1}, first_frame_alone: false}}"
    other = load_config(
        CONFIG,
        [
            "streams={image: null, audio: null}",
            f"streams.video.media={even}",
            "streams.video.modes={first_frame: 0}",
        ],
    )
    stored, other_stored = (part_of(config, "video", "video") for config in (alone, other))
    assert (stored.grid, stored.channels) == (other_stored.grid, other_stored.channels)
    assert problems(alone, manifest(parts={"video": stored})) == ""
    found = problems(other, manifest(parts={"video": stored}))
    assert "media.first_frame_alone: False, and the latents were made with True" in found


def test_weights_at_hand_are_compared_and_others_refused(tmp_path):
    save("sd_vae", tmp_path / "vae")
    right = pretrained("sd_vae", tmp_path / "vae").digest()
    autoencoder = {"kind": "sd_vae", "path": "vae"}
    assert problems(configuration(), of_image(autoencoder=autoencoder | {"digest": right}), root=tmp_path) == ""
    found = problems(configuration(), of_image(), root=tmp_path)
    assert f"(digest {right}) are not those of the latents (digest aa)" in found


def test_folders_of_different_weights_are_refused():
    other = of_image(autoencoder={"kind": "sd_vae", "path": "vae", "digest": "bb"})
    found = problems(configuration(), of_image(), other)
    assert "streams.image.data: its image latents were encoded with different weights" in found


def test_text_features_are_compared_where_they_are_read():
    features = {"kind": "t5", "max_tokens": 8, "layers": [], "precision": "bf16", "width": 4096}
    stored = of_image(text=TextFeatures(features, "t5", "cc", 4096, "bfloat16"))
    encoder = "condition.encoder={kind: t5, path: nowhere, max_tokens: %s}"
    assert problems(configuration(), stored) == ""  # the byte-level encoder reads captions
    assert problems(configuration(encoder % 8), stored) == ""
    found = problems(configuration(encoder % 9), stored)
    assert "condition.encoder.max_tokens: 9, and the text features of streams.image.data were made with 8" in found


def test_only_media_are_encoded_in_training():
    latents, media = configuration("streams.image.data={kind: latents, path: x}"), configuration()
    Assembly(latents, Path()).load_autoencoders()
    with pytest.raises(ConfigError, match=r"streams\.image\.media\.autoencoder\.path: .*vae"):
        Assembly(media, Path()).load_autoencoders()


CLIPS = """
streams:
  clips:
    data: {kind: latents, path: nowhere}
    parts:
      picture: {modality: video, media: {size: [16], frames: 9}}
      audio: {media: {seconds: 1.0, sample_rate: 8000}}
trunk: {mmdit: {size: tiny}}
"""


@pytest.fixture
def clips(tmp_path) -> Config:
    """A stream of two parts, of autoencoders without weights."""
    (tmp_path / "videos.yaml").write_text(CLIPS)
    return load_config(tmp_path / "videos.yaml", [])


def test_every_part_must_be_there_by_name_and_modality(clips):
    image, audio = part_of(clips, "clips", "picture"), part_of(clips, "clips", "audio")
    assert problems(clips, manifest(parts={"audio": audio, "picture": image})) == ""
    assert problems(clips, manifest(parts={"picture": image, "audio": audio, "depth": image})) == ""
    for parts, there, missing in (
        ({"picture": image}, "part picture (video)", "audio (audio)"),
        ({"video": image, "audio": audio}, "parts video (video), audio (audio)", "picture (video)"),
        ({"picture": audio, "audio": audio}, "parts picture (audio), audio (audio)", "picture (video)"),
    ):
        found = problems(clips, manifest(parts=parts))
        assert f"streams.clips.data: its samples have the {there}, and no {missing}" in found


def test_held_out_latents_are_checked_in_the_same_way(clips):
    held_out = {"clips": Stored(manifest(parts={"picture": part_of(clips, "clips", "picture")}))}
    with pytest.raises(ConfigError, match=r"streams\.clips\.val: its samples have .*, and no audio \(audio\)"):
        check_latents(clips, held_out, build_adapters(clips, Path()), Path(), "val")


def test_what_differs_in_one_part_is_named_with_the_part(clips):
    image, audio = part_of(clips, "clips", "picture"), part_of(clips, "clips", "audio")
    slow = replace(image, media=image.media | {"fps": 5.0})
    found = problems(clips, manifest(parts={"picture": slow, "audio": replace(audio, grid=(3, 1, 1))}))
    assert f"streams.clips.parts.picture.media.fps: {image.media['fps']}, and the latents were made with 5.0" in found
    assert "streams.clips.parts.audio.media: makes " in found
    assert "and the latents are 3 x 1 x 1 tokens" in found
    digests = latent_digests(
        {"clips": Stored(manifest(parts={"picture": image, "audio": audio}))}, build_adapters(clips, Path())
    )
    assert digests == {"clips": {"picture": "", "audio": ""}}
