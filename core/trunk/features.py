"""Collects the hidden features that a caller asks for, while the blocks of a trunk run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from core.errors import ConfigError
from core.trunk.projectors import TEACHER
from core.types import FeatureLayers, TrunkOutput


class Features:
    """
    Args:
        feature_layers: what is wanted.
        depth: blocks of the trunk.
        projector, projectors: the trunk's, see core/trunk/projectors.py.

    Raises:
        ConfigError: a layer does not exist or would not be reached, or a projector does not exist.
    """

    def __init__(
        self, feature_layers: FeatureLayers, depth: int, projector: nn.Module | None, projectors: nn.ModuleDict
    ):
        self.feature_layers = feature_layers
        self.heads = dict(projectors.items()) | ({} if projector is None else {TEACHER: projector})
        self.raw: dict[int, Tensor] = {}
        self.projected: dict[str, Tensor] = {}
        last = depth if feature_layers.stop_after is None else feature_layers.stop_after
        for layer in (*feature_layers.raw, *feature_layers.projected.values(), last):
            if not 1 <= layer <= last or last > depth:
                raise ConfigError(
                    f"layer {layer} is outside 1..{min(last, depth)} (layers count the blocks done, depth {depth})"
                )
        for name in feature_layers.projected:
            if name not in self.heads:
                raise ConfigError(f"projector {name!r} is not one of the trunk's: {', '.join(self.heads) or 'none'}")

    def last(self, layer: int, tokens: Tensor, restore: Callable[[Tensor], Tensor]) -> bool:
        """Keep what is wanted of this layer's output; True when it is the last one wanted.

        `restore` turns it into features (B, L, D) of the tokens in the caller's order.
        """
        wanted = [name for name, tapped in self.feature_layers.projected.items() if tapped == layer]
        if wanted or layer in self.feature_layers.raw:
            tokens = restore(tokens)
        if layer in self.feature_layers.raw:
            self.raw[layer] = tokens
        for name in wanted:
            self.projected[name] = self.heads[name](tokens)
        return layer == self.feature_layers.stop_after

    def output(self, velocity: tuple[Tensor, ...] | None) -> TrunkOutput:
        return TrunkOutput(velocity, self.raw, self.projected)
