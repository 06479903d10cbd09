"""An alignment term of your own: features of the two halves of a batch that show the same sample are made to agree.

python docs/examples/custom_alignment.py [STEPS]
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch

import selfflow as sf


class TwoViews:
    """Rows i and i + B/2 are the same sample under other noise; their mean features should point the same way."""

    teacher_feature_layers = None  # no pass of the EMA teacher
    reads_targets = False  # no frozen encoders

    def __init__(self, layer: int, weight: float):
        self.layer, self.weight = layer, weight

    def feature_layers(self, targets: Collection[str]) -> sf.FeatureLayers:
        return sf.FeatureLayers(raw=(self.layer,))

    def is_over(self, step: int) -> bool:
        return False

    def __call__(self, inputs: sf.AlignmentInputs) -> dict[str, sf.LossTerm]:
        features = inputs.student.raw[self.layer].float().mean(dim=1)  # (B, L, D) -> (B, D)
        first, second = features.chunk(2)
        total = (1 - torch.cosine_similarity(first, second, dim=-1)).sum()
        return {"align/two_views": sf.LossTerm(total, len(first), self.weight)}


def main(steps: int = 50) -> None:
    method = sf.method("flow_matching")
    student = sf.SiT(sf.SiTConfig(width=64, depth=4, heads=4, grid=4, num_classes=2))
    objective = sf.Objective([TwoViews(layer=2, weight=0.5)])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for step in range(steps):
        latents = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(step))
        batch = sf.token_batch(latents.repeat(2, 1, 1), (1, 4, 4), label=torch.zeros(16, dtype=torch.long))
        terms = objective(student, None, batch, sf.draw(batch, method.noising, seed=step))
        sf.total_loss(terms).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(", ".join(f"{name} {term.mean().item():.3f}" for name, term in terms.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
