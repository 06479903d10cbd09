"""Encoders of single images: DINOv2, the backbone of Depth Anything, and SigLIP 2. A video is encoded frame by frame.

The side of the input is the encoder's patch times the trunk's grid, so that the two grids are one and a patch feature
belongs to the token at its place (REPA: 224 pixels for 16 x 16 tokens of a 256-pixel image). The whole image is
resized; the published preprocessors' center crop would shift the tokens against the trunk's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from core.errors import CheckpointError, ConfigError
from modalities.targets.encoder import Parts, Request, keep_blocks
from modalities.targets.timing import even_spans
from modalities.targets.weights import Folder, load_network

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PIL_FILTERS = {2: "bilinear", 3: "bicubic"}


class Images(nn.Module):
    """(..., 3, H, W) in [-1, 1] -> (n, 3, *size): rescaled to [0, 1], normalized, then resized.

    Args:
        size: (height, width) of the encoder's input.
        preprocessor: image_mean, image_std and resample (PIL's number of a filter) replace the next two.
        statistics: the family's published mean and standard deviation of red, green and blue.
        mode: bilinear or bicubic, the family's.
        antialias: as the model's own preprocessor does. Without it (REPA's bicubic) only a reduction to half the size
            or less is antialiased, where a plain filter would skip pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        preprocessor: dict[str, Any],
        statistics: tuple[tuple[float, ...], tuple[float, ...]],
        mode: str,
        antialias: bool = True,
    ):
        super().__init__()
        self.size, self.antialias = size, antialias
        number = preprocessor.get("resample")
        wanted = mode if number is None else PIL_FILTERS.get(number)
        if wanted is None:
            raise CheckpointError(f"preprocessor_config.json: resample {number!r} is not 2 (bilinear) or 3 (bicubic)")
        self.mode = wanted
        for name, default in zip(("mean", "std"), statistics, strict=True):
            values = torch.tensor(preprocessor.get(f"image_{name}") or default, dtype=torch.float32)
            if values.shape != (3,) or (name == "std" and not (values > 0).all()):
                raise CheckpointError(f"preprocessor_config.json: image_{name} {values.tolist()} is not three numbers")
            self.register_buffer(name, values.reshape(3, 1, 1), persistent=False)

    def forward(self, media: Tensor) -> Tensor:
        x = ((media + 1) / 2 - self.mean) / self.std
        x = x.reshape(-1, *x.shape[-3:])  # (n, 3, H, W)
        antialias = self.antialias or any(2 * new <= old for new, old in zip(self.size, x.shape[-2:], strict=True))
        if x.shape[-2:] == self.size:
            return x
        return functional.interpolate(x, self.size, mode=self.mode, antialias=antialias)


def input_size(patch: Any, grid: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) of the image whose patches are the trunk's grid."""
    high, wide = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return high * grid[1], wide * grid[2]


class Dino(nn.Module):
    """Images (n, 3, H, W) -> patch tokens (n, h w, D) after the final LayerNorm; CLS and registers are dropped.

    `model` is a Dinov2Model, Dinov2WithRegistersModel or Dinov2Backbone, which have the same parts.
    """

    def __init__(self, model: Any, layer: int | None):
        super().__init__()
        self.embeddings, self.encoder, self.layernorm = model.embeddings, model.encoder, model.layernorm
        self.encoder.layer = keep_blocks(self.encoder.layer, layer)
        self.prefix = 1 + getattr(model.config, "num_register_tokens", 0)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(self.embeddings(images))[0]
        return self.layernorm(tokens)[:, self.prefix :]


def dinov2(folder: Folder, request: Request, example: str) -> Parts:
    """REPA's target: x_norm_patchtokens of the image, bicubic-resized, with ImageNet statistics.

    Position embeddings are resampled once, bicubic and antialiased, as REPA does it (the library's own resampling of
    the model without registers is not antialiased, which at 37 x 37 -> 16 x 16 gives other features).
    """
    registers = folder.settings["model_type"] == "dinov2_with_registers"
    class_name = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    model: Any = load_network("dinov2", folder, class_name, example, unused=("classifier.",))
    size = input_size(model.config.patch_size, request.grid)
    _fix_positions(model.embeddings, request.grid)
    prepare = Images(size, folder.preprocessor, IMAGENET, "bicubic", antialias=False)
    return Parts(prepare, Dino(model, request.layer), model.config.hidden_size, even_spans(request.length, 1))


