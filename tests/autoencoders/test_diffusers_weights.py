import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders.diffusers_weights import read_diffusers
from core.errors import CheckpointError, ConfigError
from tests.autoencoders.small import diffusers, pretrained, save

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("sd_vae", tmp_path_factory.mktemp("sd_vae"))


def read(path):
    return read_diffusers("sd_vae", str(path), "AutoencoderKL", lambda config: {})


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def test_a_folder_named_vae_inside_is_found(folder, tmp_path):
    (tmp_path / "vae").symlink_to(folder)
    assert same_weights(read(tmp_path), read(folder))


def test_weights_saved_as_bf16_are_read_as_float32(folder, tmp_path):
    diffusers.AutoencoderKL.from_pretrained(folder).bfloat16().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in read(tmp_path).parameters()} == {torch.float32}


def test_attention_may_have_its_old_names(folder, tmp_path):
    """As in stabilityai/sd-vae-ft-ema, the autoencoder of SiT and REPA."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / FILE)
    renamed = dict(weights)
    for name in weights:
        for new, previous in old.items():
            if f"attentions.0.{new}." in name:
                renamed[name.replace(new, previous)] = renamed.pop(name)
    assert set(renamed) != set(weights)
    save_file(renamed, tmp_path / FILE, {"format": "pt"})
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    assert same_weights(read(tmp_path), read(folder))


def test_another_class_is_refused(tmp_path):
    save("flux2", tmp_path)
    with pytest.raises(ConfigError, match="holds AutoencoderKLFlux2, kind 'sd_vae' needs AutoencoderKL"):
        read(tmp_path)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "damaged", "absent"])
def test_weights_must_be_exactly_the_networks(folder, tmp_path, change):
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    weights = load_file(folder / FILE)
    if change == "missing":
        del weights["decoder.conv_in.weight"]
    elif change == "extra":
        weights["decoder.more"] = torch.zeros(1)
    elif change == "shape":
        weights["decoder.conv_in.weight"] = torch.zeros(3)
    if change == "damaged":
        (tmp_path / FILE).write_bytes(b"not a safetensors file")
    elif change != "absent":
        save_file(weights, tmp_path / FILE, {"format": "pt"})
    unreadable = change in ("damaged", "absent")
    error, text = (ConfigError, "cannot be read") if unreadable else (CheckpointError, "do not fit")
    with pytest.raises(error, match=text):
        read(tmp_path)


def test_a_folder_without_weights_says_what_to_put_there(tmp_path):
    with pytest.raises(ConfigError) as error:
        pretrained("flux2", tmp_path).load()
    for part in (
        str(tmp_path),
        "AutoencoderKLFlux2",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "vae",
        "hub",
    ):
        assert part in str(error.value)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("no such repository\nand more lines")

    monkeypatch.setattr(diffusers.AutoencoderKL, "load_config", unreachable)
    with pytest.raises(ConfigError, match=r"'somebody/vae' cannot be read: no such repository. Kind 'sd_vae' needs"):
        read("somebody/vae")


@pytest.mark.parametrize("path", ["./weights", "../a/b", "weights", "a/b/c", ""])
def test_what_cannot_be_a_name_on_the_hub_is_not_looked_for_there(path):
    with pytest.raises(ConfigError, match=r"' is not a folder\. Kind 'sd_vae' needs"):
        read(path)


def test_without_diffusers_the_message_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"kind: 'sd_vae' needs the package diffusers.*pixels.*work without it"):
        read("anywhere")
