"""Attention over (B, T, H, head_dim) tokens: one function, a table of backends, and the norm of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ConfigError, nearest
from core.optional import need

SDPA = "The default 'sdpa' gives the same results and works"


def _sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    mask = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, T): the same for heads and queries
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, head_dim)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    # `attention_problem` tells of its absence in time.
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports] - optional

    bias = None
    if key_mask is not None:
        batch, keys = key_mask.shape
        # Its kernels want rows that start at multiples of 8 elements, so the bias is a view of a wider tensor.
        bias = q.new_zeros(batch, 1, 1, -(-keys // 8) * 8)[..., :keys]
        bias = bias.masked_fill_(~key_mask[:, None, None, :], float("-inf"))
        bias = bias.expand(batch, q.shape[2], q.shape[1], keys)
    return memory_efficient_attention(q, k, v, attn_bias=bias)


BACKENDS = {"sdpa": _sdpa, "xformers": _xformers}


def attention_problem(backend: str) -> str | None:
    """Why this backend cannot be used in this installation, or None."""
    if backend not in BACKENDS:
        return f"{backend!r} is not one of {', '.join(BACKENDS)}.{nearest(backend, BACKENDS)}"
    if backend == "xformers":
        try:
            need("xformers.ops", "'xformers'", SDPA)
        except ConfigError as error:
            return str(error)
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    backend: str = "sdpa",
    groups: tuple[int, ...] | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v for every head.

    Args:
        q, k, v: (B, T, H, head_dim), of one dtype.
        key_mask: (B, T) bool, True for the tokens that may be looked at; None when that is all of them. Each
            sample needs at least one. Outputs at hidden tokens mean nothing.
        backend: a name of `BACKENDS`.
        groups: sizes of runs of neighboring tokens that attend within themselves only; None is one run of all.

    Returns:
        (B, T, H * head_dim).

    Raises:
        ConfigError: the backend is unknown, or has no kernel for this device.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"attention: {attention_problem(backend)}")
    if backend == "xformers" and not q.is_cuda:
        raise ConfigError(f"attention: 'xformers' has kernels for CUDA only, not for {q.device.type}. {SDPA} there")
    if groups is not None:
        parts = zip(*(x.split(list(groups), dim=1) for x in (q, k, v)), strict=True)
        masks = [None] * len(groups) if key_mask is None else key_mask.split(list(groups), dim=1)
        runs = [attend(q, k, v, mask, backend) for (q, k, v), mask in zip(parts, masks, strict=True)]
        return torch.cat(runs, dim=1)
    return BACKENDS[backend](q, k, v, key_mask).flatten(2)


def real_keys(valid: Tensor | None) -> Tensor | None:
    """The `key_mask` (B, T) of sequences with padding. A sample of nothing else looks at all of it: no key at all would
    give NaN, which spreads to the gradients of other samples."""
    return None if valid is None else valid | ~valid.any(dim=1, keepdim=True)


class QKNorm(nn.Module):
    """RMSNorm over the channels of each head, with one scale for queries and one for keys, as in FLUX.2."""

    def __init__(self, head_dim: int, eps: float = 1e-6):
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.scale = nn.Parameter(torch.ones(2 * head_dim))  # queries, then keys

    def forward(self, qk: Tensor) -> Tensor:
        """(B, T, 2, H, head_dim) -> the same."""
        return F.rms_norm(qk, (self.head_dim,), eps=self.eps) * self.scale.view(2, 1, self.head_dim)
