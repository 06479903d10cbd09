"""Records to stored latents: loaded as training loads them, encoded on the device, written in chunks.

Workers load, this process encodes, a thread of it writes. A batch never spans two chunks and is made of the same
records for any number of workers, so that the bytes of a chunk depend on the settings alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoencoders.base import Moments
from core.durable import writing
from core.errors import DataError, SelfFlowError
from modalities.base import Deferred, Record, Source, StoredLatents
from modalities.conditioning import TextEncoder
from modalities.data.loader import end_workers, load_parts
from modalities.latents.bad import BadRecords, bad_entry, one_each
from modalities.latents.chunks import ChunkFolder, ChunkWriter
from modalities.latents.format import TextFeatures, pack, row_columns
from modalities.streams import Parts, token_mask

KEPT = "; finished chunks are kept"


@dataclass(frozen=True)
class CaptionEncoder:
    """A frozen text encoder, and what its features are."""

    encoder: TextEncoder
    features: TextFeatures

    def __call__(self, captions: list[str]) -> list[Tensor]:
        """(S, Dc) of each caption, without padding, on the CPU."""
        return [row.cpu() for row in self.encoder.encode(captions)]


@dataclass(frozen=True)
class Job:
    """What is encoded.

    Attributes:
        stream: crops and windows are drawn under its name, as in training.
        parts: of its samples, with their autoencoders on the device that is to encode.
        seed: of crops and windows: view k is loaded as a training with this seed loads the record in epoch k.
        views: samples of each record; with more than one, key#k is the key of view k.
        chunk: records of one chunk.
        dtype: of stored latents.
        limit: more unusable records than this end the work.
        text: encodes captions; None where their features are not stored.
    """

    stream: str
    source: Source
    parts: Parts
    seed: int
    views: int
    chunk: int
    dtype: str
    limit: int
    text: CaptionEncoder | None = None

    @property
    def chunks(self) -> int:
        """In all."""
        return -(-len(self.source) // self.chunk)

    def records(self, chunk: int) -> range:
        """Their indices in the source."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, len(self.source)))


@dataclass(frozen=True)
class Progress:
    """What was done since the last report.

    Attributes:
        samples, bytes: stored.
        left_out: samples that could not be made.
        bad: records that these are of.
    """

    samples: int
    left_out: int
    bad: int
    bytes: int


@dataclass
class _Batch:
    """Consecutive records of one chunk, loaded by a worker.

    Attributes:
        records: of the samples, without media.
        about: of each sample, see `pack`.
        media: part -> (B, *media) of the samples; empty where there is none.
        valid: part -> (B, N) bool of the parts that may end in padding.
        bad: records that are left out, or views of them.
    """

    chunk: int
    records: list[Record] = field(default_factory=list)
    about: list[dict[str, Any]] = field(default_factory=list)
    media: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)


class _Batches(Dataset):
    """item i = the records of `plan[i]` (chunk, indices), with all of their views."""

    def __init__(self, job: Job, plan: list[tuple[int, range]]):
        # The text encoder stays in the main process: a worker must not be sent its weights.
        self.job, self.plan = replace(job, text=None), plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> _Batch | SelfFlowError:
        try:
            return self._load(*self.plan[item])
        except SelfFlowError as error:  # torch would turn one of a worker into the text of a traceback
            return error

    def _load(self, chunk: int, indices: range) -> _Batch:
        job, batch, media, masks = self.job, _Batch(chunk), [], []
        padded = [name for name, part in job.parts.items() if part.pads]
        for index in indices:
            try:
                record = job.source.read(index)
                size = media_bytes(record, job.parts)
                mask = [token_mask(name, job.parts[name], record) for name in padded]
            except DataError as error:
                batch.bad.append(bad_entry(index, range(job.views), str(index), f"record {index}", error))
                continue
            for view in range(job.views):
                try:
                    media.append(load_parts(job.stream, job.parts, record, view, job.seed))
                except DataError as error:
                    batch.bad.append(bad_entry(index, [view], record.key, record.origin, error))
                    continue
                masks.append(mask)
                key = f"{record.key}#{view}" if job.views > 1 else record.key
                batch.records.append(replace(record, key=key, media=b"", parts={}))
                batch.about.append({"index": index, "view": view, "origin": record.origin, "bytes": size})
        if media:
            columns = zip(*media, strict=True)
            batch.media = {name: torch.stack(rows) for name, rows in zip(job.parts, columns, strict=True)}
            batch.valid = {name: torch.stack(rows) for name, rows in zip(padded, zip(*masks, strict=True), strict=True)}
        return batch


