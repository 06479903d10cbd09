import pytest
import torch

from autoencoders.kinds import build_pretrained
from autoencoders.sd_vae import SDVAEConfig
from core.errors import ConfigError
from core.keys import generator
from tests.autoencoders.small import pretrained, save, sd_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("sd_vae", tmp_path_factory.mktemp("sd_vae"))


def image() -> torch.Tensor:
    return torch.rand(1, 3, 16, 24, generator=generator("picture")) * 2 - 1


def test_tokens_are_the_posterior_of_the_network_row_by_row(folder):
    autoencoder = pretrained("sd_vae", folder)
    with torch.no_grad():
        posterior = autoencoder.load().encode(image()).latent_dist
    mean = autoencoder.encode(image())
    assert torch.equal(mean[0, 4], posterior.mean[0, :, 1, 1])  # cell in row 1, column 1 of 2 x 3
    sample = posterior.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    ours = autoencoder.encode(image(), noise.flatten(2).transpose(1, 2))
    torch.testing.assert_close(ours, sample.flatten(2).transpose(1, 2))


def test_decoding_is_the_networks(folder):
    autoencoder = pretrained("sd_vae", folder)
    maps = torch.randn(1, 4, 2, 3, generator=generator("maps"))
    with torch.no_grad():
        expected = autoencoder.load().decode(maps).sample
    assert torch.equal(autoencoder.decode(maps.flatten(2).transpose(1, 2), (1, 16, 24)), expected)


def test_normalization_is_the_published_scale(folder):
    latents = torch.randn(1, 6, 4, generator=generator("latents"))
    torch.testing.assert_close(pretrained("sd_vae", folder).normalization.normalize(latents), latents * 0.18215)


def test_two_by_two_cells_are_a_token_unless_set(folder):
    config = SDVAEConfig(path=str(folder))
    assert build_pretrained(config, (1, 256, 256)).grid((1, 256, 256)) == (1, 16, 16)
    assert build_pretrained(config, (1, 256, 256)).spec.channels == 16
    assert build_pretrained(config, (1, 256, 256), patch=1).grid((1, 256, 256)) == (1, 32, 32)


def test_the_autoencoder_of_another_model_is_refused(tmp_path):
    sd_vae(latent_channels=16, scaling_factor=0.3611).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        pretrained("sd_vae", tmp_path).load()
    assert [line.partition("has ")[2] for line in error.value.problems] == [
        "latent_channels 16, kind 'sd_vae' needs 4",
        "scaling_factor 0.3611, kind 'sd_vae' needs 0.18215",
    ]
