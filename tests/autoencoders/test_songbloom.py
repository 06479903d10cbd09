import pytest
import torch

from autoencoders.base import LatentSpec
from autoencoders.pretrained import Pretrained
from autoencoders.songbloom import REACH, SPEC, SongBloom, SongBloomConfig
from core.errors import ConfigError, ShapeError
from core.keys import generator
from tests.autoencoders.recipe import uniform
from tests.autoencoders.small import diffusers, pretrained, save

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return pretrained("songbloom", save("songbloom", tmp_path_factory.mktemp("songbloom")))


def audio() -> torch.Tensor:
    return torch.rand(1, 2, 3 * 1920, generator=generator("sound")) * 2 - 1


def test_tokens_are_the_posterior_of_the_network(autoencoder):
    with torch.no_grad():
        posterior = autoencoder.load().encode(audio()).latent_dist
    assert torch.equal(autoencoder.encode(audio()), posterior.mean.transpose(1, 2))
    sample = posterior.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(1, 64, 3, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    torch.testing.assert_close(autoencoder.encode(audio(), noise), sample.transpose(1, 2))


def test_its_data_is_measured(autoencoder):
    assert autoencoder.normalization is None


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


def narrow(tile: int | None = None) -> Pretrained:
    """A network of the same strides with 4 channels of latents, to be quick over long audio."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = diffusers.AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4, 4, 6, 10],
            channel_multiples=[1, 1, 1, 1, 1],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=48_000,
        )

    class Narrow(SongBloom):
        spec = LatentSpec(4, SPEC.stride)

        @staticmethod
        def read(path: str) -> torch.nn.Module:
            return network

    return Narrow(SongBloomConfig(path="anywhere", tile=tile))


def test_a_cell_depends_on_its_neighbors_within_the_reach():
    """What a value that is not a number in the middle cell spreads to."""
    network, cells = narrow().load(), 2 * REACH + 3
    middle = cells // 2
    media, latents = torch.zeros(1, 2, cells * 1920), torch.zeros(1, 4, cells)
    media[..., middle * 1920 : (middle + 1) * 1920] = latents[..., middle] = float("nan")
    with torch.no_grad():
        encoded = network.encoder(media).isnan().any(dim=1)[0].nonzero()
        decoded = network.decoder(latents).isnan().any(dim=1)[0].nonzero() / 1920
    assert (middle - encoded.min(), encoded.max() - middle) == (7, 7)
    assert middle - decoded.min() == pytest.approx(8.336, abs=1e-3)
    assert decoded.max() - (middle + 1) == pytest.approx(8.336, abs=1e-3)
    assert REACH >= 8.336


def test_long_audio_in_tiles_is_the_audio_as_a_whole():
    """4.8 seconds in tiles of 3, which overlap by at least 1.44."""
    whole, tiled = narrow(), narrow(75 * 1920)
    size = 120 * 1920, 1, 1
    media, latents = uniform("long", (1, 2, size[0])), uniform("latents", (1, 120, 4))
    encoded, decoded = whole.encode(media), whole.decode(latents, size)
    close = {"atol": 1e-5 * float(encoded.abs().max()), "rtol": 0}
    torch.testing.assert_close(tiled.encode(media), encoded, **close)
    close = {"atol": 1e-5 * float(decoded.abs().max()), "rtol": 0}
    torch.testing.assert_close(tiled.decode(latents, size), decoded, **close)
    # Not by accident: a tile alone is wrong at its border.
    alone = whole.decode(latents[:, :75], (75 * 1920, 1, 1))
    assert (alone - decoded[..., : 75 * 1920]).abs().max() > 1e-2 * decoded.abs().max()


def test_odd_ratios_are_refused(tmp_path):
    """Their decoder gives fewer samples than its encoder took."""
    network = diffusers.AutoencoderOobleck(
        encoder_hidden_size=128,
        downsampling_ratios=[8, 16, 15],
        channel_multiples=[1, 1, 1],
        decoder_channels=8,
        sampling_rate=48_000,
    )
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"odd downsampling_ratios \[15\], kind 'songbloom' needs \[\]"):
        pretrained("songbloom", tmp_path).load()
