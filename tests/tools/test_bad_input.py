"""What cannot work is refused before the first step with one screen: the key, the value seen, what is allowed, what is
near; and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.small_weights import encoder_settings, save_encoders, save_rae
from tests.tools.tiny import CONFIG, train

SIT, DDT = CONFIG.with_name("tiny_sit.yaml"), CONFIG.with_name("tiny_rae.yaml")
MODALITIES = ("image", "video", "audio")
SCREEN = 12, 1200  # lines, characters


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Folder of small encoders by modality, of RAE, and of nothing."""
    pytest.importorskip("transformers", reason="encoders and RAE need transformers")
    pytest.importorskip("diffusers", reason="RAE needs diffusers")
    folder = tmp_path_factory.mktemp("weights")
    save_encoders(folder)
    save_rae(folder / "rae")
    (folder / "empty").mkdir()
    return folder


def refused(capsys, config: Path, run: Path, overrides: list[str]) -> str:
    """The message of a train command that must fail before it writes anything."""
    capsys.readouterr()
    assert train(run, *overrides, config=config) == 2
    assert not run.exists()
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    message = shown.err[shown.err.index("error: ") :]  # behind the progress of a library that reads weights
    assert len(message.splitlines()) <= SCREEN[0]
    assert len(message) <= SCREEN[1]
    return message


