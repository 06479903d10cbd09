"""What every alignment term offers, and what it is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from core.types import FeatureLayers, LossTerm, TrunkOutput


@dataclass(frozen=True)
class AlignmentInputs:
    """All that a term may look at.

    Attributes:
        student: its output, with the features that the terms asked for.
        teacher: the same of the EMA teacher; None when no term needs it.
        targets: name -> (B, L, D') features of the clean media by a frozen encoder.
        loss_mask: (B, L) bool, tokens that enter a mean.
        count: how many these are in the whole global batch.
        step: finished optimizer steps, for weights that change.
    """

    student: TrunkOutput
    teacher: TrunkOutput | None
    targets: Mapping[str, Tensor]
    loss_mask: Tensor
    count: float
    step: int


class AlignmentTerm(Protocol):
    """A term says which features it needs and turns them into a loss. The objective runs the networks."""

    @property
    def teacher_feature_layers(self) -> FeatureLayers | None:
        """Layers of the EMA teacher to return; None runs no teacher."""
        ...

    @property
    def reads_targets(self) -> bool:
        """Whether the term reads features of frozen encoders."""
        ...

    def feature_layers(self, targets: Collection[str]) -> FeatureLayers:
        """Layers of the student to return, when there are external targets of these names."""
        ...

    def is_over(self, step: int) -> bool:
        """Whether the weight stays 0 after `step` steps; the term is then left out, with whatever only it needs."""
        ...

    def __call__(self, inputs: AlignmentInputs) -> dict[str, LossTerm]:
        """Loss terms by name; a term of weight 0 is a diagnostic."""
        ...


def merge_feature_layers(all_layers: Collection[FeatureLayers]) -> FeatureLayers:
    """What several terms need of one network, in one forward; it stops early only if all of them stop."""
    raw = sorted({layer for feature_layers in all_layers for layer in feature_layers.raw})
    projected = {name: layer for feature_layers in all_layers for name, layer in feature_layers.projected.items()}
    stops = [feature_layers.stop_after for feature_layers in all_layers if feature_layers.stop_after is not None]
    stop = max(stops) if stops and len(stops) == len(all_layers) else None
    return FeatureLayers(tuple(raw), projected, stop)
