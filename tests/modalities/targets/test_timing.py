import pytest
import torch

from core.errors import ShapeError
from modalities.targets.timing import audio_spans, coincide, even_spans, frame_spans, transfer


def ramp(spans: torch.Tensor) -> torch.Tensor:
    """A feature that is its own time."""
    return spans.mean(dim=1)


def test_frames_in_equal_groups_and_with_the_first_alone():
    assert frame_spans(6, 3, 2).tolist() == [[0, 2], [2, 4], [4, 6]]
    assert frame_spans(9, 3, 4).tolist() == [[0, 1], [1, 5], [5, 9]]
    assert frame_spans(9, 3, 3).tolist() == [[0, 3], [3, 6], [6, 9]]  # the same counts, told apart by the stride
    assert frame_spans(1, 1, 4).tolist() == [[0, 1]]
    with pytest.raises(ShapeError, match="12 frames, or 9 with the first frame alone; the video has 10"):
        frame_spans(10, 3, 4)


def test_audio_of_codecs_and_of_lapped_transforms():
    assert audio_spans(12, 3, 4).tolist() == [[0, 4], [4, 8], [8, 12]]
    assert audio_spans(13, 3, 4).tolist() == [[0, 4], [4, 8], [8, 12]]
    assert audio_spans(12, 4, 4).tolist() == [[-2, 2], [2, 6], [6, 10], [10, 14]]
    with pytest.raises(ShapeError, match="3 latent steps, or 4 of a lapped transform; the trunk has 6"):
        audio_spans(12, 6, 4)


def test_spans_that_coincide_are_copied():
    spans = frame_spans(9, 3, 4)
    assert torch.equal(transfer(spans, spans), torch.eye(3, dtype=torch.float64))


def test_whole_groups_are_averaged():
    weights = transfer(even_spans(9, 1), frame_spans(9, 3, 4))
    assert torch.equal(weights[0], torch.eye(9, dtype=torch.float64)[0])
    torch.testing.assert_close(weights[1:], torch.tensor([[0] + [0.25] * 4 + [0] * 4, [0] * 5 + [0.25] * 4]).double())


def test_a_ramp_stays_a_ramp_where_it_is_interpolated():
    source, target = even_spans(75, 320) + 40, even_spans(64, 384)
    inside = (ramp(target) > ramp(source)[0]) & (ramp(target) < ramp(source)[-1])
    assert inside.sum() > 60
    found = transfer(source, target) @ ramp(source)
    torch.testing.assert_close(found[inside], ramp(target)[inside])
    finer = transfer(even_spans(4, 2), even_spans(8, 1)) @ ramp(even_spans(4, 2))
    assert finer.tolist() == [1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]  # constant beyond the outermost centers


def test_partly_covered_spans_count_by_their_share():
    weights = transfer(even_spans(5, 1), even_spans(2, 2.5))
    torch.testing.assert_close(weights[0], torch.tensor([0.4, 0.4, 0.2, 0, 0]).double())
    torch.testing.assert_close(weights[1], torch.tensor([0, 0, 0.2, 0.4, 0.4]).double())


@pytest.mark.parametrize("target", [even_spans(7, 3) - 1.5, even_spans(64, 0.3), even_spans(2, 40) + 5])
def test_rows_sum_to_one(target):
    weights = transfer(even_spans(18, 1), target)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(target)).double())
    assert (weights >= 0).all()


def test_one_source_step_serves_all():
    assert torch.equal(transfer(even_spans(1, 9), frame_spans(9, 3, 4)), torch.ones(3, 1, dtype=torch.float64))


def test_what_coincides():
    assert coincide(even_spans(9, 1), frame_spans(9, 3, 4))
    assert coincide(even_spans(4, 0.1), even_spans(2, 0.2))
    assert not coincide(even_spans(4, 2), even_spans(8, 1))
    assert not coincide(even_spans(5, 1), even_spans(2, 2.5))
    assert not coincide(even_spans(3, 4), audio_spans(12, 4, 4))
