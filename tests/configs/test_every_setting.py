"""Every setting of the schema is read by something: one that nothing reads is a promise that nothing keeps."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

pytest.importorskip("transformers", reason="encoders and RAE need transformers")
pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")

import configs
from configs.build import build_trainer
from configs.load import load_config
from configs.runs import load_run
from configs.schema import Config
from core.errors import ConfigError
from core.training.config import to_plain
from core.training.sections import Place
from modalities.data.sources.build import build_source
from modalities.generation import generate
from tests.autoencoders.small import save
from tests.field_reads import leaf_fields, unread_fields
from tests.modalities.conditioning.small import save_text_encoder
from tests.modalities.making import image_bytes, numbered
from tests.tools.small_weights import encoder_settings, save_encoders, save_rae
from tests.tools.tiny import CONFIG
from tools.evaluate import evaluate_run

AUDIOVISUAL = Path(configs.__file__).parent / "audiovisual.yaml"
SIT, RAE = CONFIG.with_name("tiny_sit.yaml"), CONFIG.with_name("tiny_rae.yaml")
FLUX2, WAN = CONFIG.with_name("tiny_flux2.yaml"), CONFIG.with_name("tiny_wan.yaml")


def trains(config: Any, folder: Path) -> None:
    """A few steps, as `selfflow train` makes them."""
    config.run = str(folder / "run")
    build_trainer(config, folder).fit()


def generates(config: Any, folder: Path) -> None:
    trains(config, folder)
    loaded = load_run(folder / "run")
    asked = loaded.generator.conditions.labels or ["a cat"]
    for name, stream in loaded.config.streams.items():
        list(generate(loaded.generator, name, asked[:1], stream.sampling, seed=0))


def is_evaluated(config: Any, folder: Path) -> None:
    trains(config, folder)
    evaluate_run(load_run(folder / "run"), config.streams["image"], "image", folder / "evaluation")


def opens_data(config: Any, folder: Path) -> None:
    build_source(config.streams["image"].data, ("image",), folder).read(0)


def misses_data(config: Any, folder: Path) -> None:
    """Of packages that are not in every environment: settings are read before the data are found to be missing."""
    with pytest.raises(ConfigError):
        opens_data(config, folder)


NAMES = ("image", "video", "audio")
ONE_STEP = "training.steps=1"
SELECTED = "caption_fields: [text], where: {kind: grey}, split: train, holdout: 0.3, holdout_key: group"
DATA = "streams.image.data="
EVALUATION = (
    "{measures: [velocity, probe, knn, health, samples], val: 12, training: 24, batch: 12, timesteps: [0.5], "
    "generated: 6, classifier_steps: 2}"
)
# One use for each branch that reads settings of its own: (configuration, overrides, how it is used).
USES: dict[str, tuple[Path, list[str], Callable[[Any, Path], None]]] = {
    "joint": (CONFIG, [f"streams.{name}.sampling.cfg_scale=2" for name in NAMES], generates),
    "other times": (
        CONFIG,
        [
            *(f"streams.{name}.timestep={{kind: logit_normal, high_noise_prob: 0.5}}" for name in NAMES),
            *("noising.s_within=0.2", "training.optimizer.warmup=2", "training.optimizer.cooldown=2"),
            *("streams.video.data.frames=2", "streams.video.media.short=repeat_last"),  # shorter than a video
            "streams.audio.media.seconds=0.4",
            *(f"streams.{name}.{each}.shift_rule=sd3" for name in NAMES for each in ("timestep", "sampling")),
            *("streams.image.sampling.solver=sde", "streams.video.sampling.solver=heun"),
            "streams.audio.sampling.solver=dopri5",
            *("logging.wandb=offline", "streams.image.media.crop=pad", "streams.video.media.crop=pad"),
        ],
        generates,
    ),
    "sit": (SIT, [], generates),
    "ddt on rae": (RAE, ["streams.image.media.autoencoder.path=rae", ONE_STEP], trains),
    "flux2": (FLUX2, ["trunk.flux2.guided=true", "training.trainable=[single_blocks]", ONE_STEP], trains),
    "wan": (WAN, [ONE_STEP], trains),
    "autoencoder": (
        CONFIG,
        ["streams.image.media={size: [32], patch: null, autoencoder: {kind: sd_vae, path: vae}}", ONE_STEP],
        trains,
    ),
    "repa": (CONFIG, ["method=repa", *encoder_settings(Path(), *NAMES), ONE_STEP], trains),
    "text encoder": (
        CONFIG,
        [
            "condition.encoder={kind: t5, path: t5, tokenizer: t5, max_tokens: 6, layers: [2], width: 16}",
            "condition.encoder.precision=fp32",
        ],
        generates,
    ),
    "watched": (
        CONFIG,
        [
            *(f"training.{name}.every=1" for name in ("preview", "validate", "posthoc_ema")),
            *("training.preview.prompts={image: [a cat]}", "training.keep_every=1", ONE_STEP),
            *("training.optimizer={kind: muon, schedule: wsd, cooldown: 1}", "training.validate.records=4"),
            "streams.image.val={size: 8, count: 20, seed: 1}",
        ],
        trains,
    ),
    "sra": (CONFIG, ["method=sra", ONE_STEP], trains),
    "layersync": (CONFIG, ["method=layersync", ONE_STEP], trains),
    "dispersive": (CONFIG, ["method=dispersive", ONE_STEP], trains),
    "hinge": (CONFIG, ["method=dispersive", "alignment.dispersive.variant=hinge", ONE_STEP], trains),
    "parts": (
        AUDIOVISUAL,
        [
            *("streams.audiovisual.batch=2", "streams.audiovisual.data.count=20", "training.device=cpu", ONE_STEP),
            "streams.audiovisual.modes={video_given: 0, audio_given: 0, audio_leads_video: 1}",
            "streams.audiovisual.parts.audio.timestep={kind: logit_normal, high_noise_prob: 0.5, shift_rule: sd3}",
            "streams.audiovisual.sampling={steps: 2, parts: {video: {stop_at: 0.5}, audio: {after: video}}}",
        ],
        generates,
    ),
    "separation": (CONFIG, ["method=self_flow_as", "streams.video.modes={first_frame: 0}", ONE_STEP], trains),
    "evaluation": (
        SIT,
        [f"streams.image.evaluation={EVALUATION}", "streams.image.val={size: 8, count: 60, seed: 1}"],
        is_evaluated,
    ),
    "folder": (CONFIG, [f"{DATA}{{kind: folder, path: photos, caption_default: x, {SELECTED}}}"], opens_data),
    "caption": (CONFIG, [f"{DATA}{{kind: folder, path: photos, caption: grey}}"], opens_data),
    "parquet": (
        CONFIG,
        [f"{DATA}{{kind: parquet, path: photos.parquet, media_field: image, label_field: kind, {SELECTED}}}"],
        opens_data,
    ),
    "webdataset": (
        CONFIG,
        [f"{DATA}{{kind: webdataset, path: photos.tar, members: '*.png', {SELECTED}}}"],
        opens_data,
    ),
    "latents": (
        CONFIG,
        [f"{DATA}{{kind: latents, path: nowhere, cache: copies, cache_limit: 1gb, shuffle_blocks: 2}}"],
        misses_data,
    ),
    "concat": (CONFIG, [f"{DATA}{{kind: concat, parts: {{one: {{kind: synthetic, repeat: 2}}}}}}"], opens_data),
}
# All streams have one class of these settings; what one of them reads, the class needs.
SHARED = [
    (re.compile(r"^streams\.\w+\.(?:data|val)(?:\.parts\.one)?\b"), "data"),
    (re.compile(r"^streams\.\w+\.encoders\.\w+\b"), "encoders.NAME"),
    (re.compile(r"^streams\.\w+\.(encoders|time|sampling|evaluation|media\.autoencoder)\b"), r"\1"),
    (re.compile(r"^streams\.\w+\.parts\.\w+\.(media\.autoencoder)\b"), r"\1"),
    (re.compile(r"^streams\.\w+\.parts\.(video|audio)\.media\b"), r"streams.\1.media"),
    (re.compile(r"^streams\.audiovisual\.(?!parts)"), "streams.video."),
]


def general(leaf: str) -> str:
    """The name of a setting without its stream, where all streams share it."""
    for pattern, name in SHARED:
        leaf, changed = pattern.subn(name, leaf)
        if changed:
            break
    return leaf


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The same two images as a folder, a Parquet file and a tar; small weights of encoders and autoencoders."""
    folder = tmp_path_factory.mktemp("place")
    save_encoders(folder)
    save_rae(folder / "rae")
    save("sd_vae", folder / "vae")
    for kind in ("t5", "qwen3", "umt5"):
        save_text_encoder(folder / kind, kind)
    (folder / "photos").mkdir()
    table = {"image": [], "text": [], "kind": [], "group": []}
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for index, pixels in enumerate(numbered(8, 8, 8)):
            data, fields = image_bytes(pixels), {"text": f"level {index}", "kind": "grey", "group": str(index)}
            for name, content in ((f"{index}.png", data), (f"{index}.json", json.dumps(fields).encode())):
                (folder / "photos" / name).write_bytes(content)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for name, value in {"image": data, **fields}.items():
                table[name].append(value)
    parquet.write_table(pa.table(table), folder / "photos.parquet")
    return folder


