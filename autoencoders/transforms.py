"""Autoencoders without weights: exactly invertible rearrangements of pixels, and the MDCT of an audio clip.

They make the whole system run, and be judged, without a download. Nothing is compressed, so they suit small media.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from autoencoders.base import Autoencoder, LatentSpec, Size, check_latents, check_media, divide, media_size
from autoencoders.config import AutoencoderConfig
from core.errors import ShapeError

PATCH = 4  # pixels of a token's side, where left out


class WeightFree(ABC):
    """What an autoencoder without weights says of itself: nothing to load, to move, to sample or to normalize with."""

    has_weights = False
    posterior_noise = False
    normalization = None

    def to(self, device: torch.device | str) -> WeightFree:
        return self

    def load(self) -> None:
        return None

    def digest(self) -> str:
        return ""

    def expect(self, digest: str) -> None:
        return None

    @abstractmethod
    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, *media) -> (B, N, C)."""

    def posterior(self, media: Tensor) -> tuple[Tensor, None]:
        return self.encode(media), None

    def refuse_noise(self, noise: Tensor | None) -> None:
        if noise is not None:
            raise ShapeError(f"{type(self).__name__} predicts no distribution, so it takes no noise")


class WeightFreeConfig(AutoencoderConfig, ABC):
    """A kind without weights, whose settings are those of `media`."""

    @abstractmethod
    def build(self, media: Any) -> Autoencoder: ...


@dataclass(frozen=True, kw_only=True)
class VectorsConfig(WeightFreeConfig):
    kind: str = "vectors"

    def build(self, media: Any) -> Vectors:
        return Vectors(media.width)


class Vectors(WeightFree):
    """Vectors as they are, a token each: (B, T, C) <-> (B, T, C)."""

    def __init__(self, channels: int):
        self.spec = LatentSpec(channels, (1, 1, 1))

    def grid(self, size: Size) -> Size:
        return size

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        self.refuse_noise(noise)
        check_media("Vectors", media, (None, None, self.spec.channels))
        return media

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        check_latents("Vectors", latents, self.grid(size), self.spec.channels)
        return latents


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(WeightFreeConfig):
    kind: str = "pixels"

    def media_problems(self, media: Any) -> list[str]:
        return _side_problems(media)

    def build(self, media: Any) -> Pixels:
        return Pixels(_patch(media))


def _patch(media: Any) -> int:
    return PATCH if media.patch is None else media.patch


def _side_problems(media: Any) -> list[str]:
    """Sides of images or videos that are no multiples of a patch."""
    found, patch = [], _patch(media)
    for side in sorted({side for side in media.size if patch >= 1 and side >= 1 and side % patch}):
        lower = side // patch * patch
        legal = f"{lower} or {lower + patch}" if lower else f"{patch}"
        found.append(f"size: {side} is not a multiple of patch {patch}; nearest: {legal}")
    return found


class Pixels(WeightFree):
    """An image as its patches: (B, 3, H, W) <-> (B, (H/p)(W/p), 3 p p), bit for bit."""

    def __init__(self, patch: int):
        self.patch = patch
        self.spec = LatentSpec(3 * patch * patch, (1, patch, patch))

    def grid(self, size: Size) -> Size:
        divide("frames of an image", size[0], 1)
        return 1, divide("height", size[1], self.patch), divide("width", size[2], self.patch)

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        self.refuse_noise(noise)
        check_media("Pixels", media, (None, 3, None, None))
        _, h, w = self.grid(media_size(media))
        return rearrange(media, "b c (h p) (w q) -> b (h w) (c p q)", h=h, w=w)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        grid = self.grid(size)
        check_latents("Pixels", latents, grid, self.spec.channels)
        return rearrange(
            latents, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[1], w=grid[2], p=self.patch, q=self.patch
        )


@dataclass(frozen=True, kw_only=True)
class SpaceTimePixelsConfig(WeightFreeConfig):
    kind: str = "space_time_pixels"
    reads: ClassVar[Mapping[str, Any]] = MappingProxyType({"patch_frames": 2, "first_frame_alone": True})

    def media_problems(self, media: Any) -> list[str]:
        found, (patch_frames, first_alone) = _side_problems(media), self.own_settings(media).values()
        if patch_frames < 1:
            return [*found, f"patch_frames: {patch_frames} must be at least 1"]
        if media.frames < 1:
            return [*found, f"frames: {media.frames} must be at least 1"]
        if rest := (media.frames - first_alone) % patch_frames:
            alone = "1 plus " if first_alone else ""
            legal = [count for count in (media.frames - rest, media.frames - rest + patch_frames) if count >= 1]
            found.append(
                f"frames: {media.frames} is not {alone}a multiple of patch_frames {patch_frames}; "
                f"nearest: {' or '.join(map(str, legal))}"
            )
        return found

    def build(self, media: Any) -> SpaceTimePixels:
        return SpaceTimePixels(_patch(media), **self.own_settings(media))


