"""What the trunks of images with class labels (sit.py, ddt.py) share: their one segment, positions, labels, MLP."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import ShapeError
from core.types import NoiseLevels, Segment, TokenBatch, has_values


def sincos_table(width: int, grid: int) -> Tensor:
    """(1, grid^2, D) float32 positions, row h * grid + w: [sin w, cos w, sin h, cos h], a quarter of D each.

    Angles in float64 and frequencies 10000^(-i / (D/4)), as the MAE and DiT code has it.
    """
    frequencies = 1.0 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width // 4))
    angles = np.arange(grid, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (grid, D/2)
    table = np.concatenate([np.tile(axis, (grid, 1)), np.repeat(axis, grid, axis=0)], axis=1)
    return torch.from_numpy(table.astype(np.float32))[None]


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU("tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


def only_segment(
    trunk: str, noisy: tuple[Tensor, ...], levels: NoiseLevels, batch: TokenBatch, channels: int
) -> tuple[Tensor, Segment]:
    """(noisy tokens (B, N, C), the segment they belong to). Raises ShapeError for a batch of another kind."""
    if len(noisy) != 1 or len(batch.segments) != 1:
        raise ShapeError(f"{trunk}: takes exactly one segment, got {len(batch.segments)} and {len(noisy)} noisy ones")
    (tokens,), (segment,) = noisy, batch.segments
    wanted = (*segment.x0.shape[:2], channels)
    if tuple(tokens.shape) != wanted:
        raise ShapeError(f"{trunk}: noisy {segment.modality}: expected {wanted}, got {tuple(tokens.shape)}")
    if segment.valid is not None and levels.separate is not None:
        raise ShapeError(f"{trunk}: Segment.valid: padding belongs to no group; not with attention separation")
    if batch.context.label is None:
        raise ShapeError(f"{trunk}: Context.label: needed; this trunk is conditioned on classes only")
    return tokens, segment


def table_rows(trunk: str, ids: Tensor, grid: int) -> Tensor:
    """(B or 1, N) row of each token in tables of grid^2 positions: ids travel with the tokens, in any order."""
    h, w = ids[..., 1], ids[..., 2]
    # A column beyond the grid would silently read the next row. On a GPU the look would cost a wait.
    if has_values(ids) and int(ids[..., 1:].max()) >= grid:
        raise ShapeError(f"{trunk}: position (h, w) up to {ids[..., 1:].amax((0, 1)).tolist()} outside grid {grid}")
    return h * grid + w


def embed_label(table: nn.Embedding, batch: TokenBatch) -> Tensor:
    """(B, D); dropped conditions become the null class, the table's last row."""
    assert batch.context.label is not None  # `only_segment` refuses such a batch
    return table(batch.context.label.masked_fill(batch.context.dropped, table.num_embeddings - 1))
