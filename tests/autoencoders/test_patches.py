import pytest
import torch

from autoencoders.base import LatentNormalization, LatentSpec
from autoencoders.patches import Patched, patchify, to_maps, to_tokens, unpatchify
from autoencoders.transforms import Pixels, SpaceTimePixels
from core.errors import ShapeError
from core.keys import generator
from tests.parity.common import golden


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("patches", *shape))


def test_the_channels_of_a_token_are_those_of_the_published_code():
    stored = golden("patchify")
    latent = stored["latent"]
    tokens = patchify(to_tokens(latent), (1, *latent.shape[-2:]), 2)
    assert torch.equal(tokens, stored["tokens"])


def test_patches_invert():
    maps = noise(2, 5, 3, 4, 6)
    cells = to_tokens(maps)
    assert cells.shape == (2, 72, 5)
    assert torch.equal(cells[1, 24 + 6 + 2], maps[1, :, 1, 1, 2])
    assert torch.equal(to_maps(cells, (3, 4, 6)), maps)
    tokens = patchify(cells, (3, 4, 6), 2)
    assert tokens.shape == (2, 18, 20)
    assert torch.equal(unpatchify(tokens, (3, 4, 6), 2), cells)


def test_patches_of_one_pixel_cells_are_the_patches_of_pixels():
    image = noise(2, 3, 8, 12)
    patched, direct = Patched(Pixels(1), 4, (1, 8, 12)), Pixels(4)
    assert patched.spec == direct.spec
    assert patched.grid((1, 8, 12)) == direct.grid((1, 8, 12)) == (1, 2, 3)
    assert torch.equal(patched.encode(image), direct.encode(image))
    assert torch.equal(patched.decode(direct.encode(image), (1, 8, 12)), image)
    assert patched.normalization is None


def test_patches_of_a_video_leave_time_alone():
    video = noise(1, 5, 3, 8, 8)
    patched, direct = Patched(SpaceTimePixels(2, 4), 2, (5, 8, 8)), SpaceTimePixels(4, 4)
    assert patched.grid((5, 8, 8)) == direct.grid((5, 8, 8)) == (2, 2, 2)
    assert torch.equal(patched.decode(patched.encode(video), (5, 8, 8)), video)


class Cells(Pixels):
    """Pixels whose posterior has deviation 1, with given statistics."""

    has_weights = posterior_noise = True

    def __init__(self, normalization: LatentNormalization):
        super().__init__(1)
        self.spec, self.normalization = LatentSpec(3, (1, 1, 1)), normalization

    def encode(self, media, noise=None):
        return super().encode(media) + (0 if noise is None else noise)


@pytest.mark.parametrize("shape", [(3,), (24, 3)])
def test_normalization_and_noise_move_with_their_cells(shape):
    normalization = LatentNormalization(noise(*shape), noise(*shape).abs() + 0.1)
    inner, image = Cells(normalization), noise(2, 3, 4, 6)
    patched = Patched(inner, 2, (1, 4, 6))
    drawn = noise(2, 6, 12)
    tokens = patched.encode(image, drawn)
    cells = inner.encode(image, unpatchify(drawn, (1, 4, 6), 2))
    assert torch.equal(unpatchify(tokens, (1, 4, 6), 2), cells)
    normalized = unpatchify(patched.normalization.normalize(tokens), (1, 4, 6), 2)
    assert torch.equal(normalized, normalization.normalize(cells))
    with pytest.raises(ShapeError, match=r"noise of the posterior: expected latents \(B, 6, 12\)"):
        patched.encode(image, drawn[:, 1:])


def test_sizes_are_told_in_pixels_of_a_token():
    patched = Patched(Pixels(8), 2, (1, 32, 32))
    with pytest.raises(ShapeError, match="height: 24 is not a multiple of 16; the nearest legal sizes: 16 or 32"):
        patched.grid((1, 24, 32))
