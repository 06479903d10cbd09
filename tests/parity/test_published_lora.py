"""LoRA files of ours in diffusers' own networks: read without a warning, and with equal outputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="the networks that read the files")
pytest.importorskip("peft", reason="makes and reads the adapters")

from core.errors import CheckpointError
from core.keys import generator
from core.training.adapter import AdapterConfig, adapt
from core.trunk.foreign import export_weights, import_weights, read_file
from core.trunk.foreign.lora import export_adapter, merged
from core.trunk.sit import SiT, SiTConfig
from tests.parity.test_published import KINDS, PEERS, L, make_batch, make_levels

CONFIG = AdapterConfig(rank=3, alpha=6.0)


@torch.no_grad()
def adapted(kind: str):
    """A pair with the same weights, ours with an adapter that has an effect."""
    peer = PEERS[kind]()
    trunk = peer.ours()
    adapt(trunk, CONFIG, seed=1)
    for name, parameter in trunk.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.05)
    return peer, trunk


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "lora-diffusers"])
@pytest.mark.parametrize("kind", PEERS)
def test_diffusers_reads_the_file(kind, layout, tmp_path, caplog):
    peer, trunk = adapted(kind)
    (x, batch), levels = make_batch(kind), make_levels("one")
    path = tmp_path / "adapter.safetensors"
    export_adapter(trunk, trunk.state_dict(), CONFIG.scale, path, layout)
    ours = trunk((x,), levels, batch).velocity[0]
    before, _ = peer.per_token(peer.network, x, levels.per_token(L), batch)
    if layout == "lora":  # what load_lora_weights of a pipeline does with its file
        mixin = "WanLoraLoaderMixin" if kind == "wan" else "Flux2LoraLoaderMixin"
        loader = getattr(__import__("diffusers.loaders.lora_pipeline", fromlist=[mixin]), mixin)
        found = loader.lora_state_dict(str(path))
        peer.network.load_lora_adapter(found[0] if isinstance(found, tuple) else found)
    else:
        peer.network.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
    theirs, _ = peer.per_token(peer.network, x, levels.per_token(L), batch)
    assert (theirs - before).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert not [record for record in warnings if "lora" in record.message.lower()]  # nothing was left out


@torch.no_grad()
@pytest.mark.parametrize("kind", ["klein", "wan"])
def test_merged_weights_go_out_in_both_layouts(kind, tmp_path):
    peer, trunk = adapted(kind)
    (x, batch), levels = make_batch(kind), make_levels("many")
    for layout in KINDS[kind]:
        path = tmp_path / f"{layout}.safetensors"
        export_weights(trunk, merged(trunk.state_dict(), CONFIG.scale), path, layout)
        back = peer.ours()
        import_weights(back, read_file(path))
        ours, theirs = (net((x,), levels, batch).velocity[0] for net in (trunk, back))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_names_and_shapes_of_the_file_for_all_readers(tmp_path):
    _, trunk = adapted("klein")
    path = tmp_path / "adapter.safetensors"
    export_adapter(trunk, trunk.state_dict(), CONFIG.scale, path, "lora")
    state = load_file(path)
    assert state["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"].shape == (3, 48)
    assert state["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"].shape == (144, 3)
    assert state["diffusion_model.single_blocks.1.linear1.lora_B.weight"].shape == (432, 3)
    assert len(state) == 2 * (2 * 8 + 2 * 2)
    assert all(value.dtype == torch.float32 for value in state.values())


def test_what_no_file_holds_is_refused(tmp_path):
    plain = PEERS["klein"]().ours()
    with pytest.raises(CheckpointError, match="no adapter in these weights"):
        export_adapter(plain, plain.state_dict(), 1.0, tmp_path / "a.safetensors", "lora")
    other = SiT(SiTConfig(width=24, depth=2, heads=2, grid=2, channels=4, num_classes=3))
    adapt(other, CONFIG, seed=1)
    with pytest.raises(CheckpointError, match="no other project reads adapters of a SiT"):
        export_adapter(other, other.state_dict(), 1.0, tmp_path / "a.safetensors", "lora")
