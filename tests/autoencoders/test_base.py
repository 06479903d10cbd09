import json

import pytest
import torch

from autoencoders.base import LatentNormalization, Moments, divide, image_grid, media_size
from core.errors import DataError, ShapeError
from core.keys import generator


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("latents", *shape))


def test_statistics_over_uneven_parts_equal_those_of_the_whole():
    whole = latents(10, 7, 5) * torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]) + torch.tensor([0.0, 1e3, -5.0, 2.0, 1.0])
    parts = LatentNormalization.from_latents(whole.split([1, 6, 3]))
    tokens = whole.double().flatten(0, 1)
    torch.testing.assert_close(parts.mean, tokens.mean(0).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(parts.std, tokens.std(0, unbiased=False).float(), rtol=1e-6, atol=0)


def test_moments_of_parts_merge_to_those_of_the_whole():
    whole, merged = latents(9, 4, 3) * 5 - 2, Moments()
    for part in whole.split([2, 7]):
        one = Moments()
        one.add(part)
        merged.merge(one)
    merged.merge(Moments())
    expected = LatentNormalization.from_latents([whole])
    assert merged.count == 36
    assert torch.equal(LatentNormalization.from_moments(merged).mean, expected.mean)
    torch.testing.assert_close(LatentNormalization.from_moments(merged).std, expected.std, rtol=1e-6, atol=0)


def test_normalized_latents_have_mean_zero_and_deviation_one():
    raw = (latents(8, 16, 4) * 3 + 7).double()
    normalization = LatentNormalization.from_latents([raw])
    white = normalization.normalize(raw).flatten(0, 1)
    assert white.dtype == torch.float64
    torch.testing.assert_close(white.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.std(0, unbiased=False), torch.ones(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalization.denormalize(normalization.normalize(raw)), raw, atol=1e-12, rtol=0)


def test_a_large_mean_does_not_cancel_the_deviation():
    raw = latents(4, 100, 1).double() * 1e-3 + 1e5
    expected = raw.std(unbiased=False).item()
    assert LatentNormalization.from_latents(raw.split(1)).std.item() == pytest.approx(expected, rel=1e-5)


def test_a_constant_channel_is_floored():
    raw = latents(2, 50, 2)
    raw[..., 1] = 0.25
    normalization = LatentNormalization.from_latents([raw], floor=0.1)
    loud = raw[..., 0].double().var(unbiased=False)
    assert normalization.std[1].item() == pytest.approx(0.1 * (loud / 2).sqrt().item(), rel=1e-6)
    assert normalization.normalize(raw)[..., 1].abs().max() == 0


def test_json_gives_back_the_same_bits():
    normalization = LatentNormalization.from_latents([latents(2, 30, 6)])
    again = LatentNormalization.from_dict(json.loads(json.dumps(normalization.to_dict())))
    assert torch.equal(again.mean, normalization.mean)
    assert torch.equal(again.std, normalization.std)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "no latents"),
        ([torch.full((1, 2, 3), float("nan"))], "not finite"),
        ([torch.ones(2, 3, 4)], "equal"),
    ],
)
def test_latents_that_cannot_be_measured_are_refused(parts, reason):
    with pytest.raises(DataError, match=reason):
        LatentNormalization.from_latents(parts)


def test_a_zero_deviation_is_refused():
    with pytest.raises(ShapeError, match="above 0"):
        LatentNormalization(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_divide_names_the_nearest_legal_sizes():
    assert divide("width", 12, 4) == 3
    assert divide("frames", 1, 4, alone=1) == 0
    with pytest.raises(ShapeError, match="width: 14 is not a multiple of 4; the nearest legal sizes: 12 or 16"):
        divide("width", 14, 4)
    with pytest.raises(ShapeError, match="1 plus a multiple of 4; the nearest legal sizes: 5 or 9"):
        divide("frames", 8, 4, alone=1)
    with pytest.raises(ShapeError, match=r"the nearest legal sizes: 4$"):
        divide("width", 0, 4)


def test_statistics_may_depend_on_the_position():
    raw = latents(3, 6, 4)
    normalization = LatentNormalization(latents(6, 4), latents(6, 4).abs() + 0.1)
    white = normalization.normalize(raw)
    torch.testing.assert_close(white[1, 5, 2], (raw[1, 5, 2] - normalization.mean[5, 2]) / normalization.std[5, 2])
    torch.testing.assert_close(normalization.denormalize(white), raw)
    again = LatentNormalization.from_dict(json.loads(json.dumps(normalization.to_dict())))
    assert torch.equal(again.mean, normalization.mean)
    with pytest.raises(ShapeError, match=r"one shape \(C,\) or \(N, C\), got \(1, 6, 4\)"):
        LatentNormalization(normalization.mean[None], normalization.std[None])


def test_sizes_of_media():
    assert media_size(torch.zeros(2, 3, 8, 12)) == (1, 8, 12)
    assert media_size(torch.zeros(2, 5, 3, 8, 12)) == (5, 8, 12)
    assert media_size(torch.zeros(2, 2, 100)) == (100, 1, 1)


def test_the_grid_of_an_image():
    assert image_grid((1, 32, 48), 16) == (1, 2, 3)
    with pytest.raises(ShapeError, match="width: 40 is not a multiple of 16"):
        image_grid((1, 32, 40), 16)


def test_moments_of_samples_from_distributions():
    """By hand: means 0 and 2, deviations 1 and 3: variance 1 of the means plus (1 + 9) / 2; merged from two parts."""
    moments = Moments()
    moments.add(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    moments.add(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    assert (moments.count, moments.mean.item(), moments.squares.item() / moments.count) == (2, 1.0, 6.0)
    with pytest.raises(DataError, match="not finite"):
        moments.add(torch.zeros(1, 1), torch.full((1, 1), float("nan")))
