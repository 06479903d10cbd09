"""What every autoencoder offers, with or without weights, and the whitening of its latents.

Media tensors: image (B, 3, H, W) and video (B, T, 3, H, W) in [-1, 1], audio (B, channels, samples). Their size is
named by three numbers (t, h, w): (1, H, W), (T, H, W) or (samples, 1, 1). Latents are tokens (B, N, C) in the order
(t h w) of the autoencoder's grid. Raw latents are what is stored; whitening is applied when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.errors import DataError, ShapeError

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Whitening:
    """Per-channel shift and scale that give latents mean 0 and standard deviation 1.

    Attributes:
        mean: (C,) float32.
        std: (C,) float32, above 0.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self):
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ShapeError(
                f"Whitening: expected mean and std of one shape (C,), got {tuple(self.mean.shape)} "
                f"and {tuple(self.std.shape)}"
            )
        if not bool(self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ShapeError("Whitening: mean must be finite and std finite and above 0")

    @classmethod
    def from_latents(cls, latents: Iterable[Tensor], floor: float = 0.01) -> Whitening:
        """Statistics over all tokens of an iterable of raw latents (B, N, C), accumulated in float64.

        A channel that hardly varies would be blown up to the loudness of the others, together with its rounding
        errors, so a std is at least `floor` times the root mean square of all of them.

        Raises:
            DataError: no latents, values that are not finite, or latents that are all equal.
        """
        count = 0
        mean = squares = torch.zeros(())
        for batch in latents:
            tokens = batch.detach().to("cpu", torch.float64).flatten(0, -2)  # (B N, C)
            if not bool(tokens.isfinite().all()):
                raise DataError("whitening: the latents hold values that are not finite")
            # Statistics of this part, merged with those so far (Chan, Golub, LeVeque 1979): no cancellation.
            total = count + tokens.shape[0]
            difference = tokens.mean(dim=0) - mean
            mean = mean + difference * (tokens.shape[0] / total)
            squares = squares + tokens.var(dim=0, unbiased=False) * tokens.shape[0]
            squares = squares + difference.square() * (count * tokens.shape[0] / total)
            count = total
        if count == 0:
            raise DataError("whitening: there are no latents to measure")
        variance = squares / count
        lowest = floor * variance.mean().sqrt()
        if not lowest > 0:
            raise DataError(f"whitening: all {count} latent tokens are equal, so there is nothing to learn")
        return cls(mean.float(), variance.sqrt().clamp_min(lowest).float())

    def whiten(self, latents: Tensor) -> Tensor:
        """Raw (..., C) -> whitened (..., C), same dtype."""
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def unwhiten(self, latents: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return latents * self.std.to(latents) + self.mean.to(latents)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for JSON; `from_dict` gives back the same bits."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Whitening:
        return cls(torch.tensor(values["mean"]), torch.tensor(values["std"]))


@dataclass(frozen=True)
class LatentSpec:
    """The latents of an autoencoder.

    Attributes:
        channels: C of one token.
        stride: frames or samples, rows and columns that one token stands for.
        whitening: statistics published with the weights, or None where the training data is measured.
    """

    channels: int
    stride: Size
    whitening: Whitening | None = None


class Autoencoder(Protocol):
    """Media to raw latent tokens and back."""

    spec: LatentSpec

    def grid(self, size: Size) -> Size:
        """Tokens along (t, h, w) for media of a size; raises ShapeError and names the nearest legal sizes."""

    def encode(self, media: Tensor) -> Tensor:
        """(B, *media) -> raw latents (B, N, C)."""

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        """Raw latents (B, N, C) -> (B, *media) of that size."""


def divide(what: str, length: int, stride: int, alone: int = 0) -> int:
    """How many strides make up `length`, after `alone` units that a first token holds for itself.

    >>> divide("frames", 9, 4, alone=1)
    2
    """
    strides, rest = divmod(length - alone, stride)
    if rest or strides + alone < 1:
        lower, upper = alone + strides * stride, alone + (strides + 1) * stride
        legal = f"{lower} or {upper}" if strides + alone >= 1 else f"{upper}"
        form = f"{alone} plus a multiple of {stride}" if alone else f"a multiple of {stride}"
        raise ShapeError(f"{what}: {length} is not {form}; the nearest legal sizes: {legal}")
    return strides


def check_media(owner: str, media: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuse media whose shape is not `shape`, in which None stands for any length above 0."""
    fits = media.ndim == len(shape) and all(
        seen > 0 and wanted in (None, seen) for seen, wanted in zip(media.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise ShapeError(f"{owner}: expected media of shape ({expected}), got {tuple(media.shape)}")


def check_latents(owner: str, latents: Tensor, grid: Size, channels: int) -> None:
    """Refuse latents that are not (B, product of the grid, channels)."""
    tokens = grid[0] * grid[1] * grid[2]
    if latents.ndim != 3 or tuple(latents.shape[1:]) != (tokens, channels):
        raise ShapeError(f"{owner}: expected latents (B, {tokens}, {channels}), got {tuple(latents.shape)}")
