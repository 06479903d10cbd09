"""Read a YAML file and overrides into a Config."""

from __future__ import annotations

from pathlib import Path

from configs.aliases import ALIASES
from configs.defaults import padded_text, val_settings, without_captions
from configs.methods import method_settings
from configs.schema import Config
from core.training.config import load
from core.training.settings import merge
from modalities.table import stream_defaults


def _presets(user: dict) -> dict:
    return merge(method_settings(user), stream_defaults(user))


def load_config(path: Path, overrides: list[str]) -> Config:
    """Schema defaults, then the method's row, then the YAML, then `overrides`; all problems in one ConfigError.

    What follows from other settings where it is left out: configs/defaults.py.
    """
    return load(
        Config,
        path,
        overrides,
        presets=_presets,
        aliases=ALIASES,
        implied=(val_settings, without_captions, padded_text),
    )
