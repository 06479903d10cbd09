"""Types are checked when built; keys are functions of their parts."""

import subprocess
import sys

import pytest
import torch

from core.errors import ConfigError, ShapeError, choose
from core.keys import generator, key
from core.types import Context, NoiseLevels, Segment, TokenBatch, map_tensors

IDS = torch.zeros(1, 4, 3, dtype=torch.long)


def test_a_segment_names_the_field_that_is_wrong():
    x0 = torch.zeros(2, 4, 8)
    with pytest.raises(ShapeError, match=r"Segment\[image\].valid: expected shape \(2, 4\), got \(2, 3\)"):
        Segment("image", x0, IDS, valid=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="conditioning_mask: expected bool"):
        Segment("image", x0, IDS, conditioning_mask=torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="ids: expected integers or float32"):
        Segment("image", x0, IDS.half())
    with pytest.raises(ShapeError, match="x0"):
        Segment("image", torch.zeros(2, 0, 8), IDS[:, :0])


def test_counted_is_valid_and_not_given():
    valid, conditioning_mask = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False, False, False]])
    segment = Segment("image", torch.zeros(1, 4, 8), IDS, valid, conditioning_mask)
    assert segment.loss_mask().tolist() == [[False, True, True, False]]


def test_context_and_batch_shapes():
    dropped = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"Context.valid: needed"):
        Context(dropped, tokens=torch.zeros(2, 3, 4))
    segment = Segment("image", torch.zeros(3, 4, 8), IDS)
    with pytest.raises(ShapeError, match="number of samples"):
        TokenBatch((segment,), Context(dropped, label=torch.zeros(2, dtype=torch.long)))
    assert Context(dropped, label=torch.zeros(2)).drop_all().dropped.all()


def test_map_tensors_reaches_every_tensor():
    batch = TokenBatch(
        (Segment("image", torch.zeros(2, 4, 8), IDS),), Context(torch.zeros(2, dtype=torch.bool)), ("a", "b")
    )
    meta = map_tensors(batch, lambda tensor: tensor.to("meta"))
    assert meta.segments[0].x0.is_meta
    assert meta.segments[0].ids.is_meta
    assert meta.context.dropped.is_meta
    assert meta.keys == ("a", "b")


def test_mean_weights_are_the_shares_of_the_tokens():
    index = torch.tensor([[0, 0, 0, 1]])
    assert NoiseLevels(torch.rand(1, 2), index).mean_weights().tolist() == [[0.75, 0.25]]
    assert NoiseLevels(torch.rand(1, 2)).mean_weights().tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("separate", "index", "message"),
    [
        ((2, 2), None, "2 levels its number of tokens, None in all"),
        ((4,), [[0, 1, 0, 1]], r"\(4,\) must give each of 2 levels"),
        ((2, 1), [[0, 1, 0, 1]], r"\(2, 1\) must give .* 4 in all"),
        ((1, 2, 1), [[0, 1, 0, 1]], "each of 2 levels"),
        ((2, 2), [[0, 1, 0, 1], [0, 1, 1, 1]], r"\(2, 2\) tokens per level, but sample 1 has \(1, 3\)"),
    ],
)
def test_separate_sizes_have_to_fit(separate, index, message):
    values = torch.rand(1 if index is None else len(index), 2)
    with pytest.raises(ShapeError, match=message):
        NoiseLevels(values, None if index is None else torch.tensor(index), separate)


def test_separate_sizes_that_fit():
    index = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])
    levels = NoiseLevels(torch.rand(2, 2), index, (1, 3))
    assert map_tensors(levels, lambda tensor: tensor.to("meta")).separate == (1, 3)


def test_keys_are_the_same_in_another_process_and_differ_by_every_part():
    parts = (0, "image", 3, "cat.png", "noise")
    code = "from core.keys import key; print(key(0, 'image', 3, 'cat.png', 'noise'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == key(*parts)
    changed = [(1, *parts[1:]), (0, "video", *parts[2:]), (0, "image", 4, *parts[3:]), (*parts[:4], "levels")]
    assert len({key(*parts), *(key(*other) for other in changed)}) == 5
    assert key("1", 2) != key(1, "2") != key("12")
    assert key("a\udcff.png") != key("a\udcfe.png")  # names of files that are not UTF-8
    assert torch.equal(torch.rand(3, generator=generator(*parts)), torch.rand(3, generator=generator(*parts)))


def test_choose_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"method: 'selfflow' is not one of flow_matching, self_flow. Did you mean: 'self_flow'"
    ):
        choose("method", "selfflow", {"flow_matching": 1, "self_flow": 2})
