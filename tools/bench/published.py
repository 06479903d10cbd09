"""The other side for FLUX.2 and Wan 2.2: diffusers' own classes with one time per token, in plain loops written here.

Wan's class takes times (B, L). FLUX.2's takes (B,) alone: its blocks broadcast modulations (B, L, 6 W) as well, so the
loop makes one row per token outside of its `forward`, with the mean of the tokens' embeddings for text, as ports of
Self-Flow to FLUX.2 do.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from configs.methods import method_alignment
from core.errors import SelfFlowError
from core.keys import generator
from core.training.ema import EmaConfig
from core.training.loader import Microbatch
from core.training.optim import OptimizerConfig
from core.trunk.flux2 import Flux2Settings
from core.trunk.foreign import flux2, wan
from core.trunk.mmdit import MMDiT
from core.trunk.projectors import ProjectorSpec, SimpleHead
from core.trunk.wan import Wan, WanConfig
from core.types import Context, FeatureLayers, TokenBatch
from tools.bench.measure import Row, Times, median_row, ratio_row, side_by_side
from tools.bench.sides import HEADS, Network, Setup, build_trainer, make_microbatch, step_of

LOSSES_AGREE = 1e-4  # largest difference in float32
MIB = 2**20

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


FLUX2: dict[str, Any] = {
    "in_channels": 64,
    "attention_head_dim": 64,
    "joint_attention_dim": 256,
    "axes_dims_rope": (16, 16, 16, 16),
}
WAN: dict[str, Any] = {"attention_head_dim": 64, "in_channels": 16, "out_channels": 16, "text_dim": 256}
CASES: dict[str, Callable[[int], Flux2Peer | WanPeer]] = {
    "FLUX.2, width 256, 2 + 6 blocks": lambda grid: Flux2Peer(
        64, **FLUX2, guidance_embeds=False, num_attention_heads=4, num_layers=2, num_single_layers=6
    ),
    "FLUX.2, width 512, 2 + 6 blocks": lambda grid: Flux2Peer(
        64, **FLUX2, guidance_embeds=False, num_attention_heads=8, num_layers=2, num_single_layers=6
    ),
    "Wan 2.2, width 256, 8 blocks": lambda grid: WanPeer(
        64, (1, grid, grid), **WAN, num_attention_heads=4, num_layers=8, ffn_dim=1024
    ),
    "Wan 2.2, width 512, 8 blocks": lambda grid: WanPeer(
        64, (1, grid, grid), **WAN, num_attention_heads=8, num_layers=8, ffn_dim=2048
    ),
}


def rows(name: str, setup: Setup) -> list[Row]:
    """A Self-Flow step of ours against the plain loop, and a forward pass of each with a time per token: same weights,
    alternating in one process.

    Raises:
        SelfFlowError: their losses differ, and a comparison of times would mean nothing.
    """
    peer = CASES[name](setup.grid)
    text = torch.randn(setup.batch, 64, 256, generator=generator("bench", "text"))
    valid = torch.ones(text.shape[:2], dtype=torch.bool)
    context = Context(torch.zeros(setup.batch, dtype=torch.bool), tokens=text, valid=valid)
    microbatch = make_microbatch(setup, "self_flow", 64, context)
    if isinstance(peer, WanPeer):
        (segment,) = microbatch.batch.segments
        batch = replace(microbatch.batch, segments=(replace(segment, modality="video", part="image"),))
        microbatch = replace(microbatch, batch=batch)
    trunk = peer.ours()
    projector = copy.deepcopy(trunk.projector)
    assert isinstance(projector, SimpleHead)
    theirs = training_step(setup, peer, projector, microbatch)
    batch, levels = microbatch.batch, microbatch.drawn.student
    x = batch.segments[0].x0
    taps, tau, still = FeatureLayers(), levels.per_token(x.shape[1]), copy.deepcopy(trunk).eval()
    forwards: dict[str, Callable[[], object]] = {
        "ours": lambda: still((x,), levels, batch, taps),
        "theirs": lambda: peer.per_token(peer.network, x, tau, batch),
    }
    alignment = method_alignment("self_flow").ema_teacher
    assert alignment is not None  # of this method
    layer, _ = alignment.layers(trunk.depth)
    kept = {
        "ours": saved_bytes(trunk, lambda: trunk((x,), levels, batch, FeatureLayers(raw=(layer,)))),
        "theirs": saved_bytes(peer.network, lambda: peer.per_token(peer.network, x, tau, batch, [layer])),
    }
    with torch.no_grad():
        passes = side_by_side(forwards, setup.rounds, setup.warmup, setup.device)
    with TemporaryDirectory() as scratch:
        ours = step_of(build_trainer(setup, trunk, "self_flow", microbatch, Path(scratch)))
        worst = max(abs(ours() - theirs()) for _ in range(2))
        if not worst <= LOSSES_AGREE:
            raise SelfFlowError(f"{name}: losses of two steps differ by {worst:.2g}, allowed {LOSSES_AGREE:g}")
        steps = side_by_side({"ours": ours, "theirs": theirs}, setup.rounds, setup.warmup, setup.device)
    return [
        Row(name, f"largest difference of the losses of two steps (allowed {LOSSES_AGREE:g})", worst, ""),
        _time_row(name, "forward, ours", passes, "ours"),
        _time_row(name, "forward, diffusers' class", passes, "theirs"),
        ratio_row(name, "forward, ours as fast as theirs times", passes, "theirs", "ours"),
        _time_row(name, "Self-Flow step, ours", steps, "ours"),
        _time_row(name, "Self-Flow step, plain loop on diffusers' class", steps, "theirs"),
        ratio_row(name, "Self-Flow step, ours as fast as theirs times", steps, "theirs", "ours"),
        Row(name, "kept for the backward pass, ours", kept["ours"] / MIB, "MiB"),
        Row(name, "kept for the backward pass, diffusers' class", kept["theirs"] / MIB, "MiB"),
        Row(name, "kept for the backward pass, theirs over ours", kept["theirs"] / kept["ours"], ""),
    ]


def saved_bytes(network: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that a forward pass of the student keeps for its backward pass, besides the weights; what several
    operations keep counts once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors live on, so that no other takes their place in memory

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return found


def _time_row(name: str, what: str, times: Times, side: str) -> Row:
    return median_row(name, what, [1000 * seconds for seconds in times[side]], "ms", {side: times[side]})


def main() -> None:
    parser = argparse.ArgumentParser(description="ours against plain loops on diffusers' FLUX.2 and Wan 2.2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--grid", type=int, default=16, help="tokens per side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help=f"cases whose name has this in it, of {'; '.join(CASES)}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setup = Setup(batch=options.batch, grid=options.grid, rounds=options.rounds, threads=options.threads)
    for name in [name for name in CASES if options.only in name]:
        for row in rows(name, setup):
            spread = "" if row.low is None else f" ({row.low:.3g} .. {row.high:.3g})"
            print(f"{row.section}: {row.what}: {row.value:.3g} {row.unit}{spread}", flush=True)


if __name__ == "__main__":
    main()
