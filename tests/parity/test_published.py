"""FLUX.2 and Wan 2.2 as our trunks against diffusers' own classes with the same random weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("diffusers", reason="the networks that ours are compared with")

from core.errors import CheckpointError, ShapeError
from core.keys import generator
from core.trunk.foreign import detect, export_weights, import_weights, load_folder, read_file, read_folder
from core.trunk.foreign import flux2 as flux2_names
from core.trunk.foreign import wan as wan_names
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch
from tools.bench.published import Flux2Peer, WanPeer

ROWS, GRID, B = 6, (3, 2, 2), 2
FLUX2 = {
    "in_channels": 12,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 10,
    "axes_dims_rope": (4, 4, 4, 4),
}
WAN = {
    "num_attention_heads": 3,
    "attention_head_dim": 12,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 10,
    "ffn_dim": 40,
    "num_layers": 3,
}
PEERS = {
    "klein": lambda: Flux2Peer(ROWS, {}, guidance_embeds=False, **FLUX2),
    "dev": lambda: Flux2Peer(ROWS, {}, guidance_embeds=True, **FLUX2),
    "wan": lambda: WanPeer(ROWS, GRID, {}, **WAN),
}
KINDS = {"klein": ("flux2-diffusers", "flux2"), "dev": ("flux2-diffusers", "flux2"), "wan": ("wan-diffusers", "wan")}
L = 12


def normals(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("published", name))


def make_batch(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, TokenBatch]:
    """Noisy tokens, and the batch that they belong to."""
    x = normals("x", B, L, 12).to(dtype)
    grid = GRID if kind == "wan" else (1, 3, 4)
    ids = torch.cartesian_prod(*(torch.arange(side) for side in grid))[None]
    modality = "video" if kind == "wan" else "image"
    valid = torch.ones(B, ROWS, dtype=torch.bool)
    context = Context(torch.zeros(B, dtype=torch.bool), tokens=normals("text", B, ROWS, 10).to(dtype), valid=valid)
    return x, TokenBatch((Segment(modality, x.float(), ids),), context)


def make_levels(kind: str) -> NoiseLevels:
    if kind == "one":
        return NoiseLevels(torch.tensor([[0.7315], [0.25]]))
    index = (torch.rand(B, L, generator=generator("levels")) < 0.4).long()
    index[:, :4] = 2  # the first frame is clean
    return NoiseLevels(torch.tensor([[0.7315, 0.2, 0.0], [0.25, 0.9, 0.0]]), index)


@torch.no_grad()
@pytest.mark.parametrize("kind", PEERS)
def test_one_time_equals_the_class_itself(kind):
    peer, (x, batch), levels = PEERS[kind](), make_batch(kind), make_levels("one")
    ours = peer.ours()((x,), levels, batch).velocity[0]
    if kind == "wan":
        theirs, _ = peer.per_token(peer.network, x, levels.values[:, 0], batch)
    else:
        text_ids = torch.nn.functional.pad(torch.arange(ROWS)[:, None], (3, 0))
        image_ids = torch.nn.functional.pad(batch.segments[0].ids[0], (0, 1))
        guidance = torch.full((B,), 4.0) if kind == "dev" else None
        text, t = batch.context.tokens, levels.values[:, 0]
        theirs = peer.network(x, text, t, image_ids, text_ids, guidance=guidance).sample
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


@torch.no_grad()
def test_channels_of_the_axes_are_rounded_as_published():
    """Heads of 16 channels: 8, 4, 4 and not 4, 6, 6."""
    peer = WanPeer(ROWS, GRID, {}, **WAN | {"attention_head_dim": 16})
    (x, batch), levels = make_batch("wan"), make_levels("many")
    theirs, _ = peer.per_token(peer.network, x, levels.per_token(L), batch)
    torch.testing.assert_close(peer.ours()((x,), levels, batch).velocity[0], theirs, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PEERS)
def test_a_time_per_token_with_a_clean_first_frame_and_taps(kind, dtype, monkeypatch):
    if dtype == torch.float64:  # where diffusers goes back to float32 whatever the network has
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    peer, (x, batch), levels = PEERS[kind](), make_batch(kind, dtype), make_levels("many")
    levels = replace(levels, values=levels.values.to(dtype))
    ours, network = peer.ours().to(dtype), peer.network.to(dtype)
    found = ours((x,), levels, batch, FeatureLayers(raw=(1, ours.depth)))
    theirs, taps = peer.per_token(network, x, levels.per_token(L), batch, [1, ours.depth])
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5  # measured: 4e-15 and 5e-6
    torch.testing.assert_close(found.velocity[0], theirs, atol=tolerance, rtol=0)
    for layer, features in taps.items():
        torch.testing.assert_close(found.raw[layer], features, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", PEERS)
def test_given_tokens_and_padding_against_a_sample_cut_to_what_is_there(kind, monkeypatch):
    """Text takes the mean embedding of the tokens that are neither padding nor given; padding is not looked at."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    peer, (x, batch), levels = PEERS[kind](), make_batch(kind, torch.float64), make_levels("many")
    ours = peer.ours().double()
    valid, given = torch.arange(L).expand(B, L) < 8, torch.arange(L).expand(B, L) < 4
    segment = replace(batch.segments[0], valid=valid, conditioning_mask=given)
    padded = x.masked_fill(~valid[..., None], 7.0)
    found = ours((padded,), levels, replace(batch, segments=(segment,))).velocity[0][:, :8]

    short = replace(batch.segments[0], x0=segment.x0[:, :8], ids=segment.ids[:, :8])
    cut = replace(batch, segments=(replace(short, conditioning_mask=given[:, :8]),))
    cut_levels = NoiseLevels(levels.values, levels.index[:, :8])
    torch.testing.assert_close(found, ours((x[:, :8],), cut_levels, cut).velocity[0], atol=1e-10, rtol=0)
    if kind == "wan":  # without text that has a time
        peer.grid = (2, 2, 2)
        theirs, _ = peer.per_token(peer.network.double(), x[:, :8], cut_levels.per_token(8), cut)
        torch.testing.assert_close(found, theirs, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["klein", "wan"])
