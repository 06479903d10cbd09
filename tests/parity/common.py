"""The golden values and the tiny published-shape model that they were made with."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from core.trunk.foreign import load_sit
from core.types import Context, Segment, TokenBatch

FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTS = FIXTURES / "selfflow_tiny.safetensors"
GRID = torch.tensor([[[0, i // 4, i % 4] for i in range(16)]])  # (1, 16, 3): (t, h, w), row-major


def golden(name):
    return load_file(FIXTURES / f"{name}.safetensors")


def golden_json(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())


def tiny_trunk():
    return load_sit(WEIGHTS, heads=4).eval()


def image_batch(x0, label, dropped=None):
    """(B, 16, 16) tokens and (B,) classes -> a batch."""
    dropped = torch.zeros(len(label), dtype=torch.bool) if dropped is None else dropped
    keys = tuple(f"sample/{i}" for i in range(len(label)))
    return TokenBatch((Segment("image", x0, GRID),), Context(dropped, label), keys)


def worst(a, b):
    """Largest absolute difference."""
    return float((a.detach().double() - b.detach().double()).abs().max())
