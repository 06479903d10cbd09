"""V-JEPA 2: an encoder of videos, whose tokens are tubelets of two frames."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from modalities.targets.encoder import Parts, Request, keep_blocks
from modalities.targets.timing import even_spans
from modalities.targets.vision import IMAGENET, Images, input_size
from modalities.targets.weights import Folder, load_network


class VJepa(nn.Module):
    """Frames (B T, 3, H, W) -> tokens (B, s h w, D) after the final LayerNorm; the predictor is not used.

    Args:
        frames: T.
        before, after: copies of the first and the last frame that fill up the first and the last tubelet.
    """

    def __init__(self, encoder: Any, frames: int, before: int, after: int):
        super().__init__()
        self.encoder, self.frames = encoder, frames
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Tensor:
        video = images.unflatten(0, (-1, self.frames))  # (B, T, 3, H, W)
        first, last = video[:, :1].repeat_interleave(self.before, 1), video[:, -1:].repeat_interleave(self.after, 1)
        return self.encoder(pixel_values_videos=torch.cat([first, video, last], dim=1))[0]


def vjepa2(folder: Folder, request: Request, example: str) -> Parts:
    """The encoder of V-JEPA 2 on a video, or on an image as a tubelet of copies.

    Frames are resized (bilinear, antialiased, ImageNet statistics, as its preprocessor does) to patch times grid.
    Where the trunk's first step holds the first frame alone, the first tubelet holds copies of it alone, so tubelets
    and latent steps begin together. Positions are those of the trunk's grid: the library counts in the training grid
    of the config whatever the input's size is, which would mix up rows at any other size.
    """
    unused = ("pooler.", "classifier.")
    model: Any = load_network("vjepa2", folder, "VJEPA2Model", example, unused=unused)
    config, encoder = model.config, model.encoder
    encoder.layer = keep_blocks(encoder.layer, request.layer)
    tubelet = config.tubelet_size
    alone = request.spans[0, 1].item() == 1
    before = tubelet - 1 if alone else 0
    after = -(before + request.length) % tubelet
    steps = (before + request.length + after) // tubelet
    for block in encoder.layer:
        attention: Any = block.attention
        attention.rows_and_columns = request.grid[1:]
        attention.get_position_ids = MethodType(_grid_positions, attention)
    spans = (even_spans(steps, tubelet) - before).clamp(0, request.length)
    prepare = Images(input_size(config.patch_size, request.grid), folder.preprocessor, IMAGENET, "bilinear")
    return Parts(prepare, VJepa(encoder, request.length, before, after), config.hidden_size, spans)


def _grid_positions(attention: Any, tokens: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(t, h, w) of tokens (B, s h w, D): each (s h w,)."""
    rows, columns = attention.rows_and_columns
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return index // (rows * columns), index // columns % rows, index % columns
