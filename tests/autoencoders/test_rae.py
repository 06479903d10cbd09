"""RAE. The golden values were made by the published code with the weights of tests/autoencoders/rae_files.py."""

import json
import sys

import pytest
import torch

pytest.importorskip("transformers", reason="the encoder of RAE needs transformers")

from autoencoders.rae import RAE, read_published
from core.errors import CheckpointError, ConfigError, ShapeError
from core.keys import generator
from tests.autoencoders.rae_files import write_published
from tests.autoencoders.small import pretrained, save
from tests.parity.common import golden


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All sizes small, which `pretrained` would refuse."""
    folder = tmp_path_factory.mktemp("small")
    return write_published(folder, channels=64, heads=2, side=4, width=32, layers=2, inner=48, table=5)


@pytest.fixture(scope="module")
def real_width(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real_width")
    return write_published(folder, channels=768, heads=12, side=16, width=32, layers=1, inner=48, table=5)


def test_latents_and_images_equal_those_of_the_published_code(published):
    network, expected = read_published(published).eval(), golden("rae_stage1")
    image = torch.rand(1, 3, 64, 64, generator=generator("rae", "picture"))
    normalization = RAE.published_normalization(network)
    with torch.no_grad():
        raw = RAE.run_encoder(network, image * 2 - 1)
        decoded = RAE.run_decoder(network, normalization.denormalize(expected["normalized"]), (1, 4, 4))
    torch.testing.assert_close(raw, expected["raw"], rtol=0, atol=2e-5)
    torch.testing.assert_close(normalization.normalize(raw), expected["normalized"], rtol=0, atol=2e-5)
    torch.testing.assert_close((decoded + 1) / 2, expected["decoded"], rtol=0, atol=5e-6)


def test_normalization_is_published_for_every_channel_and_position(published):
    statistics = torch.load(published / "stat.pt", weights_only=True)
    normalization = RAE.published_normalization(read_published(published))
    assert normalization.mean.shape == (16, 64)
    torch.testing.assert_close(normalization.mean[6], statistics["mean"][:, 1, 2])
    torch.testing.assert_close(normalization.std[6], (statistics["var"][:, 1, 2] + 1e-5).sqrt())


def test_the_published_files_work_at_the_real_width(real_width):
    autoencoder = pretrained("rae", real_width)
    image = torch.rand(1, 3, 256, 256, generator=generator("picture")) * 2 - 1
    tokens = autoencoder.encode(image)
    assert tokens.shape == (1, 256, 768)
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(1, 256), atol=1e-5, rtol=0)  # a norm without affine
    torch.testing.assert_close(tokens.var(dim=-1, unbiased=False), torch.ones(1, 256), atol=1e-3, rtol=0)
    assert autoencoder.normalization.mean.shape == (256, 768)
    assert autoencoder.decode(tokens, (1, 256, 256)).shape == image.shape


def test_the_layout_of_diffusers_does_what_diffusers_does(tmp_path):
    autoencoder = pretrained("rae", save("rae", tmp_path))
    image = torch.rand(1, 3, 256, 256, generator=generator("picture"))
    network = autoencoder.load()
    with torch.no_grad():
        white = network.encode(image).latent
        painted = network.decode(white).sample
    tokens = autoencoder.encode(image * 2 - 1)
    torch.testing.assert_close(autoencoder.normalization.normalize(tokens), white.flatten(2).transpose(1, 2))
    torch.testing.assert_close((autoencoder.decode(tokens, (1, 256, 256)) + 1) / 2, painted, rtol=0, atol=1e-5)


def test_one_size_only():
    autoencoder = pretrained("rae", "nowhere")
    assert autoencoder.grid((1, 256, 256)) == (1, 16, 16)
    with pytest.raises(ShapeError, match="512 x 512: rae was trained for images of one size; legal: 256 x 256"):
        autoencoder.grid((1, 512, 512))


def test_what_lacks_is_named(published, tmp_path):
    with pytest.raises(ConfigError, match="or the published files: model"):
        pretrained("rae", tmp_path).load()
    for name in ("encoder", "model.pt"):
        (tmp_path / name).symlink_to(published / name)
    with pytest.raises(ConfigError, match=r"lacks stat.pt; kind 'rae' needs the published files"):
        pretrained("rae", tmp_path).load()
    (tmp_path / "stat.pt").write_bytes(b"not a file of torch")
    with pytest.raises(CheckpointError, match=r"stat.pt: cannot be read"):
        pretrained("rae", tmp_path).load()
    torch.save({"mu": torch.zeros(1)}, tmp_path / "stat.pt")
    with pytest.raises(CheckpointError, match=r"stat.pt: expected the tensors mean and var, got mu"):
        pretrained("rae", tmp_path).load()


def test_small_weights_are_not_the_published_ones(published):
    with pytest.raises(ConfigError, match="encoder_hidden_size 64, kind 'rae' needs 768"):
        pretrained("rae", published).load()


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_decoder_must_have_exactly_its_tensors(published, tmp_path, change):
    for name in ("encoder", "stat.pt"):
        (tmp_path / name).symlink_to(published / name)
    weights = torch.load(published / "model.pt", weights_only=True)
    if change == "missing":
        del weights["decoder_layers.1.attention.attention.key.bias"]
    else:
        weights["decoder_layers.0.more"] = torch.zeros(1)
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model.pt: not the weights of an RAE decoder"):
        pretrained("rae", tmp_path).load()


def test_an_encoder_must_have_all_its_tensors(published, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("model.pt", "stat.pt"):
        (tmp_path / name).symlink_to(published / name)
    (tmp_path / "encoder").mkdir()
    config = json.loads((published / "encoder" / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    weights = load_file(published / "encoder" / "model.safetensors")
    del weights["embeddings.register_tokens"]
    save_file(weights, tmp_path / "encoder" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"these weights lack embeddings.register_tokens"):
        pretrained("rae", tmp_path).load()


def test_without_transformers(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"kind: 'rae' needs the package transformers, .*'\.\[models\]'"):
        read_published(published)
