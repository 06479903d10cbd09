"""Microbatches are a function of the step: any workers, any start, any neighbors; bad records step aside."""

from __future__ import annotations

import multiprocessing
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencoders.base import LatentNormalization
from core.errors import DataError
from core.keys import generator
from core.modes import Mode, Modes
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.training.mixing import StreamMix
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import Record, StoredLatents
from modalities.conditioning import TextConfig
from modalities.conditioning.conditions import ConditionConfig, Conditions
from modalities.data.batches import RawBatch
from modalities.data.loader import MAX_REPLACEMENTS, StepDataset, StepLoader, measure_normalization
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.folder import FolderSource
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import Stream, make_parts
from modalities.synthetic.draw import SyntheticSource
from modalities.video import VideoAdapter, VideoConfig
from tests.modalities.making import audio_bytes, image_bytes, numbered, tone

TEXT = ConditionConfig(cfg_dropout=0.5, text=TextConfig(vocabulary=64, max_words=6, rows_per_word=4))
SIZES = {"image": 4, "video": 2, "audio": 6}


def single(source, adapter, *noising) -> Stream:
    """A stream of one part."""
    return Stream(source, make_parts({adapter.modality: adapter}), *noising)


def measured_of(name: str, one: Stream, **more) -> LatentNormalization:
    return measure_normalization(name, one, name, 0, **more)


def stream(modality: str, count: int = 10, **more) -> Stream:
    if modality == "image":
        return single(SyntheticSource("image", 8, 0, count), ImageAdapter(ImageConfig([8, 8])), TimestepConfig(), 0.25)
    if modality == "audio":
        source = SyntheticSource("audio", count=count, seconds=0.3)
        return single(source, AudioAdapter(AudioConfig(seconds=0.3)), TimestepConfig(), 0.5)
    adapter = VideoAdapter(VideoConfig([8, 8], frames=3))
    source = SyntheticSource("video", 8, 0, count, frames=3)
    modes = Modes({"first_frame": (0.5, Mode(adapter.first_frame_mask()))}, noise=(0.2,))
    return single(source, adapter, TimestepConfig("logit_normal"), 0.1, modes)


def dataset(streams: dict[str, Stream] | None = None, accumulate: int = 1, seed: int = 0, **noising) -> StepDataset:
    streams = streams or {name: stream(name) for name in SIZES}
    mix = StreamMix(seed, dict.fromkeys(streams, 1.0), {name: SIZES[name] for name in streams})
    plan = NoisingConfig(**({"kind": "dual"} | noising))
    return StepDataset(seed, mix, streams, plan, Conditions(TEXT, []), accumulate)


def flat(item, path: str = "") -> dict[str, object]:
    """Every leaf of nested dataclasses and tuples, tensors as bytes."""
    if isinstance(item, torch.Tensor):
        return {path: (str(item.dtype), tuple(item.shape), item.numpy().tobytes())}
    if is_dataclass(item):
        return {k: v for f in fields(item) for k, v in flat(getattr(item, f.name), f"{path}.{f.name}").items()}
    if isinstance(item, tuple):
        return {k: v for i, part in enumerate(item) for k, v in flat(part, f"{path}.{i}").items()}
    return {path: item}


