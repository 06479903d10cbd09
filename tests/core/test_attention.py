import sys

import pytest
import torch

from core.errors import ConfigError
from core.trunk.attention import QKNorm, _xformers, attend, attention_problem


def plain_attention(q, k, v, key_mask=None):
    """softmax(q k^T / sqrt(d)) v, written out. (B, T, H, d) -> (B, T, H d)."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_sdpa_equals_softmax(masked, dtype, tolerance):
    q, k, v = torch.randn(3, 2, 11, 3, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(11) < torch.tensor([[11], [4]]) if masked else None
    torch.testing.assert_close(attend(q, k, v, mask), plain_attention(q, k, v, mask), atol=tolerance, rtol=0)


def test_hidden_keys_have_no_influence():
    q, k, v = torch.randn(3, 2, 6, 2, 8)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    before = attend(q, k, v, mask)
    k[:, 4:], v[:, 4:] = 1e4, -1e4
    assert torch.equal(attend(q, k, v, mask), before)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [(11,), (4, 7), (2, 8, 1), (0, 11)])
def test_groups_attend_within_themselves(groups, masked):
    """Against a mask of all pairs."""
    q, k, v = torch.randn(3, 2, 11, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Every group keeps a token that may be looked at.
    mask = torch.tensor([[True, False] * 5 + [True], [True] * 11]) if masked else None
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
    pairs = (group[:, None] == group).expand(2, -1, -1)
    if masked:
        pairs = pairs & mask[:, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    weights = scores.masked_fill(~pairs[:, None], float("-inf")).softmax(-1)
    wanted = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
    torch.testing.assert_close(attend(q, k, v, mask, groups=groups), wanted, atol=1e-13, rtol=0)


def test_unknown_backend_is_refused_with_the_nearest_name():
    q = torch.randn(1, 2, 1, 8)
    with pytest.raises(ConfigError, match=r"'sdpaa' is not one of sdpa, xformers\. Did you mean: 'sdpa'"):
        attend(q, q, q, backend="sdpaa")


def test_missing_xformers_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    assert attention_problem("xformers") == (
        "'xformers' needs the package xformers, which is not installed: make setup-full (extra full). The default "
        "'sdpa' gives the same results and works without it"
    )
    assert attention_problem("sdpa") is None


def test_xformers_is_refused_where_it_has_no_kernel():
    q = torch.randn(1, 2, 1, 8)
    with pytest.raises(ConfigError, match=r"'xformers' has kernels for CUDA only, not for cpu\. The default 'sdpa'"):
        attend(q, q, q, backend="xformers")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xformers_is_called_as_it_wants(masked, dtype, monkeypatch):
    """Its own checks of a call, for training too, and what its documentation says it computes. Runs on a CPU."""
    ops = pytest.importorskip("xformers.ops", reason="xformers is not installed (extra `full`)")
    from xformers.ops.fmha.common import Inputs

    def documented(query, key, value, attn_bias=None):
        call = Inputs(query, key, value, attn_bias)
        call.validate_inputs()
        for kernel in (ops.fmha.cutlass.FwOp, ops.fmha.cutlass.BwOp):
            # Nothing but that there is no GPU.
            wrong = [r for r in kernel.not_supported_reasons(call) if "device=cpu" not in r and "GPUs" not in r]
            assert wrong == []
        scores = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.transpose(1, 2).transpose(-2, -1)
        scores = scores if attn_bias is None else scores + attn_bias
        return (scores.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2).contiguous()

    monkeypatch.setattr(ops, "memory_efficient_attention", documented)
    q, k, v = torch.randn(3, 2, 11, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    mask = torch.arange(11) < torch.tensor([[11], [4]]) if masked else None
    other = _xformers(q, k, v, mask).flatten(2)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(other, attend(q, k, v, mask), atol=tolerance, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_xformers_equals_sdpa(masked):
    pytest.importorskip("xformers.ops", reason="xformers is not installed (extra `full`)")
    q, k, v = torch.randn(3, 2, 11, 3, 64, device="cuda", dtype=torch.bfloat16)
    mask = (torch.arange(11) < torch.tensor([[11], [4]])).cuda() if masked else None
    ours, other = attend(q, k, v, mask), attend(q, k, v, mask, backend="xformers")
    torch.testing.assert_close(ours, other, atol=2e-2, rtol=0)


def test_qk_norm_scales_queries_and_keys_apart():
    norm, qk = QKNorm(4), torch.randn(2, 3, 2, 5, 4)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3]))
    result = norm(qk)
    sizes = result.square().mean(-1).sqrt()  # (B, T, 2, H)
    torch.testing.assert_close(sizes[:, :, 0], torch.ones(2, 3, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(sizes[:, :, 1], torch.full((2, 3, 5), 3.0), atol=1e-3, rtol=0)
