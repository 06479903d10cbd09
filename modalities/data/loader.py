"""Batches as a function of the step: records -> media -> latents, and noise, all keyed, nothing remembered.

Every item of the data set is one microbatch, so workers prepare steps side by side and neither their number nor
their speed can change a value. A record that cannot be used is replaced by the one at the next position.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoencoders.base import LatentNormalization, Moments
from core.errors import ConfigError, DataError
from core.keys import generator
from core.modes import Mode, draw_mode_levels
from core.noising import NoisingConfig, SampleLevels, stack_levels
from core.training.loader import Rejected
from core.training.mixing import StreamMix, share
from modalities.base import ModalityAdapter, Record, StoredLatents, is_timed
from modalities.conditioning.conditions import Conditions, Prompt
from modalities.data.batches import RawBatch, RawPart
from modalities.data.decoding import decoded
from modalities.data.order import Order
from modalities.data.together import load_together
from modalities.latents.format import merged_statistics, stored_manifests
from modalities.streams import Part, Parts, Stream, lengths, stack_masks, token_mask

MAX_REPLACEMENTS = 64  # bad records in a row before the data is called unusable


@dataclass(frozen=True)
class _PartSample:
    """One part of a sample. Of `media` and `latents` (N, C), not normalized, stored data have the second; `valid` (N,)
    is None where nothing is padding."""

    noise: Tensor
    media: Tensor | None
    latents: Tensor | None
    posterior: Tensor | None
    valid: Tensor | None = None


@dataclass(frozen=True)
class _Sample:
    """One sample with its randomness; `conditioning_mask` (L,) is None where the stream never has any."""

    key: str
    parts: tuple[_PartSample, ...]
    condition: Prompt
    dropped: bool
    conditioning_mask: Tensor | None
    student: SampleLevels
    teacher: SampleLevels


class StepDataset(Dataset):
    """item i = microbatch i % accumulate of step i // accumulate, of the process `rank` among `world`.

    A step is cut into accumulate * world shares, which differ by one sample at most. Those of microbatch 0 come first,
    in the order of the ranks.

    Args:
        streams: name -> its data.

    Raises ConfigError for fewer samples in a step than shares.
    """

    def __init__(
        self,
        seed: int,
        mix: StreamMix,
        streams: dict[str, Stream],
        noising: NoisingConfig,
        conditions: Conditions,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ):
        for name, batch in mix.global_batch.items():
            if batch < accumulate * world:
                raise ConfigError(
                    f"streams.{name}.batch: {batch} samples cannot be shared by {world} processes with "
                    f"training.accumulate {accumulate}; {accumulate * world} are needed, the batch of the whole step"
                )
        self.seed, self.mix, self.streams = seed, mix, streams
        self.noising, self.conditions, self.accumulate = noising, conditions, accumulate
        self.rank, self.world = rank, world
        self.orders = {name: Order(stream.source, seed, name) for name, stream in streams.items()}

    def __getitem__(self, item: int) -> RawBatch:
        step, micro = divmod(item, self.accumulate)
        name = self.mix.stream(step)
        rejected: list[Rejected] = []
        samples = [self.sample(name, position, rejected) for position in self.positions(step, micro, self.rank)]
        batch = self.collate(name, samples, tuple(rejected))
        if self.world == 1:
            return batch
        if may_pad(self.streams[name]):  # how much of the records of others is padding is not known here
            return replace(batch, counts_of_all=False)
        everywhere = (p for rank in range(self.world) for p in self.positions(step, micro, rank))
        return replace(batch, counts=self.counts(name, everywhere))

    def positions(self, step: int, micro: int, rank: int) -> range:
        """Positions of the samples of a microbatch in one process."""
        size, start = self.mix.global_batch[self.mix.stream(step)], self.mix.first_position(step)
        own = share(size, micro * self.world + rank, self.accumulate * self.world)
        return range(start + own.start, start + own.stop)

    def mode(self, name: str, position: int) -> Mode:
        """What is given and absent in the sample at a position: keyed by it and not by the record, so that every
        process knows it of the samples of all others."""
        return self.streams[name].modes.draw(generator(self.seed, name, "given", position))

    def counts(self, name: str, positions: Iterable[int]) -> dict[str, float]:
        """Tokens with loss, by part, of samples without padding."""
        stream, counts = self.streams[name], dict.fromkeys(self.streams[name].parts, 0.0)
        sizes = lengths(stream.parts)
        for position in positions:
            held = self.mode(name, position).conditioning_mask(sum(sizes))
            for part, tokens in zip(stream.parts, (~held).split(sizes), strict=True):
                counts[part] += float(tokens.sum())
        return counts

    def check(self) -> None:
        """Make the first sample of every stream, so that data that cannot work is refused before step 1."""
        for name in self.streams:
            self.sample(name, 0, [])

    def stores_text(self) -> bool:
        """Whether the first sample of every stream carries stored features of a text encoder."""
        return all(self.sample(name, 0, []).condition.features is not None for name in self.streams)

    def sample(self, name: str, position: int, rejected: list[Rejected]) -> _Sample:
        """The sample at a position; unusable records are noted in `rejected` and skipped."""
        stream = self.streams[name]
        bad: list[tuple[str, str, str]] = []  # key, origin, reason
        for taken in range(position, position + MAX_REPLACEMENTS):
            epoch, index = self.orders[name].at(taken)
            record = None
            try:
                record = stream.source.read(index)
                sample = self.draw(name, record, epoch, self.mode(name, position))
            except DataError as error:
                origin, key = (record.origin, record.key) if record else (f"record {index}", str(index))
                bad.append((key, origin, str(error)))
                continue
            rejected += [Rejected(name, *entry, position, taken) for entry in bad]
            return sample
        raise DataError(
            f"{name}: {MAX_REPLACEMENTS} records in a row from position {position} could not be used; "
            f"the last one: {bad[-1][1]}: {bad[-1][2]}"
        )

    def draw(self, name: str, record: Record, epoch: int, mode: Mode | None = None) -> _Sample:
        """All randomness of one sample but its mode (`modes.rest` unless set), keyed by (seed, stream, epoch, sample,
        purpose)."""
        stream = self.streams[name]
        mode = stream.modes.rest if mode is None else mode

        def rng(purpose: str) -> torch.Generator:
            return generator(self.seed, name, epoch, record.key, purpose)

        media = load_parts(name, stream.parts, record, epoch, self.seed)
        condition, dropped = self.conditions.draw(record, rng("condition"), stream.caption_choice)
        sizes = lengths(stream.parts)
        levels = draw_mode_levels(
            self.noising, stream.timestep, stream.mask_ratio, sizes, rng("levels"), stream.modes, mode
        )
        conditioning_mask = mode.conditioning_mask(sum(sizes)) if stream.modes.conditions() else None
        noise, posterior = rng("noise"), rng("posterior")
        parts = []
        for (part_name, part), loaded in zip(stream.parts.items(), media, strict=True):
            shape = (len(part.ids), part.adapter.channels)
            drawn = torch.randn(shape, generator=posterior) if part.adapter.posterior_noise else None
            unit = torch.randn(shape, generator=noise)
            valid = token_mask(part_name, part, record)
            if isinstance(loaded, StoredLatents):
                parts.append(_PartSample(unit, None, loaded.sample(drawn), None, valid))
            else:
                parts.append(_PartSample(unit, loaded, None, drawn, valid))
        return _Sample(record.key, tuple(parts), condition, dropped, conditioning_mask, *levels)

    def collate(self, name: str, samples: list[_Sample], rejected: tuple[Rejected, ...]) -> RawBatch:
        stream = self.streams[name]
        columns = zip(*(sample.parts for sample in samples), strict=True)
        parts = [
            _collate_part(key, part, rows) for (key, part), rows in zip(stream.parts.items(), columns, strict=True)
        ]
        given = [sample.conditioning_mask for sample in samples if sample.conditioning_mask is not None]
        conditioning_mask = torch.stack(given) if given else None  # (B, L); all of a stream's samples have one, or none
        sizes = lengths(stream.parts)
        counts = dict.fromkeys(stream.parts, 0.0)
        shares = [None] * len(sizes) if conditioning_mask is None else conditioning_mask.split(sizes, dim=1)
        for part, held in zip(parts, shares, strict=True):
            counts[part.name] = _loss_tokens(part, held)
        dropped = torch.tensor([sample.dropped for sample in samples])
        return RawBatch(
            name,
            tuple(sample.key for sample in samples),
            tuple(parts),
            self.conditions.raw([sample.condition for sample in samples], dropped),
            stack_levels([sample.student for sample in samples]),
            stack_levels([sample.teacher for sample in samples]),
            conditioning_mask,
            counts,
            rejected,
        )


def _collate_part(name: str, part: Part, rows: Sequence[_PartSample]) -> RawPart:
    """An autoencoder without weights encodes here; one with weights on the training device."""

    def stacked(field: str) -> Tensor | None:
        values = [getattr(row, field) for row in rows]
        return None if values[0] is None else torch.stack(values)

    media, latents = stacked("media"), stacked("latents")
    if latents is None and not part.adapter.has_weights:
        assert media is not None  # where there are no latents
        latents = part.adapter.encode(media)
    kept = media if latents is None or part.keep_media else None
    noise, valid = torch.stack([row.noise for row in rows]), stack_masks([row.valid for row in rows], len(part.ids))
    return RawPart(name, noise, kept, latents, stacked("posterior"), valid)


def _loss_tokens(part: RawPart, given: Tensor | None) -> float:
    """Tokens that carry loss: real, and not given (B, N)."""
    mask = torch.ones(part.noise.shape[:2], dtype=torch.bool) if part.valid is None else part.valid
    return float((mask if given is None else mask & ~given).sum())


class StepLoader:
    """The trainer's batches from a StepDataset, in this process or in `workers` others."""

    def __init__(self, dataset: StepDataset, workers: int, pin: bool = False):
        self.dataset, self.workers, self.pin = dataset, workers, pin

    def steps(self, first: int, last: int) -> Generator[tuple[int, list[RawBatch]], None, None]:
        accumulate = self.dataset.accumulate
        loader = DataLoader(
            _ErrorsAsItems(self.dataset),
            batch_size=None,
            sampler=range(first * accumulate, last * accumulate),
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=_prepare_worker,
        )
        microbatches = iter(loader)
        try:
            for step in range(first, last):
                prepared = [next(microbatches) for _ in range(accumulate)]
                for item in prepared:
                    if isinstance(item, DataError):
                        raise item
                yield step, prepared
        finally:
            end_workers(microbatches)


