"""From configurations to objects: the method table, the recipes in the repository, and that every setting is read."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import configs
from configs.build import build_trainer, context_config, free_on_resume, load_run
from configs.load import load_config
from configs.methods import METHODS
from core.errors import ConfigError
from core.training.config import to_plain
from modalities.data.sources import build_source
from modalities.generation import generate
from tests.field_reads import unread_fields
from tests.modalities.making import numbered, picture_bytes
from tests.tools.tiny import CONFIG

RECIPES = sorted(Path(configs.__file__).parent.glob("*.yaml"))
SIT = CONFIG.with_name("tiny_sit.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_loads_with_every_method(path, method):
    plain = load_config(path, ["method=flow_matching"])
    encoders = {"image": "dinov2", "video": "vjepa2", "audio": "mert"} if method == "repa" else {}
    present = {name: kind for name, kind in encoders.items() if name in plain.modalities.streams()}
    overrides = [f"modalities.{name}.encoders.a={{kind: {kind}, path: weights}}" for name, kind in present.items()]
    config = load_config(path, [f"method={method}", *overrides])
    assert config.noising.kind == METHODS[method]["noising"]["kind"]
    assert config.alignment.present() == list(METHODS[method].get("alignment", {}))


def test_a_method_is_a_row_under_the_users_own_settings(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("method: self_flow\nmodalities: {image: {}}\nalignment: {ema_teacher: {weight: 0.5}}\n")
    config = load_config(path, [])
    assert (config.noising.kind, config.noising.mask) == ("dual", "bernoulli")
    assert (config.alignment.ema_teacher.similarity, config.alignment.ema_teacher.weight) == ("cosine", 0.5)
    config = load_config(path, ["alignment.ema_teacher=null"])
    assert (config.noising.kind, config.alignment.present()) == ("dual", [])
    path.write_text("modalities: {image: {batch: 4}}\n")
    assert load_config(path, []).alignment.ema_teacher.weight == 0.8  # Self-Flow is the default
    config = load_config(path, ["method=flow_matching", "noising.kind=full_masking", "alignment.dispersive={}"])
    assert (config.noising.kind, config.alignment.present()) == ("full_masking", ["dispersive"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=repa"], "modalities.image.encoders: empty; alignment.external needs one"),
        (["modalities.image.encoders.a.path=x"], "encoders: a are not read without alignment.external"),
        (["method=sra", "alignment.ema_teacher=null"], "noising.teacher: 'earlier' is not read without"),
        (["training.ema.decay=0"], "training.ema.decay: 0 makes the teacher the student itself"),
        (["modalities.image.time.buckets=100"], "time.buckets: 100 makes t and s agree; not with noising.kind dual"),
        (["method=dispersive", "modalities.image.batch=1"], "alignment.dispersive needs 2 or more samples"),
        (["method=self_flow_as", "noising.mask=bernoulli"], "attention_separation: needs mask exact"),
        (["method=self_flow_as", "noising.kind=homogeneous"], "attention_separation: needs kind dual"),
        (["method=self_flow_as", "noising.homogeneous_share=0.2"], "would put samples of one group among"),
        (["modalities.image.mask_ratio=0"], "mask_ratio: 0.0 must lie in (0, 0.5]"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(overrides, expected, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("modalities: {image: {batch: 4}}\n")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(path, overrides)


def test_a_run_needs_a_modality(tmp_path):
    path = tmp_path / "none.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="modalities: nothing to train on"):
        load_config(path, [])


def test_the_length_is_free_without_a_cooldown_only():
    assert "training.steps" in free_on_resume(load_config(CONFIG, []))
    assert "training.steps" not in free_on_resume(load_config(CONFIG, ["training.optimizer.cooldown=2"]))


def test_what_conditions_the_trunk_follows_from_the_condition():
    config = load_config(CONFIG, [])
    text = context_config(config.condition, classes=0)
    assert (text.kind, text.vocabulary, text.words, text.encoder_depth) == ("tokens", 64, 6, 1)
    config.condition.kind = "label"
    assert context_config(config.condition, classes=7).num_classes == 7


def test_labels_need_classes(tmp_path):
    (tmp_path / "a").mkdir()
    config = load_config(CONFIG, [f"run={tmp_path / 'run'}", "condition.kind=label"])
    config.modalities.image = config.modalities.video = None
    trainer = build_trainer(config, tmp_path)
    assert len(trainer.extra["labels"]) == 216
    assert trainer.extra["labels"] == sorted(trainer.extra["labels"])


def train_and_generate(folder: Path):
    """Use a configuration as `selfflow train` and `selfflow generate` do, for a few steps."""

    def action(config) -> None:
        config.run = str(folder / "run")
        build_trainer(config, folder).fit()
        loaded = load_run(folder / "run")
        asked = loaded.generator.conditions.labels or ["a cat"]
        for name, stream in loaded.config.modalities.streams().items():
            list(generate(loaded.generator, name, asked[:1], stream.sampling, seed=0))

    return action


def open_data(folder: Path):
    return lambda config: build_source(config.modalities.image.data, "image", folder).read(0)


def media_files(folder: Path) -> None:
    """The same two pictures as a folder, a Parquet file and a tar."""
    (folder / "photos").mkdir()
    table = {"image": [], "text": [], "kind": [], "group": []}
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for index, pixels in enumerate(numbered(8, 8, 8)):
            data, fields = picture_bytes(pixels), {"text": f"level {index}", "kind": "grey", "group": str(index)}
            for name, content in ((f"{index}.png", data), (f"{index}.json", json.dumps(fields).encode())):
                (folder / "photos" / name).write_bytes(content)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for name, value in {"image": data, **fields}.items():
                table[name].append(value)
    parquet.write_table(pa.table(table), folder / "photos.parquet")


NAMES = ("image", "video", "audio")
SELECTED = "caption_fields: [text], where: {kind: grey}, split: train, holdout: 0.3, holdout_key: group"
DATA = "modalities.image.data="
PLAIN = ["modalities.image.data.size=16", "modalities.image.data.count=100000"]  # other kinds refuse other values
# One use for each branch that reads settings of its own: (configuration, overrides, how it is used).
USES = {
    "joint": (CONFIG, [f"modalities.{name}.sampling.guidance=2" for name in NAMES], train_and_generate),
    "other times": (
        CONFIG,
        [
            *(f"modalities.{name}.time={{kind: logit_normal, high_noise_share: 0.5}}" for name in NAMES),
            *("noising.s_within=0.2", "training.optimizer.warmup=2", "training.optimizer.cooldown=2"),
            *("modalities.video.data.frames=2", "modalities.video.media.short=repeat_last"),  # shorter than a clip
            "modalities.audio.media.seconds=0.4",
            *("modalities.image.sampling.solver=sde", "modalities.video.sampling.solver=heun"),
            "modalities.audio.sampling.solver=dopri5",
            *("logging.wandb=offline", "modalities.image.media.crop=pad", "modalities.video.media.crop=random"),
        ],
        train_and_generate,
    ),
    "sit": (SIT, [], train_and_generate),
    "folder": (CONFIG, [*PLAIN, f"{DATA}{{kind: folder, path: photos, caption_default: x, {SELECTED}}}"], open_data),
    "caption": (CONFIG, [*PLAIN, f"{DATA}{{kind: folder, path: photos, caption: grey}}"], open_data),
    "parquet": (
        CONFIG,
        [*PLAIN, f"{DATA}{{kind: parquet, path: photos.parquet, media_field: image, label_field: kind, {SELECTED}}}"],
        open_data,
    ),
    "webdataset": (
        CONFIG,
        [*PLAIN, f"{DATA}{{kind: webdataset, path: photos.tar, members: '*.png', {SELECTED}}}"],
        open_data,
    ),
    "concat": (CONFIG, [*PLAIN, f"{DATA}{{kind: concat, parts: {{one: {{kind: embedded, repeat: 2}}}}}}"], open_data),
}


def test_every_setting_is_read_by_something(tmp_path, monkeypatch):
    class Tracker:  # the package itself is slow to start and is tested elsewhere
        __spec__ = ModuleSpec("wandb", None)

        @staticmethod
        def init(**given):
            return Tracker()

        def log(self, values, step):
            pass

        def finish(self):
            pass

    monkeypatch.setitem(sys.modules, "wandb", Tracker)
    unread: dict[str, bool] = {}
    for name, (path, overrides, use) in USES.items():
        folder = tmp_path / name
        folder.mkdir()
        media_files(folder)
        config = load_config(path, overrides)
        found = unread_fields(config, use(folder))
        for leaf in leaves(to_plain(config)):
            # All modalities have one class of settings; what one of them reads, the class needs.
            general = re.sub(r"^modalities\.\w+\.(data|time|sampling)\.(parts\.one\.)?", r"\1.", leaf)
            unread[general] = unread.get(general, True) and leaf in found
    # Read where it is chosen, in the file and on the command line: configs/methods.py.
    assert unread.pop("method")
    # A section, not a leaf, where it is not empty; its own leaves were looked at.
    assert unread.pop("data.parts")
    assert [leaf for leaf, never in unread.items() if never] == []
    assert len(unread) > 100


def leaves(config: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in config.items():
        section = isinstance(value, dict) and value and name != "where"
        found |= leaves(value, f"{prefix}{name}.") if section else {f"{prefix}{name}"}
    return found
