"""From configurations to objects: the method table, the recipes in the repository, and that every setting is read."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

import configs
from configs.assembly.conditions import context_config
from configs.build import build_trainer, free_on_resume
from configs.load import load_config
from configs.methods import METHODS
from core.errors import ConfigError
from tests.thinned import thinned
from tests.tools.tiny import CONFIG

RECIPES = sorted(Path(configs.__file__).parent.glob("*.yaml"))
SIT = CONFIG.with_name("tiny_sit.yaml")


@pytest.mark.parametrize(("path", "method"), thinned(product(RECIPES, METHODS), 5))
def test_every_recipe_loads_with_every_method(path, method):
    plain = load_config(path, ["method=flow_matching"])
    encoders = {"image": "dinov2", "video": "vjepa2", "audio": "mert"} if method == "repa" else {}
    present = {name: kind for name, kind in encoders.items() if name in plain.streams}
    overrides = [f"streams.{name}.encoders.a={{kind: {kind}, path: weights}}" for name, kind in present.items()]
    if present and any(stream.data.holds_latents for stream in plain.streams.values()):
        with pytest.raises(ConfigError, match="a look at media, and data of stored latents hold none"):
            load_config(path, [f"method={method}", *overrides])
        return
    if method == "repa" and any(stream.parts for stream in plain.streams.values()):
        with pytest.raises(ConfigError, match="external looks at the media of one part"):
            load_config(path, [f"method={method}", *overrides])
        return
    if method == "self_flow_as":  # groups of tokens leave none to be given
        given = {name: stream.drawn_modes() for name, stream in plain.streams.items()}
        overrides += [f"streams.{name}.modes.{row}=0" for name, rows in given.items() for row in rows]
        if any(part.given for name, stream in plain.streams.items() for part in stream.named_parts(name).values()):
            with pytest.raises(ConfigError, match="would belong to no group"):
                load_config(path, [f"method={method}", *overrides])
            return
    config = load_config(path, [f"method={method}", *overrides])
    assert config.noising.kind == METHODS[method]["noising"]["kind"]
    assert config.alignment.present() == list(METHODS[method].get("alignment", {}))


def test_a_method_is_a_row_under_the_users_own_settings(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("method: self_flow\nstreams: {image: {}}\nalignment: {ema_teacher: {weight: 0.5}}\n")
    config = load_config(path, [])
    assert (config.noising.kind, config.noising.mask) == ("dual", "bernoulli")
    assert (config.alignment.ema_teacher.similarity, config.alignment.ema_teacher.weight) == ("cosine", 0.5)
    config = load_config(path, ["alignment.ema_teacher=null"])
    assert (config.noising.kind, config.alignment.present()) == ("dual", [])
    path.write_text("streams: {image: {batch: 4}}\n")
    assert load_config(path, []).alignment.ema_teacher.weight == 0.8  # Self-Flow is the default
    config = load_config(path, ["method=flow_matching", "noising.kind=full_masking", "alignment.dispersive={}"])
    assert (config.noising.kind, config.alignment.present()) == ("full_masking", ["dispersive"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=repa"], "streams.image.encoders: empty; alignment.external needs one"),
        (["streams.image.encoders.a.path=x"], "encoders: a are not read without alignment.external"),
        (["method=sra", "alignment.ema_teacher=null"], "noising.teacher: 'earlier' is not read without"),
        (["training.ema.decay=0"], "training.ema.decay: 0 makes the teacher the student itself"),
        (
            ["streams.image.timestep.buckets=100"],
            "timestep.buckets: 100 makes t and s agree; not with noising.kind dual",
        ),
        (["method=dispersive", "streams.image.batch=1"], "alignment.dispersive needs 2 or more samples"),
        (["method=self_flow_as", "noising.mask=bernoulli"], "attention_separation: needs mask exact"),
        (
            ["method=self_flow_as", "noising.kind=homogeneous", "noising.attention_separation=true"],
            "attention_separation: unknown key of kind 'homogeneous'",
        ),
        (["method=self_flow_as", "noising.homogeneous_prob=0.2"], "would put samples of one group among"),
        (
            ["method=self_flow_as", "streams.video.modes={first_frame: 0.5}"],
            "modes: tokens of first_frame would belong to no group",
        ),
        (["streams.image.mask_ratio=0"], "mask_ratio: 0.0 must lie in (0, 0.5]"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(overrides, expected, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("streams: {image: {batch: 4}}\n")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(path, overrides)


def test_a_run_needs_a_stream(tmp_path):
    path = tmp_path / "none.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"streams: empty; name at least one, such as streams\.image"):
        load_config(path, [])


def test_data_may_move_also_as_parts_of_a_concat():
    parts = "{kind: concat, parts: {a: {kind: folder, path: x}, b: {kind: concat, parts: {c: {count: 3}}}}}"
    free = free_on_resume(load_config(CONFIG, [f"streams.image.data={parts}"]))
    for key in ("path", "parts.a.path", "parts.a.cache_limit", "parts.b.parts.c.path"):
        assert f"streams.image.data.{key}" in free
    assert "streams.image.data.parts.a.kind" not in free


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
    del config.streams["image"], config.streams["video"]
    trainer = build_trainer(config, tmp_path)
    assert len(trainer.extra["labels"]) == 216
    assert trainer.extra["labels"] == sorted(trainer.extra["labels"])