class _ErrorsAsItems(Dataset):
    """Hands a DataError over instead of raising it: torch would turn one of a worker into the text of a traceback."""

    def __init__(self, dataset: StepDataset):
        self.dataset = dataset

    def __getitem__(self, item: int) -> RawBatch | DataError:
        try:
            return self.dataset[item]
        except DataError as error:
            return error


def may_pad(stream: Stream) -> bool:
    """Whether samples of a stream can have tokens of padding, how many of which only their records say."""
    stored = [part.valid for manifest in stored_manifests(stream.source) for part in manifest.parts.values()]
    return any(stored) or any(part.pads for part in stream.parts.values())


def load_parts(stream: str, parts: Parts, record: Record, epoch: int, seed: int) -> list[Tensor | StoredLatents]:
    """Media of every part, as training loads the record in that epoch, or what is stored of their latents.

    Raises DataError as `decoded`.
    """

    def draw(purpose: str) -> torch.Generator:
        return generator(seed, stream, epoch, record.key, purpose)

    return list(load_record(parts, record, draw).values())


def load_record(
    parts: Parts, record: Record, draw: Callable[[str], torch.Generator], augment: bool = True
) -> dict[str, Tensor | StoredLatents]:
    """Media of every part by its name, or what is stored of their latents. Several parts that pass in time are cut at
    the same time.

    Args:
        draw: makes the generator of a purpose: media, start (of parts that are cut together) or augment (of these).

    Raises DataError as `decoded`.
    """
    own = {name: record.part(name) for name in parts}
    found: dict[str, Tensor | StoredLatents] = {
        name: item.media for name, item in own.items() if isinstance(item.media, StoredLatents)
    }
    apart = {name: part.adapter for name, part in parts.items() if name not in found}
    timed = {name: adapter for name, adapter in apart.items() if is_timed(adapter)}
    if len(timed) > 1:
        for name, media in load_together(timed, own, draw("start"), lambda: draw("media")).items():
            found[name] = timed[name].augment(media, draw("augment")) if augment else media
            del apart[name]
    for name, adapter in apart.items():
        load = load_media if augment else decoded
        found[name] = load(adapter, own[name], draw("media"))
    return {name: found[name] for name in parts}


