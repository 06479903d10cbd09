"""Encoding: the same bytes for any number of workers and after any kill, and nothing that is bad goes unnoticed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from multiprocessing.util import _exit_function
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import ModalityAdapter, Record
from modalities.data.loader import load_parts
from modalities.latents import chunks, encode, publish
from modalities.latents.encode import Job, encode_chunks
from modalities.latents.source import LatentsSource
from modalities.streams import make_parts
from tests.modalities.latents.jobs import Images, chunk_folder, content, images_job, make


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two views of 21 records of which two are damaged, encoded without interruption."""
    path = tmp_path_factory.mktemp("whole")
    make(job(), path)
    return path


def job(**changes) -> Job:
    return images_job(**{"source": Images(21, broken=(2, 9)), "views": 2} | changes)


def adapter_of(job: Job) -> ModalityAdapter:
    """Of its only part."""
    (part,) = job.parts.values()
    return part.adapter


def mean(record: Record, part: str = "image") -> torch.Tensor:
    """(N, C) of a stored part."""
    return record.parts[part].data.mean


def test_every_view_of_every_usable_record_is_there_once(whole):
    source = LatentsSource(whole, ("image",))
    records = [source.read(index) for index in range(len(source))]
    expected = [f"k{index}#{view}" for index in range(21) if index not in (2, 9) for view in range(2)]
    assert [record.key for record in records] == expected
    manifest = source.manifest
    assert (manifest.records, manifest.samples, manifest.bad, manifest.views) == (21, 38, 2, 2)
    assert manifest.labels == source.labels() == ["a", "b", "c"]
    lines = [json.loads(line) for line in (whole / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["index"], line["views"]) for line in lines] == [(2, [0, 1]), (9, [0, 1])]
    assert lines[0]["reason"] == "memory/2: damaged"


def test_a_view_is_what_training_loads_in_that_epoch(whole):
    made, source = job(), LatentsSource(whole, ("image",))
    for place, view in ((0, 0), (1, 1)):
        record = made.source.read(0)
        (media,) = load_parts("image", made.parts, record, view, made.seed)
        stored = source.read(place)
        assert torch.equal(mean(stored), adapter_of(made).encode(media[None])[0])
        assert (stored.captions, stored.label, stored.origin) == (record.captions, record.label, "memory/0")
    assert not torch.equal(mean(source.read(0)), mean(source.read(1)))


def test_measured_statistics_are_those_of_all_samples(whole):
    source = LatentsSource(whole, ("image",))
    tokens = torch.cat([mean(source.read(index)) for index in range(len(source))]).double()
    found = source.manifest.parts["image"].statistics()
    torch.testing.assert_close(found.mean, tokens.mean(0).float())
    torch.testing.assert_close(found.std, tokens.std(0, unbiased=False).float())


@pytest.mark.parametrize(("workers", "batch"), [(1, 3), (4, 3), (0, 16)])
def test_workers_and_batches_change_no_byte(workers, batch, whole, tmp_path):
    make(job(), tmp_path, workers, batch)
    assert content(tmp_path) == content(whole)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name: str, turn: int, where=lambda *given: True):
    """Replace a function by one that is killed at its `turn`-th call of those that `where` counts."""
    real, calls = getattr(owner, name), []

    def call(*given, **named):
        calls.append(where(*given))
        if sum(calls) == turn and calls[-1]:
            killed()
        return real(*given, **named)

    setattr(owner, name, call)


def after(owner, name: str, turn: int, where=lambda *given: True):
    real, calls = getattr(owner, name), []

    def call(*given, **named):
        result = real(*given, **named)
        calls.append(where(*given))
        if sum(calls) == turn and calls[-1]:
            killed()
        return result

    setattr(owner, name, call)


def of_chunk(source, target) -> bool:
    return "chunk-" in str(target)


def names(wanted: str):
    return lambda folder, name, text: name == wanted


KILLS = {
    "while the second chunk is encoded": lambda: before(encode, "_encode", 5),
    "while a chunk is written": lambda: after(chunks.ChunkWriter, "add", 2),
    "when the bad records are noted": lambda: after(chunks.ChunkFolder, "note_bad", 1),
    "before a chunk is renamed": lambda: before(chunks.os, "rename", 2, of_chunk),
    "after a chunk is renamed": lambda: after(chunks.os, "rename", 2, of_chunk),
    "when all chunks are there": lambda: before(publish.ChunkFolder, "publish", 1),
    "between index and manifest": lambda: after(publish.ChunkFolder, "publish", 1, names("index.json")),
    "before the manifest": lambda: before(publish.ChunkFolder, "publish", 1, names("manifest.json")),
}