class Tracker:
    """In place of wandb, which is slow to start and is tested elsewhere."""

    __spec__ = ModuleSpec("wandb", None)

    @staticmethod
    def init(**given):
        return Tracker()

    def log(self, values, step):
        pass

    def finish(self):
        pass


@pytest.mark.slow
def test_every_setting_is_read_by_something(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Tracker)
    unread: dict[str, bool] = {}
    kinds: set[str] = set()
    for name, (path, overrides, use) in USES.items():
        config = load_config(path, overrides)
        folder = place / name
        folder.mkdir()
        for other in place.iterdir():
            if other.name not in USES:
                (folder / other.name).symlink_to(other)
        # Of which class a section is, its kind has said when the settings were read.
        for section in Place(Config).sections(to_plain(config)):
            kinds |= {general(".".join((*section.path, key))) for key in section.kinds.keys}
        leaves = leaf_fields(config)
        found = unread_fields(config, lambda config, use=use, folder=folder: use(config, folder))
        for leaf in leaves:
            unread[general(leaf)] = unread.get(general(leaf), True) and leaf in found
    # Sections that are left out of some uses; the leaves that they have in others were looked at.
    sections = {"data.parts"} | {name for name in unread if any(other.startswith(f"{name}.") for other in unread)}
    sections |= kinds
    assert sorted(name for name, never in unread.items() if never and name not in sections) == []
    assert len(unread) > 200
