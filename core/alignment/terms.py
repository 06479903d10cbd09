"""Which alignment terms a run has: every section that is present is one, and their losses add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from core.alignment.base import AlignmentTerm
from core.alignment.dispersive import VARIANTS, Dispersive, DispersiveConfig
from core.alignment.ema_teacher import EmaTeacher, EmaTeacherConfig
from core.alignment.external import External, ExternalConfig
from core.alignment.layer_sync import LayerSync, LayerSyncConfig
from core.kinds import kinds


@dataclass
class AlignmentConfig:
    """
    Attributes:
        ema_teacher: a deeper layer of the EMA teacher, which sees a cleaner sample (Self-Flow, SRA).
        external: frozen encoders of the clean media (REPA).
        layer_sync: one of the student's own deeper layers (LayerSync).
        dispersive: features of different samples are pushed apart (Dispersive Loss).
    """

    ema_teacher: EmaTeacherConfig | None = None
    external: ExternalConfig | None = None
    layer_sync: LayerSyncConfig | None = None
    dispersive: DispersiveConfig | None = field(default=None, metadata=kinds(VARIANTS, "variant", keeps=True))

    def depth_problems(self, depth: int) -> list[str]:
        """What only shows once the depth of the trunk is known."""
        return [f"{name}: {line}" for name in self.present() for line in getattr(self, name).depth_problems(depth)]

    def present(self) -> list[str]:
        """Names of the sections that are set."""
        return [entry.name for entry in fields(self) if getattr(self, entry.name) is not None]


TERMS: dict[str, Callable[[Any, int], AlignmentTerm]] = {
    "ema_teacher": EmaTeacher,
    "external": External,
    "layer_sync": LayerSync,
    "dispersive": Dispersive,
}


def build_alignment(config: AlignmentConfig, depth: int) -> list[AlignmentTerm]:
    """The terms of a run in a trunk of `depth` blocks; none for plain flow matching."""
    return [TERMS[name](getattr(config, name), depth) for name in config.present()]
