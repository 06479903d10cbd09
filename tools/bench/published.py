"""The other side for FLUX.2 and Wan 2.2: diffusers' own classes with one time per token, in plain loops written here.

Wan's class takes times (B, L). FLUX.2's takes (B,) alone: its blocks broadcast modulations (B, L, 6 W) as well, so the
loop makes one row per token outside of its `forward`, with the mean of the tokens' embeddings for text, as ports of
Self-Flow to FLUX.2 do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.methods import method_alignment
from core.training.ema import EmaConfig
from core.training.loader import Microbatch
from core.training.optim import OptimizerConfig
from core.trunk.flux2 import Flux2Settings
from core.trunk.foreign import flux2, wan
from core.trunk.mmdit import MMDiT
from core.trunk.projectors import ProjectorSpec, SimpleHead
from core.trunk.wan import Wan, WanConfig
from core.types import TokenBatch
from tools.bench.sides import HEADS, Network, Setup

Tapped = dict[int, Tensor]  # layer -> (B, L, W)


class Flux2Peer:
    """diffusers' transformer of FLUX.2, with random weights that ours has too.

    Args:
        shape: arguments of Flux2Transformer2DModel.
    """

    def __init__(self, text_rows: int, projectors: dict[str, ProjectorSpec] | None = None, **shape: Any):
        from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

        self.text_rows, self.projectors = text_rows, HEADS if projectors is None else projectors
        self.network: Any = randomised(Flux2Transformer2DModel(**shape))

    def ours(self) -> MMDiT:
        """Our trunk with the same weights, and initial projectors."""
        config = self.network.config
        settings = Flux2Settings(
            width=config.num_attention_heads * config.attention_head_dim,
            heads=config.num_attention_heads,
            double_blocks=config.num_layers,
            single_blocks=config.num_single_layers,
            mlp_ratio=config.mlp_ratio,
            rope_axes=list(config.axes_dims_rope),
            guided=config.guidance_embeds,
            text_rows=self.text_rows,
        )
        channels = {"image": config.in_channels}
        trunk = MMDiT(settings.trunk_config(channels, config.joint_attention_dim), projectors=self.projectors)
        return _loaded(trunk, flux2.from_diffusers(self.network.state_dict()))

    def per_token(
        self, network: Any, x: Tensor, times: Tensor, batch: TokenBatch, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tapped]:
        """x (B, L, C), times (B, L) in [0, 1] -> velocity (B, L, C), outputs of the tapped layers."""
        text, ids = batch.context.tokens, batch.segments[0].ids[0]
        assert text is not None
        embed = network.time_guidance_embed
        guidance = None
        if embed.guidance_embedder is not None:
            guidance = torch.full((times.numel(),), 4000.0, dtype=x.dtype, device=x.device)
        time = embed((times.flatten() * 1000).to(x.dtype), guidance).unflatten(0, times.shape)  # (B, L, W)
        text_time = time.mean(dim=1, keepdim=True)
        for_media = network.double_stream_modulation_img(time)
        for_text = network.double_stream_modulation_txt(text_time)
        joint_time = torch.cat([text_time.expand(-1, text.shape[1], -1), time], dim=1)
        for_joint = network.single_stream_modulation(joint_time)

        media, text = network.x_embedder(x), network.context_embedder(text.to(x.dtype))
        text_ids = F.pad(torch.arange(text.shape[1], device=x.device)[:, None], (3, 0))
        tables = [network.pos_embed(part) for part in (text_ids, F.pad(ids, (0, 1)))]
        rotation = tuple(torch.cat(pair) for pair in zip(*tables, strict=True))
        tapped: Tapped = {}
        for layer, block in enumerate(network.transformer_blocks, start=1):
            text, media = block(
                hidden_states=media,
                encoder_hidden_states=text,
                temb_mod_img=for_media,
                temb_mod_txt=for_text,
                image_rotary_emb=rotation,
            )
            if layer in taps:
                tapped[layer] = media
        joint, length = torch.cat([text, media], dim=1), text.shape[1]
        for layer, block in enumerate(network.single_transformer_blocks, start=len(network.transformer_blocks) + 1):
            joint = block(
                hidden_states=joint, encoder_hidden_states=None, temb_mod=for_joint, image_rotary_emb=rotation
            )
            if layer in taps:
                tapped[layer] = joint[:, length:]
        scale, shift = network.norm_out.linear(F.silu(time)).chunk(2, dim=-1)
        media = network.norm_out.norm(joint[:, length:]) * (1 + scale) + shift
        return network.proj_out(media), tapped


class WanPeer:
    """diffusers' transformer of Wan 2.2 likewise; tokens are patches (1, 2, 2) of the latents.

    Args:
        grid: tokens (t, h, w).
        shape: arguments of WanTransformer3DModel.
    """

    def __init__(
        self,
        text_rows: int,
        grid: tuple[int, int, int],
        projectors: dict[str, ProjectorSpec] | None = None,
        **shape: Any,
    ):
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        self.text_rows, self.grid = text_rows, grid
        self.projectors = HEADS if projectors is None else projectors
        self.network: Any = randomised(WanTransformer3DModel(**shape))

    def ours(self) -> Wan:
        config = self.network.config
        heads, head = config.num_attention_heads, config.attention_head_dim
        trunk = Wan(
            WanConfig(
                width=heads * head,
                heads=heads,
                depth=config.num_layers,
                hidden=config.ffn_dim,
                text_rows=self.text_rows,
                channels={"video": 4 * config.in_channels},
                text_width=config.text_dim,
            ),
            projectors=self.projectors,
        )
        return _loaded(trunk, wan.from_diffusers(self.network.state_dict(), head))

    def per_token(
        self, network: Any, x: Tensor, times: Tensor, batch: TokenBatch, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tapped]:
        """As of Flux2Peer."""
        assert batch.context.tokens is not None
        tapped: Tapped = {}
        hooks = [
            network.blocks[layer - 1].register_forward_hook(
                lambda module, inputs, output, layer=layer: tapped.update({layer: output})
            )
            for layer in taps
        ]
        maps = _to_maps(x, self.grid)
        text = F.pad(batch.context.tokens.to(x.dtype), (0, 0, 0, self.text_rows - batch.context.tokens.shape[1]))
        velocity = network(maps, (times * 1000).to(x.dtype), text, return_dict=False)[0]
        for hook in hooks:
            hook.remove()
        return _to_tokens(velocity), tapped


def _to_maps(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(B, t h w, c p q) -> (B, c, t, h p, w q), p = q = 2."""
    x = tokens.unflatten(1, grid).unflatten(-1, (-1, 2, 2)).permute(0, 4, 1, 2, 5, 3, 6)
    return x.flatten(5, 6).flatten(3, 4)


