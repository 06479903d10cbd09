"""Alignment with frozen encoders of the clean media: REPA (arXiv 2410.06940)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from core.alignment.base import AlignmentInputs
from core.alignment.distances import DISTANCES, distance_problems
from core.alignment.weights import factor_at, is_over, schedule_problems
from core.errors import nearest
from core.trunk.projectors import PROJECTORS
from core.types import FeatureLayers, LossTerm, at_least_float32


@dataclass
class ExternalConfig:
    """
    The encoders belong to the modalities: streams.NAME.encoders.

    Attributes:
        weight: factor of the mean over the encoders of a modality (REPA: 0.5).
        similarity: cosine (REPA), or another distance of core/alignment/distances.py.
        layer: 1-based student layer; None means a third of the depth, at most 8: REPA's 4 for SiT-B and 8 for SiT-L
            and SiT-XL (sihyun-yu/REPA, issue 12).
        projector: repa (three layers, 2048 wide) or simple; one for each encoder.
        warmup: steps in which the weight rises to its value; 0 for none.
        until: steps for which the term is there; 0 for the whole run.
    """

    weight: float = 0.5
    similarity: str = "cosine"
    layer: int | None = None
    projector: str = "repa"
    warmup: int = 0
    until: int = 0

    def problems(self) -> list[str]:
        found = distance_problems(self.similarity)
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; set alignment.external: null to leave it out")
        if self.projector not in PROJECTORS:
            close = nearest(self.projector, PROJECTORS)
            found.append(f"projector: {self.projector!r} is not one of {', '.join(PROJECTORS)}.{close}")
        return found + schedule_problems(self)

    def student_layer(self, depth: int) -> int:
        return max(1, min(8, depth // 3)) if self.layer is None else self.layer

    def depth_problems(self, depth: int) -> list[str]:
        layer = self.student_layer(depth)
        return [] if 1 <= layer <= depth else [f"layer: {layer} must lie in 1..{depth}, the blocks of the trunk"]


class External:
    """One projector per encoder, all on the same student layer; the mean over the encoders of a sample's modality."""

    teacher_feature_layers, reads_targets = None, True

    def __init__(self, config: ExternalConfig, depth: int):
        self.config, self.distance = config, DISTANCES[config.similarity]
        self.layer = config.student_layer(depth)

    def feature_layers(self, targets: Collection[str]) -> FeatureLayers:
        return FeatureLayers(projected={name: self.layer for name in targets})

    def is_over(self, step: int) -> bool:
        return is_over(self.config, step)

    def __call__(self, inputs: AlignmentInputs) -> dict[str, LossTerm]:
        weight = self.config.weight * factor_at(self.config, inputs.step) / max(len(inputs.targets), 1)
        terms = {}
        for name, target in inputs.targets.items():
            prediction = at_least_float32(inputs.student.projected[name])
            total = self.distance(prediction, at_least_float32(target.detach()), inputs.loss_mask)
            terms[f"align/{name}"] = LossTerm(total, inputs.count, weight)
        return terms