def load_media(adapter: ModalityAdapter, record: Record, draw: torch.Generator) -> Tensor:
    """Media of one part, augmented. Raises DataError as `decoded`."""
    return adapter.augment(decoded(adapter, record, draw), draw)


def end_workers(batches: Iterator) -> None:
    """End the workers of a DataLoader's iterator now, whoever still holds it.

    A traceback that passed through it does, and the workers, deaf to SIGTERM, would then block the program's exit.
    """
    if end := getattr(batches, "_shutdown_workers", None):  # there is none without workers
        end()


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)  # a worker must not take the cores of the training process
    # A cluster sends SIGTERM to every process of a job. The step that is to be finished still needs the workers;
    # they leave when the training process closes the loader, or is gone.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # a signal to a worker is none to the training process, whose pipe it has inherited


def measure_normalization(
    name: str, stream: Stream, part: str, seed: int, count: int = 256, floor: float = 0.01
) -> LatentNormalization:
    """Of one part of a stream: those of the adapter's own file, those stored with latents, the ones published with its
    autoencoder, or those of the first `count` usable samples, without padding. `floor` is that of
    `LatentNormalization.from_moments`."""
    adapter = stream.parts[part].adapter
    if not adapter.has_weights and adapter.normalization is not None:
        return adapter.normalization
    if manifests := stored_manifests(stream.source):
        return merged_statistics(manifests, part, floor)
    if adapter.normalization is not None:
        return adapter.normalization

    moments, order = Moments(), Order(stream.source, seed, name)
    found, first_error = 0, None
    for position in range(len(stream.source)):
        epoch, index = order.at(position)
        try:
            record = stream.source.read(index)
            media = load_parts(name, {part: stream.parts[part]}, record, epoch, seed)[0]
            valid = token_mask(part, stream.parts[part], record)
        except DataError as error:
            first_error = first_error or error
            continue  # met again, and noted, when training reads it
        assert isinstance(media, Tensor)  # a source of latents has its statistics, above
        # What training takes: samples of the posterior, where it draws noise for them.
        real = slice(None) if valid is None else valid
        if adapter.posterior_noise:
            moments.add(*(each[0, real] for each in adapter.posterior(media[None]) if each is not None))
        else:
            moments.add(adapter.encode(media[None])[0, real])
        found += 1
        if found == count:
            break
    if found == 0:
        raise DataError(f"{name}: not one of {len(stream.source)} records can be used; the first: {first_error}")
    return LatentNormalization.from_moments(moments, floor)
