"""Sizes in headers that are wrong, or were never filled in, while all of the audio is there."""

import struct
import warnings

import numpy as np
import pytest

from core.errors import DataError
from modalities.media.audio import probe_audio, read_audio
from tests.modalities.making import audio_bytes, tone

RATE = 8000
AUDIO = np.stack([tone(0.5, RATE, 440), tone(0.5, RATE, 660)], axis=1)
HUGE = 2**64 - 1


def with_sizes(kind: str, *sizes: tuple[str, int, int]) -> bytes:
    """A file with numbers changed: (struct's format, place or place behind the name of the chunk of samples, value)."""
    data = bytearray(audio_bytes(AUDIO, RATE, kind, "PCM_16"))
    chunk = data.index({"AIFF": b"SSND"}.get(kind, b"data")) if kind != "AU" else 0
    for form, place, value in sizes:
        struct.pack_into(form, data, place if place >= 0 else chunk - place, value)
    return bytes(data)


def rifx(size: int, samples: int) -> bytes:
    header = struct.pack(">4sI4s4sIHHIIHH", b"RIFX", size, b"WAVE", b"fmt ", 16, 1, 2, RATE, 4 * RATE, 4, 16)
    levels = np.round(AUDIO * 32768).astype(">i2").tobytes()
    return header + struct.pack(">4sI", b"data", samples) + levels


NEVER_FILLED_IN = {
    "WAV, both 0": with_sizes("WAV", ("<I", 4, 0), ("<I", -4, 0)),
    "WAV, as if it had no samples": with_sizes("WAV", ("<I", 4, 36), ("<I", -4, 0)),
    "WAV, samples 0": with_sizes("WAV", ("<I", -4, 0)),
    "WAV, both largest": with_sizes("WAV", ("<I", 4, 2**32 - 1), ("<I", -4, 2**32 - 1)),
    "WAV of sox from a pipe": with_sizes("WAV", ("<I", 4, 0x7FFFF024), ("<I", -4, 0x7FFFF000)),
    "WAV of arecord from a pipe": with_sizes("WAV", ("<I", 4, 0x80000024), ("<I", -4, 0x80000000)),
    "WAV of big-endian numbers": rifx(0, 0),
    "AIFF, both 0": with_sizes("AIFF", (">I", 4, 0), (">I", -4, 0)),
    "AIFF, as if it had no samples": with_sizes("AIFF", (">I", 4, 46), (">I", -4, 8), (">I", 22, 0)),
    "RF64, all 0": with_sizes("RF64", ("<Q", 20, 0), ("<Q", 28, 0), ("<Q", 36, 0)),
    "RF64, both largest": with_sizes("RF64", ("<Q", 20, HUGE), ("<Q", 28, HUGE)),
    "W64, both 0": with_sizes("W64", ("<Q", 16, 0), ("<Q", -16, 0)),
    "W64, as if it had no samples": with_sizes("W64", ("<Q", 16, 0), ("<Q", -16, 24)),
    "AU, 0": with_sizes("AU", (">I", 8, 0)),
    "AU, largest": with_sizes("AU", (">I", 8, 2**32 - 1)),
    "CAF, -1": with_sizes("CAF", (">q", -4, -1)),
}
WHOLE = len(audio_bytes(AUDIO, RATE))
WRONG = {
    "RIFF 8 too large": with_sizes("WAV", ("<I", 4, WHOLE)),
    "RIFF far too large": with_sizes("WAV", ("<I", 4, 10**9)),
    "RIFF too small": with_sizes("WAV", ("<I", 4, 100)),
    "samples counted with the header": with_sizes("WAV", ("<I", -4, WHOLE)),
    "FORM 8 too large": with_sizes("AIFF", (">I", 4, len(audio_bytes(AUDIO, RATE, "AIFF", None)))),
    "RF64 8 too large": with_sizes("RF64", ("<Q", 20, len(audio_bytes(AUDIO, RATE, "RF64", None)))),
    "W64 8 too large": with_sizes("W64", ("<Q", 16, len(audio_bytes(AUDIO, RATE, "W64", None)) + 8)),
}


def check(data: bytes, path) -> None:
    path.write_bytes(data)
    for media in (data, path):
        info = probe_audio(media, "a")
        assert (info.samples, info.rate, info.channels) == (len(AUDIO), RATE, 2)
        assert np.abs(read_audio(media, "a", 1000, 2000) - AUDIO[1000:3000]).max() <= 2**-15


@pytest.mark.filterwarnings("ignore:WAV, AIFF and other files")
@pytest.mark.parametrize("name", NEVER_FILLED_IN)
def test_sizes_that_were_never_filled_in(tmp_path, name):
    check(NEVER_FILLED_IN[name], tmp_path / "a.wav")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_size_is_a_warning_where_all_data_are_there(tmp_path, name):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        check(WRONG[name], tmp_path / "a.wav")
    if name != "RIFF too small":  # a common way to append chunks
        assert {str(each.message).partition(" whose")[0] for each in seen} == {"WAV, AIFF and other files"}


def test_a_warning_is_shown_once_for_a_kind():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for name in ("one.wav", "other.wav"):
            probe_audio(WRONG["RIFF 8 too large"], name)
    assert len(seen) == 1


@pytest.mark.parametrize("name", [name for name in WRONG if name != "RIFF too small"])
def test_a_wrong_size_does_not_hide_that_data_are_missing(name):
    with pytest.raises(DataError, match=r"^a: cut short: "):
        probe_audio(WRONG[name][:-4000], "a")


def test_a_file_without_samples_that_says_so_stays_one():
    empty = audio_bytes(AUDIO[:0], RATE)
    for behind in (b"", struct.pack("<4sI4s", b"LIST", 4, b"INFO"), struct.pack("<4sI4s", b"LIST", 3, b"INF\0")):
        with pytest.raises(DataError, match=r"^a: the audio has no samples"):
            probe_audio(empty + behind, "a")


def test_an_odd_byte_at_the_end_of_an_open_file_is_no_sample():
    assert probe_audio(NEVER_FILLED_IN["WAV, both 0"] + b"\1", "a").samples == len(AUDIO)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "RF64", "W64", "CAF"])
def test_random_sizes_never_raise_anything_else(kind):
    good = audio_bytes(AUDIO, RATE, kind, "PCM_16")
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, 110, 3):
            data[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                info = probe_audio(bytes(data), "a")
                read_audio(bytes(data), "a", 0, min(info.samples, 10_000))
            except DataError as error:
                assert str(error).startswith("a: ")  # noqa: PT017 - many of them are read as well
