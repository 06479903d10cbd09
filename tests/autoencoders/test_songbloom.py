import pytest
import torch

from core.errors import ConfigError, ShapeError
from core.keys import generator
from tests.autoencoders.small import diffusers, pretrained, save

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return pretrained("songbloom", save("songbloom", tmp_path_factory.mktemp("songbloom")))


def sound() -> torch.Tensor:
    return torch.rand(1, 2, 3 * 1920, generator=generator("sound")) * 2 - 1


def test_tokens_are_the_posterior_of_the_network(autoencoder):
    with torch.no_grad():
        posterior = autoencoder.load().encode(sound()).latent_dist
    assert torch.equal(autoencoder.encode(sound()), posterior.mean.transpose(1, 2))
    sample = posterior.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    torch.testing.assert_close(autoencoder.encode(sound(), noise), sample.transpose(1, 2))


def test_its_data_is_measured(autoencoder):
    assert autoencoder.whitening is None


def test_sizes(autoencoder):
    assert autoencoder.grid((480_000, 1, 1)) == (250, 1, 1)
    with pytest.raises(ShapeError, match="samples: 44100 is not a multiple of 1920; the nearest legal sizes: 42240 or"):
        autoencoder.grid((44_100, 1, 1))


def test_the_autoencoder_of_stable_audio_open_is_refused(tmp_path):
    network = diffusers.AutoencoderOobleck(
        encoder_hidden_size=128, downsampling_ratios=[8, 16, 16], channel_multiples=[1, 1, 1], decoder_channels=8
    )
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as error:
        pretrained("songbloom", tmp_path).load()
    assert [line.partition("has ")[2] for line in error.value.problems] == [
        "sampling_rate 44100, kind 'songbloom' needs 48000",
        "samples per token 2048, kind 'songbloom' needs 1920",
    ]
