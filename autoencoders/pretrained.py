"""What all autoencoders with weights share: a frozen network, read from a folder or the hub at its first use."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoencoders.base import LatentNormalization, LatentSpec, Size, check_latents, check_media, media_size
from autoencoders.config import POSTERIORS, PRECISIONS, AutoencoderConfig, not_one_of
from autoencoders.patches import to_maps, to_tokens
from autoencoders.tiling import Cut, tiled
from core.errors import CheckpointError, ShapeError


class Pretrained(ABC):
    """An Autoencoder with weights, at `config.path`; one subclass for each that is published.

    Attributes:
        name: of the kind in a configuration.
        spec: of one latent cell; `read` checks that the weights agree.
        media: shape (B, *media) that `encode` takes, None for any length.
        cut_axes: which of (t, h, w) `tile` cuts: the time of an audio clip; height and width of an image or a video.
        patch: side of the square of cells that usually becomes one token.
        overlap: cells that neighboring tiles share at least where `tile` cuts media.
        published: class of diffusers, and what the published config.json says of sizes; None where it is not recorded.
            The dry run counts FLOPs with it.
    """

    name: ClassVar[str]
    spec: LatentSpec  # of the class
    media: ClassVar[tuple[int | None, ...]]
    cut_axes: ClassVar[tuple[int, ...]] = (1, 2)
    patch: ClassVar[int] = 1
    overlap: ClassVar[int] = 0
    published: ClassVar[tuple[str, Mapping[str, Any]] | None] = None
    has_weights = True

    @staticmethod
    @abstractmethod
    def read(path: str) -> nn.Module:
        """A folder or a name on the hub -> the network in float32.

        Raises ConfigError when it is missing, of another kind or of other constants, CheckpointError when its tensors
        are not the network's.
        """

    @abstractmethod
    def grid(self, size: Size) -> Size:
        """Cells along (t, h, w) for media of a size; raises ShapeError with the nearest legal sizes."""

    @staticmethod
    @abstractmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        """(B, *media) -> (B, N, 2 C), mean and standard deviation of the posterior, or (B, N, C)."""

    @staticmethod
    @abstractmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        """(B, N, C) -> (B, *media)."""

    @staticmethod
    @abstractmethod
    def published_normalization(network: Any) -> LatentNormalization | None:
        """The statistics that are published with the weights, or None where there are none."""

    def __init__(self, config: PretrainedConfig):
        self.path = os.path.expanduser(config.path)
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        variational = config if isinstance(config, VariationalConfig) else None
        self.posterior_noise = variational is not None and variational.posterior == "sample"
        self.tile = variational and variational.tile
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
                    f"{self.name}: the weights at {self.path!r} (digest {digest(network.state_dict())}) are not "
                    f"those that the latents were encoded with (digest {self._expected})"
                )
            self._normalization = self.published_normalization(network)
            self._network = (network.bfloat16() if self.dtype == torch.bfloat16 else network).to(self.device)
        return self._network

    def _read(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a library that initializes what it then overwrites
            return self.read(self.path).eval().requires_grad_(False)

    def digest(self) -> str:
        """Digest of name, shape and float32 bytes of every tensor, before any rounding to bf16; computed once."""
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

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        check_media(self.name, media, self.media)
        grid, channels = self.grid(media_size(media)), self.spec.channels
        maps = tiled(self._encode_tile, media, self._cuts(grid, encode=True))  # (B, C or 2 C, t, h, w)
        mean, *deviation = to_tokens(maps).split(channels, dim=-1)  # (B, N, C) each
        return mean, deviation[0] if deviation else None

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, deviation = self.posterior(media)
        if noise is None:
            return mean
        check_latents(f"{self.name}, noise of the posterior", noise, self.grid(media_size(media)), mean.shape[-1])
        if deviation is None:
            raise ShapeError(f"{self.name} predicts no distribution, so it takes no noise")
        return mean + deviation * noise.to(mean)

    def decode(self, latents: Tensor, size: Size) -> Tensor:
        grid = self.grid(size)
        check_latents(self.name, latents, grid, self.spec.channels)
        media = tiled(self._decode_tile, to_maps(latents, grid), self._cuts(grid, encode=False))
        if media_size(media) != size:
            raise ShapeError(f"{self.name}: expected media of size {size}, decoded {media_size(media)}")
        return media

    def _encode_tile(self, media: Tensor) -> Tensor:
        """(B, *media) -> (B, C or 2 C, t, h, w)."""
        tokens, grid = self._run(self.run_encoder, media), self.grid(media_size(media))
        check_latents(f"{self.name}, encoded", tokens, grid, tokens.shape[-1])
        return to_maps(tokens, grid)

    def _decode_tile(self, maps: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, *media)."""
        t, h, w = maps.shape[2:]
        return self._run(lambda network, part: self.run_decoder(network, part, (t, h, w)), to_tokens(maps))

    def _cuts(self, grid: Size, encode: bool) -> list[Cut]:
        """The axes that are longer than a tile."""
        cuts: list[Cut] = []
        if not self.tile:
            return cuts
        ndim = len(self.media)
        for axis in self.cut_axes:
            stride = self.spec.stride[axis]
            tile = self.tile // stride
            media, maps = (ndim - 1 if axis == 0 else ndim - 3 + axis, stride), (2 + axis, 1)
            if grid[axis] > tile:
                source, target = (media, maps) if encode else (maps, media)
                cuts.append(Cut(grid[axis], tile, self.overlap, source, target))
        return cuts

    def _run(self, function: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """function(network, x) in the network's precision, on its device; float32 on the device of `x`."""
        network = self.load()
        moved = x.to(self.device, self.dtype)
        # On a CPU one by one: a product over a batch may round differently with the batch's size, and a sample's
        # bytes must not depend on its neighbors.
        parts = moved.split(1) if self.device.type == "cpu" else (moved,)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return torch.cat([function(network, part).float() for part in parts]).to(x.device)


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(AutoencoderConfig):
    """A kind with weights.

    Attributes:
        path: folder with the weights (~ is the home folder), a file as their authors publish it, or their name
            (owner/name) on the Hugging Face hub.
        precision: of weights and arithmetic, fp32 or bf16. Latents and media are float32 in either.
    """

    autoencoder: ClassVar[type[Pretrained]]  # of this kind

    path: str = ""
    precision: str = "fp32"

    def problems(self) -> list[str]:
        found = []
        if not self.path:
            found.append(f"path: kind {self.kind!r} has weights: set their folder or their name on the hub")
        return found + not_one_of("precision", self.precision, PRECISIONS)

    def build(self) -> Pretrained:
        """The autoencoder, none of whose weights are read yet."""
        return self.autoencoder(self)


@dataclass(frozen=True, kw_only=True)
class VariationalConfig(PretrainedConfig):
    """A kind whose encoder predicts a distribution, and that can be cut into tiles.

    Attributes:
        posterior: what training takes of the distribution, its mean or a sample of it. Default as the publishers do.
        tile: length of the tiles, in pixels of a side or in samples, that long media are cut into, so that the
            network's memory is that of one tile; see `autoencoders/tiling.py` and docs/fidelity.md for what is exact.
            Default: media are not cut.
    """

    posterior: str = "mean"
    tile: int | None = None

    def problems(self) -> list[str]:
        found = super().problems() + not_one_of("posterior", self.posterior, POSTERIORS)
        return found if self.tile is None else found + _tile_problems(self.autoencoder, self.tile)


def weights_path(config: AutoencoderConfig) -> str | None:
    """Where the weights are, or None for a kind without."""
    return config.path if isinstance(config, PretrainedConfig) else None


def _tile_problems(autoencoder: type[Pretrained], tile: object) -> list[str]:
    axis = autoencoder.cut_axes[0]
    unit, stride = "samples" if axis == 0 else "pixels", autoencoder.spec.stride[axis]
    lowest = 2 * autoencoder.overlap * stride
    if isinstance(tile, int) and not isinstance(tile, bool) and tile >= lowest and tile % stride == 0:
        return []
    near = ""
    if isinstance(tile, int) and tile > lowest:
        near = f"; the nearest: {tile // stride * stride} or {(tile // stride + 1) * stride}"
    return [f"tile: {tile!r} is not a multiple of {stride} {unit} from {lowest} up{near}"]


def digest(state: dict[str, Tensor]) -> str:
    """A checksum of named tensors in the order of their names, as float32."""
    checksum = hashlib.blake2b(digest_size=16)
    for name, value in sorted(state.items()):
        checksum.update(f"{name}\0{tuple(value.shape)}\0".encode())
        checksum.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return checksum.hexdigest()