def test_padding_of_text_is_attended_to_and_a_dropped_text_is_the_empty_one(kind):
    peer, (x, batch), levels = PEERS[kind](), make_batch(kind), make_levels("one")
    ours = peer.ours()
    text = batch.context.tokens.clone()
    short = replace(batch.context, tokens=text[:, :4], valid=batch.context.valid[:, :4])
    zeros = replace(batch.context, tokens=torch.cat([text[:, :4], torch.zeros(B, 2, 10)], dim=1))
    hidden = replace(batch.context, valid=torch.arange(ROWS).expand(B, ROWS) < 4)
    runs = [ours((x,), levels, replace(batch, context=context)).velocity[0] for context in (short, zeros, hidden)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    theirs, _ = peer.per_token(peer.network, x, levels.per_token(L), replace(batch, context=zeros))
    torch.testing.assert_close(runs[0], theirs, atol=5e-6, rtol=0)

    empty = normals("empty", ROWS, 10)
    ours.get_buffer("null" if kind == "wan" else "context.reader.null").copy_(empty)
    dropped = replace(batch.context, dropped=torch.tensor([True, False]))
    found = ours((x,), levels, replace(batch, context=dropped)).velocity[0]
    text[0] = empty
    written = replace(batch.context, tokens=text)
    assert torch.equal(found, ours((x,), levels, replace(batch, context=written)).velocity[0])
    long = replace(batch.context, tokens=torch.zeros(B, 7, 10), valid=torch.ones(B, 7, dtype=torch.bool))
    with pytest.raises(ShapeError, match="7 rows, but this trunk reads at most 6"):
        ours((x,), levels, replace(batch, context=long))


@pytest.mark.parametrize("kind", PEERS)
def test_files_come_and_go_byte_for_byte(kind, tmp_path):
    """diffusers' own folder in bfloat16 -> ours -> both layouts, and each of them back."""
    peer = PEERS[kind]()
    peer.network.bfloat16().save_pretrained(tmp_path / "theirs")
    if kind != "wan":  # of the published height, which a loader must not need
        load_folder(tmp_path / "theirs", ROWS)
    trunk = peer.ours().bfloat16()
    original = peer.network.state_dict()
    file = read_folder(tmp_path / "theirs")
    assert detect(file.state, "it") == KINDS[kind][0]
    for layout in KINDS[kind]:
        path = tmp_path / f"{layout}.safetensors"
        export_weights(trunk, trunk.state_dict(), path, layout)
        other = PEERS[kind]().ours().bfloat16()
        assert import_weights(other, read_file(path)) == layout
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in trunk.state_dict().items())
    same = load_file(tmp_path / f"{KINDS[kind][0]}.safetensors")
    assert set(same) == set(original)
    assert all(torch.equal(same[name].view(torch.int16), value.view(torch.int16)) for name, value in original.items())