def media_bytes(record: Record, parts: Iterable[str]) -> int:
    """Bytes of the source's media: of files, of encoded bytes, or of arrays. DataError where a file is gone."""
    media = [record.part(name).media for name in parts]
    total = 0
    for one in {id(one): one for one in media}.values():  # parts may lie in one file
        assert not isinstance(one, StoredLatents)  # latents are not encoded again
        if isinstance(one, Deferred):
            total += one.bytes
        elif isinstance(one, Path):
            try:
                total += one.stat().st_size
            except OSError as error:
                raise DataError(f"{record.origin}: cannot be read: {error.strerror}") from error
        else:
            total += one.nbytes if isinstance(one, np.ndarray) else len(one)
    return total


@dataclass
class _Encoded:
    """What is stored of a batch's samples.

    Attributes:
        latents: part -> mean and deviation (B, N, C).
        texts: features of every caption of every sample; None where they are not stored.
        bad: records whose samples are among these and must be left out.
    """

    latents: dict[str, StoredLatents]
    texts: list[list[Tensor]] | None = None
    bad: list[dict[str, Any]] = field(default_factory=list)


class _OpenChunk:
    """A chunk that is being written; used by the writing thread alone."""

    def __init__(self, job: Job, folder: ChunkFolder, number: int):
        shapes = {name: (len(part.ids), part.adapter.channels) for name, part in job.parts.items()}
        sampled = [name for name, part in job.parts.items() if part.adapter.posterior_noise]
        padded = [name for name, part in job.parts.items() if part.pads]
        columns = row_columns(shapes, sampled, job.dtype, job.text is not None, padded)
        self.folder, self.dtype = folder, job.dtype
        self.writer: ChunkWriter = folder.start(number, columns)
        # Of the parts whose autoencoder has no statistics of its own.
        self.moments = {name: Moments() for name, part in job.parts.items() if part.adapter.normalization is None}
        self.bad: list[dict[str, Any]] = []
        self.labels: set[str] = set()

    def add(self, batch: _Batch, encoded: _Encoded) -> Progress:
        rows, left_out = [], {(entry["index"], view) for entry in encoded.bad for view in entry["views"]}
        bad = batch.bad + encoded.bad
        self.bad += bad
        for place, (record, about) in enumerate(zip(batch.records, batch.about, strict=True)):
            if (about["index"], about["view"]) in left_out:
                continue
            text = None if encoded.texts is None else encoded.texts[place]
            latents = sample_of(encoded.latents, place)
            rows.append(pack(record, about, self.dtype, latents, text))
            for name, moments in self.moments.items():
                moments.add(*_real(latents[name]))
            if record.label is not None:
                self.labels.add(record.label)
        joined = one_each(bad)
        return Progress(len(rows), sum(len(entry["views"]) for entry in joined), len(joined), self.writer.add(rows))

    def finish(self) -> None:
        found = {
            name: {"count": moments.count, "mean": moments.mean.tolist(), "squares": moments.squares.tolist()}
            for name, moments in self.moments.items()
            if moments.count
        }
        bad = one_each(self.bad)
        self.folder.note_bad(bad)  # before the chunk is there: a kill loses none
        self.writer.finish(bad, sorted(self.labels), found)


