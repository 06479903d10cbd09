import pytest
import torch

from core.errors import ShapeError
from core.keys import generator
from tests.autoencoders.small import pretrained, save


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return pretrained("flux2", save("flux2", tmp_path_factory.mktemp("flux2")))


def image() -> torch.Tensor:
    return torch.rand(1, 3, 32, 48, generator=generator("picture")) * 2 - 1


def test_a_token_is_a_square_of_inner_cells_channel_by_channel(autoencoder):
    with torch.no_grad():
        inner = autoencoder.load().encode(image()).latent_dist.mean  # (1, 32, 4, 6)
    tokens = autoencoder.encode(image())
    assert tokens.shape == (1, 6, 128)
    assert torch.equal(tokens[0, 4].reshape(32, 2, 2), inner[0, :, 2:4, 2:4])  # row 1, column 1 of 2 x 3 tokens


def test_decoding_undoes_the_squares(autoencoder):
    inner = torch.randn(1, 32, 4, 6, generator=generator("inner"))
    tokens = torch.stack([inner[0, :, r : r + 2, c : c + 2].reshape(128) for r in (0, 2) for c in (0, 2, 4)])
    with torch.no_grad():
        expected = autoencoder.load().decode(inner).sample
    assert torch.equal(autoencoder.decode(tokens[None], (1, 32, 48)), expected)


def test_normalization_is_the_stored_batch_norm(autoencoder):
    tokens = autoencoder.encode(image())
    maps = tokens.transpose(1, 2).reshape(1, 128, 2, 3)
    expected = autoencoder.load().bn(maps)  # in eval mode: the running statistics
    torch.testing.assert_close(autoencoder.normalization.normalize(tokens), expected.flatten(2).transpose(1, 2))


def test_sizes(autoencoder):
    assert autoencoder.grid((1, 256, 384)) == (1, 16, 24)
    with pytest.raises(ShapeError, match="width: 250 is not a multiple of 16; the nearest legal sizes: 240 or 256"):
        autoencoder.grid((1, 256, 250))
    with pytest.raises(ShapeError, match="height: 8 is not a multiple of 16; the nearest legal sizes: 16"):
        autoencoder.grid((1, 8, 16))
