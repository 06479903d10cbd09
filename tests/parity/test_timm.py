"""Our SiT block against timm's layers, which the DiT and SiT code is made of."""

import pytest
import torch
from torch.nn import functional

from autoencoders.patches import patchify
from core.keys import generator
from core.trunk.foreign.conversions import PATCH, flatten_patches
from core.trunk.modulation import token_rows
from core.trunk.sit import Block

timm = pytest.importorskip("timm", reason="timm is not installed (extra `full`)")
WIDTH, HEADS, HIDDEN = 24, 3, 96


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("timm", name)) * 0.3)
    return module.double()


def test_a_block_made_of_their_attention_and_mlp():
    """DiT's block, x + gate * f(norm(x) * (1 + scale) + shift) twice, with a condition for every token."""
    from timm.models.vision_transformer import Attention, Mlp

    ours = randomized(Block(WIDTH, HEADS, HIDDEN))
    attention = Attention(WIDTH, num_heads=HEADS, qkv_bias=True).double()
    attention.load_state_dict(ours.attn.state_dict())
    mlp = Mlp(WIDTH, HIDDEN, act_layer=lambda: torch.nn.GELU(approximate="tanh"), drop=0).double()
    mlp.load_state_dict(ours.mlp.state_dict())

    draw = generator("timm", "inputs")
    x = torch.randn(2, 10, WIDTH, generator=draw, dtype=torch.float64)
    condition = torch.randn(2, 2, WIDTH, generator=draw, dtype=torch.float64)  # (B, K, D)
    index = torch.randint(2, (2, 10), generator=draw)
    per_token = condition.gather(1, index[..., None].expand(-1, -1, WIDTH))  # (B, L, D)
    shift1, scale1, gate1, shift2, scale2, gate2 = ours.adaLN_modulation(per_token).chunk(6, dim=-1)

    def norm(y: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(y, (WIDTH,), eps=1e-6)

    wanted = x + gate1 * attention(norm(x) * (1 + scale1) + shift1)
    wanted = wanted + gate2 * mlp(norm(wanted) * (1 + scale2) + shift2)
    found = ours(x, condition, token_rows(index, 2), None)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_patches_through_their_embedding():
    """Their convolution over a map of latents, our linear layer over tokens of squares."""
    from timm.models.vision_transformer import PatchEmbed

    embed = randomized(PatchEmbed(8, 2, 4, WIDTH, bias=True))
    latents = torch.randn(2, 4, 8, 8, generator=generator("timm", "latents"), dtype=torch.float64)
    weight = flatten_patches({PATCH: embed.proj.weight})[PATCH]
    tokens = patchify(latents.flatten(2).transpose(1, 2), (1, 8, 8), 2)  # (B, 16, 16)
    torch.testing.assert_close(functional.linear(tokens, weight, embed.proj.bias), embed(latents), atol=1e-12, rtol=0)
