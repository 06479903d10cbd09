import struct
import sys

import av
import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.media.audio import probe_audio, read_audio
from tests.modalities.making import audio_bytes, audio_file, numbered, video_file

RATE = 44_100
# Rising tones: no place is like another.
STEREO = np.sin(np.linspace(1, 3, 3 * RATE)[:, None] ** 2 * np.array([900, 1100])).astype(np.float32) / 2
FORMATS = [(".m4a", "aac"), (".mp4", "libmp3lame"), (".aac", "aac"), (".mkv", "aac"), (".m4a", "alac")]


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_other_formats_are_read_from_any_place(tmp_path, suffix, codec):
    data = audio_file(tmp_path / f"a{suffix}", STEREO, RATE, codec)
    info = probe_audio(data, "x")
    assert (info.rate, info.channels) == (RATE, 2)
    assert 0 <= info.samples - len(STEREO) < 0.1 * RATE  # the codec's own silence before and behind
    whole = read_audio(data, "x", 0, info.samples)
    assert whole.dtype == np.float32
    errors = [np.square(whole[delay:][40_000:41_000] - STEREO[40_000:41_000]).mean() for delay in range(2 * 1152)]
    assert min(errors) ** 0.5 < (2**-15 if codec == "alac" else 0.03)
    for start in (1, 40_000, 70_001, info.samples - 2000):
        np.testing.assert_allclose(read_audio(data, "x", start, 2000), whole[start : start + 2000], atol=1e-6)


def test_an_edit_list_says_where_the_audio_begins_and_ends(tmp_path):
    """Of the silence of the encoder before and behind, nothing is audio; whatever the file's name is."""
    path = audio_file(tmp_path / "a.m4a", STEREO, RATE, "aac")
    data = bytearray(path.read_bytes())
    struct.pack_into(">Ii", data, data.index(b"elst") + 12, 2000, 1024)  # milliseconds, samples
    named = tmp_path / "a.mp3"
    named.write_bytes(data)
    for media in (bytes(data), named):
        info = probe_audio(media, "x")
        assert (info.samples, info.rate, info.channels) == (2 * RATE, RATE, 2)
        whole, plain = read_audio(media, "x", 0, info.samples), read_audio(path, "x", 0, len(STEREO))
        np.testing.assert_allclose(whole[5000:9000], plain[6024:10_024], atol=1e-6)
        np.testing.assert_allclose(read_audio(media, "x", 60_000, 2000), whole[60_000:62_000], atol=1e-6)


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".ogg", ".raw", ".sd2", ""])
def test_content_decides_and_not_the_suffix(tmp_path, suffix):
    data = audio_file(tmp_path / "a.m4a", STEREO, RATE, "aac").read_bytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(data)
    assert probe_audio(path, "x") == probe_audio(data, "x")


def test_the_audio_of_a_file_with_images(tmp_path):
    silent = video_file(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(DataError, match=r"a\.mp4: has no audio track \(QuickTime / MOV\)"):
        probe_audio(silent, "a.mp4")


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.05])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_files_cut_short_are_refused(tmp_path, keep, options):
    path = audio_file(tmp_path / "a.m4a", STEREO, RATE, "aac", **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    for media in (path, path.read_bytes()):
        with pytest.raises(DataError, match=r"^a\.m4a: (cut short|cannot be decoded as an audio clip|has no audio)"):
            probe_audio(media, "a.m4a")


def test_damage_inside_is_refused_where_it_is_read(tmp_path):
    path = audio_file(tmp_path / "a.m4a", STEREO, RATE, "aac")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(audio=0) if packet.size]
    for i in range(place[60], place[64]):
        data[i] ^= 0x5A
    assert len(read_audio(bytes(data), "x", 0, 20_000)) == 20_000
    with pytest.raises(DataError, match=r"^x: cannot be decoded as an audio clip: "):
        read_audio(bytes(data), "x", 50_000, 30_000)


def test_without_pyav_it_is_one_line(tmp_path, monkeypatch):
    data = audio_file(tmp_path / "a.m4a", STEREO, RATE, "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"^this file needs the package av, .* most audio clips work without it$"):
        probe_audio(data, "a.m4a")


def test_without_pyav_a_damaged_file_is_still_one_record(monkeypatch):
    data = bytearray(audio_bytes(STEREO, RATE))
    data[22:24] = bytes(2)  # channels
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"^a\.wav: cannot be decoded as an audio clip: "):
        probe_audio(bytes(data), "a.wav")
