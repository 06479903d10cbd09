"""What each process of a world gets of a step: together the same samples, and counts that need no exchange."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core.errors import ConfigError
from core.training.mixing import share
from modalities.data.loader import StepDataset, may_pad
from tests.modalities.data.test_loader import SIZES, dataset, flat


def of(data: StepDataset, rank: int, world: int, accumulate: int = 1) -> StepDataset:
    return StepDataset(
        data.seed, data.mix, data.streams, data.noising, data.conditions, accumulate, rank=rank, world=world
    )


@pytest.mark.parametrize("size", [1, 2, 5, 16, 304])
def test_shares_cover_everything_once_in_order_and_differ_by_one(size):
    for shares in (n for n in (1, 2, 3, 5, 7, 64) if n <= size):
        found = [share(size, number, shares) for number in range(shares)]
        assert [place for own in found for place in own] == list(range(size))
        assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 1), (2, 2), (1, 3), (4, 1)])
def test_all_processes_together_have_the_samples_of_one_bit_for_bit(world, accumulate):
    """Also of a world that does not divide the batch: 4 images in 3 shares."""
    data = dataset({"image": dataset().streams["image"]})
    for step in range(3):
        whole = data[step]
        shares = [
            of(data, rank, world, accumulate)[step * accumulate + micro]
            for micro in range(accumulate)
            for rank in range(world)
        ]
        assert [key for one in shares for key in one.keys] == list(whole.keys)
        for name in ("latents", "noise"):
            parts = torch.cat([getattr(one.parts[0], name) for one in shares])
            assert torch.equal(parts, getattr(whole.parts[0], name))
        assert torch.equal(torch.cat([one.student.values for one in shares]), whole.student.values)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_counts_of_all_are_known_to_each_without_the_records_of_the_others(world):
    """Videos with given first frames. Broken: a mode that is keyed by the record, which others have not read."""
    data = dataset({"video": replace(dataset().streams["video"])})
    data.mix.global_batch["video"] = 5
    seen = set()
    for step in range(6):
        whole = data[step]
        shares = [of(data, rank, world)[step] for rank in range(world)]
        assert all(one.counts == whole.counts and one.counts_of_all for one in shares)
        masks = torch.cat([one.conditioning_mask for one in shares])
        assert torch.equal(masks, whole.conditioning_mask)
        seen.add(whole.counts["video"])
    assert len(seen) > 1


def test_a_stream_with_padding_says_that_its_counts_are_of_this_process():
    stream = dataset().streams["image"]
    padded = replace(stream, parts={name: replace(part, pads=True) for name, part in stream.parts.items()})
    assert not may_pad(stream)
    assert may_pad(padded)

    class Masked:  # half of every image is padding
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def read(self, index):
            return replace(self.source.read(index), valid=np.array([True]))

        def __getattr__(self, name):
            return getattr(self.source, name)

    for part in padded.parts.values():
        part.adapter.valid_tokens = lambda valid: torch.tensor([True, True, False, False])
    data = dataset({"image": replace(padded, source=Masked(padded.source))})
    shares = [of(data, rank, 2)[0] for rank in range(2)]
    assert [one.counts_of_all for one in shares] == [False, False]
    assert [one.counts for one in shares] == [{"image": 4.0}, {"image": 4.0}]
    assert data[0].counts == {"image": 8.0}


def test_more_processes_than_samples_are_refused_with_the_numbers():
    """[25] of docs/scale.md. Fails where a process may have no sample at all."""
    assert SIZES["video"] == 2
    with pytest.raises(ConfigError, match=r"streams.video.batch: 2 samples cannot be shared by 3 processes"):
        of(dataset(), 0, 3)
    with pytest.raises(ConfigError, match="accumulate 2; 4 are needed"):
        of(dataset(), 0, 2, accumulate=2)


def test_a_world_of_one_is_what_it_was():
    data = dataset()
    assert flat(of(data, 0, 1)[3]) == flat(data[3])
