import math

import pytest
import torch

from autoencoders.transforms import Mdct, Pixels, SpaceTimePixels, compress, mdct_basis
from core.errors import ShapeError
from core.keys import generator


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator("media", *shape), dtype=dtype)


def test_pixels_are_patches_in_reading_order():
    image = noise(2, 3, 8, 12)
    tokens = Pixels(4).encode(image)
    assert tokens.shape == (2, 6, 48)
    assert Pixels(4).grid((1, 8, 12)) == (1, 2, 3)
    # Token (1, 2) is the patch of rows 4..8 and columns 8..12, channels first.
    assert torch.equal(tokens[0, 1 * 3 + 2], image[0, :, 4:8, 8:12].flatten())
    assert torch.equal(Pixels(4).decode(tokens, (1, 8, 12)), image)


@pytest.mark.parametrize("first_frame_alone", [True, False])
@pytest.mark.parametrize("patch_frames", [1, 2, 3, 4])
def test_space_time_pixels_invert_bit_for_bit(patch_frames, first_frame_alone):
    frames = 2 * patch_frames + int(first_frame_alone)
    video = noise(2, frames, 3, 8, 4)
    transform = SpaceTimePixels(4, patch_frames, first_frame_alone)
    tokens = transform.encode(video)
    t, h, w = transform.grid((frames, 8, 4))
    assert tokens.shape == (2, t * h * w, transform.spec.channels)
    assert (t, h, w) == (2 + int(first_frame_alone), 2, 1)
    assert torch.equal(transform.decode(tokens, (frames, 8, 4)), video)


def test_the_first_token_frame_depends_on_the_first_frame_only():
    transform = SpaceTimePixels(4, 2)
    video = noise(1, 5, 3, 8, 8)
    other = torch.cat([video[:, :1], noise(1, 4, 3, 8, 8)], dim=1)
    assert torch.equal(transform.encode(video)[:, :4], transform.encode(other)[:, :4])
    assert not torch.equal(transform.encode(video)[:, 4:], transform.encode(other)[:, 4:])


def test_differing_copies_of_the_first_frame_are_averaged():
    transform = SpaceTimePixels(2, 4)
    tokens = noise(1, 2, transform.spec.channels)
    copies = tokens[0, 0].reshape(3, 4, 2, 2)
    torch.testing.assert_close(transform.decode(tokens, (5, 2, 2))[0, 0], copies.mean(dim=1))


@pytest.mark.parametrize("hop", [1, 2, 5, 16])
def test_the_mdct_is_orthogonal_and_equals_the_direct_sum(hop):
    basis = mdct_basis(hop)
    # Frames overlap by one hop: B^T B = 1 within a frame and B_late^T B_early = 0 between neighbors.
    torch.testing.assert_close(basis.T @ basis, torch.eye(hop).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(basis[hop:].T @ basis[:hop], torch.zeros(hop, hop).double(), atol=1e-12, rtol=0)

    samples = 3 * hop
    audio = noise(1, 1, samples, dtype=torch.float64)
    tokens = Mdct(hop, exponent=1.0).encode(audio)
    padded = [0.0] * hop + audio.flatten().tolist() + [0.0] * hop
    for frame in range(4):
        for k in range(hop):
            direct = 0.0
            for n in range(2 * hop):
                window = math.sin(math.pi * (n + 0.5) / (2 * hop))
                phase = math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5)
                direct += window * padded[frame * hop + n] * math.cos(phase)
            assert tokens[0, frame, k].item() == pytest.approx(math.sqrt(2 / hop) * direct, abs=1e-12)


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 4000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_sample_is_recovered(samples, channels):
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-14)):
        transform = Mdct(64, channels)
        audio = (torch.rand(2, channels, samples, generator=generator(samples), dtype=torch.float64) * 2 - 1).to(dtype)
        tokens = transform.encode(audio)
        assert tokens.dtype == dtype
        assert tokens.shape == (2, math.ceil(samples / 64) + 1, channels * 64)
        again = transform.decode(tokens, (samples, 1, 1))
        torch.testing.assert_close(again, audio, atol=tolerance, rtol=0)


def test_a_tone_falls_into_its_coefficient():
    rate, hop, pitch = 4000, 64, 1015.625  # 32.5 bins of rate / (2 hop)
    audio = torch.sin(2 * math.pi * pitch * torch.arange(rate) / rate)[None, None]
    energy = Mdct(hop, exponent=1.0).encode(audio)[0].square()
    assert energy.sum(0).argmax() == 32
    assert energy[:, 30:35].sum() > 0.99 * energy.sum()


def test_the_transform_keeps_energy():
    audio = noise(1, 1, 640, dtype=torch.float64)
    assert Mdct(64, exponent=1.0).encode(audio).square().sum().item() == pytest.approx(audio.square().sum().item())


def test_compression_lifts_quiet_values_and_inverts():
    x = torch.tensor([-0.25, 0.0, 1e-4, 1.0], dtype=torch.float64)
    assert compress(x, 0.5).tolist() == pytest.approx([-0.5, 0.0, 1e-2, 1.0])
    torch.testing.assert_close(compress(compress(x, 0.5), 2.0), x, atol=1e-15, rtol=0)


def test_a_sample_does_not_depend_on_its_batch():
    transform = Mdct(64)
    waveforms = noise(8, 1, 4032)
    together = transform.encode(waveforms)
    back = transform.decode(together, (4032, 1, 1))
    for i, audio in enumerate(waveforms):
        alone = transform.encode(audio[None])
        assert torch.equal(alone[0], together[i])
        assert torch.equal(transform.decode(alone, (4032, 1, 1))[0], back[i])


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match="height: 10 is not a multiple of 4"):
        Pixels(4).encode(noise(1, 3, 10, 8))
    with pytest.raises(ShapeError, match=r"expected media of shape \(any, 3, any, any\), got \(1, 1, 8, 8\)"):
        Pixels(4).encode(noise(1, 1, 8, 8))
    with pytest.raises(ShapeError, match="frames: 4 is not 1 plus a multiple of 2"):
        SpaceTimePixels(4, 2).encode(noise(1, 4, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"expected latents \(B, 4, 48\), got \(1, 3, 48\)"):
        Pixels(4).decode(noise(1, 3, 48), (1, 8, 8))
    with pytest.raises(ShapeError, match=r"expected media of shape \(any, 2, any\)"):
        Mdct(8, channels=2).encode(noise(1, 1, 80))