def test_the_authors_layouts_have_the_authors_names():
    """Of black-forest-labs/flux2 (src/flux2/model.py) and Wan-Video/Wan2.2 (wan/modules/model.py)."""
    state = flux2_names.to_authors(PEERS["dev"]().ours().state_dict())
    assert {name for name in state if ".0." not in name.replace("adaLN_modulation", "") or "_blocks.0" in name} >= {
        "img_in.weight",
        "txt_in.weight",
        "time_in.in_layer.weight",
        "guidance_in.out_layer.weight",
        "double_stream_modulation_img.lin.weight",
        "single_stream_modulation.lin.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "double_blocks.0.txt_attn.norm.query_norm.scale",
        "double_blocks.0.img_mlp.0.weight",
        "double_blocks.0.txt_mlp.2.weight",
        "single_blocks.0.linear1.weight",
        "single_blocks.0.norm.key_norm.scale",
        "final_layer.linear.weight",
    }
    assert "final_layer.adaLN_modulation.1.weight" in state
    names = set(wan_names.to_authors(PEERS["wan"]().ours().state_dict(), 12))
    assert names >= {
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_embedding.0.weight",
        "time_projection.1.weight",
        "blocks.0.self_attn.q.bias",
        "blocks.0.self_attn.norm_k.weight",
        "blocks.0.cross_attn.o.weight",
        "blocks.0.norm3.weight",
        "blocks.0.ffn.2.weight",
        "blocks.0.modulation",
        "head.modulation",
        "head.head.weight",
    }
    assert not any("norm2" in name for name in names)


@torch.no_grad()
def test_a_folder_is_loaded_by_its_own_config(tmp_path):
    peer, (x, batch), levels = PEERS["dev"](), make_batch("dev"), make_levels("many")
    peer.network.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    (tmp_path / "model_index.json").write_text("{}")
    trunk = load_folder(tmp_path, ROWS)
    assert torch.equal(trunk((x,), levels, batch).velocity[0], peer.ours()((x,), levels, batch).velocity[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "class FluxTransformer2DModel; read are Flux2Transformer2DModel"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised weights \(bitsandbytes\)"),
        ({"patch_size": 2}, "another shape than the published one: patch_size 2 where 1 is read"),
        ({"num_layers": 1}, "unexpected: double_blocks.1"),
        ({"num_attention_heads": 4}, "mis-shaped"),
        ({"_class_name": None, "architectures": ["Qwen3Model"]}, "a network of class Qwen3Model; read are"),
        ({"quantization_config": "fp8"}, r"quantised weights \(unknown\)"),
        ({"num_layers": "two"}, r"not the settings of a Flux2Transformer2DModel: num_layers 'two' \(such as 8\)"),
        ({"num_single_layers": -1, "axes_dims_rope": 4}, "num_single_layers -1 .such as 48., axes_dims_rope 4 ."),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, change, message):
    PEERS["klein"]().network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_folder(tmp_path, ROWS)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("shard gone", r"1 of the \d+ files that .*index.json names are not there: .*-00002-of-"),
        ("tensor gone", r"1 of the \d+ tensors that .*index.json names are in none of its files: x_embedder.weight"),
        ("map gone", "has no weight_map"),
        ("map is a list", "has no weight_map"),
        ("another format", "holds neither .* nor .*; there is diffusion_pytorch_model.fp16.safetensors"),
        ("no config", "no transformer of diffusers here, which has a config.json"),
    ],
)
def test_damaged_folders_are_named(tmp_path, harm, message):
    PEERS["klein"]().network.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    told = json.loads(index.read_text())
    if harm == "shard gone":
        next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    elif harm == "tensor gone":
        place = tmp_path / told["weight_map"]["x_embedder.weight"]
        save_file({name: value for name, value in load_file(place).items() if name != "x_embedder.weight"}, place)
    elif harm == "another format":
        next(tmp_path.glob("*-00001-of-*")).rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
        for path in (index, *tmp_path.glob("*-of-*")):
            path.unlink()
    elif harm == "no config":
        (tmp_path / "config.json").unlink()
    else:
        index.write_text(json.dumps({"weight_map": ["a"]} if "list" in harm else {}))
    with pytest.raises(CheckpointError, match=message):
        read_folder(tmp_path)


def test_tensors_of_other_shapes_are_named_by_the_strict_load(tmp_path):
    """Packed weights have other rows than any network, which no order of channels can be taken from."""
    state = dict(PEERS["klein"]().network.state_dict())
    packed = {name: value.reshape(-1, 1)[::2] if value.ndim == 2 else value for name, value in state.items()}
    ours = flux2_names.from_diffusers(packed)
    assert ours["single_blocks.0.linear1.weight"].shape == (
        state["single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"].numel() // 2,
        1,
    )


def test_quantised_files_are_refused(tmp_path):
    folder = tmp_path / "fp8"
    PEERS["klein"]().network.save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(weights).items()}
    save_file(state, weights)
    with pytest.raises(CheckpointError, match="weights of type float8_e4m3fn, as quantised files have"):
        read_folder(folder)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"quantised weights \(GGUF\)"):
        read_file(tmp_path / "model.gguf")