class SpaceTimePixels(WeightFree):
    """A video as blocks of `patch_frames` frames and `patch` x `patch` pixels, bit for bit.

    With `first_frame_alone`, T = 1 + k * patch_frames and the first token frame holds the first frame only, repeated
    so that every token has the same channels: the first frame can then be given as a condition (Wan's autoencoder
    splits time in the same way). Without it T = k * patch_frames.
    """

    def __init__(self, patch: int, patch_frames: int, first_frame_alone: bool = True):
        self.patch, self.patch_frames, self.first_frame_alone = patch, patch_frames, first_frame_alone
        self.spec = LatentSpec(3 * patch_frames * patch * patch, (patch_frames, patch, patch))

    def grid(self, size: Size) -> Size:
        alone = int(self.first_frame_alone)
        t = alone + divide("frames", size[0], self.patch_frames, alone)
        return t, divide("height", size[1], self.patch), divide("width", size[2], self.patch)

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        self.refuse_noise(noise)
        check_media("SpaceTimePixels", media, (None, None, 3, None, None))
        t, h, w = self.grid(media_size(media))
        if self.first_frame_alone:
            first = repeat(media[:, :1], "b 1 c h w -> b r c h w", r=self.patch_frames)
            media = torch.cat([first, media[:, 1:]], dim=1)  # (B, t * patch_frames, 3, H, W)
        return rearrange(media, "b (t r) c (h p) (w q) -> b (t h w) (c r p q)", t=t, h=h, w=w)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        t, h, w = grid = self.grid(size)
        check_latents("SpaceTimePixels", latents, grid, self.spec.channels)
        media = rearrange(
            latents,
            "b (t h w) (c r p q) -> b (t r) c (h p) (w q)",
            **{"t": t, "h": h, "w": w, "r": self.patch_frames, "p": self.patch, "q": self.patch},
        )
        if not self.first_frame_alone:
            return media
        # Generated copies of the first frame differ a little: take their mean, in a form that returns equal copies
        # bit for bit.
        copies, rest = media[:, : self.patch_frames], media[:, self.patch_frames :]
        first = copies[:, :1] + (copies - copies[:, :1]).mean(dim=1, keepdim=True)
        return torch.cat([first, rest], dim=1)


def mdct_basis(hop: int) -> Tensor:
    """(2M, M) float64: the windowed cosines of the MDCT with M = hop, an orthogonal lapped transform.

    basis[n, k] = w[n] sqrt(2/M) cos(pi/M (n + 1/2 + M/2)(k + 1/2)) with the sine window w[n] = sin(pi/(2M) (n + 1/2)),
    which satisfies w[n]^2 + w[n + M]^2 = 1, so that the time aliasing of neighboring frames cancels (Princen,
    Johnson, Bradley 1987).
    """
    n, k = torch.arange(2 * hop)[:, None], torch.arange(hop)[None]
    # The phase is pi/(4M) times an integer, whose whole turns (8M) are taken off before it is rounded.
    phase = (2 * n + 1 + hop) * (2 * k + 1) % (8 * hop)
    window = torch.sin(math.pi / (4 * hop) * (2 * n + 1).double())
    return window * math.sqrt(2 / hop) * torch.cos(math.pi / (4 * hop) * phase.double())


def compress(x: Tensor, exponent: float) -> Tensor:
    """sign(x) |x|^exponent: with an exponent below 1 quiet coefficients count more, as they do for the ear."""
    return x.sign() * x.abs() ** exponent


@dataclass(frozen=True, kw_only=True)
class MdctConfig(WeightFreeConfig):
    kind: str = "mdct"
    reads: ClassVar[Mapping[str, Any]] = MappingProxyType({"hop": 64, "exponent": 0.5})

    def media_problems(self, media: Any) -> list[str]:
        hop, exponent = self.own_settings(media).values()
        found = [] if hop >= 1 else [f"hop: {hop} must be at least 1 sample"]
        return found if 0 < exponent <= 1 else [*found, f"exponent: {exponent} must lie in (0, 1]"]

    def build(self, media: Any) -> Mdct:
        return Mdct(channels=media.channels, **self.own_settings(media))


class Mdct(WeightFree):
    """An audio clip as MDCT frames: (B, channels, samples) <-> (B, ceil(samples/M) + 1, channels * M), to rounding.

    One token holds the M coefficients of one frame of 2M samples, of every channel, with compressed amplitude. Frame
    f stands for samples [(f - 1) M, (f + 1) M); zeros before and after the audio make its first and last samples
    recoverable.

    Args:
        hop: M, samples between frames, equal to coefficients per frame.
        channels: 1 for mono, 2 for stereo.
        exponent: of the amplitude compression, in (0, 1]; 1 compresses nothing.
    """

    def __init__(self, hop: int, channels: int = 1, exponent: float = 0.5):
        self.hop, self.channels, self.exponent = hop, channels, exponent
        self.spec = LatentSpec(channels * hop, (hop, 1, 1))
        self.basis = mdct_basis(hop)

    def grid(self, size: Size) -> Size:
        divide("samples", size[0], 1)
        return math.ceil(size[0] / self.hop) + 1, 1, 1

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        self.refuse_noise(noise)
        check_media("Mdct", media, (None, self.channels, None))
        frames, _, _ = self.grid((media.shape[-1], 1, 1))
        tail = (frames - 1) * self.hop - media.shape[-1]
        padded = functional.pad(media, (self.hop, self.hop + tail))
        windows = padded.unfold(-1, 2 * self.hop, self.hop)  # (B, channels, F, 2M)
        coefficients = self._each_sample(windows, self.basis.to(media))  # (B, channels, F, M)
        return rearrange(compress(coefficients, self.exponent), "b c f m -> b f (c m)")

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        check_latents("Mdct", latents, self.grid(size), self.spec.channels)
        coefficients = rearrange(compress(latents, 1 / self.exponent), "b f (c m) -> b c f m", c=self.channels)
        windows = self._each_sample(coefficients, self.basis.to(latents).T)  # (B, channels, F, 2M)
        # Block i of M samples is the first half of frame i + 1 plus the second half of frame i.
        blocks = windows[:, :, 1:, : self.hop] + windows[:, :, :-1, self.hop :]
        return blocks.flatten(2)[..., : size[0]]

    @staticmethod
    def _each_sample(x: Tensor, matrix: Tensor) -> Tensor:
        # One product per sample: a product over the whole batch may round differently with its size, and a sample's
        # tokens must not depend on its neighbors.
        return torch.stack([sample @ matrix for sample in x])
