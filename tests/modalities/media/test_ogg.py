"""Ogg files without an end, and files of several streams one behind the other."""

import numpy as np
import pytest

from core.errors import DataError
from modalities.media.audio import probe_audio, read_audio
from tests.modalities.making import audio_bytes

RATE = 48_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE, 1)).astype(np.float32)


def checksum(page: bytes) -> int:
    """Of an Ogg page, whose own checksum counts as 0."""
    found = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found & 0x80000000 else 0)) & 0xFFFFFFFF
    return found


def without_end(data: bytes) -> bytes:
    """As a messenger writes it: whole pages, none of which says that it is the last."""
    place = data.rfind(b"OggS")
    page = bytearray(data[place:])
    assert page[5] & 4
    page[5] &= ~4
    page[22:26] = checksum(page).to_bytes(4, "little")
    return data[:place] + bytes(page)


@pytest.mark.filterwarnings("ignore:Ogg files without")
@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_a_file_without_an_end_is_read_to_its_last_page(tmp_path, subtype):
    good = audio_bytes(NOISE, RATE, "OGG", subtype)
    data = without_end(good)
    path = tmp_path / "a.ogg"
    path.write_bytes(data)
    for media in (data, path):
        info = probe_audio(media, "a.ogg")
        assert (info.samples, info.rate, info.channels) == (len(NOISE), RATE, 1)
        whole = read_audio(media, "a.ogg", 0, info.samples)
        assert np.abs(whole - read_audio(good, "a.ogg", 0, info.samples)).max() < 2e-3
        np.testing.assert_array_equal(read_audio(media, "a.ogg", 70_000, 3000), whole[70_000:73_000])
    for cut in (len(data) - 1, len(data) * 9 // 10):
        with pytest.raises(DataError, match=r"^a\.ogg: cut short: the last page of the Ogg stream is missing"):
            probe_audio(data[:cut], "a.ogg")


def test_a_file_without_an_end_is_said():
    with pytest.warns(UserWarning, match="Ogg files without an end-of-stream mark are read to their last page"):
        probe_audio(without_end(audio_bytes(NOISE, RATE, "OGG", "OPUS")), "a.ogg")


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_all_links_of_a_chain_are_read(tmp_path, subtype):
    first, second = (audio_bytes(part, RATE, "OGG", subtype) for part in (NOISE, -NOISE[: 2 * RATE]))
    for data, seconds in ((first + second, 5), (first + first, 6), (first + second + first, 8)):
        path = tmp_path / "a.ogg"
        path.write_bytes(data)
        for media in (data, path):
            info = probe_audio(media, "a.ogg")
            assert 0 <= info.samples - seconds * RATE < 1024
            whole = read_audio(media, "a.ogg", 0, info.samples)
            alone = read_audio(first, "a.ogg", 0, 2 * RATE)
            assert np.abs(whole[: 2 * RATE] - alone).max() < 2e-3
            np.testing.assert_array_equal(read_audio(media, "a.ogg", 4 * RATE, 3000), whole[4 * RATE : 4 * RATE + 3000])


def test_a_chain_of_different_rates_or_channels_is_refused_as_a_whole():
    mono = audio_bytes(NOISE, RATE, "OGG", "VORBIS")
    stereo = audio_bytes(np.repeat(NOISE, 2, axis=1), RATE, "OGG", "VORBIS")
    with pytest.raises(DataError, match=r"^a\.ogg: "):
        probe_audio(mono + stereo, "a.ogg")