def _to_tokens(maps: Tensor) -> Tensor:
    """The inverse."""
    x = maps.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6)
    return x.flatten(4, 6).flatten(1, 3)


@torch.no_grad()
def randomised(network: nn.Module) -> nn.Module:
    """Normal weights of 1 / sqrt(columns), so that every path is felt; scales of norms around 1."""
    draw = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim >= 2:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(noise * 0.1 + ("norm" in name and name.endswith("weight")))
    return network.eval()


def _loaded(trunk: Network, state: dict[str, Tensor]) -> Network:
    own = trunk.state_dict()
    if missing := set(state) - set(own):
        raise KeyError(f"unknown here: {sorted(missing)[:3]}")
    trunk.load_state_dict({**own, **state})
    return trunk


def training_step(
    setup: Setup, peer: Flux2Peer | WanPeer, projector: SimpleHead, microbatch: Microbatch
) -> Callable[[], float]:
    """Self-Flow on diffusers' class as ports write it: a time for every token, the teacher in full, AdamW, EMA in a
    loop. The teacher's copies are made here; `projector` is trained too."""
    alignment, optimizer_config = method_alignment("self_flow").ema_teacher, OptimizerConfig()
    assert alignment is not None  # of this method
    network = copy.deepcopy(peer.network).train()
    blocks = sum(len(child) for name, child in network.named_children() if name.endswith("blocks"))
    layer, teacher_layer = alignment.layers(blocks)
    student = nn.ModuleList([network, projector])
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    trained = list(student.parameters())
    optimizer = torch.optim.AdamW(trained, lr=optimizer_config.lr, weight_decay=optimizer_config.weight_decay)
    moved = microbatch.to(torch.device(setup.device))
    batch, (x1,), levels = moved.batch, moved.drawn.noise, moved.drawn.student
    x0 = batch.segments[0].x0
    tau = levels.per_token(x0.shape[1])
    cleaner = moved.drawn.teacher.per_token(x0.shape[1]) if moved.drawn.teacher is not None else tau

    def step() -> float:
        seen = (1 - tau[..., None]) * x0 + tau[..., None] * x1
        seen_by_teacher = (1 - cleaner[..., None]) * x0 + cleaner[..., None] * x1
        with setup.autocast():
            velocity, taps = peer.per_token(network, seen, tau, batch, [layer])
            projected = projector(taps[layer])
            with torch.no_grad():
                _, raw = peer.per_token(teacher[0], seen_by_teacher, cleaner, batch, [teacher_layer])
            similarity = F.cosine_similarity(projected.float(), raw[teacher_layer].float(), dim=-1)
            loss = F.mse_loss(velocity.float(), x1 - x0) + alignment.weight * (1 - similarity).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, optimizer_config.clip)
        optimizer.step()
        decay = EmaConfig().decay
        with torch.no_grad():
            for kept, current in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.mul_(decay).add_(current, alpha=1 - decay)
        return loss.item()

    return step
