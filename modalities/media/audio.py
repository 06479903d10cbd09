"""Audio files to arrays and back, through soundfile, or PyAV for what libsndfile does not know; resampling.

Loudness is left alone: nothing is normalized, and values beyond 1, which files of floats may hold, are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import optional
from core.errors import DataError
from modalities.media.audio_av import (
    PREROLL,
    can_open,
    container_blocks,
    container_start,
    probe_container,
    read_container,
)
from modalities.media.audio_length import Patched, check_length, readable, stated_sizes
from modalities.media.mp3 import states_length
from modalities.media.ogg import is_chained, is_whole, last_bytes
from modalities.media.opening import Media, check_array, decoding, need, open_stream, with_suffix

LOWEST_RATE = 1000  # Hz; less is a damaged header
SLACK = 0.1  # seconds by which an audio clip may end before its header says
RESAMPLERS = ("soxr", "torchaudio")
UNKNOWN_FORMAT = 1  # error code of libsndfile
UNKNOWN_LENGTH = 2**62  # samples; libsndfile's number where a FLAC file does not say
BLOCK = 1 << 18  # samples decoded at a time


@dataclass(frozen=True)
class AudioInfo:
    """samples (of one channel), rate in Hz, channels."""

    samples: int
    rate: int
    channels: int


def probe_audio(media: Media, origin: str, rate: float | None = None) -> AudioInfo:
    """Length, rate and channels of an audio file, or of a float32 (samples, channels) array at `rate` Hz.

    The length is that which can be read: headers of MP3 files may be wrong by a frame, or say nothing, and sizes in WAV
    files may be wrong or 0.

    Raises:
        DataError: not an audio clip, a damaged one, or one that ends more than `SLACK` seconds before its header says.
    """
    if isinstance(media, np.ndarray):
        check_array(media, origin, 2, np.float32, "(samples, channels)")
        if not rate or rate != int(rate) or rate < 1:
            raise DataError(f"{origin}: samples without a whole rate in Hz, got {rate}")
        return AudioInfo(media.shape[0], int(rate), media.shape[1])
    with _opened(media, origin) as audio:
        promised, own_rate, channels, counted = audio.known() or probe_container(media, origin)
        promised = min(promised, audio.limit)
        if promised == 0:
            raise DataError(f"{origin}: the audio has no samples")
        if own_rate < LOWEST_RATE:
            raise DataError(f"{origin}: {own_rate} Hz is not the rate of an audio clip")
        check_length(media, origin)
        if counted:
            return AudioInfo(promised, own_rate, channels)
        start = max(0, promised - round(SLACK * own_rate))
        # A container's own clock also says where the padding of the last frame begins.
        end = start + len(_read(audio, media, origin, start, (2 if audio.file else 1) * (promised - start)))
    if end == start:
        raise DataError(f"{origin}: cut short: of {promised} samples, nothing can be read from {start} on")
    return AudioInfo(end, own_rate, channels)


def audio_start(media: Media, origin: str) -> float:
    """Seconds on the clock of the file at which its audio begins; 0 where it holds nothing else."""
    if isinstance(media, np.ndarray):
        return 0.0
    with _opened(media, origin) as audio:
        return 0.0 if audio.file else container_start(media, origin)


def read_audio(media: Media, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (count, channels) at the file's own rate, from sample `start` on; integer formats lie in [-1, 1)."""
    if isinstance(media, np.ndarray):
        return media[start : start + count]
    with _opened(media, origin) as audio:
        samples = _read(audio, media, origin, start, count)
    if len(samples) < count:
        raise DataError(f"{origin}: cut short: {len(samples)} of {count} samples can be read from {start} on")
    return samples


def audio_blocks(media: Media, origin: str) -> Iterator[tuple[int, np.ndarray]]:
    """(place, float32 (S, channels)) from the first sample to the last, decoded once."""
    if isinstance(media, np.ndarray):
        yield 0, media
        return
    with _opened(media, origin) as audio:
        if audio.file is None:
            yield from container_blocks(media, origin)
            return
        place = 0
        while len(samples := audio.file.read(BLOCK, dtype="float32", always_2d=True)):
            yield place, samples
            place += len(samples)


