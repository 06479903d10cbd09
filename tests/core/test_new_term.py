"""What a new alignment term touches: its own file, the two rows of terms.py, and one of the method table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import core.alignment.terms as terms
from core.noising import NoiseSample
from core.objective import Objective, total_loss
from core.types import Context, FeatureLayers, LossTerm, NoiseLevels, Segment, TokenBatch, TrunkOutput

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class NormConfig:
    weight: float = 0.5

    def depth_problems(self, depth: int) -> list[str]:
        return []


class Norm:
    """The mean square of the last block's features."""

    teacher_feature_layers, reads_targets = None, False

    def __init__(self, config: NormConfig, depth: int):
        self.config, self.depth = config, depth

    def feature_layers(self, targets) -> FeatureLayers:
        return FeatureLayers(raw=(self.depth,))

    def is_over(self, step: int) -> bool:
        return False

    def __call__(self, inputs) -> dict[str, LossTerm]:
        squares = inputs.student.raw[self.depth].square().mean(-1)  # (B, L)
        return {"align/norm": LossTerm((squares * inputs.loss_mask).sum(), inputs.count, self.config.weight)}


@dataclass
class WithNorm(terms.AlignmentConfig):
    norm: NormConfig | None = None


class Threes(nn.Module):
    def forward(self, noisy, levels, batch, feature_layers):
        features = torch.full((*noisy[0].shape[:2], 4), 3.0)
        return TrunkOutput(
            tuple(torch.zeros_like(part) for part in noisy), {layer: features for layer in feature_layers.raw}
        )


def test_a_row_and_a_class_are_a_term(monkeypatch):
    monkeypatch.setitem(terms.TERMS, "norm", Norm)
    objective = Objective(terms.build_alignment(WithNorm(norm=NormConfig()), depth=2))
    segment = Segment("image", torch.ones(2, 5, 3), torch.zeros(1, 5, 3, dtype=torch.long))
    levels = NoiseLevels(torch.full((2, 1), 0.5))
    batch = TokenBatch((segment,), Context(torch.zeros(2, dtype=torch.bool)))
    losses = objective(Threes(), None, batch, NoiseSample((torch.ones(2, 5, 3),), levels, levels), {"image": 10.0})
    assert float(losses["align/norm"].mean()) == 9
    assert float(total_loss(losses)) == 0.5 * 9  # noise and data are equal, so the velocity is 0 and right


def test_a_term_is_named_in_three_files():
    for name in ("layer_sync", "dispersive"):
        naming = {
            str(path.relative_to(ROOT))
            for room in ("core", "configs", "modalities", "robotics", "tools", "autoencoders")
            for path in (ROOT / room).rglob("*.py")
            if any(form in path.read_text() for form in (f'"{name}"', f"{name}:", f"alignment.{name}"))
        }
        own = {f"core/alignment/{name}.py", "core/alignment/terms.py", "configs/methods.py"}
        # These know that a dispersive term needs two samples, and compares those of a share.
        assert naming - own <= {"configs/schema.py", "configs/build.py"}
