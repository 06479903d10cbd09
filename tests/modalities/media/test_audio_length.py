import struct

import numpy as np
import pytest

from core.errors import DataError
from modalities.media.audio_length import check_length
from tests.modalities.making import audio_bytes, tone

AUDIO = tone(0.5, 8000)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "OGG", "FLAC"])
def test_a_whole_file_passes_and_one_that_lacks_two_bytes_does_not(tmp_path, kind):
    data = audio_bytes(AUDIO, 8000, kind, None)
    check_length(data, "a")
    check_length(data + bytes(10), "a")  # what others append
    if kind == "FLAC":  # left to its decoder
        return
    path = tmp_path / "a"
    path.write_bytes(data[:-2])
    for media in (data[:-2], path):
        with pytest.raises(DataError, match=r"^a: cut short: "):
            check_length(media, "a")


def test_both_sizes_are_named():
    with pytest.raises(DataError, match=r"^a: cut short: 44 of 8044 bytes are there"):
        check_length(audio_bytes(AUDIO, 8000)[:44], "a")


def test_the_padding_byte_of_an_odd_chunk_may_be_missing():
    data = audio_bytes(AUDIO[:333], 8000, "WAV", "PCM_U8")
    assert len(data) % 2 == 0
    check_length(data[:-1], "a")


@pytest.mark.parametrize("unknown", [0, 0xFFFFFFFF, 0xFFFFFFFE])
def test_a_size_that_was_not_known_is_no_promise(unknown):
    data = bytearray(audio_bytes(AUDIO, 8000))
    struct.pack_into("<I", data, 4, unknown)
    struct.pack_into("<I", data, 40, unknown)
    check_length(bytes(data[:1000]), "a")
    data = bytearray(audio_bytes(AUDIO, 8000, "AU"))
    struct.pack_into(">I", data, 8, 0xFFFFFFFF)
    check_length(bytes(data[:1000]), "a")


def test_a_chunk_that_promises_more_than_the_file_holds():
    data = bytearray(audio_bytes(AUDIO, 8000))
    struct.pack_into("<I", data, 40, 10**6)
    with pytest.raises(DataError, match=rf"^a: cut short: {len(data)} of 1000044 bytes"):
        check_length(bytes(data), "a")


def test_an_ogg_file_whose_last_page_is_missing():
    data = audio_bytes(np.random.default_rng(0).uniform(-0.5, 0.5, 80_000), 48_000, "OGG", "VORBIS")
    last = data.rfind(b"OggS")
    assert last > 0
    for cut in (last + 4, last + 20, len(data) - 1):
        with pytest.raises(DataError, match=r"^a: cut short: the last page of the Ogg stream is missing"):
            check_length(data[:cut], "a")
    with pytest.warns(UserWarning, match="without an end-of-stream mark"):  # whole pages: messengers write such files
        check_length(data[:last], "a")


@pytest.mark.parametrize("data", [b"", b"R", b"RIFF", b"RIFF\0\0\0\0WAVEdat", b".snd", b"anything else"])
def test_what_is_too_short_for_a_header_is_left_to_the_decoder(data):
    check_length(data, "a")


@pytest.mark.parametrize("data", [b"OggS", b"FORM\0\0\0\x09AIFF", b"RIFF\x09\0\0\0WAVE"])
def test_a_header_alone_is_cut_short(data):
    with pytest.raises(DataError, match=r"^a: cut short"):
        check_length(data, "a")
