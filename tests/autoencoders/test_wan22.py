import pytest
import torch

from core.errors import ShapeError
from core.keys import generator
from tests.autoencoders.small import pretrained, save


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return pretrained("wan22", save("wan22", tmp_path_factory.mktemp("wan22")))


def video(frames: int = 9) -> torch.Tensor:
    return torch.rand(1, frames, 3, 32, 48, generator=generator("clip")) * 2 - 1


def test_the_first_tokens_hold_the_first_frame_alone(autoencoder):
    media = video()
    tokens = autoencoder.encode(media)
    assert tokens.shape == (1, 3 * 6, 48)
    torch.testing.assert_close(tokens[:, :6], autoencoder.encode(media[:, :1]))
    other = media.clone()
    other[:, 5:] = 0
    changed = (autoencoder.encode(other) != tokens).flatten(2).any(dim=2)[0].reshape(3, 6).any(dim=1)
    assert changed.tolist() == [False, False, True]  # causal: four later frames change the last tokens only


def test_order_of_tokens_and_axes_of_the_network(autoencoder):
    media = video()
    with torch.no_grad():
        mean = autoencoder.load().encode(media.transpose(1, 2)).latent_dist.mean  # (1, 48, 3, 2, 3)
        decoded = autoencoder.load().decode(mean).sample
    tokens = autoencoder.encode(media)
    assert torch.equal(tokens[0, 2 * 6 + 1 * 3 + 2], mean[0, :, 2, 1, 2])
    assert torch.equal(autoencoder.decode(tokens, (9, 32, 48)), decoded.transpose(1, 2))


def test_normalization_is_published_for_every_channel(autoencoder):
    tokens = autoencoder.encode(video(1))
    mean, std = torch.linspace(-1, 1, 48), torch.linspace(0.5, 2, 48)
    torch.testing.assert_close(autoencoder.normalization.normalize(tokens), (tokens - mean) / std)


def test_sizes(autoencoder):
    assert autoencoder.grid((45, 192, 336)) == (12, 12, 21)
    with pytest.raises(ShapeError, match="frames: 48 is not 1 plus a multiple of 4; the nearest legal sizes: 45 or 49"):
        autoencoder.grid((48, 192, 336))
    with pytest.raises(ShapeError, match="height: 180 is not a multiple of 16; the nearest legal sizes: 176 or 192"):
        autoencoder.grid((45, 180, 336))