@dataclass(frozen=True)
class _AudioFile:
    """libsndfile's view of a file, or None where PyAV is to read it, and the number of samples not to be exceeded."""

    file: Any | None
    limit: int = sys.maxsize

    def known(self) -> tuple[int, int, int, bool] | None:
        """As `probe_container` has it; samples as the header says."""
        return self.file and (self.file.frames, self.file.samplerate, self.file.channels, False)


@contextmanager
def _opened(media: bytes | Path, origin: str) -> Iterator[_AudioFile]:
    open_stream(media, origin)  # refuses what is missing or empty
    soundfile = need("soundfile")
    with decoding(origin, "an audio clip", soundfile.SoundFileError), readable(media) as (source, size):
        sizes = stated_sizes(source, size)
        source.seek(0)
        patches = sizes.patches if sizes else {}
        if patches or not isinstance(source, FileIO):
            source = Patched(source, patches)
        try:
            # Without its name, for which libsndfile would judge it by its suffix. Python's own reader is slower.
            file = soundfile.SoundFile(source.fileno() if isinstance(source, FileIO) else source, closefd=False)
        except soundfile.LibsndfileError as error:
            if error.code != UNKNOWN_FORMAT and not can_open(media, origin):
                raise
            yield _AudioFile(None)
            return
        with file:
            yield _believed(file, media)


def _believed(file: Any, media: bytes | Path) -> _AudioFile:
    """PyAV reads what libsndfile would estimate, read in part, or not to the end."""
    match file.format:
        case "FLAC" if file.frames >= UNKNOWN_LENGTH:
            return _AudioFile(None)
        case "MP3":
            with readable(media) as (copy, size):
                return _AudioFile(file if states_length(copy, size) else None)
        case "OGG":
            if is_chained(media):
                return _AudioFile(None)
            with readable(media) as (copy, size):
                _, last = is_whole(last_bytes(copy, size))
            return _AudioFile(file) if last else _AudioFile(None, file.frames)
    return _AudioFile(file)


def _read(audio: _AudioFile, media: bytes | Path, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (at most count, channels)."""
    file = audio.file
    if file is None:
        return read_container(media, origin, start, count)
    # A frame of an MP3 file may need the bits of earlier ones, without which it is silently wrong.
    before = min(start, round(PREROLL * file.samplerate)) if file.format == "MP3" else 0
    if start:
        file.seek(start - before)
    return file.read(before + count, dtype="float32", always_2d=True)[before:]


def resample(samples: np.ndarray, rate: int, wanted: int, resampler: str = "soxr") -> np.ndarray:
    """(S, channels) at `rate` -> (about S * wanted / rate, channels) at `wanted`, aligned at sample 0.

    Args:
        resampler: one of `RESAMPLERS`. Where the audio has nothing above 0.9 of the lower rate's half, they differ by
            less than 3e-4 of its peak, 0.05 s from its ends and further.
    """
    if rate == wanted:
        return samples
    if resampler == "torchaudio":
        functional = load_torchaudio().functional
        # kaiser_best of the package resampy, whose pass band is the nearest to that of soxr's HQ.
        window = {"resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 64, "rolloff": 0.9475937167399596}
        audio = torch.tensor(samples.T)
        return functional.resample(audio, rate, wanted, beta=14.769656459379492, **window).T.numpy()
    return need("soxr").resample(samples, rate, wanted, quality="HQ")


def load_torchaudio() -> ModuleType:
    """Raises ConfigError with one line where it is not installed."""
    return optional.need("torchaudio", "resampler: 'torchaudio'", "The resampler soxr works")


def write_audio(audio: Tensor, path: Path, rate: int) -> Path:
    """(channels, samples) in [-1, 1], clipped -> 16-bit PCM WAV."""
    path = with_suffix(Path(path), ".wav")
    samples = audio.detach().cpu().float().clamp(-1, 1).T.contiguous().numpy()
    need("soundfile").write(str(path), samples, rate, subtype="PCM_16")
    return path
