"""What all autoencoders with weights share: a frozen network, read from a folder or the hub at its first use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentNormalization, LatentSpec, Size, check_latents, check_media, media_size
from autoencoders.config import AutoencoderConfig
from autoencoders.patches import to_maps, to_tokens
from autoencoders.tiling import Cut, tiled
from core.errors import CheckpointError, ShapeError


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
        normalization: network -> the published statistics, or None where there are none.
        posterior: the publishers' choice, mean or sample; None for an encoder that predicts no distribution.
        patch: side of the square of cells that usually becomes one token.
        overlap: cells that neighbouring tiles share at least where `tile` cuts media; None: they cannot be cut.
    """

    name: str
    spec: LatentSpec
    media: tuple[int | None, ...]
    grid: Callable[[Size], Size]
    read: Callable[[str], nn.Module]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor, Size], Tensor]
    normalization: Callable[[Any], LatentNormalization | None]
    posterior: str | None
    patch: int = 1
    overlap: int | None = None

    @property
    def cut_axes(self) -> tuple[int, ...]:
        """Which of (t, h, w) `tile` cuts: the time of an audio clip; height and width of an image or a video."""
        return (0,) if len(self.media) == 3 else (1, 2)


class Pretrained:
    """The Autoencoder of a kind, with its weights at `config.path`."""

    has_weights = True

    def __init__(self, kind: Kind, config: AutoencoderConfig):
        self.kind, self.spec = kind, kind.spec
        self.path = os.path.expanduser(config.path or "")
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.posterior_noise = (config.posterior or kind.posterior) == "sample"
        self.tile = config.tile
        self.device = torch.device("cpu")
        self._network: nn.Module | None = None
        self._normalization: LatentNormalization | None = None
        self._digest = self._expected = ""

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker needs grid and channels only: it must not be sent the weights.
        return {**self.__dict__, "_network": None, "_normalization": None}

    @property
    def normalization(self) -> LatentNormalization | None:
        self.load()
        return self._normalization

    def load(self) -> nn.Module:
        if self._network is None:
            network = self._read()
            if self._expected and digest(network.state_dict()) != self._expected:
                raise CheckpointError(
                    f"{self.kind.name}: the weights at {self.path!r} (digest {digest(network.state_dict())}) are not "
                    f"those that the latents were encoded with (digest {self._expected})"
                )
            self._normalization = self.kind.normalization(network)
            self._network = (network.bfloat16() if self.dtype == torch.bfloat16 else network).to(self.device)
        return self._network

    def _read(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a library that initialises what it then overwrites
            return self.kind.read(self.path).eval().requires_grad_(False)

    def digest(self) -> str:
        """Of name, shape and float32 bytes of every tensor, before any rounding to bf16; computed once."""
        if not self._digest:
            exact = self.load() if self.dtype == torch.float32 else self._read()
            self._digest = digest(exact.state_dict())
        return self._digest

    def expect(self, digest: str) -> None:
        self._expected = digest

    def to(self, device: torch.device | str) -> Pretrained:
        self.device = torch.device(device)
        if self._network is not None:
            self._network.to(self.device)
        return self

    def grid(self, size: Size) -> Size:
        return self.kind.grid(size)

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        check_media(self.kind.name, media, self.kind.media)
        grid, channels = self.grid(media_size(media)), self.spec.channels
        maps = tiled(self._encode_tile, media, self._cuts(grid, encode=True))  # (B, C or 2 C, t, h, w)
        mean, *deviation = to_tokens(maps).split(channels, dim=-1)  # (B, N, C) each
        return mean, deviation[0] if deviation else None

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, deviation = self.posterior(media)
        if noise is None:
            return mean
        check_latents(f"{self.kind.name}, noise of the posterior", noise, self.grid(media_size(media)), mean.shape[-1])
        if deviation is None:
            raise ShapeError(f"{self.kind.name} predicts no distribution, so it takes no noise")
        return mean + deviation * noise.to(mean)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        grid = self.grid(size)
        check_latents(self.kind.name, latents, grid, self.spec.channels)
        media = tiled(self._decode_tile, to_maps(latents, grid), self._cuts(grid, encode=False))
        if media_size(media) != size:
            raise ShapeError(f"{self.kind.name}: expected media of size {size}, decoded {media_size(media)}")
        return media

    def _encode_tile(self, media: Tensor) -> Tensor:
        """(B, *media) -> (B, C or 2 C, t, h, w)."""
        tokens, grid = self._run(self.kind.encode, media), self.grid(media_size(media))
        check_latents(f"{self.kind.name}, encoded", tokens, grid, tokens.shape[-1])
        return to_maps(tokens, grid)

    def _decode_tile(self, maps: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, *media)."""
        t, h, w = maps.shape[2:]
        return self._run(lambda network, part: self.kind.decode(network, part, (t, h, w)), to_tokens(maps))

    def _cuts(self, grid: Size, encode: bool) -> list[Cut]:
        """The axes that are longer than a tile."""
        cuts: list[Cut] = []
        if not self.tile:
            return cuts
        ndim = len(self.kind.media)
        for axis in self.kind.cut_axes:
            stride = self.spec.stride[axis]
            tile = self.tile // stride
            media, maps = (ndim - 1 if axis == 0 else ndim - 3 + axis, stride), (2 + axis, 1)
            if grid[axis] > tile:
                assert self.kind.overlap is not None  # `autoencoder_problems` refuses a tile without it
                source, target = (media, maps) if encode else (maps, media)
                cuts.append(Cut(grid[axis], tile, self.kind.overlap, source, target))
        return cuts

    def _run(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """function(network, x) in the network's precision, on its device; float32 on the device of `x`."""
        network = self.load()
        moved = x.to(self.device, self.dtype)
        # On a CPU one by one: a product over a batch may round differently with the batch's size, and a sample's
        # bytes must not depend on its neighbours.
        parts = moved.split(1) if self.device.type == "cpu" else (moved,)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return torch.cat([function(network, part).float() for part in parts]).to(x.device)


def digest(state: dict[str, Tensor]) -> str:
    """A checksum of named tensors in the order of their names, as float32."""
    checksum = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        checksum.update(f"{name}\0{tuple(value.shape)}\0".encode())
        checksum.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return checksum.hexdigest()
