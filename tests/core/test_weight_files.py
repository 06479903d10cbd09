"""Weight files: what wrappers put before names, what a file says of its weights, and numbers that are refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from core.errors import CheckpointError
from core.trunk.foreign import export_weights, holds_meaning, import_weights, load_strictly, read_file, write_file
from core.trunk.foreign.files import WeightFile
from core.trunk.foreign.prefixes import bare_name, strip_prefixes
from core.trunk.sit import SiT, SiTConfig

MEANING = {"layout": 1, "labels": ["ä", "b"], "meaning": {"trunk.sit.heads": 2}}


def tiny() -> SiT:
    return SiT(SiTConfig(width=16, depth=1, heads=2, grid=2, channels=4, num_classes=3))


@pytest.mark.parametrize(
    ("name", "prefix", "bare"),
    [
        ("blocks.0.attn.qkv.weight", "", "blocks.0.attn.qkv.weight"),
        ("_orig_mod.blocks.0.w", "_orig_mod.", "blocks.0.w"),
        ("module._orig_mod.ema.model.blocks.0.w", "module._orig_mod.ema.model.", "blocks.0.w"),
        ("ema_model.module.pos_embed", "ema_model.module.", "pos_embed"),
        ("blocks.0._orig_mod.attn._fsdp_wrapped_module.w", "_orig_mod._fsdp_wrapped_module.", "blocks.0.attn.w"),
        ("blocks.0._checkpoint_wrapped_module.w", "_checkpoint_wrapped_module.", "blocks.0.w"),
        ("vae.model.w", "", "vae.model.w"),  # not at the beginning
        ("model", "", "model"),  # a whole name
        ("module.ema", "module.", "ema"),
    ],
)
def test_bare_names(name, prefix, bare):
    assert bare_name(name) == (prefix, bare)


def test_every_prefix_is_named():
    state = {"module.a.w": 1, "module.b.w": 2, "c.w": 3, "module.d._orig_mod.w": 4}
    bare, notes = strip_prefixes(state, "file")
    assert bare == {"a.w": 1, "b.w": 2, "c.w": 3, "d.w": 4}
    assert notes == ["prefix module. taken off 2 names", "prefix module._orig_mod. taken off 1 names"]


def test_the_average_is_taken_where_it_lies_beside_the_weights():
    """As Lightning writes a module with both."""
    state = {"model.a": 1, "model.b": 2, "ema.module.a": 3, "ema.module.b": 4, "c": 5}
    bare, notes = strip_prefixes(state, "file")
    assert bare == {"a": 3, "b": 4, "c": 5}
    assert notes == [
        "prefix ema.module. taken off 2 names",
        "left out: 2 names under model.; those under ema.module. are their average",
    ]


@pytest.mark.parametrize("names", [("model.a", "a"), ("model.a", "module.a"), ("ema.a", "ema_model.a")])
def test_several_names_of_one_weight_are_refused(names):
    with pytest.raises(CheckpointError, match=re.escape(f"{names[0]} and {names[1]} are one weight, a")):
        strip_prefixes(dict.fromkeys(names), "file")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["native-sit", "sit"])
def test_what_weights_mean_goes_round(tmp_path, kind, suffix):
    trunk, path = tiny(), tmp_path / f"w{suffix}"
    assert holds_meaning(kind, path)
    export_weights(trunk, trunk.state_dict(), path, kind, meaning=MEANING)
    file = read_file(path)
    assert file.meaning == MEANING
    other = tiny()
    other.reset(1)
    assert import_weights(other, file, kind) == kind
    assert all(torch.equal(other.state_dict()[name], value) for name, value in trunk.state_dict().items())


def test_files_of_others_say_nothing(tmp_path):
    state = tiny().state_dict()
    write_file(state, tmp_path / "plain.pt")
    save_file(state, tmp_path / "plain.safetensors")
    for name in ("plain.pt", "plain.safetensors"):
        assert read_file(tmp_path / name).meaning == {}
    assert not holds_meaning("selfflow", "w.pt")
    assert holds_meaning("selfflow", "w.safetensors")


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_meaning_is_refused(tmp_path, text):
    save_file(tiny().state_dict(), tmp_path / "w.safetensors", metadata={"selfflow": text})
    torch.save({"state_dict": tiny().state_dict(), "selfflow": text}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(CheckpointError, match=r"says of its weights \(selfflow\) is damaged"):
            read_file(tmp_path / name)
    assert json.loads(json.dumps(MEANING)) == MEANING  # what is written is what is compared


def test_numbers_that_are_not_finite_are_refused_both_ways(tmp_path):
    trunk = tiny()
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    state["blocks.0.mlp.fc1.weight"][0, :3] = float("nan")
    state["final_layer.linear.bias"][1] = -float("inf")
    loss_mask = re.escape("blocks.0.mlp.fc1.weight (3 of 1024), final_layer.linear.bias (1 of 8)")
    with pytest.raises(CheckpointError, match=loss_mask):
        load_strictly(trunk, state, "file")
    assert all(torch.equal(trunk.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(CheckpointError, match=loss_mask):
        export_weights(trunk, state, tmp_path / "w.pt", "native-sit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_cast_when_asked_for(dtype):
    trunk = tiny()
    state = {name: value.to(dtype) for name, value in trunk.state_dict().items()}
    file, other = WeightFile("file", state), tiny()
    with pytest.raises(CheckpointError, match=r"22 of another type: pos_embed(.|\n)*--cast converts"):
        import_weights(other, file, "native-sit")
    assert import_weights(other, file, "native-sit", cast=True) == "native-sit"
    assert all(torch.equal(other.state_dict()[name], value.float()) for name, value in state.items())


def test_a_half_that_overflowed_is_not_cast_in_silence():
    state = {name: value.half() for name, value in tiny().state_dict().items()}
    state["x_embedder.proj.weight"][0, 0] = 1e30  # infinite in half precision
    with pytest.raises(CheckpointError, match=r"NaN or infinite: x_embedder\.proj\.weight \(1 of 64\)"):
        import_weights(tiny(), WeightFile("file", state), "native-sit", cast=True)
