"""Whether a published network is the one that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from configs.schema import TrunkConfig
from core.training.config import as_argument
from core.trunk.foreign import WeightFile
from core.trunk.foreign.folders import flux2_settings, wan_settings

# Kinds of files (core/trunk/foreign/kinds.py) -> trunk.kind. Others tell what they are by their shapes.
TRUNKS = {"flux2": "flux2", "flux2-diffusers": "flux2", "wan": "wan", "wan-diffusers": "wan"}
# Settings that a config.json says nothing of.
OWN = ("size", "guidance", "text_rows", "text_time", "attention")


def published_problems(file: WeightFile, kind: str, trunk: TrunkConfig) -> list[str]:
    """A line for what the network of `file` has and the trunk of the configuration has not, with what to set.

    Args:
        file: its `arguments` are the network's config.json, {} for a single file.
        kind: of the file.
    """
    wanted = TRUNKS.get(kind)
    if wanted is None:
        return []
    if trunk.kind != wanted:
        return [f"its network is {wanted}, and trunk.kind is {trunk.kind!r}; set trunk.kind={wanted}"]
    if not file.arguments:
        return []
    settings = (flux2_settings if wanted == "flux2" else wan_settings)(file.arguments)
    there, here = (_plain(entry) for entry in (settings, getattr(trunk, wanted)))
    wrong = {name: value for name, value in there.items() if here[name] != value}
    if not wrong:
        return []
    seen = ", ".join(f"{name} {value} (here {here[name]})" for name, value in wrong.items())
    setting = " ".join(as_argument(f"trunk.{wanted}.{name}", value) for name, value in wrong.items())
    return [f"its config.json has {seen}; set {setting}"]


def _plain(settings: Any) -> Mapping[str, Any]:
    found = {entry.name: getattr(settings, entry.name) for entry in fields(settings)} | settings.shape()._asdict()
    if hasattr(settings, "axes"):
        found["rope_axes"] = list(settings.axes())
    return {name: value for name, value in found.items() if name not in (*OWN, "text_width")}