def check(message: str, expected: str | tuple[str, ...]) -> None:
    for part in (expected,) if isinstance(expected, str) else expected:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("method=selfflow", ("method: 'selfflow' is not one of flow_matching, repa, sra", "mean: 'self_flow'?")),
        ("method=", "method: None is not one of flow_matching, repa, sra"),
        ("trunk.kind=dit", "trunk.kind: 'dit' is not one of mmdit, sit, ddt, flux2, wan"),
        ("alignment.ema_techer.weight=1", "alignment.ema_techer: unknown key; allowed: ema_teacher, external, "),
        ("alignment.ema_techer.weight=1", "Did you mean: 'ema_teacher'?"),
        ("alignment.ema_teacher.similarity=cos", ("similarity: 'cos' is not one of cosine, l1", "mean: 'cosine'?")),
        ("noising.teacher=earliest", ("noising.teacher: 'earliest' is not one of min, earlier", "mean: 'earlier'?")),
        ("method=flow_matching noising.teacher=earlier", "'earlier' is not read without alignment.ema_teacher"),
        # layers
        (
            "alignment.ema_teacher.student_layer=2 alignment.ema_teacher.teacher_layer=9",
            "alignment.ema_teacher: need 1 <= student_layer < teacher_layer <= depth, got 2, 9, 3; left out, they",
        ),
        (
            "alignment.ema_teacher.student_layer=2 alignment.ema_teacher.teacher_layer=1",
            "alignment.ema_teacher: need 1 <= student_layer < teacher_layer <= depth, got 2, 1, 3",
        ),
        (
            "method=layersync alignment.layer_sync.layer=3 alignment.layer_sync.target_layer=2",
            "alignment.layer_sync: need 1 <= layer < target_layer <= depth, got 3, 2, 3; left out, they are 1 and 2",
        ),
        ("method=dispersive alignment.dispersive.layer=7", "alignment.dispersive: layer: 7 must lie in 1..3"),
        # noising
        ("streams.audio.mask_ratio=0", "streams.audio.mask_ratio: 0.0 must lie in (0, 0.5]"),
        ("streams.video.mask_ratio=0.6", "streams.video.mask_ratio: 0.6 must lie in (0, 0.5]"),
        ("streams.image.mask_ratio=-0.1", "streams.image.mask_ratio: -0.1 must lie in (0, 0.5]"),
        (
            "streams.image.timestep.buckets=4",
            "streams.image.timestep.buckets: 4 makes t and s agree; not with noising.kind dual, only 0",
        ),
        (
            "method=sra noising.attention_separation=true",
            ("noising.attention_separation: unknown key of kind 'homogeneous'", "It belongs to kind dual."),
        ),
        ("noising.attention_separation=true", "noising.attention_separation: needs mask exact"),
        ("noising.teacher_gap=0.3", "noising.teacher_gap: unknown key of teacher 'min'"),
        (
            "streams.image.timestep.mean=1",
            ("timestep.mean: unknown key of kind 'uniform'", "to kind logit_normal, plat"),
        ),
        (
            "method=dispersive alignment.dispersive.margin=2",
            ("unknown key of variant 'infonce_l2'", "to variant hinge."),
        ),
        (
            "condition.kind=none condition.cfg_dropout=0.2",
            ("unknown key of kind 'none'", "It belongs to kind text, label."),
        ),
        ("method=self_flow_as", "tiny.yaml:15: streams.video.modes: tokens of first_frame would belong to no "),
        # teacher
        ("training.ema.decay=0", "training.ema.decay: 0 makes the teacher the student itself"),
        ("method=sra training.ema.decay=0", "training.ema.decay: 0 makes the teacher the student itself"),
        ("training.ema.decay=1", "training.ema.decay: 1.0 must lie in [0, 1)"),
        # encoders
        (
            "method=repa",
            tuple(
                f"streams.{m}.encoders: empty; alignment.external needs one: {{{kind}: {{kind: {kind}, "
                for m, kind in zip(MODALITIES, ("dinov2", "dinov2", "mert"), strict=True)
            ),
        ),
        ("method=dispersive streams.video.batch=1", "streams.video.batch: alignment.dispersive needs 2 or more"),
        ("trunk.kind=sit", "this run has image, video, audio and condition.kind: text. Trunk mmdit takes any"),
    ],
)
def test_settings(overrides, expected, tmp_path, capsys):
    check(refused(capsys, CONFIG, tmp_path / "run", overrides.split()), expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "streams.image.encoders.dinov2.path=/nowhere/dinov2",
            (
                "streams.image.encoders.dinov2.path: '/nowhere/dinov2' cannot be read: there is no such folder",
                "needs a folder with config.json, model.safetensors",
                "facebook/dinov2-base",
                "Every alignment but the external one works without it",
            ),
        ),
        (
            "streams.image.encoders.dinov2.path={empty}",
            ("encoders.dinov2.path: ", "config.json", "needs a folder with"),
        ),
        (
            "streams.image.encoders.dinov2.path={video}",
            ("holds a model of type 'vjepa2'; kind 'dinov2' reads dinov2, ", "encoders.dinov2.kind: vjepa2."),
        ),
        (
            "streams.audio.encoders.mert.kind=dinov2",
            "encoders.mert.kind: 'dinov2' does not encode audio; allowed: mert",
        ),
        (
            "streams.image.encoders.dinov2.kind=dino",
            ("encoders.dinov2.kind: 'dino' is not one of", "mean: 'dinov2'?"),
        ),
        (
            "streams.image.encoders.dinov2.layer=9",
            "encoders.dinov2.layer: 9, but the encoder has 3 blocks; allowed: 1..3",
        ),
        ("streams.audio.encoders.mert.resample=refuse", "encoders.mert.resample: 'refuse', but the 90 time steps"),
        ("streams.audio.encoders.mert.resample=refuse", "20 of the trunk; set it to features to interpolate"),
        ("alignment.external.layer=7", "alignment.external: layer: 7 must lie in 1..3"),
        ("method=self_flow", "streams.image.encoders: dinov2 are not read without alignment.external"),
    ],
)
def test_encoders(override, expected, weights, tmp_path, capsys):
    places = {name: weights / name for name in ("empty", "video")}
    own = ["method=repa", *encoder_settings(weights, *MODALITIES), override.format(**places)]
    check(refused(capsys, CONFIG, tmp_path / "run", own), expected)


def test_damaged_encoder_weights_are_named_by_the_key_that_leads_to_them(weights, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    save_encoders(tmp_path)
    path = tmp_path / "image" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path, {"format": "pt"})
    message = refused(capsys, SIT, tmp_path / "run", ["method=repa", *encoder_settings(tmp_path, "image")])
    check(message, ("streams.image.encoders.dinov2: ", "these weights do not fit", "missing keys: "))