def sequence(data: StepDataset, first: int, last: int, workers: int = 0) -> dict[int, list[dict]]:
    return {step: [flat(item) for item in items] for step, items in StepLoader(data, workers).steps(first, last)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_workers_change_no_bit_and_no_order(accumulate):
    alone = sequence(dataset(accumulate=accumulate), 0, 9)
    assert list(alone) == list(range(9))
    assert {items[0][".stream"] for items in alone.values()} == set(SIZES)
    for workers in (1, 2):
        assert sequence(dataset(accumulate=accumulate), 0, 9, workers) == alone


def test_a_step_alone_equals_the_step_in_sequence_across_epochs():
    """10 records, 4 a step: steps cross the ends of three epochs."""
    streams = {"image": stream("image")}
    whole = sequence(dataset(streams), 0, 10)
    for step in (0, 3, 9):
        assert flat(dataset(streams)[step]) == whole[step][0]
    assert sequence(dataset(streams), 4, 10, workers=1) == {step: whole[step] for step in range(4, 10)}


def test_another_seed_changes_records_noise_levels_and_drops():
    one, other = (dataset({"image": stream("image")}, seed=seed)[0] for seed in (0, 1))
    assert one.keys != other.keys
    assert not torch.equal(one.parts[0].noise, other.parts[0].noise)
    assert not torch.equal(one.student.values, other.student.values)


def test_every_epoch_holds_each_record_once_in_another_order_with_new_noise():
    data = dataset({"image": stream("image", count=8)})
    epochs = [[data[step] for step in (2 * epoch, 2 * epoch + 1)] for epoch in range(3)]
    keys = [[key for microbatch in epoch for key in microbatch.keys] for epoch in epochs]
    assert all(sorted(found) == sorted(keys[0]) and len(set(found)) == 8 for found in keys)
    assert len({tuple(found) for found in keys}) == 3
    noise = [
        microbatch.parts[0].noise[microbatch.keys.index(keys[0][0])]
        for epoch in epochs
        for microbatch in epoch
        if keys[0][0] in microbatch.keys
    ]
    assert len({part.numpy().tobytes() for part in noise}) == 3


def test_the_randomness_of_a_sample_does_not_depend_on_its_neighbors_or_its_microbatch():
    def by_key(microbatches: list[RawBatch]) -> dict:
        found = {}
        for item in microbatches:
            tokens, levels = item.parts[0].latents, item.student
            for i, key in enumerate(item.keys):
                parts = (tokens[i], item.parts[0].noise[i], levels.values[i], levels.index[i])
                found[key] = (*(part.numpy().tobytes() for part in parts), bool(item.condition.known.dropped[i]))
        return found

    streams = {"image": stream("image")}
    whole, halves, quarters = (dataset(streams, accumulate=n) for n in (1, 2, 4))
    assert by_key([whole[0]]) == by_key([halves[0], halves[1]]) == by_key([quarters[i] for i in range(4)])
    assert len(by_key([whole[0]])) == 4


def test_student_and_teacher_share_samples_noise_and_drops_and_the_teacher_is_cleaner():
    """There is one noise and one context in a microbatch, whoever reads it; only the levels are two."""
    data = dataset({"image": stream("image")})
    for step in range(5):
        item = data[step]
        assert item.teacher.index is None
        assert torch.equal(item.teacher.values[:, 0], item.student.values.amin(dim=1))
        assert item.parts[0].noise.shape == item.parts[0].latents.shape
    dropped = torch.cat([data[step].condition.known.dropped for step in range(40)])
    assert 0.3 < dropped.float().mean() < 0.7  # dropout is 0.5


def test_given_tokens_are_clean_enough_uncounted_and_alike_for_both():
    data, seen = dataset({"video": stream("video")}), set()
    for step in range(10):
        item = data[step]
        conditioning_mask = item.conditioning_mask
        student = item.student.per_token(conditioning_mask.shape[1])
        teacher = item.teacher.per_token(conditioning_mask.shape[1])
        assert torch.equal(student[conditioning_mask], teacher[conditioning_mask])
        assert (student[conditioning_mask] <= 0.2).all()
        assert item.counts == {"video": float((~conditioning_mask).sum())}
        seen |= {int(count) for count in conditioning_mask.sum(dim=1)}
    assert seen == {0, 4}  # the first frame's tokens, in some samples


def folder(path: Path, broken: bool) -> FolderSource:
    """Ten gray images of class `gray`; two of them damaged."""
    (path / "grey").mkdir(parents=True)
    for index, pixels in enumerate(numbered(10, 8, 8)):
        (path / "grey" / f"{index}.png").write_bytes(image_bytes(pixels))
    if broken:
        good = (path / "grey" / "3.png").read_bytes()
        (path / "grey" / "3.png").write_bytes(good[: len(good) // 2])
        (path / "grey" / "6.png").write_bytes(b"")
    return FolderSource(path, "image", CaptionRule("label"))


def images(source) -> dict[str, Stream]:
    return {"image": single(source, ImageAdapter(ImageConfig([8, 8])), TimestepConfig(), 0.25)}


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_by_the_next_position_and_named(workers, tmp_path):
    data = dataset(images(folder(tmp_path, broken=True)))
    steps = dict(StepLoader(data, workers).steps(0, 5))  # two epochs
    keys = [key for items in steps.values() for key in items[0].keys]
    assert not {"grey/3.png", "grey/6.png"} & set(keys)
    rejected = [entry for items in steps.values() for entry in items[0].rejected]
    assert {entry.key for entry in rejected} == {"grey/3.png", "grey/6.png"}
    for entry in rejected:
        assert entry.stream == "image"
        assert entry.origin == str(tmp_path / entry.key)
        assert entry.replaced_by > entry.position
        assert "0 bytes" in entry.reason if "6.png" in entry.key else "decoded" in entry.reason
        replacement = data.sample("image", entry.replaced_by, [])
        assert keys[entry.position] == replacement.key  # deterministic: that of the later position itself
    again = dict(StepLoader(dataset(images(folder(tmp_path / "again", broken=True))), 0).steps(0, 5))
    assert [flat(i[0].parts) for i in again.values()] == [flat(i[0].parts) for i in steps.values()]


def test_audio_with_nan_is_replaced(tmp_path):
    (tmp_path / "tones").mkdir()
    for index in range(6):
        samples = tone(0.3, 4000, 200.0 + 50 * index)
        if index == 2:
            samples[100] = np.nan
        (tmp_path / "tones" / f"{index}.wav").write_bytes(audio_bytes(samples, 4000, subtype="FLOAT"))
    source = FolderSource(tmp_path, "audio", CaptionRule("label"))
    one = single(source, AudioAdapter(AudioConfig(seconds=0.3)), TimestepConfig(), 0.5)
    microbatch = dataset({"audio": one})[0]
    assert [(entry.key, "not finite" in entry.reason) for entry in microbatch.rejected] == [("tones/2.wav", True)]
    assert microbatch.parts[0].latents.isfinite().all()
    assert measured_of("audio", one).mean.isfinite().all()


class Unusable(SyntheticSource):
    """Synthetic images of which those from `first_bad` on cannot be read."""

    def __init__(self, first_bad: int):
        super().__init__("image", 8, 0, 2 * MAX_REPLACEMENTS)
        self.first_bad = first_bad

    def read(self, index: int) -> Record:
        if index >= self.first_bad:
            raise DataError(f"shard-7: record {index} is gone")
        return super().read(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_any_usable_record_is_one_clear_error_with_and_without_workers(workers):
    data = dataset(images(Unusable(first_bad=0)))
    with pytest.raises(DataError) as caught:
        list(StepLoader(data, workers).steps(0, 1))
    assert str(caught.value).startswith(f"image: {MAX_REPLACEMENTS} records in a row from position 0 could not be used")
    assert "shard-7: record" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(DataError, match="could not be used"):
        data.check()
    with pytest.raises(DataError, match=r"not one of 128 records can be used; the first: shard-7: record"):
        measured_of("image", data.streams["image"])


def test_check_accepts_data_that_works():
    dataset().check()


def test_normalization_counts_the_deviation_of_a_posterior_that_training_samples():
    one = stream("image", count=40)
    without = measured_of("image", one)
    adapter = one.parts["image"].adapter
    adapter.posterior_noise = True
    adapter.posterior = lambda media: (adapter.encode(media), torch.full_like(adapter.encode(media), 2.0))
    sampled = measured_of("image", one)
    assert torch.equal(sampled.mean, without.mean)
    wide = without.std > 0.1  # narrower channels are raised to the floor
    assert wide.any()
    assert torch.allclose(sampled.std[wide].square(), without.std[wide].square() + 4, rtol=1e-5)


def test_normalization_is_measured_on_what_training_sees_and_skips_bad_records():
    one = stream("image", count=40)
    measured = measured_of("image", one)
    data = dataset({"image": one})
    latents = [measured.normalize(data[step].parts[0].latents) for step in range(10)]
    tokens = torch.cat([part.flatten(0, 1) for part in latents])  # one epoch
    assert tokens.mean(dim=0).abs().max() < 1e-4
    assert (tokens.std(dim=0, unbiased=False) - 1).abs().max() < 1e-3
    fewer = measured_of("image", images(Unusable(first_bad=60))["image"])
    assert fewer.std.isfinite().all()
    assert not torch.equal(measured.mean, measured_of("image", one, count=10).mean)


@pytest.mark.parametrize("usable", [True, False])
def test_workers_end_with_the_loop_even_while_a_traceback_is_kept(usable):
    first_bad = 2 * MAX_REPLACEMENTS if usable else 0
    steps = StepLoader(dataset(images(Unusable(first_bad))), workers=1).steps(0, 50)
    try:
        next(steps)
    except DataError as error:
        kept = error.__traceback__  # holds the frames, and with them all that is in their variables
        assert kept is not None
    assert bool(multiprocessing.active_children()) == usable
    steps.close()
    assert multiprocessing.active_children() == []


class Encoded:
    """Stored latents with a deviation, of which record 2 is damaged; noted are the reads."""

    def __init__(self, count: int = 6, deviation: bool = True):
        self.count, self.deviation = count, deviation

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        if index == 2:
            raise DataError(f"shard:{index}: damaged: its checksum does not fit")
        mean, deviation = torch.randn(2, 4, 48, generator=generator("latents", index))
        stored = StoredLatents(mean, deviation.abs() if self.deviation else None)
        return Record(f"k{index}", f"photo {index}", stored, captions=("a photo",))


def test_stored_latents_are_drawn_from_their_posterior_and_carry_no_media():
    for sampled in (True, False):
        adapter = ImageAdapter(ImageConfig([8, 8]))
        adapter.has_weights, adapter.posterior_noise = True, sampled  # as of an autoencoder that is not here
        data = dataset({"image": single(Encoded(deviation=sampled), adapter, TimestepConfig(), 0.25)})
        data.check()
        rejected = []
        for item in range(2):  # positions 0 to 7 of 6 records
            microbatch = data[item]
            rejected += microbatch.rejected
            part = microbatch.parts[0]
            assert (part.media, part.posterior) == (None, None)
            for place, (key, latents) in enumerate(zip(microbatch.keys, part.latents, strict=True)):
                stored, epoch = Encoded(deviation=sampled).read(int(key[1:])).media, (4 * item + place) // 6
                noise = torch.randn(4, 48, generator=generator(0, "image", epoch, key, "posterior"))
                raw = stored.mean + stored.deviation * noise if sampled else stored.mean
                assert torch.equal(latents, raw)
        assert rejected
        assert {entry.reason for entry in rejected} == {"shard:2: damaged: its checksum does not fit"}
