"""Records to stored latents: loaded as training loads them, encoded on the device, written in parts.

Workers load, this process encodes, a thread of it writes. A batch never spans two parts and is made of the same
records for any number of workers, so that the bytes of a part depend on the settings alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
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
from modalities.base import ModalityAdapter, Record, Source
from modalities.data.loader import end_workers, load_media
from modalities.data.stored import TextFeatures, pack, row_columns
from modalities.encoding.bad import BadRecords, bad_entry, one_each
from modalities.encoding.parts import PartFolder, PartWriter
from modalities.text import TextEncoder

KEPT = "; finished parts are kept"


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
        adapter: with its autoencoder on the device that is to encode.
        seed: of crops and windows: view k is loaded as a training with this seed loads the record in epoch k.
        views: samples of each record; with more than one, key#k is the key of view k.
        part: records of one part.
        dtype: of stored latents.
        limit: more unusable records than this end the work.
        text: encodes captions; None where their features are not stored.
    """

    modality: str
    source: Source
    adapter: ModalityAdapter
    seed: int
    views: int
    part: int
    dtype: str
    limit: int
    text: CaptionEncoder | None = None

    @property
    def parts(self) -> int:
        """In all."""
        return -(-len(self.source) // self.part)

    def records(self, part: int) -> range:
        """Their indices in the source."""
        return range(part * self.part, min((part + 1) * self.part, len(self.source)))


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
    """Consecutive records of one part, loaded by a worker. `records` have no media; these are in `media`."""

    part: int
    records: list[Record] = field(default_factory=list)
    about: list[dict[str, Any]] = field(default_factory=list)
    media: Tensor | None = None
    bad: list[dict[str, Any]] = field(default_factory=list)


class _Batches(Dataset):
    """item i = the records of `plan[i]` (part, indices), with all of their views."""

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

    def _load(self, part: int, indices: range) -> _Batch:
        job, batch, media = self.job, _Batch(part), []
        for index in indices:
            try:
                record = job.source.read(index)
                size = media_bytes(record)
            except DataError as error:
                batch.bad.append(bad_entry(index, range(job.views), str(index), f"record {index}", error))
                continue
            for view in range(job.views):
                try:
                    media.append(load_media(job.adapter, record, view, job.seed))
                except DataError as error:
                    batch.bad.append(bad_entry(index, [view], record.key, record.origin, error))
                    continue
                key = f"{record.key}#{view}" if job.views > 1 else record.key
                batch.records.append(replace(record, key=key, media=b""))
                batch.about.append({"index": index, "view": view, "origin": record.origin, "bytes": size})
        if media:
            batch.media = torch.stack(media)
        return batch


def media_bytes(record: Record) -> int:
    """Of the source's media: of the file, of the encoded bytes, or of the array. DataError where the file is gone."""
    if isinstance(record.media, Path):
        try:
            return record.media.stat().st_size
        except OSError as error:
            raise DataError(f"{record.origin}: cannot be read: {error.strerror}") from error
    return record.media.nbytes if isinstance(record.media, np.ndarray) else len(record.media)


class _OpenPart:
    """A part that is being written; used by the writing thread alone."""

    def __init__(self, job: Job, folder: PartFolder, number: int, measure: bool):
        shape = (job.adapter.ids().shape[0], job.adapter.channels)
        columns = row_columns(shape, job.dtype, job.adapter.posterior_noise, job.text is not None)
        self.folder, self.dtype = folder, job.dtype
        self.writer: PartWriter = folder.start(number, columns)
        self.moments = Moments() if measure else None
        self.bad: list[dict[str, Any]] = []
        self.labels: set[str] = set()

    def add(
        self,
        batch: _Batch,
        mean: Tensor | None,
        deviation: Tensor | None,
        texts: list[list[Tensor]] | None,
        bad: list[dict[str, Any]],
    ) -> Progress:
        """Latents (B, N, C) of the batch's records; those named in `bad` are among them and left out."""
        rows, left_out = [], {(entry["index"], view) for entry in bad for view in entry["views"]}
        self.bad += batch.bad + bad
        for place, (record, about) in enumerate(zip(batch.records, batch.about, strict=True)):
            if (about["index"], about["view"]) in left_out:
                continue
            text = None if texts is None else texts[place]
            rows.append(
                pack(record, about, self.dtype, mean[place], None if deviation is None else deviation[place], text)
            )
            if self.moments is not None:
                self.moments.add(mean[place], None if deviation is None else deviation[place])
            if record.label is not None:
                self.labels.add(record.label)
        joined = one_each(batch.bad + bad)
        return Progress(len(rows), sum(len(entry["views"]) for entry in joined), len(joined), self.writer.add(rows))

    def finish(self) -> None:
        found = None
        if self.moments is not None and self.moments.count:
            moments = self.moments
            found = {"count": moments.count, "mean": moments.mean.tolist(), "squares": moments.squares.tolist()}
        bad = one_each(self.bad)
        self.folder.note_bad(bad)  # before the part is there: a kill loses none
        self.writer.finish(bad, sorted(self.labels), found)


def encode_parts(
    job: Job,
    folder: PartFolder,
    numbers: list[int],
    workers: int,
    batch: int,
    progress: Callable[[Progress], None] = lambda done: None,
) -> None:
    """Encode and publish parts, in order.

    Args:
        numbers: of the parts to make.
        workers: processes that load; 0 is this one.
        batch: samples encoded at once; changes no byte on a CPU.

    Raises DataError when more than `job.limit` records cannot be used, those of finished parts included, or a disk is
    full; ConfigError for latents that do not fit dtype.
    Whatever ends the work, finished parts stay and the one in hand leaves nothing behind.
    """
    bad = BadRecords(folder, job.limit)
    measure = job.adapter.whitening is None
    size = max(1, batch // job.views)
    plan = [
        (number, records[first : first + size])
        for number in numbers
        for records in (job.records(number),)
        for first in range(0, len(records), size)
    ]
    part: _OpenPart | None = None
    pending: Future[Progress] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for place, loaded in enumerate(_loaded(job, plan, workers)):
                if isinstance(loaded, SelfFlowError):
                    raise loaded
                if part is None:
                    bad.look()
                encoded = _encode(job, loaded)
                bad.add(loaded.bad + encoded[-1])
                if pending is not None:
                    progress(pending.result())
                if part is None:
                    with writing(folder.path, KEPT):
                        part = _OpenPart(job, folder, loaded.part, measure)
                last = place + 1 == len(plan) or plan[place + 1][0] != loaded.part
                pending = thread.submit(_write, part, last, loaded, *encoded)
                part = None if last else part
            if pending is not None:
                progress(pending.result())
        except BaseException:
            if pending is not None:
                pending.exception()  # waits for it
            if part is not None:
                part.writer.abandon()
            raise


def _write(part: _OpenPart, last: bool, *encoded: Any) -> Progress:
    try:
        with writing(part.folder.path, KEPT):
            done = part.add(*encoded)
            if last:
                part.finish()
    except BaseException:
        part.writer.abandon()
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


def _encode(
    job: Job, batch: _Batch
) -> tuple[Tensor | None, Tensor | None, list[list[Tensor]] | None, list[dict[str, Any]]]:
    """Mean and deviation (B, N, C), features of every caption of every record, and the records that came out bad."""
    if batch.media is None:
        return None, None, None, []
    mean, deviation = job.adapter.posterior(batch.media)
    deviation = deviation if job.adapter.posterior_noise else None
    texts = None
    if job.text is not None:
        features = iter(job.text([caption for record in batch.records for caption in record.captions]))
        texts = [[next(features) for _ in record.captions] for record in batch.records]
    bad = []
    for place, (record, about) in enumerate(zip(batch.records, batch.about, strict=True)):
        latents = [part[place] for part in (mean, deviation) if part is not None]
        for what, parts in (("latents", latents), ("text features", texts[place] if texts else [])):
            if not all(bool(part.isfinite().all()) for part in parts):
                reason = f"{record.origin}: its {what} hold NaN or infinite values"
                bad.append(bad_entry(about["index"], [about["view"]], record.key, record.origin, reason))
                break
    return mean, deviation, texts, bad