def test_another_token_grid_is_resampled_unless_that_is_refused(weights, tmp_path):
    """The counterpart of `resample=refuse`: 90 steps of the audio encoder become the trunk's 20."""
    own = ["method=repa", *encoder_settings(weights, *MODALITIES)]
    assert train(tmp_path / "run", *own, "streams.audio.encoders.mert.resample=features", "--dry-run") == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["{autoencoder}=/nowhere/rae"],
            ("{autoencoder}: '/nowhere/rae' is not a folder", "model.pt (decoder), stat.pt"),
        ),
        (["{autoencoder}={empty}"], ("{autoencoder}: '{empty}' holds no config.json", "model.pt (decoder), stat.pt")),
        ([], "{autoencoder}: kind 'rae' has weights: set their folder or their name on the hub"),
        (
            ["{autoencoder}={rae}", "streams.image.media.size=[128]"],
            "streams.image.media.size: 128 x 128: rae was trained for images of one size; legal: 256 x 256",
        ),
        (
            ["{autoencoder}={rae}", "trunk.ddt.grid=8", "trunk.ddt.num_classes=1001"],
            (
                "trunk.ddt: grid 8, channels 768, num_classes 1001 do not fit the data: grid 16 x 16, channels 768",
                "Set trunk.ddt.grid=16 trunk.ddt.num_classes=25",
            ),
        ),
        (
            ["{autoencoder}={rae}", "condition.kind=text"],
            "trunk.kind: 'ddt' needs one stream of images alone and condition.kind: label or none; this run has image",
        ),
        (
            ["{autoencoder}={rae}", "trunk.ddt.depth=1"],
            "alignment.ema_teacher: need 1 <= student_layer < teacher_layer <= depth, got 1, 1, 1",
        ),
        (
            ["{autoencoder}={rae}", "trunk.ddt.heads=3"],
            "trunk.ddt.width: 16 is not a multiple of its number of heads, 3",
        ),
    ],
)
def test_ddt_and_rae(overrides, expected, weights, tmp_path, capsys):
    names = {
        "autoencoder": "streams.image.media.autoencoder.path",
        "rae": weights / "rae",
        "empty": weights / "empty",
    }
    message = refused(capsys, DDT, tmp_path / "run", [override.format(**names) for override in overrides])
    check(message, tuple(part.format(**names) for part in ((expected,) if isinstance(expected, str) else expected)))


VAE = "streams.image.media.autoencoder={{kind: sd_vae, path: {path}}}"
FITS_VAE = [
    "streams.image.media.patch=null",
    "streams.image.media.size=[32]",
    "trunk.sit={grid: 2, channels: 16, patch: 2}",
]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [VAE, *FITS_VAE],
            (
                "streams.image.media.autoencoder.path: '/nowhere/vae' is not a folder. Kind 'sd_vae' needs a folder",
                "diffusion_pytorch_model.safetensors",
            ),
        ),
        ([VAE], "streams.image.media.size: height: 8 is not a multiple of 32; the nearest legal sizes: 32"),
        (
            ["trunk.sit.grid=4", "trunk.sit.channels=12", "trunk.sit.patch=2"],
            (
                "trunk.sit: grid 4, channels 12, num_classes 25 do not fit the data: grid 2 x 2, channels 48, 24",
                "Set trunk.sit.grid=2 trunk.sit.channels=48",
            ),
        ),
        (["streams.image.media.size=[8, 16]"], ("do not fit the data: grid 2 x 4", "sit needs square images")),
        (
            ["trunk.kind=ddt"],
            "trunk.ddt: grid 16, channels 768, num_classes 1001 do not fit the data: grid 2 x 2, channels ",
        ),
    ],
)
def test_sit_and_sd_vae(overrides, expected, tmp_path, capsys):
    pytest.importorskip("diffusers", reason="SD-VAE needs diffusers")
    own = [override.format(path="/nowhere/vae") if override is VAE else override for override in overrides]
    check(refused(capsys, SIT, tmp_path / "run", own), expected)


def test_weights_of_another_kind_of_model(weights, tmp_path, capsys):
    message = refused(capsys, SIT, tmp_path / "run", [VAE.format(path=weights / "image"), *FITS_VAE])
    check(message, "holds a model of type 'dinov2', kind 'sd_vae' needs AutoencoderKL")
