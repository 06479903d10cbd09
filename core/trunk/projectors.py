"""Projectors: small heads that student features go through before they are compared with a target.

A trunk owns them, because they are trained, averaged and stored with it. Each is named after what it is compared with.
The EMA teacher's is the trunk's attribute `projector`, the name that it has in the released checkpoint; the others are
`projectors.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from core.errors import choose

TEACHER = "teacher"


class SimpleHead(nn.Module):
    """The released checkpoint's projector: Linear(D, 2D), SiLU, Linear(2D, out)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear1 = nn.Linear(width, 2 * width)
        self.linear2 = nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(nn.functional.silu(self.linear1(x)))


def repa_head(width: int, out: int, hidden: int = 2048) -> nn.Sequential:
    """REPA's projector (its models/sit.py, build_mlp): three linear layers, 2048 wide, with SiLU between."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )


PROJECTORS = {"simple": SimpleHead, "repa": repa_head}


@dataclass(frozen=True)
class ProjectorSpec:
    """kind: a name of `PROJECTORS`; out: channels of what it is compared with, None for the trunk's own width."""

    kind: str = "simple"
    out: int | None = None


def build_projectors(specs: Mapping[str, ProjectorSpec], width: int) -> tuple[nn.Module | None, nn.ModuleDict]:
    """(the EMA teacher's projector or None, the others by name)."""
    built = {name: choose("projector", spec.kind, PROJECTORS)(width, spec.out or width) for name, spec in specs.items()}
    return built.pop(TEACHER, None), nn.ModuleDict(built)
