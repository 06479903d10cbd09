"""Released Self-Flow weights in and out: strict, inferred size, byte-identical, and helpful when the file is wrong."""

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError
from core.trunk.foreign import export_weights, infer_projectors, infer_sit_config, load_sit, read_file, read_state_dict
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SIZES, SiT, SiTConfig
from tests.parity.common import WEIGHTS


def export(trunk, path, kind="selfflow"):
    export_weights(trunk, trunk.state_dict(), path, kind)


def test_shapes_tell_the_size():
    state = read_state_dict(WEIGHTS)
    config = infer_sit_config(state, heads=4)
    assert config.shape() == (64, 4, 4)
    assert (config.grid, config.channels, config.num_classes, config.mlp_ratio) == (4, 16, 11, 4.0)
    assert config.learn_sigma
    assert infer_projectors(state) == {TEACHER: ProjectorSpec("simple", 64)}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_are_recognized(size):
    """Without weights: shapes on the meta device."""
    with torch.device("meta"):
        state = SiT(SiTConfig(size=size, learn_sigma=False)).state_dict()
    config = infer_sit_config(state)
    assert config.shape() == SIZES[size]
    assert config.size == size
    assert not config.learn_sigma
    assert infer_projectors(state) == {}


def test_projectors_are_recognized():
    specs = {TEACHER: ProjectorSpec("simple", 8), "image_dinov2": ProjectorSpec("repa", 12)}
    trunk = SiT(SiTConfig(size="S", width=8, depth=1, heads=1, grid=2, channels=4), projectors=specs)
    assert infer_projectors(trunk.state_dict()) == specs


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_export_is_byte_identical(tmp_path, suffix):
    original = load_file(WEIGHTS)
    path = tmp_path / f"exported{suffix}"
    export(load_sit(WEIGHTS, heads=4), path)
    exported = read_state_dict(path)
    assert set(exported) == set(original)
    for name, value in original.items():
        assert exported[name].dtype == value.dtype
        assert exported[name].numpy().tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"ema": state, "model": {}, "steps": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": state, "opt": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1, model="SiT-XL/2")},
    ],
)
def test_wrapped_files(tmp_path, wrap):
    state = load_file(WEIGHTS)
    torch.save(wrap(state), tmp_path / "wrapped.pt")
    loaded = load_sit(tmp_path / "wrapped.pt", heads=4).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_training_arguments_are_read(tmp_path):
    torch.save({"ema": {"a": torch.ones(1)}, "args": argparse.Namespace(prediction="v")}, tmp_path / "args.pt")
    file = read_file(tmp_path / "args.pt")
    assert file.arguments == {"prediction": "v"}
    assert file.source.endswith("args.pt[ema]")


def test_a_wrong_file_says_which_names_are_wrong(tmp_path):
    state = load_file(WEIGHTS)
    del state["blocks.2.attn.qkv.bias"]
    state["blocks.2.attn.q_norm.weight"] = torch.ones(16)
    state["t_embedder.mlp.2.bias"] = torch.ones(63)
    state["blocks.1.mlp.fc2.bias"] = state["blocks.1.mlp.fc2.bias"].half()
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_sit(tmp_path / "wrong.safetensors", heads=4)
    message = str(error.value)
    assert "1 missing: blocks.2.attn.qkv.bias" in message
    assert "1 unexpected: blocks.2.attn.q_norm.weight" in message
    assert "t_embedder.mlp.2.bias (63,) torch.float32, expected (64,)" in message
    assert "blocks.1.mlp.fc2.bias (64,) torch.float16" in message


def test_long_lists_are_cut(tmp_path):
    state = {name: value for name, value in load_file(WEIGHTS).items() if not name.startswith("blocks.1")}
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"10 missing: blocks\.1\..* and 5 more"):
        load_sit(tmp_path / "wrong.safetensors", heads=4)


class _Code:
    """Something that a pickle would build by running code."""


def truncated(path):
    torch.save({"model": load_file(WEIGHTS)}, path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.pt", lambda path: None, "no such file"),
        ("other.bin", lambda path: path.write_bytes(b"x"), "unknown kind '.bin'"),
        ("damaged.pt", lambda path: path.write_bytes(b"x" * 100), "damaged"),
        ("damaged.safetensors", lambda path: path.write_bytes(b"x" * 100), "damaged"),
        ("truncated.pt", truncated, "damaged"),
        ("code.pt", lambda path: torch.save({"model": _Code()}, path), "more than plain tensors"),
        ("list.pt", lambda path: torch.save([torch.ones(1)], path), "no tensors by name"),
        ("resnet.pt", lambda path: torch.save({"fc.weight": torch.ones(2, 2)}, path), "of no known kind"),
    ],
)
def test_unusable_files(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load_sit(tmp_path / name)


def test_export_to_an_unknown_file_kind(tmp_path):
    with pytest.raises(CheckpointError, match="unknown kind"):
        export(load_sit(WEIGHTS, heads=4), tmp_path / "weights.npz")


def test_export_never_overwrites(tmp_path):
    path = tmp_path / "weights.pt"
    export(load_sit(WEIGHTS, heads=4), path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        export(load_sit(WEIGHTS, heads=4), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]