def depth_anything(folder: Folder, request: Request, example: str) -> Parts:
    """Depth Anything V1 and V2: the patch tokens of the DINOv2 backbone that was tuned for depth, last block.

    The paper compares with Depth Anything 3, which has no class in transformers and cannot be loaded. Preparation is
    that of the model's preprocessor (bicubic, antialiased), position embeddings are interpolated by the model.
    """
    backbone = (folder.settings.get("backbone_config") or {}).get("model_type")
    if backbone != "dinov2":
        raise ConfigError(f"encoder.path: {folder.path!r} has a {backbone!r} backbone; allowed: dinov2")
    model: Any = load_network("depth_anything", folder, "DepthAnythingForDepthEstimation", example)
    config = model.backbone.config
    prepare = Images(input_size(config.patch_size, request.grid), folder.preprocessor, IMAGENET, "bicubic")
    return Parts(prepare, Dino(model.backbone, request.layer), config.hidden_size, even_spans(request.length, 1))


class Siglip(nn.Module):
    """Images (n, 3, H, W) -> patch tokens (n, h w, D) after the last LayerNorm, before the pooling head.

    `tower` is the vision tower of SigLIP (fixed size: it sees images) or SigLIP 2 (NaFlex: it sees patches and the
    shape of their grid).
    """

    def __init__(self, tower: Any, grid: tuple[int, int, int], layer: int | None, naflex: bool):
        super().__init__()
        self.embeddings, self.encoder, self.norm = tower.embeddings, tower.encoder, tower.post_layernorm
        self.encoder.layers = keep_blocks(self.encoder.layers, layer)
        self.grid, self.naflex = grid[1:], naflex

    def forward(self, images: Tensor) -> Tensor:
        if self.naflex:
            h, w = self.grid
            patches = rearrange(images, "n c (h p) (w q) -> n (h w) (p q c)", h=h, w=w)
            # On the CPU, where the model reads it. One row: the position embeddings of one image serve the batch.
            tokens = self.embeddings(patches, torch.tensor([self.grid]))
        else:
            tokens = self.embeddings(images, interpolate_pos_encoding=True)
        # No attention mask: nothing is padded, since the number of patches is the trunk's.
        return self.norm(self.encoder(inputs_embeds=tokens, attention_mask=None)[0])


def siglip2(folder: Folder, request: Request, example: str) -> Parts:
    """SigLIP 2, of fixed size (published with the model type siglip, like SigLIP 1) or NaFlex (siglip2).

    Statistics 0.5, bilinear and antialiased as its preprocessor does it; position embeddings are interpolated by the
    model.
    """
    naflex = folder.settings["model_type"].startswith("siglip2")
    class_name = "Siglip2VisionModel" if naflex else "SiglipVisionModel"
    others = ("text_model.", "logit_scale", "logit_bias", "classifier.")
    model: Any = load_network("siglip2", folder, class_name, example, unused=others)
    tower = getattr(model, "vision_model", model)  # nested in transformers 4, flat in 5
    prepare = Images(input_size(model.config.patch_size, request.grid), folder.preprocessor, HALF, "bilinear")
    network = Siglip(tower, request.grid, request.layer, naflex)
    return Parts(prepare, network, model.config.hidden_size, even_spans(request.length, 1))


def _fix_positions(embeddings: Any, grid: tuple[int, int, int]) -> None:
    """Resample a ViT's position embeddings (1, 1 + side^2, D), the first of which is the CLS token's, to the grid."""
    cls, table = embeddings.position_embeddings.data.split([1, embeddings.position_embeddings.shape[1] - 1], dim=1)
    side = round(table.shape[1] ** 0.5)
    if grid[1:] != (side, side):
        square = rearrange(table, "b (h w) d -> b d h w", h=side)
        table = functional.interpolate(square, grid[1:], mode="bicubic", antialias=True)
        table = rearrange(table, "b d h w -> b (h w) d")
    embeddings.position_embeddings = nn.Parameter(torch.cat([cls, table], dim=1), requires_grad=False)
    # The model would resample them again, and only knows square tables. A bound method survives a deep copy.
    embeddings.interpolate_pos_encoding = MethodType(_stored_positions, embeddings)


def _stored_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    return embeddings.position_embeddings
