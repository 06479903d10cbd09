"""What every modality offers, and the record that data sources hand to it.

A source yields `Record`s; the adapter of a modality turns a record into a media tensor, media into normalized tokens
with positions, and tokens back into media and files. The trunk sees tokens only.

An adapter with weights (`has_weights`) is asked for its grid, positions, channels and media in the workers of a loader,
which never need the weights; the trainer moves it to its device with `to` and encodes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from autoencoders.base import Autoencoder, LatentNormalization, Size
from core.errors import DataError

if TYPE_CHECKING:
    from modalities.data.sources.account import Account


@dataclass(frozen=True)
class StoredLatents:
    """Raw latents that `selfflow encode` stored in place of media.

    Attributes:
        mean: (N, C) float32, of the posterior.
        deviation: (N, C) float32 of an encoder that predicts a distribution, or None.
        valid: (N,) bool, False for tokens of padding; None where nothing was said of padding.
    """

    mean: Tensor
    deviation: Tensor | None = None
    valid: Tensor | None = None

    def sample(self, noise: Tensor | None) -> Tensor:
        """(N, C): the mean, or with standard normal noise (N, C) a sample of the posterior."""
        if noise is None:
            return self.mean
        assert self.deviation is not None  # noise is drawn for an encoder that predicts a distribution only
        return self.mean + self.deviation * noise


@dataclass(frozen=True)
class Deferred:
    """An array of media that is decoded when it is asked for, and not while records are looked through.

    Attributes:
        decode: makes the array; raises DataError where it cannot.
        bytes: what it is decoded from.
    """

    decode: Callable[[], np.ndarray]
    bytes: int


@dataclass(frozen=True)
class Media:
    """Media of one part of a record; the fields are those of `Record`."""

    data: bytes | Path | np.ndarray | Deferred | StoredLatents
    suffix: str = ""
    rate: float | None = None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class Record:
    """One sample as a data source gives it.

    Attributes:
        key: unique and stable within its source; also keys the sample's randomness.
        origin: the file (and the member or row in it), for messages.
        media: encoded bytes, a path, or a decoded array: uint8 (H, W, 3) for an image, uint8 (T, H, W, 3) for a
            video, float32 (samples, channels) in [-1, 1] for audio, float32 (A, W) for actions; or latents.
        suffix: lower-case file suffix of encoded media, such as ".png".
        captions: zero or more texts.
        label: class name, or None.
        rate: frames or samples per second of a decoded array, else None.
        parts: name -> media of the parts of a sample that lie apart; all others are read from `media`.
        text: stored features (S, Dc) of every caption, without padding; () where they are computed when needed.
        valid: (T,) bool, which frames of a decoded video, or which actions, are real; the others are padding. None
            where the source says nothing of padding.
        unconditional: has no caption on purpose: the null condition stands in, as where a caption is dropped.
    """

    key: str
    origin: str
    media: bytes | Path | np.ndarray | Deferred | StoredLatents
    suffix: str = ""
    captions: tuple[str, ...] = ()
    label: str | None = None
    rate: float | None = None
    parts: Mapping[str, Media] = field(default_factory=dict)
    text: tuple[Tensor, ...] = ()
    valid: np.ndarray | None = None
    unconditional: bool = False

    def readable(self) -> bytes | Path | np.ndarray:
        """`media` for a decoder; stored latents never come to one, whoever loads looks for them first."""
        assert not isinstance(self.media, StoredLatents), f"{self.origin}: latents, not media"
        return self.media.decode() if isinstance(self.media, Deferred) else self.media

    def part(self, name: str) -> Record:
        """The record as if one part were all of it, for the adapter of that part."""
        media = self.parts.get(name)
        if media is None:
            return self
        return replace(self, media=media.data, suffix=media.suffix, rate=media.rate, valid=media.valid, parts={})


@dataclass(frozen=True)
class Windows:
    """Where in time a window of a record's media may be cut.

    Parts of one record are cut at the same time, so all times are seconds on the clock of the file, on which image
    and audio need not begin together.

    Attributes:
        first, last: starts of the first and the last window that the media fill; `last` is earlier where they are
            shorter than a window.
        fills: windows may begin before the media and reach beyond them; what is missing is filled up.
        load: (start, generator) -> media of the window. Raises WindowError where others may be fit, else DataError.
    """

    first: float
    last: float
    fills: bool
    load: Callable[[float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Known:
    """Media of a part of which something is to be kept.

    Attributes:
        media: (*shape) as the adapter loads it.
        conditioning_mask: (N,) bool, tokens that lie within what is known; the trunk sees these.
        kept: bool that broadcasts to `media`: what comes back exactly as it is in `media`.
    """

    media: Tensor
    conditioning_mask: Tensor
    kept: Tensor

    @classmethod
    def whole(cls, adapter: ModalityAdapter, media: Tensor) -> Known:
        """All of a part, such as a video whose audio is to be made."""
        tokens = math.prod(adapter.grid())
        return cls(media, torch.ones(tokens, dtype=torch.bool), torch.ones((), dtype=torch.bool))


class Source(Protocol):
    """Random access to records. `read` raises DataError for a record that cannot be used.

    A source whose samples are cheap to read only in blocks also has `blocks() -> modalities.data.order.Blocks | None`.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...

    def labels(self) -> list[str]:
        """Sorted class names, empty where the source has none."""
        ...

    def account(self) -> Account:
        """What is left out of the records, and what is taken through links."""
        ...

    def fingerprint(self) -> str:
        """Changes when the records or their order change; compared when a run is resumed."""
        ...


