"""What every autoencoder offers, with or without weights, and the normalization of its latents.

Media tensors: image (B, 3, H, W) and video (B, T, 3, H, W) in [-1, 1], audio (B, channels, samples). Their size is
named by three numbers (t, h, w): (1, H, W), (T, H, W) or (samples, 1, 1). Latents are tokens (B, N, C) in the order
(t h w) of the autoencoder's grid. Raw latents are what is stored; normalization is applied when they are read.

An autoencoder with weights knows its grid and its channels without them: they are read at the first `encode` or
`decode`, so that a configuration can be checked, and a trunk be built, where the weights are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.errors import DataError, ShapeError

Size = tuple[int, int, int]


class Moments:
    """Mean and variance of every channel over any number of latents, accumulated in float64.

    Attributes:
        count: tokens so far.
        mean: (C,) float64 of these; a scalar 0 before the first.
        squares: (C,) float64, sum of the squared differences from the mean.
    """

    def __init__(self, count: int = 0, mean: Tensor | None = None, squares: Tensor | None = None):
        self.count = count
        self.mean = torch.zeros(()) if mean is None else mean
        self.squares = torch.zeros(()) if squares is None else squares

    def add(self, latents: Tensor, deviation: Tensor | None = None) -> None:
        """Latents (..., N, C), or with `deviation` the normal distributions around them that are sampled from.

        Raises DataError for values that are not finite.
        """
        tokens = _rows(latents)
        spread = None if deviation is None else _rows(deviation)
        if not all(bool(values.isfinite().all()) for values in (tokens, spread) if values is not None):
            raise DataError("normalization: the latents hold values that are not finite")
        count, squares = tokens.shape[0], tokens.var(dim=0, unbiased=False) * tokens.shape[0]
        if spread is not None:  # the variance of samples is that of their means plus the mean of their variances
            squares = squares + spread.square().sum(dim=0)
        self.merge(Moments(count, tokens.mean(dim=0), squares))

    def merge(self, other: Moments) -> None:
        """The statistics of both sets together (Chan, Golub, LeVeque 1979): no cancellation."""
        total = self.count + other.count
        if total == 0:
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.count / total)
        self.squares = self.squares + other.squares
        self.squares = self.squares + difference.square() * (self.count * other.count / total)
        self.count = total


def _rows(latents: Tensor) -> Tensor:
    """(..., N, C) -> (B N, C) float64 on the CPU."""
    return latents.detach().to("cpu", torch.float64).flatten(0, -2)


@dataclass(frozen=True)
class LatentNormalization:
    """Shift and scale, of every channel or of every token's channels, that give latents mean 0 and deviation 1.

    Attributes:
        mean: (C,), or (N, C) for statistics that depend on the position; float32.
        std: of the same shape, above 0.
        low, high: of the same shape, raw values beyond which `normalize` clips; infinite for a channel that is not
            clipped. Where both are equal the channel is constant, and `denormalize` returns its constant. None: there
            is no clipping.
        digest: of the file that they were read from; "" for measured or published ones.
    """

    mean: Tensor
    std: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    digest: str = ""

    def __post_init__(self):
        if self.mean.ndim not in (1, 2) or self.mean.shape != self.std.shape:
            raise ShapeError(
                f"LatentNormalization: expected mean and std of one shape (C,) or (N, C), got {tuple(self.mean.shape)} "
                f"and {tuple(self.std.shape)}"
            )
        if not bool(self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ShapeError("LatentNormalization: mean must be finite and std finite and above 0")
        if (self.low is None) != (self.high is None):
            raise ShapeError("LatentNormalization: low and high go together")
        if self.low is not None and self.high is not None:
            if not self.low.shape == self.high.shape == self.mean.shape:
                raise ShapeError(
                    f"LatentNormalization: expected low and high of the shape {tuple(self.mean.shape)}, got "
                    f"{tuple(self.low.shape)} and {tuple(self.high.shape)}"
                )
            if not bool((self.low <= self.high).all()):
                raise ShapeError("LatentNormalization: low must not lie above high")

    @classmethod
    def from_latents(cls, latents: Iterable[Tensor], floor: float = 0.01) -> LatentNormalization:
        """Statistics over all tokens of an iterable of raw latents (B, N, C); see `from_moments`."""
        moments = Moments()
        for batch in latents:
            moments.add(batch)
        return cls.from_moments(moments, floor)

    @classmethod
    def from_moments(cls, moments: Moments, floor: float = 0.01) -> LatentNormalization:
        """Statistics of latents.

        A channel that hardly varies would be amplified to the scale of the others, together with its rounding errors,
        so a std is at least `floor` times the root mean square of all of them.

        Raises:
            DataError: no latents, or latents that are all equal.
        """
        if moments.count == 0:
            raise DataError("normalization: there are no latents to measure")
        variance = moments.squares / moments.count
        lowest = floor * variance.mean().sqrt()
        if not lowest > 0:
            raise DataError(f"normalization: all {moments.count} latent tokens are equal, so there is nothing to learn")
        return cls(moments.mean.float(), variance.sqrt().clamp_min(lowest).float())

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw (..., N, C) -> normalized (..., N, C), same dtype."""
        if self.low is not None and self.high is not None:
            latents = latents.clamp(self.low.to(latents), self.high.to(latents))
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`; nothing is clipped."""
        found = latents * self.std.to(latents) + self.mean.to(latents)
        if self.low is None or self.high is None:
            return found
        return torch.where((self.low == self.high).to(found.device), self.low.to(found), found)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON, with None for what is infinite; `from_dict` gives back the same bits."""
        found: dict[str, Any] = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        if self.low is not None and self.high is not None:
            for name, values in (("low", self.low), ("high", self.high)):
                found[name] = [value if abs(value) < math.inf else None for value in values.tolist()]
        return found | ({"digest": self.digest} if self.digest else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatentNormalization:
        ends = {
            name: torch.tensor([end if value is None else value for value in values[name]])
            for name, end in (("low", -math.inf), ("high", math.inf))
            if name in values
        }
        return cls(torch.tensor(values["mean"]), torch.tensor(values["std"]), **ends, digest=values.get("digest", ""))


@dataclass(frozen=True)
class LatentSpec:
    """The latents of an autoencoder.

    Attributes:
        channels: C of one token.
        stride: frames or samples, rows and columns that one token stands for.
    """

    channels: int
    stride: Size


class Autoencoder(Protocol):
    """Media to raw latent tokens and back. Results lie on the device of what was given.

    Attributes:
        has_weights: a network does the work, so it belongs on an accelerator and not into the workers of a loader.
        posterior_noise: training draws standard normal noise for `encode`, which then returns a sample of the
            posterior; without noise, or where this is False, `encode` returns the posterior's mean.
        normalization: statistics published with the weights (which may read the weights); None: measure the data.
    """

    @property
    def spec(self) -> LatentSpec: ...

    @property
    def has_weights(self) -> bool: ...

    @property
    def posterior_noise(self) -> bool: ...

    @property
    def normalization(self) -> LatentNormalization | None: ...

    def grid(self, size: Size) -> Size:
        """Tokens along (t, h, w) for media of a size; raises ShapeError and names the nearest legal sizes."""
        ...

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, *media), and noise (B, N, C) where `posterior_noise` -> raw latents (B, N, C) float32."""
        ...

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, *media) -> mean and deviation (B, N, C) float32 of the posterior; no deviation where it is a point.

        `encode` with noise is mean + deviation * noise.
        """
        ...

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        """Raw latents (B, N, C) -> (B, *media) of that size."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """Work on this device from now on; returns the autoencoder itself."""

    def digest(self) -> str:
        """A checksum of the weights, equal for equal weights in files of any layout; "" without weights."""
        ...

    def expect(self, digest: str) -> None:
        """Raise CheckpointError when weights of another digest are read."""

    def load(self) -> nn.Module | None:
        """Read the weights now instead of at first use. ConfigError when they are missing or of another network."""


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


def image_grid(size: Size, stride: int) -> Size:
    """Cells of `stride` x `stride` pixels in one image."""
    divide("frames of an image", size[0], 1)
    return 1, divide("height", size[1], stride), divide("width", size[2], stride)


def media_size(media: Tensor) -> Size:
    """(t, h, w) of image, video or audio media with a batch dimension, see the top of this file."""
    if media.ndim == 3:
        return media.shape[-1], 1, 1
    height, width = media.shape[-2:]
    return (1 if media.ndim == 4 else media.shape[1]), height, width


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
