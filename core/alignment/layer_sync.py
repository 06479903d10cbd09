"""LayerSync (arXiv 2510.12581): an early layer of the student against one of its own deeper layers, detached."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from core.alignment.base import AlignmentInputs
from core.alignment.distances import DISTANCES, distance_problems
from core.alignment.weights import factor_at, is_over, schedule_problems
from core.trunk.layers import layer_fraction
from core.types import FeatureLayers, LossTerm, at_least_float32


@dataclass
class LayerSyncConfig:
    """
    Attributes:
        weight: factor of the term (its train.py: 0.2).
        similarity: cosine, or another distance of core/alignment/distances.py.
        layer, target_layer: 1-based; None means round(2/7 depth) and round(4/7 depth), the 8 and 16 of 28 that its
            README trains SiT-XL with. There is no projector.
        warmup: steps in which the weight rises to its value; 0 for none.
        until: steps for which the term is there; 0 for the whole run.
    """

    weight: float = 0.2
    similarity: str = "cosine"
    layer: int | None = None
    target_layer: int | None = None
    warmup: int = 0
    until: int = 0

    def problems(self) -> list[str]:
        found = distance_problems(self.similarity)
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; set alignment.layer_sync: null to leave it out")
        return found + schedule_problems(self)

    def layers(self, depth: int) -> tuple[int, int]:
        """(layer, target layer) in a trunk of `depth` blocks."""
        return (
            layer_fraction(2 / 7, depth) if self.layer is None else self.layer,
            layer_fraction(4 / 7, depth) if self.target_layer is None else self.target_layer,
        )

    def depth_problems(self, depth: int) -> list[str]:
        """Equal layers, the default of its argument parser, would be a loss without a gradient."""
        layer, target = self.layers(depth)
        if 1 <= layer < target <= depth:
            return []
        usual = "left out, they are {} and {}".format(*LayerSyncConfig().layers(depth))
        return [f"need 1 <= layer < target_layer <= depth, got {layer}, {target}, {depth}; {usual}"]


class LayerSync:
    teacher_feature_layers, reads_targets = None, False

    def __init__(self, config: LayerSyncConfig, depth: int):
        self.config, self.distance = config, DISTANCES[config.similarity]
        self.layer, self.target_layer = config.layers(depth)

    def feature_layers(self, targets: Collection[str]) -> FeatureLayers:
        return FeatureLayers(raw=(self.layer, self.target_layer))

    def is_over(self, step: int) -> bool:
        return is_over(self.config, step)

    def __call__(self, inputs: AlignmentInputs) -> dict[str, LossTerm]:
        early, deep = (
            at_least_float32(inputs.student.raw[layer]) for layer in (self.layer, self.target_layer)
        )  # (B, L, D)
        total = self.distance(early, deep.detach(), inputs.loss_mask)
        weight = self.config.weight * factor_at(self.config, inputs.step)
        return {"align/layer_sync": LossTerm(total, inputs.count, weight)}