class ModalityAdapter(Protocol):
    """One modality: records to media, media to tokens, tokens to media, media to files.

    Raises DataError where a record cannot be used.

    Attributes:
        config: its section `media`, of the dataclass that modalities/table.py names.
        autoencoder, size: of its media.
        known_files: name of a file that `known_from` reads -> what it is for; `selfflow generate` has an option for
            each.
        channels: C, of a token.
        has_weights: a network encodes, so `encode` belongs on the trainer's device and not into a loader's worker.
        posterior_noise: training draws standard normal noise (N, C) for every sample and hands it to `encode`.
        pads: its media may end in padding, so a record must say how much of them is real.
        normalization: the statistics published with the weights (reads the weights) or kept in a file, or None:
            measure the data.
    """

    config: Any
    autoencoder: Autoencoder
    size: Size
    channels: int
    has_weights: bool
    posterior_noise: bool

    @property
    def pads(self) -> bool: ...

    # Read only: class attributes and a property of the adapters.
    @property
    def modality(self) -> str: ...

    @property
    def known_files(self) -> Mapping[str, str]: ...

    @property
    def normalization(self) -> LatentNormalization | None: ...

    def grid(self) -> Size:
        """Tokens along (t, h, w) of one sample; their product is N."""
        ...

    def ids(self) -> Tensor:
        """(N, 3) integer positions."""
        ...

    def seconds(self) -> Tensor:
        """(T,) float64: for each step of the grid in time, the middle of the interval that its tokens stand for."""
        ...

    def valid_tokens(self, valid: np.ndarray) -> Tensor:
        """(T,) bool, which frames or actions of a sample are real -> (N,) bool, which of its tokens hold any of them.

        Raises DataError for a mask of another length.
        """
        ...

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        """Media tensor of one sample (float32, fixed shape). Raises DataError for an unfit record."""
        ...

    def stand_in(self) -> Media:
        """Media that `load` takes, of the size of a sample: for the dry run of a configuration without its data."""
        ...

    def augment(self, media: Tensor, generator: torch.Generator) -> Tensor:
        """One sample's media as training sees it: changed at random where the config asks for it."""
        ...

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, *media) -> (B, N, C) float32 tokens, not normalized, on the device of `media`.

        With noise (B, N, C) a sample of the encoder's posterior, which only an adapter with `posterior_noise` needs;
        without it the posterior's mean.
        """
        ...

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, *media) -> mean and deviation (B, N, C) float32 of the encoder's posterior, or (tokens, None)."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """The inverse of `encode` without noise; media on the device of `tokens`."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Let the autoencoder work on this device from now on; returns the adapter itself."""
        ...

    def load_weights(self) -> nn.Module | None:
        """Read the autoencoder's weights now instead of at first use; ConfigError where they are missing or others."""
        ...

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        """What is kept of a part, from some of `known_files`.

        Args:
            draw: a generator in the same state each time, so that files that belong together are cut alike.

        Raises ConfigError for files that do not go together, DataError for an unfit one.
        """
        ...

    def write(self, media: Tensor, path: Path) -> Path:
        """Write one sample's media to `path` (the suffix is added); returns the file written."""
        ...


class TimedAdapter(ModalityAdapter, Protocol):
    """An adapter of media that pass in time, so that the parts of one record can be cut at the same time."""

    def windows(self, record: Record) -> Windows:
        """Raises DataError where the record cannot be used."""
        ...


def is_timed(adapter: ModalityAdapter) -> TypeGuard[TimedAdapter]:
    return hasattr(adapter, "windows")


class AutoencoderAdapter:
    """What the adapters of all modalities share: media of one size, to tokens and back through one autoencoder."""

    pads = False

    def __init__(self, autoencoder: Autoencoder, size: Size):
        self.autoencoder, self.size = autoencoder, size
        self.channels = autoencoder.spec.channels
        self.has_weights, self.posterior_noise = autoencoder.has_weights, autoencoder.posterior_noise

    @property
    def normalization(self) -> LatentNormalization | None:
        return self.autoencoder.normalization

    def grid(self) -> Size:
        return self.autoencoder.grid(self.size)

    def ids(self) -> Tensor:
        return grid_ids(self.grid())

    def valid_tokens(self, valid: np.ndarray) -> Tensor:
        steps, stride, length = self.grid()[0], self.autoencoder.spec.stride[0], self.size[0]
        if valid.shape != (length,):
            raise DataError(f"a mask of shape {valid.shape} for what has {length} steps in time")
        ends = torch.arange(1, steps + 1) * stride - (steps * stride - length)  # a first frame alone ends at 1
        starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
        real = torch.tensor(valid, dtype=torch.bool)
        held = torch.stack([real[first:last].any() for first, last in zip(starts, ends, strict=True)])  # (steps,)
        return held.repeat_interleave(len(self.ids()) // steps)  # tokens lie in the order (t h w)

    def augment(self, media: Tensor, generator: torch.Generator) -> Tensor:
        return media

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.autoencoder.encode(media, noise)

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.autoencoder.posterior(media)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.autoencoder.decode(tokens, self.size)

    def to(self, device: torch.device | str) -> Self:
        self.autoencoder.to(device)
        return self

    def load_weights(self) -> nn.Module | None:
        return self.autoencoder.load()


def grid_ids(grid: tuple[int, int, int]) -> Tensor:
    """(N, 3) int64: the place of every token of a grid on the axes (t, h, w), in the order (t h w)."""
    axes = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(-1, 3)
