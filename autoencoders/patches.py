"""Latent cells as tokens, and squares of cells as tokens: what `patch` means after an autoencoder with weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from autoencoders.base import Autoencoder, LatentNormalization, LatentSpec, Size, check_latents, divide, media_size


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, *grid) -> (B, N, C), whatever the number of axes."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, axes: Sequence[int]) -> Tensor:
    """(B, N, C) -> (B, C, *axes), contiguous; the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *axes)


def patchify(cells: Tensor, grid: Size, patch: int) -> Tensor:
    """(B, t h w, C) -> (B, t (h/p) (w/p), C p p); channels of a token in the order (c p1 p2), as Self-Flow's code."""
    t, h, w = grid
    return rearrange(cells, "b (t h p w q) c -> b (t h w) (c p q)", t=t, h=h // patch, w=w // patch, p=patch, q=patch)


def unpatchify(tokens: Tensor, grid: Size, patch: int) -> Tensor:
    """The inverse of `patchify`; `grid` is of the cells."""
    t, h, w = grid
    return rearrange(tokens, "b (t h w) (c p q) -> b (t h p w q) c", t=t, h=h // patch, w=w // patch, p=patch, q=patch)


class Patched:
    """An autoencoder whose tokens are squares of `patch` x `patch` cells of another one.

    Args:
        size: of the media, which `normalization` needs where statistics depend on the position.
    """

    def __init__(self, inner: Autoencoder, patch: int, size: Size):
        self.inner, self.patch, self.size = inner, patch, size
        self.has_weights, self.posterior_noise = inner.has_weights, inner.posterior_noise
        t, h, w = inner.spec.stride
        self.spec = LatentSpec(inner.spec.channels * patch**2, (t, h * patch, w * patch))

    @property
    def normalization(self) -> LatentNormalization | None:
        cells = self.inner.normalization
        if cells is None:
            return None
        if cells.mean.ndim == 1:
            mean, std = (value.repeat_interleave(self.patch**2) for value in (cells.mean, cells.std))
            return LatentNormalization(mean, std)
        grid = self.inner.grid(self.size)
        mean, std = (patchify(value[None], grid, self.patch)[0] for value in (cells.mean, cells.std))
        return LatentNormalization(mean, std)

    def to(self, device: torch.device | str) -> Patched:
        self.inner.to(device)
        return self

    def load(self) -> nn.Module | None:
        return self.inner.load()

    def digest(self) -> str:
        return self.inner.digest()

    def expect(self, digest: str) -> None:
        self.inner.expect(digest)

    def grid(self, size: Size) -> Size:
        _, rows, columns = self.spec.stride
        h, w = divide("height", size[1], rows), divide("width", size[2], columns)
        return self.inner.grid(size)[0], h, w

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        size = media_size(media)
        tokens, cells = self.grid(size), self.inner.grid(size)
        if noise is not None:
            check_latents("noise of the posterior", noise, tokens, self.spec.channels)
            noise = unpatchify(noise, cells, self.patch)
        return patchify(self.inner.encode(media, noise), cells, self.patch)

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        cells = self.inner.grid(media_size(media))
        mean, deviation = self.inner.posterior(media)
        return patchify(mean, cells, self.patch), None if deviation is None else patchify(deviation, cells, self.patch)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        check_latents("Patched", latents, self.grid(size), self.spec.channels)
        return self.inner.decode(unpatchify(latents, self.inner.grid(size), self.patch), size)
