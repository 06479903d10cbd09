"""What a feature network takes and gives, and how media are prepared for one.

Every reference pipeline measures files, not tensors: images as 8-bit levels, audio as 16-bit samples. So all
networks first round media to these levels, and a file that is written and read again has the same features.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import CheckpointError, ShapeError, first_line

Network = TypeVar("Network", bound=nn.Module)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """
    Attributes:
        pool: (B, D) float32, one vector per sample (per frame for a framewise network).
        spatial: (B, Ds) float32 that keeps where things are (sFID), or None.
        logits: (B, K) float32 whose softmax are class probabilities (inception score), or None.
    """

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    @staticmethod
    def join(parts: Sequence[Features]) -> Features:
        """The features of several batches as one."""

        def cat(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return Features(torch.cat([part.pool for part in parts]), cat("spatial"), cat("logits"))


class FeatureNetwork(Protocol):
    """A frozen network. Media are what the adapters make: see `expect`.

    Attributes:
        name: what it is called in every result.
        kind: its key in `networks.KINDS`.
        distance: what a Frechet distance of its `pool` is called, such as "FID".
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def distance(self) -> str: ...

    def __call__(self, media: Tensor) -> Features: ...

    def to(self, device: torch.device | str) -> Self: ...


SHAPES = {"image": "(B, 3, H, W)", "video": "(B, T, 3, H, W)", "audio": "(B, channels, samples)"}


def expect(media: Tensor, modality: str, name: str) -> None:
    """Raises ShapeError unless `media` are a non-empty, finite float batch of the modality."""
    dims = SHAPES[modality].count(",") + 1
    colors = modality == "audio" or (media.ndim == dims and media.shape[-3] == 3)
    if media.ndim != dims or not colors or not media.is_floating_point() or media.numel() == 0:
        raise ShapeError(
            f"{name}: expected {modality} {SHAPES[modality]} float in [-1, 1], got {tuple(media.shape)} {media.dtype}"
        )
    if not torch.isfinite(media).all():
        raise ShapeError(f"{name}: the media hold values that are not finite")


def freeze(network: Network) -> Network:
    for weight in network.parameters():  # not `network.requires_grad_`, which TorchScript lacks
        weight.requires_grad_(False)
    return network.eval()


def device_of(network: nn.Module) -> torch.device:
    return next(chain(network.parameters(), network.buffers())).device


def to_levels(media: Tensor) -> Tensor:
    """[-1, 1] -> whole levels 0..255 as float32, clipped: the levels that `files.to_bytes` writes."""
    return ((media.float() + 1) * 127.5).round().clamp(0, 255)


def normalize(levels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 3, H, W) levels 0..255 -> (levels / 255 - mean) / std."""
    shift, scale = (levels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (levels / 255 - shift) / scale


def resize_bicubic(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) whole levels -> (B, 3, *size) whole levels: antialiased bicubic, as PIL resizes an 8-bit image.

    PIL rounds to levels after each axis, the width first; so does this. Its fixed-point weights still move fewer than
    one value in a hundred, by one level. Newer PILs take the height first where that is cheaper, which moves a fifth of
    the values by one level, rarely two.
    """
    for shape in ((levels.shape[-2], size[1]), tuple(size)):
        if tuple(levels.shape[-2:]) != shape:
            levels = functional.interpolate(levels, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    return levels


def pick_frames(video: Tensor, count: int) -> Tensor:
    """(B, T, ...) -> (B, count, ...): evenly spaced frames from first to last; a shorter video shows some twice."""
    index = torch.linspace(0, video.shape[1] - 1, count, dtype=torch.float64).round().long()
    return video[:, index.to(video.device)]


WITHOUT = "Without any weights, kind 'classifier' trains a small network on the data at hand (its distances are no FID)"


def no_weights(kind: str, path: str, takes: str, reason: object = "") -> CheckpointError:
    """The one message for weights that are missing or do not fit."""
    shown = f" ({reason})" if reason else ""
    return CheckpointError(
        f"feature network {kind}: no usable weights at {path!r}{shown}.\nIt takes {takes}.\n{WITHOUT}."
    )


def read_weights(kind: str, path: str, takes: str) -> Any:
    """What a file written by `torch.save` holds, on the CPU. Raises CheckpointError for anything but plain tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise no_weights(kind, path, takes, f"not a file of weights: {first_line(error)}") from error


class Framewise(nn.Module):
    """An image network over all frames of videos: (B, T, 3, H, W) -> Features of B T rows, frame by frame."""

    CHUNK = 32  # frames at once, so that memory does not grow with the length of videos

    def __init__(self, network: FeatureNetwork):
        super().__init__()
        self.network = network
        self.kind = network.kind
        self.name = f"framewise {network.name}"
        self.distance = f"framewise {network.distance}"

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "video", self.name)
        return Features.join([self.network(frames) for frames in media.flatten(0, 1).split(self.CHUNK)])