@pytest.mark.parametrize("point", KILLS)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(point, whole, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            KILLS[point]()
            make(job(), tmp_path)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    make(job(), tmp_path)
    assert content(tmp_path) == content(whole)


def test_finished_chunks_are_not_made_again(tmp_path, monkeypatch):
    made = job()
    folder = chunk_folder(made, tmp_path)
    encode_chunks(made, folder, [0, 2], 0, 3)
    assert folder.missing() == [1]
    read = []
    monkeypatch.setattr(Images, "read", _noting(Images.read, read))
    make(made, tmp_path)
    assert sorted(set(read)) == list(range(8, 16))
    read.clear()
    make(made, tmp_path)
    assert read == []


def _noting(real, read: list[int]):
    def call(self, index: int):
        read.append(index)
        return real(self, index)

    return call


def test_shares_together_are_the_whole(whole, tmp_path):
    made = job()
    for share in (1, 0):  # the machines need not come in order
        folder = chunk_folder(made, tmp_path)
        encode_chunks(made, folder, [number for number in folder.missing() if number % 2 == share], 0, 3)
    publish.publish(made, chunk_folder(made, tmp_path), {**_about(whole)})
    assert content(tmp_path) == content(whole)


def _about(path: Path) -> dict:
    manifest = json.loads((path / "manifest.json").read_text())
    return {"parts": {name: _named(part) for name, part in manifest["parts"].items()}, "source": manifest["source"]}


def _named(part: dict) -> dict:
    return {name: part[name] for name in ("autoencoder", "media")}


def test_too_many_bad_records_end_the_work_and_keep_what_is_done(tmp_path):
    made = job(limit=1)
    folder = chunk_folder(made, tmp_path)
    with pytest.raises(DataError) as caught:
        encode_chunks(made, folder, folder.missing(), 0, 3)
    text = str(caught.value)
    assert "2 records could not be used, more than training.data_limit 1" in text
    assert "record 9: memory/9: damaged" in text
    assert "it goes on with a larger limit: training.data_limit=4" in text
    assert folder.missing() == [1, 2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [entry["index"] for entry in folder.noted()] == [2, 9]  # also the one of the chunk that is not there


def test_the_limit_counts_records_and_not_their_views(tmp_path):
    """26 damaged files of 40 once ended a job of four views under a limit of 100."""
    made = images_job(source=Images(40, broken=tuple(range(26))), views=4, limit=26)
    manifest = make(made, tmp_path)
    assert (manifest.samples, manifest.bad) == (14 * 4, 26)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 26


def test_the_limit_holds_across_restarts_and_processes(tmp_path):
    """Two records of chunk 0 and one of chunk 1, which another process makes, leave room for none in chunk 2."""
    source = Images(24, broken=(2, 3, 9, 17))
    made = images_job(source=source, views=2, limit=3)
    first, second = chunk_folder(made, tmp_path), chunk_folder(made, tmp_path)
    encode_chunks(made, first, [0], 0, 3)
    encode_chunks(made, second, [1], 0, 3)
    with pytest.raises(DataError, match=r"4 records could not be used, more than training\.data_limit 3"):
        encode_chunks(made, first, [2], 0, 3)
    with pytest.raises(DataError, match=r"4 records .*\n.*record 17"):  # the same command again counts no record twice
        encode_chunks(made, first, [2], 0, 3)
    assert [entry["index"] for entry in first.noted()] == [2, 3, 9, 17]
    with pytest.raises(DataError, match=r"more than training\.data_limit 1, in the chunks that are there"):
        encode_chunks(replace(made, limit=1), first, [2], 0, 3)
    assert make(replace(made, limit=4), tmp_path).bad == 4


def test_chunks_that_another_process_finishes_meanwhile_count(tmp_path, monkeypatch):
    made = images_job(source=Images(24, broken=(0, 8, 16)), limit=2)
    folder, real = chunk_folder(made, tmp_path), chunks.ChunkFolder.start

    def start(self, number, columns):
        if number == 0:
            encode_chunks(made, chunk_folder(made, tmp_path), [1], 0, 3)
        return real(self, number, columns)

    monkeypatch.setattr(chunks.ChunkFolder, "start", start)
    with pytest.raises(DataError, match="3 records could not be used"):
        encode_chunks(made, folder, [0, 2], 0, 3)


def test_a_record_with_one_bad_view_is_one_record(tmp_path, monkeypatch):
    made = images_job(source=Images(8), views=3)
    real = type(adapter_of(made)).load
    bad_draws = {
        generator(made.seed, "image", view, key, "media").initial_seed() for view, key in ((0, "k1"), (2, "k1"))
    }

    def load(self, record, draw):
        if draw.initial_seed() in bad_draws:
            raise DataError(f"{record.origin}: dark")
        return real(self, record, draw)

    monkeypatch.setattr(type(adapter_of(made)), "load", load)
    manifest = make(made, tmp_path)
    assert (manifest.samples, manifest.bad) == (8 * 3 - 2, 1)
    (line,) = chunk_folder(made, tmp_path).noted()
    assert (line["index"], line["views"], line["reason"]) == (1, [0, 2], "memory/1: dark")


def test_views_of_an_earlier_version_are_joined(tmp_path):
    lines = [{"index": 2, "view": view, "key": "2", "origin": "x", "reason": "damaged"} for view in range(4)]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"index": 3, "vi')
    (entry,) = chunks.read_quarantine(tmp_path)
    assert entry == {"index": 2, "views": [0, 1, 2, 3], "key": "2", "origin": "x", "reason": "damaged"}


@pytest.mark.parametrize("error", [ZeroDivisionError("1 / 0"), IndexError("out"), MemoryError(), RuntimeError("jpeg")])
@pytest.mark.parametrize("workers", [0, 1])
def test_any_exception_of_a_decoder_sets_the_record_aside(error, workers, tmp_path, monkeypatch):
    made = images_job(source=Images(8))
    real = type(adapter_of(made)).load

    def load(self, record, draw):
        if record.key == "k5":
            raise error
        return real(self, record, draw)

    monkeypatch.setattr(type(adapter_of(made)), "load", load)
    manifest = make(made, tmp_path, workers)
    assert (manifest.samples, manifest.bad) == (7, 1)
    (line,) = chunk_folder(made, tmp_path).noted()
    assert line["reason"].startswith(f"memory/5: cannot be decoded: {type(error).__name__}: {error}".strip())


def test_a_file_that_is_gone_is_set_aside(tmp_path, monkeypatch):
    read = Images.read

    def gone(self, index):
        record = read(self, index)
        return replace(record, media=tmp_path / "gone.png") if index == 1 else record

    monkeypatch.setattr(Images, "read", gone)
    manifest = make(images_job(source=Images(8)), tmp_path / "out")
    assert manifest.bad == 1


def test_a_decoder_that_is_not_installed_ends_the_work_with_its_message(tmp_path, monkeypatch):
    made = images_job(source=Images(8))

    def load(self, record, draw):
        raise ConfigError("needs the package pyav")

    monkeypatch.setattr(type(adapter_of(made)), "load", load)
    with pytest.raises(ConfigError, match="needs the package pyav"):
        make(made, tmp_path)


def test_latents_that_are_not_finite_are_set_aside(tmp_path, monkeypatch):
    made = images_job()
    real = type(adapter_of(made)).posterior

    def posterior(self, media):
        mean, deviation = real(self, media)
        mean = mean.clone()
        mean[media.flatten(1).mean(1) == media.flatten(1).mean(1).max(), 0, 0] = float("inf")
        return mean, deviation

    monkeypatch.setattr(type(adapter_of(made)), "posterior", posterior)
    manifest = make(made, tmp_path, batch=8)
    assert (manifest.samples, manifest.bad) == (18, 3)
    line = json.loads((tmp_path / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["reason"] == f"{line['origin']}: its image latents hold NaN or infinite values"


def test_values_beyond_half_precision_end_the_work(tmp_path, monkeypatch):
    made = images_job(dtype="float16")
    monkeypatch.setattr(type(adapter_of(made)), "posterior", lambda self, media: (self.encode(media) * 1e6, None))
    with pytest.raises(ConfigError, match=r"memory/0: its image latents hold .* encode with --dtype float32"):
        make(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encode.json"]


def test_a_full_disk_ends_the_work_and_keeps_what_is_done(tmp_path, monkeypatch):
    made, calls = images_job(), []

    def add(self, rows):
        calls.append(rows)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return real(self, rows)

    real = chunks.ChunkWriter.add
    monkeypatch.setattr(chunks.ChunkWriter, "add", add)
    folder = chunk_folder(made, tmp_path)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left on device; finished chunks are kept"):
        encode_chunks(made, folder, folder.missing(), 0, 3)
    assert folder.missing() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk-00000", "encode.json"]


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(DataError, match="not one of 3 records can be used; the first: memory/0: damaged"):
        make(images_job(source=Images(3, broken=(0, 1, 2))), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_progress_counts_every_sample_once(tmp_path):
    made, seen = job(), []
    folder = chunk_folder(made, tmp_path)
    encode_chunks(made, folder, folder.missing(), 0, 3, progress=seen.append)
    assert [sum(getattr(done, name) for done in seen) for name in ("samples", "left_out", "bad")] == [38, 4, 2]
    stored = sum(shard["raw_data"]["bytes"] for number in range(3) for shard in folder.read(number).shards)
    assert 0.5 * stored < sum(done.bytes for done in seen) <= stored  # without the heads of the shards


def test_media_that_are_not_finite_are_refused(monkeypatch):
    made = images_job()
    monkeypatch.setattr(type(adapter_of(made)), "load", lambda *_: torch.full((3, 8, 8), float("nan")))
    with pytest.raises(DataError, match="memory/1: the decoded media holds NaN"):
        load_parts(made.stream, made.parts, made.source.read(1), 0, made.seed)


def test_names_and_captions_that_are_not_valid_text_are_stored_as_they_are(tmp_path, monkeypatch):
    """The name of a file may be any bytes, and JSON may cut a pair of surrogates in two."""
    bad, read = "b\udcff", Images.read

    def named(self, index: int) -> Record:
        if index == 0:
            raise DataError(f"{bad}.png: damaged")
        record = read(self, index)
        return replace(record, key=bad, origin=f"{bad}.png", captions=("half \ud83d",), label=bad)

    monkeypatch.setattr(Images, "read", named)
    made = make(images_job(source=Images(2)), tmp_path)
    record = LatentsSource(tmp_path, ("image",)).read(0)
    assert (record.key, record.origin, record.captions) == (bad, f"{bad}.png", ("half \ud83d",))
    assert made.labels == LatentsSource(tmp_path, ("image",)).labels() == [bad]
    assert json.loads((tmp_path / "quarantine.jsonl").read_text())["reason"] == f"{bad}.png: damaged"


def test_an_unexpected_error_in_a_worker_ends_the_program(tmp_path):
    """Its workers do not hear SIGTERM: a traceback that holds them must not keep them alive."""
    child = os.fork()
    if child == 0:
        try:
            Images.read = lambda self, index: 1 / 0
            make(images_job(), tmp_path, workers=2)
        except ZeroDivisionError:
            _exit_function()  # what the interpreter does at its end: it waits for processes that are left
            os._exit(0)
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class HalfSilent:
    """Audio clips of 2 s: a tone in one half and digital silence in the other; audio 3 is silent throughout."""

    def __len__(self) -> int:
        return 24

    def read(self, index: int) -> Record:
        half = np.sin(np.arange(4000) * (0.1 + 0.01 * index)).astype(np.float32)
        halves = [half, np.zeros_like(half)] if index % 2 else [np.zeros_like(half), half]
        audio = np.zeros(8000) if index == 3 else np.concatenate(halves)
        return Record(f"s{index}", f"memory/{index}", audio.astype(np.float32)[:, None], captions=("a",), rate=4000.0)

    def labels(self) -> list[str]:
        return []

    def fingerprint(self) -> str:
        return "half silent"


def test_a_silent_window_is_not_a_bad_record(tmp_path):
    """As in training another window is drawn; only an audio clip that is silent throughout is left out, and once."""
    adapter = AudioAdapter(AudioConfig(sample_rate=4000, seconds=0.25))
    made = Job("audio", HalfSilent(), make_parts({"audio": adapter}), 3, 4, 8, "float32", 1)
    about = {"parts": {"audio": {"autoencoder": {"kind": "mdct", "digest": ""}, "media": {}}}, "source": {}}
    manifest = make(made, tmp_path, batch=8, about=about)
    assert (manifest.samples, manifest.bad) == (23 * 4, 1)
    (line,) = chunk_folder(made, tmp_path).noted()
    assert (line["index"], line["views"]) == (3, [0, 1, 2, 3])