def encode_chunks(
    job: Job,
    folder: ChunkFolder,
    numbers: list[int],
    workers: int,
    batch: int,
    progress: Callable[[Progress], None] = lambda done: None,
) -> None:
    """Encode and publish chunks, in order.

    Args:
        numbers: of the chunks to make.
        workers: processes that load; 0 is this one.
        batch: samples encoded at once; changes no byte on a CPU.

    Raises DataError when more than `job.limit` records cannot be used, those of finished chunks included, or a disk is
    full; ConfigError for latents that do not fit dtype.
    Whatever ends the work, finished chunks stay and the one in hand leaves nothing behind.
    """
    bad = BadRecords(folder, job.limit)
    size = max(1, batch // job.views)
    plan = [
        (number, records[first : first + size])
        for number in numbers
        for records in (job.records(number),)
        for first in range(0, len(records), size)
    ]
    chunk: _OpenChunk | None = None
    pending: Future[Progress] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for place, loaded in enumerate(_loaded(job, plan, workers)):
                if isinstance(loaded, SelfFlowError):
                    raise loaded
                if chunk is None:
                    bad.look()
                encoded = _encode(job, loaded)
                bad.add(loaded.bad + encoded.bad)
                if pending is not None:
                    progress(pending.result())
                if chunk is None:
                    with writing(folder.path, KEPT):
                        chunk = _OpenChunk(job, folder, loaded.chunk)
                last = place + 1 == len(plan) or plan[place + 1][0] != loaded.chunk
                pending = thread.submit(_write, chunk, last, loaded, encoded)
                chunk = None if last else chunk
            if pending is not None:
                progress(pending.result())
        except BaseException:
            if pending is not None:
                pending.exception()  # waits for it
            if chunk is not None:
                chunk.writer.abandon()
            raise


def _write(chunk: _OpenChunk, last: bool, batch: _Batch, encoded: _Encoded) -> Progress:
    try:
        with writing(chunk.folder.path, KEPT):
            done = chunk.add(batch, encoded)
            if last:
                chunk.finish()
    except BaseException:
        chunk.writer.abandon()
        raise
    return done


def _loaded(job: Job, plan: list[tuple[int, range]], workers: int) -> Iterator[_Batch | SelfFlowError]:
    loader = DataLoader(_Batches(job, plan), batch_size=None, num_workers=workers, worker_init_fn=_prepare_worker)
    batches = iter(loader)
    try:
        yield from batches
    finally:
        end_workers(batches)


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process tells them when to leave
        signal.signal(number, signal.SIG_IGN)


def _encode(job: Job, batch: _Batch) -> _Encoded:
    encoded = _Encoded({})
    if not batch.media:
        return encoded
    for name, part in job.parts.items():
        mean, deviation = part.adapter.posterior(batch.media[name])
        deviation = deviation if part.adapter.posterior_noise else None
        encoded.latents[name] = StoredLatents(mean, deviation, batch.valid.get(name))
    if job.text is not None:
        features = iter(job.text([caption for record in batch.records for caption in record.captions]))
        encoded.texts = [[next(features) for _ in record.captions] for record in batch.records]
    for place, (record, about) in enumerate(zip(batch.records, batch.about, strict=True)):
        values = {f"{name} latents": _tensors(latents) for name, latents in sample_of(encoded.latents, place).items()}
        if encoded.texts is not None:
            values["text features"] = encoded.texts[place]
        for what, tensors in values.items():
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                reason = f"{record.origin}: its {what} hold NaN or infinite values"
                encoded.bad.append(bad_entry(about["index"], [about["view"]], record.key, record.origin, reason))
                break
    return encoded


def sample_of(latents: dict[str, StoredLatents], place: int) -> dict[str, StoredLatents]:
    """The latents (N, C) of one sample of a batch (B, N, C)."""
    return {
        name: StoredLatents(
            part.mean[place],
            None if part.deviation is None else part.deviation[place],
            None if part.valid is None else part.valid[place],
        )
        for name, part in latents.items()
    }


def _real(latents: StoredLatents) -> tuple[Tensor, Tensor | None]:
    """Mean and deviation of the tokens that are no padding."""
    real = slice(None) if latents.valid is None else latents.valid
    return latents.mean[real], None if latents.deviation is None else latents.deviation[real]


def _tensors(latents: StoredLatents) -> list[Tensor]:
    return [tensor for tensor in (latents.mean, latents.deviation) if tensor is not None]
