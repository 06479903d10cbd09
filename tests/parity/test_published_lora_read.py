"""LoRA files of others in our trunks: the outputs are those of diffusers' networks with the same file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="the networks that read the files")
pytest.importorskip("peft", reason="makes and reads the adapters")

import peft

from core.errors import CheckpointError
from core.keys import generator
from core.training.adapter import AdapterConfig, adapt
from core.trunk.foreign.lora import adapters, export_adapter
from core.trunk.foreign.lora_read import merge_adapter, read_adapter, start_adapter
from tests.parity.test_published import PEERS, L, make_batch, make_levels
from tests.parity.test_published_lora import CONFIG, adapted

# With maps of their own for queries and values, as diffusers' trainers have them; keys are left as they are.
LAYERS = {"wan": ["to_q", "to_v", "ffn.net.2"], "klein": ["to_q", "to_v", "to_qkv_mlp_proj", "linear_out"]}


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_a_file_of_diffusers_gives_its_outputs(kind, tmp_path):
    peer = PEERS[kind]()
    trunk = peer.ours()
    (x, batch), levels = make_batch(kind), make_levels("one")
    peer.network.add_adapter(peft.LoraConfig(r=2, lora_alpha=6, target_modules=LAYERS[kind], init_lora_weights=False))
    for name, parameter in peer.network.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.2)
    peer.network.save_lora_adapter(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    theirs, _ = peer.per_token(peer.network, x, levels.per_token(L), batch)
    before = trunk((x,), levels, batch).velocity[0]
    merge_adapter(trunk, read_adapter(trunk, path))
    ours = trunk((x,), levels, batch).velocity[0]
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["klein", "wan"])
def test_all_names_of_one_adapter_are_the_same_change(kind, tmp_path):
    _, trunk = adapted(kind)
    wanted = {layer: CONFIG.scale * b @ a for layer, (a, b) in adapters(trunk.state_dict()).items()}
    for layout in ("lora", "lora-diffusers"):
        export_adapter(trunk, trunk.state_dict(), CONFIG.scale, tmp_path / f"{layout}.safetensors", layout)
    kohya = {}
    for name, value in load_file(tmp_path / "lora.safetensors").items():
        layer, side = name.removeprefix("diffusion_model.").rsplit(".lora_", 1)
        place = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{place}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = value
        kohya[f"{place}.alpha"] = torch.tensor(1.5)  # half of the rank
    save_file(kohya, tmp_path / "kohya.safetensors")
    for name, share in (("lora", 1.0), ("lora-diffusers", 1.0), ("kohya", 0.5)):
        found = read_adapter(trunk, tmp_path / f"{name}.safetensors")
        assert found.keys() == wanted.keys()
        for layer, (a, b) in found.items():
            torch.testing.assert_close(b @ a, share * wanted[layer], atol=1e-6, rtol=0)


def test_training_goes_on_from_a_file(tmp_path):
    _, trunk = adapted("klein")
    path = tmp_path / "adapter.safetensors"
    export_adapter(trunk, trunk.state_dict(), CONFIG.scale, path, "lora")
    other = PEERS["klein"]().ours()
    adapt(other, CONFIG, seed=2)
    start_adapter(other, read_adapter(other, path), CONFIG.scale, path)
    for layer, (a, b) in adapters(trunk.state_dict()).items():
        own_a, own_b = adapters(other.state_dict())[layer]
        assert torch.equal(own_a, a)
        torch.testing.assert_close(own_b, b, atol=1e-7, rtol=0)


def test_files_of_other_networks_and_ranks_are_refused(tmp_path):
    _, trunk = adapted("klein")
    path = tmp_path / "adapter.safetensors"
    export_adapter(trunk, trunk.state_dict(), CONFIG.scale, path, "lora")
    wan = PEERS["wan"]().ours()
    with pytest.raises(CheckpointError, match=r"changes double_blocks\.0\.\S+, and this Wan has no such linear"):
        read_adapter(wan, path)
    smaller = {name: value[:, :24] if "lora_A" in name else value for name, value in load_file(path).items()}
    save_file({name: value.contiguous() for name, value in smaller.items()}, tmp_path / "small.safetensors")
    with pytest.raises(
        CheckpointError, match=r"x 24, which is \d+ x 48 here; the file is of a network of another size"
    ):
        read_adapter(trunk, tmp_path / "small.safetensors")
    for config, message in (
        (AdapterConfig(rank=4), r"has rank 3 at \S+, and training\.adapter\.rank is 4; set it to 3"),
        (AdapterConfig(rank=3, layers=["*.qkv"]), "which training.adapter.layers leaves out"),
    ):
        other = PEERS["klein"]().ours()
        adapt(other, config, seed=1)
        with pytest.raises(CheckpointError, match=message):
            start_adapter(other, read_adapter(other, path), config.scale, path)
    good = load_file(path)
    one = next(iter(good))
    for state, header, message in (
        (good | {one: good[one] * torch.nan}, None, rf"holds numbers that are NaN or infinite: {one}"),
        (good | {one.replace("lora_A.weight", "alpha"): torch.ones(3)}, None, "has 3 numbers; an alpha is one"),
        (good, "{", "lora_adapter_metadata is damaged"),
        (good, "[1]", "lora_adapter_metadata is damaged"),
        (good, '{"transformer.r": 0, "transformer.lora_alpha": 4}', "r 0 and lora_alpha 4; both must be above 0"),
        (good, '{"transformer.r": 2, "transformer.lora_alpha": "4"}', "lora_alpha '4'; both must be"),
    ):
        save_file(state, tmp_path / "harmed.safetensors", header and {"lora_adapter_metadata": header})
        with pytest.raises(CheckpointError, match=message):
            read_adapter(trunk, tmp_path / "harmed.safetensors")
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no LoRA file; it has "):
        read_adapter(trunk, tmp_path / "other.safetensors")
