"""Every number of the whole schema that may have a fraction is refused where it is NaN or infinite."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator

import pytest

from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from modalities.conditioning.conditions import CONDITIONS
from modalities.table import MODALITIES
from tests.tools.tiny import CONFIG

# Names of sections that a user names: a stream of each modality, and one of several parts.
NAMES = {"streams": (*MODALITIES, "clips"), "parts": tuple(MODALITIES)}


def float_keys(schema: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Dotted key of every float in a tree of dataclasses, and whether it is a list of them."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, inner = hints[field.name], (*path, field.name)
        if path[:1] == ("streams",) and len(path) == 2 and field.name == ("media" if path[1] == "clips" else "parts"):
            continue  # there is the one or the other
        if choose := field.metadata.get("section"):
            hint = choose({}, path[-1])
        if field.name == "condition":  # the configuration below has the first kind, text
            hint = CONDITIONS["text"]
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(argument for argument in typing.get_args(hint) if argument is not types.NoneType)
        kind, arguments = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            if hint is not schema:
                yield from float_keys(hint, inner)
        elif kind is dict and dataclasses.is_dataclass(arguments[1]) and arguments[1] is not schema:
            for name in NAMES.get(field.name, ("entry",)):
                yield from float_keys(arguments[1], (*inner, name))
        elif kind is dict and arguments[1] is float:
            yield ".".join((*inner, "entry")), False
        elif hint is float or (kind is list and arguments[0] is float):
            yield ".".join(inner), kind is list


KEYS = dict(float_keys(Config))


def test_the_walk_finds_what_is_there():
    assert {"training.optimizer.lr", "training.optimizer.betas", "streams.image.sampling.shift"} <= set(KEYS)
    assert {"streams.video.condition_noise", "trunk.mmdit.rope_theta", "condition.cfg_dropout"} <= set(KEYS)
    assert {"streams.video.media.fps", "streams.audio.media.seconds", "streams.clips.parts.audio.loss_weight"} <= set(
        KEYS
    )
    assert "streams.clips.modes.entry" in KEYS
    assert len(KEYS) > 90


@pytest.mark.parametrize("value", ["nan", ".inf", "-.inf", "1e999"])
def test_every_number_is_finite(value):
    overrides = [f"{key}={f'[{value}]' if is_list else value}" for key, is_list in KEYS.items()]
    with pytest.raises(ConfigError) as error:
        load_config(CONFIG, overrides)
    for key, is_list in KEYS.items():
        about = [line for line in error.value.problems if f"': {key}{'.0' * is_list}: " in line]
        # One line each: "nan must be above 0" beside it would mislead.
        assert len(about) == 1, key
        assert about[0].endswith(" is not a finite number")
