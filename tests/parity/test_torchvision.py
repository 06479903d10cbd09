"""Images are cut and resized on torch alone; torchvision, where it is installed, would give the same values."""

import pytest
import torch

from core.keys import generator
from modalities.image import ImageConfig, fit_frames

v2 = pytest.importorskip(
    "torchvision.transforms.v2.functional",
    reason="torchvision is not installed (extra `full`)",
    exc_type=(ImportError, OSError, RuntimeError),
)


def image(height: int, width: int) -> torch.Tensor:
    draw = generator("torchvision", height, width)
    return torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)


def resized(levels: torch.Tensor, size: list[int]) -> torch.Tensor:
    return v2.resize(levels, size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)


@pytest.mark.parametrize(
    ("size", "whole"), [((48, 48), (32, 32)), ((50, 130), (32, 83)), ((131, 40), (105, 32)), ((20, 17), (38, 32))]
)
def test_center_crop(size, whole):
    """`whole` is rounded; torchvision, asked for the short side, would cut the long one down to an integer."""
    pixels = image(*size)
    ours = fit_frames(pixels.numpy()[None], ImageConfig([32]), "picture", torch.Generator())[0]
    theirs = resized(pixels.permute(2, 0, 1), list(whole))
    top, left = ((side - 32) // 2 for side in whole)
    assert torch.equal(ours, theirs[:, top : top + 32, left : left + 32] / 127.5 - 1)


def test_pad():
    pixels = image(50, 100)
    config = ImageConfig([32], crop="pad", background=[10, 20, 30])
    ours = fit_frames(pixels.numpy()[None], config, "picture", torch.Generator())[0]
    inside = resized(pixels.permute(2, 0, 1), [16, 32])
    assert torch.equal(ours[:, 8:24], inside / 127.5 - 1)
    background = torch.tensor([10, 20, 30]).view(3, 1, 1) / 127.5 - 1
    assert torch.equal(ours[:, :8], background.expand(3, 8, 32))
