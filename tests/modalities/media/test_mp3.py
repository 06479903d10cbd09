"""MP3 files without a count of frames, with tags and rubbish around them, or put together of several."""

import struct

import numpy as np
import pytest

from core.errors import DataError
from modalities.media.audio import probe_audio, read_audio
from tests.modalities.making import audio_bytes

RATE = 44_100
FRAME = 1152
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE, 2)).astype(np.float32)
WITH_COUNT = audio_bytes(NOISE * np.linspace(0, 1, len(NOISE))[:, None].astype(np.float32), RATE, "MP3", None)
# Of a first frame of its own, which a program cannot write into a pipe.
PIPED = WITH_COUNT[WITH_COUNT.index(b"\xff\xfb", 4) :]
FRAMES = struct.unpack_from(">I", WITH_COUNT, WITH_COUNT.index(b"Xing") + 8)[0]
ID3 = b"ID3\3\0\0\0\0\x28\0" + bytes(40 * 128)
RUBBISH = np.random.default_rng(1).bytes(3000)


def check(data: bytes, samples: int) -> None:
    info = probe_audio(data, "a.mp3")
    assert (info.samples, info.rate, info.channels) == (samples, RATE, 2)
    whole = read_audio(data, "a.mp3", 0, samples)
    for start in (1, 20_000, 70_001, samples - 3000):
        np.testing.assert_allclose(read_audio(data, "a.mp3", start, 3000), whole[start : start + 3000], atol=1e-6)


def test_without_a_count_of_frames_they_are_counted(tmp_path):
    check(PIPED, FRAMES * FRAME)
    path = tmp_path / "a.mp3"
    path.write_bytes(PIPED)
    assert probe_audio(path, "a.mp3").samples == FRAMES * FRAME


def test_a_count_in_the_first_frame_is_believed_as_before():
    assert probe_audio(WITH_COUNT, "a.mp3").samples == len(NOISE)
    assert probe_audio(ID3 + WITH_COUNT + b"TAG" + bytes(125), "a.mp3").samples == len(NOISE)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (ID3, b""),
        (ID3 * 2, b""),
        (ID3 + bytes(300), b""),
        (RUBBISH, b""),
        (bytes(2000), b""),
        (b"", b"TAG" + bytes(125)),
        (b"", b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 0xA0000000) + bytes(8)),
        (b"", b"APETAGEX" + RUBBISH * 100),
        (b"", RUBBISH),
        (b"", bytes(5000)),
    ],
)
def test_tags_and_rubbish_are_no_audio(before, behind):
    check(before + PIPED + behind, FRAMES * FRAME)


def test_a_variable_rate_does_not_matter():
    """A quiet first frame, from which libsndfile estimates, is short."""
    loud = audio_bytes(np.concatenate([np.zeros_like(NOISE), NOISE]), RATE, "MP3", None)
    piped = loud[loud.index(b"\xff\xfb", 4) :]
    check(piped, struct.unpack_from(">I", loud, loud.index(b"Xing") + 8)[0] * FRAME)


@pytest.mark.parametrize("tags", [b"", ID3])
def test_files_that_were_put_together_are_read_to_the_end(tags):
    two = probe_audio(tags + WITH_COUNT + tags + WITH_COUNT, "a.mp3").samples
    assert 0 <= two - 2 * len(NOISE) < 3 * FRAME
    samples = probe_audio(tags + PIPED + tags + PIPED, "a.mp3").samples
    assert 0 <= 2 * FRAMES * FRAME - samples <= FRAME  # a frame may be lost with the tags before it


def test_a_file_that_ends_within_a_frame():
    check(PIPED[:-300], FRAMES * FRAME - FRAME if len(check_last()) == 0 else FRAMES * FRAME)


def check_last() -> np.ndarray:
    samples = probe_audio(PIPED[:-300], "a.mp3").samples
    return read_audio(PIPED[:-300], "a.mp3", (FRAMES - 1) * FRAME, samples - (FRAMES - 1) * FRAME)


def test_damage_between_frames_is_refused():
    middle = len(PIPED) // 2
    with pytest.raises(DataError, match=r"^a\.mp3: cannot be decoded as an audio clip: damaged before byte"):
        probe_audio(PIPED[:middle] + RUBBISH + PIPED[middle:], "a.mp3")
