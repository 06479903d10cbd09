"""Batches as a function of the step: records -> media -> tokens -> noise, all keyed, nothing remembered.

Every item of the data set is one microbatch, so workers prepare steps side by side and neither their number nor
their speed can change a value. A record that cannot be used is replaced by the one at the next position.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoencoders.base import Moments, Whitening
from core.errors import DataError
from core.keys import generator
from core.noising import Draws, NoisingConfig, SampleLevels, draw_levels, stack_levels
from core.schedule import TimeConfig
from core.training.feed import Microbatch, Rejected
from core.training.mixing import ModalityMix
from core.types import Context, TokenBatch
from modalities.base import ModalityAdapter, Record, Source, StoredLatents, make_segment
from modalities.conditions import Conditions, Prompt
from modalities.data.decoding import decoded
from modalities.data.order import Order
from modalities.data.stored import merged_statistics, stored_manifests

MAX_REPLACEMENTS = 64  # bad records in a row before the data is called unusable


@dataclass(frozen=True)
class Stream:
    """One modality's data and the settings of its noising.

    Attributes:
        given_share: share of samples whose leading tokens (`given`) are conditioning.
        given: (N,) bool, the tokens given in those samples (a video's first frame), or None.
        given_noise: their level is uniform in [0, given_noise].
        caption_choice: which of several captions, a name of `CAPTION_CHOICES`; None draws one.
        keep_media: microbatches carry the media, for what the training device computes from it.
    """

    source: Source
    adapter: ModalityAdapter
    time: TimeConfig
    mask_ratio: float
    given: Tensor | None = None
    given_share: float = 0.0
    given_noise: float = 0.0
    caption_choice: str | None = None
    keep_media: bool = False


@dataclass(frozen=True)
class _Sample:
    """One sample with its randomness.

    `given` is None where the stream never gives tokens, `posterior` where the autoencoder is not stochastic. Of `media`
    and `latents` (N, C) raw, drawn from their posterior, a source has one.
    """

    key: str
    media: Tensor | None
    latents: Tensor | None
    condition: Prompt
    dropped: bool
    noise: Tensor
    posterior: Tensor | None
    given: Tensor | None
    student: SampleLevels
    teacher: SampleLevels


class StepDataset(Dataset):
    """item i = microbatch i % accumulate of step i // accumulate.

    Args:
        streams: modality -> its data.
        whitening: modality -> statistics; None while they are being measured.
    """

    def __init__(
        self,
        seed: int,
        mix: ModalityMix,
        streams: dict[str, Stream],
        whitening: dict[str, Whitening],
        noising: NoisingConfig,
        conditions: Conditions,
        accumulate: int = 1,
    ):
        self.seed, self.mix, self.streams, self.whitening = seed, mix, streams, whitening
        self.noising, self.conditions, self.accumulate = noising, conditions, accumulate
        self.orders = {name: Order(stream.source, seed, name) for name, stream in streams.items()}

    def __getitem__(self, item: int) -> Microbatch:
        step, micro = divmod(item, self.accumulate)
        modality = self.mix.modality(step)
        size = self.mix.global_batch[modality] // self.accumulate
        first = self.mix.first_position(step) + micro * size
        rejected: list[Rejected] = []
        samples = [self.sample(modality, position, rejected) for position in range(first, first + size)]
        return self.collate(modality, samples, tuple(rejected))

    def check(self) -> None:
        """Make the first sample of every modality, so that data that cannot work is refused before step 1."""
        for modality in self.streams:
            self.sample(modality, 0, [])

    def stores_text(self) -> bool:
        """Whether the first sample of every modality carries stored features of a text encoder."""
        return all(self.sample(modality, 0, []).condition.features is not None for modality in self.streams)

    def sample(self, modality: str, position: int, rejected: list[Rejected]) -> _Sample:
        """The sample at a position; unusable records are noted in `rejected` and stepped over."""
        stream = self.streams[modality]
        bad = []
        for taken in range(position, position + MAX_REPLACEMENTS):
            epoch, index = self.orders[modality].at(taken)
            record = None
            try:
                record = stream.source.read(index)
                sample = self.draw(stream, record, epoch)
            except DataError as error:
                origin, key = (record.origin, record.key) if record else (f"record {index}", str(index))
                bad.append((key, origin, str(error)))
                continue
            rejected += [Rejected(modality, *entry, position, taken) for entry in bad]
            return sample
        raise DataError(
            f"{modality}: {MAX_REPLACEMENTS} records in a row from position {position} could not be used; "
            f"the last one: {bad[-1][1]}: {bad[-1][2]}"
        )

    def draw(self, stream: Stream, record: Record, epoch: int) -> _Sample:
        """All randomness of one sample, keyed by (seed, modality, epoch, sample, purpose)."""
        adapter = stream.adapter

        def rng(purpose: str) -> torch.Generator:
            return generator(self.seed, adapter.modality, epoch, record.key, purpose)

        stored = record.media if isinstance(record.media, StoredLatents) else None
        media = None if stored else load_media(adapter, record, epoch, self.seed)
        length = adapter.ids().shape[0]
        condition, dropped = self.conditions.draw(record, rng("condition"), stream.caption_choice)
        given = None
        if stream.given is not None and stream.given_share > 0:
            chosen = torch.rand((), generator=rng("given")) < stream.given_share
            given = stream.given & chosen
        levels = draw_levels(
            self.noising, stream.time, stream.mask_ratio, length, rng("levels"), given, stream.given_noise
        )
        shape = (length, adapter.channels)
        noise = torch.randn(shape, generator=rng("noise"))
        posterior = torch.randn(shape, generator=rng("posterior")) if adapter.posterior_noise else None
        latents = stored.sample(posterior) if stored else None
        return _Sample(record.key, media, latents, condition, dropped, noise, posterior, given, *levels)

    def collate(self, modality: str, samples: list[_Sample], rejected: tuple[Rejected, ...]) -> Microbatch:
        stream = self.streams[modality]
        noise = torch.stack([sample.noise for sample in samples])  # (B, N, C)
        stored = samples[0].latents is not None
        media = None if stored else torch.stack([sample.media for sample in samples])
        if stored:
            x0 = self.whitening[modality].whiten(torch.stack([sample.latents for sample in samples]))
        elif stream.adapter.has_weights:  # the training device encodes (modalities/prepare.py); until then, no data
            x0 = torch.zeros_like(noise)
        else:
            x0 = self.whitening[modality].whiten(stream.adapter.encode(media))
        given = None if samples[0].given is None else torch.stack([sample.given for sample in samples])
        segment = make_segment(stream.adapter, x0, given)
        prompts = [sample.condition for sample in samples]
        dropped = torch.tensor([sample.dropped for sample in samples])
        context: Context = self.conditions.context(prompts, dropped)
        batch = TokenBatch((segment,), context, tuple(sample.key for sample in samples))
        draws = Draws(
            (noise,),
            stack_levels([sample.student for sample in samples]),
            stack_levels([sample.teacher for sample in samples]),
        )
        counts = {modality: float(segment.counted().sum())}
        posterior = None
        if samples[0].posterior is not None and not stored:
            posterior = torch.stack([sample.posterior for sample in samples])
        kept = media if stream.keep_media else None
        texts = self.conditions.texts(prompts, dropped)
        return Microbatch(modality, batch, draws, counts, rejected, kept, posterior, texts=texts)


class StepFeed:
    """The trainer's feed over a StepDataset, in this process or in `workers` others."""

    def __init__(self, dataset: StepDataset, workers: int, pin: bool = False):
        self.dataset, self.workers, self.pin = dataset, workers, pin

    def steps(self, first: int, last: int) -> Iterator[tuple[int, list[Microbatch]]]:
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

    def __getitem__(self, item: int) -> Microbatch | DataError:
        try:
            return self.dataset[item]
        except DataError as error:
            return error


def load_media(adapter: ModalityAdapter, record: Record, epoch: int, seed: int) -> Tensor:
    """Media of a record, as training loads it in that epoch. Raises DataError as `decoded`."""
    draw = generator(seed, adapter.modality, epoch, record.key, "media")
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def measure_whitening(stream: Stream, seed: int, count: int = 256) -> Whitening:
    """Those stored with latents, the adapter's published ones, or those of the first `count` usable samples."""
    if manifests := stored_manifests(stream.source):
        return merged_statistics(manifests)
    if stream.adapter.whitening is not None:
        return stream.adapter.whitening

    adapter, moments = stream.adapter, Moments()
    order = Order(stream.source, seed, adapter.modality)
    found, first_error = 0, None
    for position in range(len(stream.source)):
        epoch, index = order.at(position)
        try:
            media = load_media(adapter, stream.source.read(index), epoch, seed)
        except DataError as error:
            first_error = first_error or error
            continue  # met again, and noted, when training reads it
        # What training takes: samples of the posterior, where it draws noise for them.
        moments.add(*(adapter.posterior(media[None]) if adapter.posterior_noise else (adapter.encode(media[None]),)))
        found += 1
        if found == count:
            break
    if found == 0:
        raise DataError(
            f"{adapter.modality}: not one of {len(stream.source)} records can be used; the first: {first_error}"
        )
    return Whitening.from_moments(moments)
