"""What all autoencoders with weights share: a frozen network, read from a folder or the hub at its first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentSpec, Size, Whitening, check_latents, check_media, media_size
from autoencoders.config import AutoencoderConfig
from core.errors import ShapeError


@dataclass(frozen=True)
class Kind:
    """One published autoencoder; its functions are given the network that `read` returns.

    Attributes:
        name: in a configuration.
        spec: of one latent cell; `read` checks that the weights agree.
        media: shape (B, *media) that `encode` takes, None for any length.
        grid: cells along (t, h, w) for media of a size; raises ShapeError with the nearest legal sizes.
        read: path (a folder or a name on the hub) -> the network in float32. Raises ConfigError when it is missing,
            of another kind or of other constants, CheckpointError when its tensors are not the network's.
        encode: (network, media) -> (B, N, 2 C), mean and standard deviation of the posterior, or (B, N, C).
        decode: (network, latents (B, N, C), grid) -> (B, *media).
        whitening: network -> the published statistics, or None where there are none.
        posterior: the publishers' choice, mean or sample; None for an encoder that predicts no distribution.
        patch: side of the square of cells that usually becomes one token.
    """

    name: str
    spec: LatentSpec
    media: tuple[int | None, ...]
    grid: Callable[[Size], Size]
    read: Callable[[str], nn.Module]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor, Size], Tensor]
    whitening: Callable[[Any], Whitening | None]
    posterior: str | None
    patch: int = 1


class Pretrained:
    """The Autoencoder of a kind, with its weights at `config.path`."""

    has_weights = True

    def __init__(self, kind: Kind, config: AutoencoderConfig):
        self.kind, self.spec = kind, kind.spec
        self.path = os.path.expanduser(config.path or "")
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.posterior_noise = (config.posterior or kind.posterior) == "sample"
        self.device = torch.device("cpu")
        self._network: nn.Module | None = None
        self._whitening: Whitening | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker needs grid and channels only: it must not be sent the weights.
        return {**self.__dict__, "_network": None, "_whitening": None}

    @property
    def whitening(self) -> Whitening | None:
        self.load()
        return self._whitening

    def load(self) -> nn.Module:
        if self._network is None:
            with torch.random.fork_rng(devices=[]):  # a library that initialises what it then overwrites
                network = self.kind.read(self.path).eval().requires_grad_(False)
            self._whitening = self.kind.whitening(network)
            self._network = (network.bfloat16() if self.dtype == torch.bfloat16 else network).to(self.device)
        return self._network

    def to(self, device: torch.device | str) -> Pretrained:
        self.device = torch.device(device)
        if self._network is not None:
            self._network.to(self.device)
        return self

    def grid(self, size: Size) -> Size:
        return self.kind.grid(size)

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        check_media(self.kind.name, media, self.kind.media)
        grid, channels = self.grid(media_size(media)), self.spec.channels
        latents, *deviation = self._run(self.kind.encode, media).split(channels, dim=-1)  # (B, N, C) each
        check_latents(f"{self.kind.name}, encoded", latents, grid, channels)
        if noise is None:
            return latents
        check_latents(f"{self.kind.name}, noise of the posterior", noise, grid, channels)
        if not deviation:
            raise ShapeError(f"{self.kind.name} predicts no distribution, so it takes no noise")
        return latents + deviation[0] * noise.to(latents)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        grid = self.grid(size)
        check_latents(self.kind.name, latents, grid, self.spec.channels)
        media = self._run(lambda network, part: self.kind.decode(network, part, grid), latents)
        if media_size(media) != size:
            raise ShapeError(f"{self.kind.name}: expected media of size {size}, decoded {media_size(media)}")
        return media

    def _run(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """function(network, x) in the network's precision, on its device; float32 on the device of `x`."""
        network = self.load()
        moved = x.to(self.device, self.dtype)
        # On a CPU one by one: a product over a batch may round differently with the batch's size, and a sample's
        # bytes must not depend on its neighbours.
        parts = moved.split(1) if self.device.type == "cpu" else (moved,)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return torch.cat([function(network, part).float() for part in parts]).to(x.device)
