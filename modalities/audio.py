"""Audio clips: a window of any audio file at a fixed rate, MDCT frames or latents as tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoencoders.config import AutoencoderConfig
from autoencoders.kinds import KINDS, build, media_problems, misfit
from autoencoders.transforms import MdctConfig
from core.errors import ConfigError, DataError, nearest
from core.kinds import kinds
from modalities.base import AutoencoderAdapter, Known, Media, Record, Windows
from modalities.media.audio import (
    RESAMPLERS,
    AudioInfo,
    audio_blocks,
    audio_start,
    load_torchaudio,
    probe_audio,
    read_audio,
    resample,
    write_audio,
)
from modalities.media.opening import WindowError, decoding

SHORT = ("pad", "refuse")
RANDOM_WINDOWS = 8  # tried before a file is looked through for audio
MARGIN = 0.1  # seconds read on both sides of a window, for the resampler's filter


@dataclass
class AudioConfig:
    """
    Attributes:
        sample_rate: Hz; 48000 for songbloom.
        seconds: of a window; rounded to whole samples, which are a multiple of 1920 for songbloom.
        channels: 1 mixes all channels to mono; 2 is stereo, and mono audio is duplicated; 2 for songbloom.
        autoencoder: of the audio clips; mdct needs no weights.
        hop: samples between MDCT frames and coefficients in each, 64 where left out; a window has
            ceil(samples / hop) + 1 tokens. Only mdct reads this and `exponent`.
        exponent: amplitude compression of the coefficients, in (0, 1], 0.5 where left out; 1 leaves them as they are.
        short: pad an audio clip that is shorter than a window with silence after it, or refuse it.
        resampler: soxr, or torchaudio where that is installed.
    """

    sample_rate: int = 4000
    seconds: float = 1.0
    channels: int = 1
    autoencoder: AutoencoderConfig = field(default_factory=MdctConfig, metadata=kinds(KINDS["audio"]))
    hop: int | None = None
    exponent: float | None = None
    short: str = "pad"
    resampler: str = "soxr"

    def problems(self) -> list[str]:
        found = media_problems(self, "audio")
        if self.sample_rate < 1:
            found.append(f"sample_rate: {self.sample_rate} must be at least 1 Hz")
        elif not self.seconds * self.sample_rate >= 1:
            found.append(f"seconds: {self.seconds} is less than one sample at {self.sample_rate} Hz")
        if self.channels not in (1, 2):
            found.append(f"channels: {self.channels} is not one of 1 (mono), 2 (stereo)")
        if not found and (line := misfit(self, (self.samples(), 1, 1))):
            found.append(f"seconds: {self.seconds} at {self.sample_rate} Hz: {line}")
        if self.short not in SHORT:
            found.append(f"short: {self.short!r} is not one of {', '.join(SHORT)}.{nearest(self.short, SHORT)}")
        if self.resampler not in RESAMPLERS:
            close = nearest(self.resampler, RESAMPLERS)
            found.append(f"resampler: {self.resampler!r} is not one of {', '.join(RESAMPLERS)}.{close}")
        return found

    def samples(self) -> int:
        """Samples of a window."""
        return round(self.seconds * self.sample_rate)


class AudioAdapter(AutoencoderAdapter):
    """Audio clips (channels, samples) and their tokens. Raises ConfigError when the config has problems."""

    modality = "audio"
    known_files = MappingProxyType(
        {"audio": "an audio clip that is given as a whole", "continue": "an audio clip whose beginning is kept"}
    )

    def __init__(self, config: AudioConfig):
        if found := config.problems():
            raise ConfigError(found)
        if config.resampler == "torchaudio":
            load_torchaudio()  # or say now that it is missing, not in a loader's worker
        self.config = config
        self.samples = config.samples()
        size = self.samples, 1, 1
        super().__init__(build(config, size), size)

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        """A window at a random place in time. Where it is silent or not finite another is drawn, and an audio clip is
        refused only when it holds no other."""
        with decoding(record.origin, "an audio clip"):
            info, needed = self._probe(record)
            unfit = None
            for start in self._starts(record, info, needed, generator):
                try:
                    audio = self._window(record, info, start, min(needed, info.samples - start))
                except WindowError as error:
                    unfit = unfit or error
                    continue
                if audio.any():
                    return functional.pad(audio, (0, self.samples - audio.shape[1]))
                unfit = unfit or _silent(record)
            raise DataError(str(unfit))

    def windows(self, record: Record) -> Windows:
        with decoding(record.origin, "an audio clip"):
            info, _ = self._probe(record)
            begins = audio_start(record.readable(), record.origin)
        room = info.samples / info.rate - self.samples / self.config.sample_rate
        return Windows(begins, begins + room, self.config.short == "pad", partial(self._at, record, info, begins))

    def _probe(self, record: Record) -> tuple[AudioInfo, int]:
        """What the file holds, and how many of its samples make a window. Raises DataError where it is too short."""
        info = probe_audio(record.readable(), record.origin, record.rate)
        needed = math.ceil(self.samples * info.rate / self.config.sample_rate)
        if info.samples < needed and self.config.short == "refuse":
            raise DataError(
                f"{record.origin}: {info.samples / info.rate:.3f} s, a window needs {self.config.seconds:g} s"
            )
        return info, needed

    def _at(self, record: Record, info: AudioInfo, begins: float, start: float, _generator: torch.Generator) -> Tensor:
        """(channels, self.samples): the window at `start` of audio that begins at `begins`, to the sample; silent
        before and after the audio."""
        place = round((start - begins) * self.config.sample_rate)
        before = min(max(0, -place), self.samples)
        # What is read begins where a sample of the file and a resampled one coincide, at or before the window.
        common = math.gcd(info.rate, self.config.sample_rate)
        blocks, skip = divmod(max(0, place), self.config.sample_rate // common)
        most = skip + self.samples - before
        first = blocks * (info.rate // common)
        count = min(math.ceil(most * info.rate / self.config.sample_rate), info.samples - first)
        if most == skip or count <= 0:
            raise _silent(record)
        with decoding(record.origin, "an audio clip"):
            audio = self._window(record, info, first, count, most)[:, skip:]
        if not audio.any():
            raise _silent(record)
        return functional.pad(audio, (before, self.samples - before - audio.shape[1]))

    def _starts(self, record: Record, info: AudioInfo, needed: int, generator: torch.Generator) -> Iterator[int]:
        """Places in the file at which windows of `needed` samples may start, in the order in which they are tried.

        A few at random, which is enough for most files and decodes no more than they need. Then the whole file is
        decoded once, and places come around audio clips that are in it.
        """
        # A window starts where a sample of the file and a resampled one coincide.
        unit = info.rate // math.gcd(info.rate, self.config.sample_rate)
        places = max(0, info.samples - needed) // unit + 1
        for _ in range(RANDOM_WINDOWS if places > 1 else 1):
            yield unit * int(torch.randint(places, (), generator=generator))
        if places == 1:
            return
        heard = self._heard(record, needed)
        for choice in torch.randperm(len(heard), generator=generator)[:RANDOM_WINDOWS].tolist():
            around = max(0, heard[choice] - needed // 2) // unit
            yield unit * min(around, places - 1)

    def _heard(self, record: Record, needed: int) -> list[int]:
        """For every stretch of `needed` samples of a file, a sample in it that is neither 0 nor NaN nor infinite."""
        found: dict[int, int] = {}
        for place, samples in audio_blocks(record.readable(), record.origin):
            mixed = self._mix(samples, record.origin)
            sounding = place + np.flatnonzero((np.isfinite(mixed) & (mixed != 0)).any(axis=1))
            stretches, first = np.unique(sounding // needed, return_index=True)
            for stretch, sample in zip(stretches.tolist(), sounding[first].tolist(), strict=True):
                found.setdefault(stretch, sample)
        return list(found.values())

    def stand_in(self) -> Media:
        """A slow ramp."""
        ramp = np.linspace(-0.5, 0.5, self.samples, dtype=np.float32)
        return Media(np.repeat(ramp[:, None], self.config.channels, axis=1), rate=self.config.sample_rate)

    def seconds(self) -> Tensor:
        middle = 0.5 if self.has_weights else 0.0  # MDCT frame f spans samples [(f - 1) hop, (f + 1) hop)
        steps = torch.arange(self.grid()[0], dtype=torch.float64)
        return (steps + middle) * self.autoencoder.spec.stride[0] / self.config.sample_rate

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        """The window at the beginning of a whole audio file."""
        if len(files) > 1:
            raise ConfigError("--audio gives the whole audio; not with --continue")
        if "audio" in files:
            self._probe(files["audio"])
            return Known.whole(self, self.load_prefix(files["audio"])[0])
        media, samples = self.load_prefix(files["continue"])
        return Known(media, self.prefix_mask(samples), self.kept_prefix(samples))

    def load_prefix(self, record: Record) -> tuple[Tensor, int]:
        """The beginning of an audio clip to be continued: a window (channels, samples) and how many samples are known.

        An audio clip longer than a window is cut; after a shorter one the window is silent.
        """
        info = probe_audio(record.readable(), record.origin, record.rate)
        needed = math.ceil(self.samples * info.rate / self.config.sample_rate)
        audio = self._window(record, info, 0, min(needed, info.samples))
        return functional.pad(audio, (0, self.samples - audio.shape[1])), audio.shape[1]

    def _window(self, record: Record, info: AudioInfo, start: int, count: int, most: int | None = None) -> Tensor:
        """(channels, at most `most` or self.samples) at the config's rate: `count` samples of the file from `start`."""
        unit = info.rate // math.gcd(info.rate, self.config.sample_rate)
        margin = unit * math.ceil(MARGIN * info.rate / unit)
        before = min(start, margin)
        after = min(info.samples - start - count, margin)
        samples = read_audio(record.readable(), record.origin, start - before, before + count + after)
        if not np.isfinite(samples).all():
            raise WindowError(f"{record.origin}: holds samples that are not finite")
        samples = self._mix(samples, record.origin)
        first = before * self.config.sample_rate // info.rate  # exact: `start` and `margin` are multiples of `unit`
        kept = min(most or self.samples, math.ceil(count * self.config.sample_rate / info.rate))
        audio = resample(samples, info.rate, self.config.sample_rate, self.config.resampler)[first : first + kept]
        return torch.tensor(audio.T, dtype=torch.float32)

    def _mix(self, samples: np.ndarray, origin: str) -> np.ndarray:
        """(S, any) -> (S, channels)."""
        if self.config.channels == 1:
            return samples.mean(axis=1, keepdims=True)
        if samples.shape[1] > 2:
            raise DataError(f"{origin}: {samples.shape[1]} channels, stereo takes files with 1 or 2")
        return samples if samples.shape[1] == 2 else samples.repeat(2, axis=1)

    def prefix_mask(self, samples: int) -> Tensor:
        """(N,) bool: tokens that stand for nothing after the first `samples` samples.

        MDCT frame f spans samples [(f - 1) hop, (f + 1) hop), so the last `hop` samples of the prefix are not kept
        exactly: they are shared with the first generated frame. Token f of an autoencoder stands for
        [f hop, (f + 1) hop).
        """
        ends = (self.ids()[:, 0] + 1) * self.autoencoder.spec.stride[0]
        return ends.clamp_max(self.samples) <= samples

    def kept_prefix(self, samples: int) -> Tensor:
        """(samples,) bool: samples that the given tokens of such a prefix stand for alone.

        Every sample lies in two MDCT frames, so these end `hop` samples before the last given frame does.
        """
        tokens = int(self.prefix_mask(samples).sum())
        shared = 0 if self.has_weights or tokens == self.grid()[0] else 1
        kept = (tokens - shared) * self.autoencoder.spec.stride[0]
        return torch.arange(self.samples) < kept

    def write(self, media: Tensor, path: Path) -> Path:
        """16-bit WAV."""
        return write_audio(media, path, self.config.sample_rate)


def _silent(record: Record) -> WindowError:
    return WindowError(f"{record.origin}: silent: every sample is 0")
