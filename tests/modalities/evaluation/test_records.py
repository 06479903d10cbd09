"""Which records evaluation reads: the same for every batch size, usable, and not those that were trained on."""

from __future__ import annotations

import pytest
import torch

from core.errors import DataError
from modalities.conditioning.conditions import Prompt
from modalities.data.sources.concat import ConcatSource
from modalities.evaluation.records import Reader, shared_records
from modalities.synthetic.draw import SyntheticSource
from tests.modalities.evaluation.subjects import CLASSES, Memory, model


def reader(source, classes=CLASSES, kind="label") -> Reader:
    return Reader(model(kind), "image", source, list(classes), seed=4)


def joined(parts) -> tuple[list[str], torch.Tensor]:
    parts = list(parts)
    return [key for part in parts for key in part.keys], torch.cat([part.media["image"] for part in parts])


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_the_same_records_in_the_same_order_for_any_batch_size(batch):
    keys, media = joined(reader(Memory("a", 20)).records(12, batch))
    again, same = joined(reader(Memory("a", 20)).records(12, 7))
    assert keys == again
    assert torch.equal(media, same)
    assert len(set(keys)) == 12
    assert keys != sorted(keys, key=int)
    assert joined(reader(Memory("a", 20)).records(5, batch))[0] == keys[:5]  # more records begin with the fewer
    assert len(joined(reader(Memory("a", 20)).records(100, batch))[0]) == 20


def test_unusable_records_are_stepped_over_counted_and_not_tried_again():
    source = Memory("a", 12, broken={3, 7})
    found = reader(source)
    for _ in range(2):
        keys, _ = joined(found.records(100, 4))
        assert sorted(map(int, keys)) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert found.unusable == {3: "a/3: damaged", 7: "a/7: damaged"}
    assert found.used == 10
    assert source.reads.count(3) == 1
    assert source.reads.count(4) == 2


def test_records_without_the_runs_condition_are_unusable():
    strange = reader(Memory("a", 6, classes=["red", "yellow"]))
    keys, _ = joined(strange.records(10, 2))
    assert sorted(keys) == ["0", "2", "4"]
    assert "label 'yellow' is not among the 4 classes of the run" in strange.unusable[1]
    with pytest.raises(DataError, match=r"not one of 3 records can be used for evaluation; the first: b/\d: damaged"):
        list(reader(Memory("b", 3, broken={0, 1, 2})).records(10, 2))


def test_classes_are_counted_in_one_list_whatever_the_source_has():
    parts = list(reader(Memory("a", 6, classes=["green", "red"], strange={3})).records(10, 10))
    by_key = dict(zip(parts[0].keys, parts[0].labels.tolist(), strict=True))
    assert by_key == {"0": 1, "1": 2, "2": 1, "3": -1, "4": 1, "5": 2}  # places in blue, green, red


def test_a_text_model_gets_the_longest_caption():
    (part,) = reader(Memory("a", 3), kind="text").records(3, 3)
    assert part.conditions == [Prompt("longer caption")] * 3
    (batch,) = reader(Memory("a", 3)).batches(3, 3)
    assert batch.context.label is not None
    assert not batch.context.dropped.any()


def test_shared_records_are_found_by_file_not_by_key():
    apart = reader(Memory("val", 10)), reader(Memory("train", 10))  # the same keys "0".."9" in other places
    assert shared_records(*apart, 10, 10) == ""
    same = reader(Memory("train", 10)), reader(Memory("train", 10))
    assert shared_records(*same, 1, 1) == "they are the same 10 records"
    part = reader(Memory("train", 4)), reader(Memory("train", 10))
    assert "4 of the records that were looked at are in both, such as train/0" in shared_records(*part, 10, 10)


def test_synthetic_records_are_shared_by_seed_also_inside_a_concat():
    def synthetic(seed: int, count: int) -> Reader:
        return reader(ConcatSource({"part": SyntheticSource("image", 8, seed, count)}), kind="text")

    plain = reader(SyntheticSource("image", 8, 1, 30), kind="text")
    assert shared_records(plain, synthetic(2, 50), 30, 50) == ""
    assert "30 of the records" in shared_records(plain, synthetic(1, 50), 30, 50)


def test_looking_for_shared_records_decodes_nothing_and_survives_damage(monkeypatch):
    first, second = reader(Memory("a", 5, broken={1})), reader(Memory("b", 5))
    monkeypatch.setattr(
        type(first.model.parts["image"]["image"].adapter), "load", lambda *_: pytest.fail("media was decoded")
    )
    assert shared_records(first, second, 5, 5) == ""
