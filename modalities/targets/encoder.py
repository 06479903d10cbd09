"""The frozen encoder as the trainer sees it: clean media in, one feature for every token of the trunk out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoencoders.base import check_media
from core.errors import ConfigError
from modalities.targets.timing import coincide, transfer


@dataclass(frozen=True)
class Request:
    """What a trunk wants features for.

    Attributes:
        length: frames (1 for an image) or samples of the media.
        grid: the trunk's tokens along (t, h, w).
        spans: (t, 2) the stretch of `length` that each of its t steps stands for.
        rate: samples per second of an audio clip, else None.
        layer: 1-based block of the encoder whose output is wanted; None means the last.
    """

    length: int
    grid: tuple[int, int, int]
    spans: Tensor
    rate: int | None
    layer: int | None


@dataclass(frozen=True)
class Parts:
    """What a family of encoders makes of a request.

    Attributes:
        prepare: media (B, *media) float32 -> the network's input, on the media's device.
        network: that -> features whose rows, per sample, are in the order (s h w): (B s, h w, D) or (B, s h w, D).
        channels: D.
        spans: (s, 2) the stretch of the media that each of the network's s steps stands for.
    """

    prepare: nn.Module
    network: nn.Module
    channels: int
    spans: Tensor


class Encoder(nn.Module):
    """Frozen, always in eval mode, without gradients.

        features = encoder(media)  # (B, N, D) float32, N = t h w tokens in the trunk's order

    Media is what the adapters make: image (B, 3, H, W) and video (B, T, 3, H, W) in [-1, 1], audio (B, channels,
    samples). Preparation and resampling in time are computed in float32; the network runs under the autocast that is
    active, as REPA's does. Features are those after the network's last (or chosen) block and its final normalization.

    Attributes:
        channels: D.
    """

    weights: Tensor | None  # (t, s): the trunk's steps from the network's

    def __init__(self, shape: tuple[int | None, ...], parts: Parts, request: Request):
        super().__init__()
        self.shape = shape
        self.prepare, self.network, self.channels = parts.prepare, parts.network, parts.channels
        self.positions = request.grid[1] * request.grid[2]
        weights = transfer(parts.spans, request.spans)
        same = weights.shape[0] == weights.shape[1] and torch.equal(
            weights, torch.eye(len(weights), dtype=weights.dtype)
        )
        self.register_buffer("weights", None if same else weights.float(), persistent=False)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode: dropout or layer drop would make the targets random."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, media: Tensor) -> Tensor:
        """(B, *media) -> (B, N, D) float32. Raises ShapeError for media of another size than it was built for."""
        check_media("Encoder", media, (None, *self.shape))
        device = media.device.type
        with torch.autocast(device, enabled=False):
            prepared = self.prepare(media.float())
        features = self.network(prepared)
        with torch.autocast(device, enabled=False):
            steps = features.float().reshape(len(media), -1, self.positions, self.channels)  # (B, s, h w, D)
            if self.weights is not None:
                steps = torch.einsum("ts,bsnd->btnd", self.weights, steps)
            return steps.flatten(1, 2)


def refuse_interpolation(kind: str, parts: Parts, request: Request) -> None:
    """Raise ConfigError where features would have to be interpolated in time."""
    if not coincide(parts.spans, request.spans):
        raise ConfigError(
            f"encoder.resample: 'refuse', but the {len(parts.spans)} time steps of the {kind} encoder do not coincide "
            f"with the {len(request.spans)} of the trunk; set it to features to interpolate, or choose another encoder"
        )


def keep_blocks(blocks: nn.ModuleList, layer: int | None) -> nn.ModuleList:
    """The blocks up to `layer` (1-based); those after it are dropped, so that they cost nothing."""
    if layer is not None and layer > len(blocks):
        raise ConfigError(
            f"encoder.layer: {layer}, but the encoder has {len(blocks)} blocks; allowed: 1..{len(blocks)}"
        )
    return blocks[:layer]
