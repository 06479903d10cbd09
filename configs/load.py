"""Read a YAML file and overrides into a Config."""

from __future__ import annotations

from pathlib import Path

from configs.aliases import ALIASES
from configs.implied import heldout_settings, without_captions
from configs.methods import method_settings
from configs.schema import Config
from core.training.config import load
from modalities.data.sources import SourceConfig


def load_config(path: Path, overrides: list[str]) -> Config:
    """Schema defaults, then the method's row, then the YAML, then `overrides`; all problems in one ConfigError.

    A source of another kind replaces the one that the YAML has: their settings have nothing in common. What
    follows from other settings where it is left out: configs/implied.py.
    """
    source = SourceConfig().kind
    return load(
        Config,
        path,
        overrides,
        presets=method_settings,
        anew={"data": source, "heldout": source},
        aliases=ALIASES,
        implied=(heldout_settings, without_captions),
    )
