import struct
import sys

import numpy as np
import pytest
import soundfile
import torch

from core.errors import ConfigError, DataError
from modalities.media.audio import RESAMPLERS, probe_audio, read_audio, resample, write_audio
from tests.modalities.making import audio_bytes, gradient, image_bytes, tone


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-23),  # a float32 has 24 bits
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("FLAC", "PCM_S8", 2**-7),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("AIFF", "PCM_24", 2**-23),
    ],
)
@pytest.mark.parametrize("rate", [8000, 44100, 192_000])
def test_audio_files_are_read_at_their_resolution(kind, subtype, error, rate):
    stereo = np.stack([tone(0.3, rate, 440), tone(0.3, rate, 660)], axis=1)
    data = audio_bytes(stereo, rate, kind, subtype)
    info = probe_audio(data, "x")
    assert (info.samples, info.rate, info.channels) == (len(stereo), rate, 2)
    seen = read_audio(data, "x", 100, 2000)
    assert seen.dtype == np.float32
    assert np.abs(seen - stereo[100:2100]).max() <= error


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_compressed_files_are_close_and_every_place_is_the_same_from_anywhere(kind, subtype):
    rate = 48_000
    stereo = np.stack([tone(1.5, rate, 440), tone(1.5, rate, 660)], axis=1)
    data = audio_bytes(stereo, rate, kind, subtype)
    info = probe_audio(data, "x")
    assert (info.samples, info.rate, info.channels) == (len(stereo), rate, 2)
    whole = read_audio(data, "x", 0, info.samples)
    assert np.abs(whole - stereo)[2000:-2000].max() < 0.02
    for start in (1, *range(5000, 60_000, 5001), info.samples - 3000):
        np.testing.assert_allclose(read_audio(data, "x", start, 3000), whole[start : start + 3000], atol=1e-5)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_values_beyond_one_are_kept(subtype):
    loud = 7 * tone(0.1, 8000)
    assert np.array_equal(read_audio(audio_bytes(loud, 8000, subtype=subtype), "x", 0, 800)[:, 0], loud)
    resampled = resample(read_audio(audio_bytes(loud, 8000, subtype=subtype), "x", 0, 800), 8000, 16_000)
    assert np.abs(resampled).max() == pytest.approx(3.5, rel=0.01)


def test_resampling_keeps_a_tone_in_place():
    seen = resample(tone(0.5, 44100)[:, None], 44100, 8000)[:, 0]
    assert abs(len(seen) - 4000) <= 1
    np.testing.assert_allclose(seen[200:3800], tone(0.5, 8000)[200:3800], atol=1e-3)


@pytest.mark.parametrize("wanted", [8000, 44_100, 48_000])
@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 96_000])
def test_both_resamplers_agree_within_their_pass_band(rate, wanted):
    """The tolerance that `resample` states, with 40 tones up to 0.9 of the lower rate's half."""
    pytest.importorskip("torchaudio", reason="torchaudio is part of the full environment")
    time = np.arange(rate) / rate
    pitches = np.linspace(20, 0.9 * min(rate, wanted) / 2, 40)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 40)
    audio = np.sin(2 * np.pi * pitches[:, None] * time + phases[:, None]).sum(axis=0)
    audio = (audio / np.abs(audio).max()).astype(np.float32)[:, None]
    one, other = (resample(audio, rate, wanted, name) for name in RESAMPLERS)
    assert abs(len(one) - len(other)) <= 1
    inside = slice(wanted // 20, wanted - wanted // 20)
    assert np.abs(one[inside] - other[inside]).max() < 3e-4
    assert one.dtype == other.dtype == np.float32


def test_a_resampler_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ConfigError, match=r"^resampler: 'torchaudio' needs the package torchaudio, which"):
        resample(np.zeros((8, 1), np.float32), 8, 4, "torchaudio")


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (80_000, 2)).astype(np.float32)


def load(data: bytes) -> np.ndarray:
    return read_audio(data, "a.x", 0, probe_audio(data, "a.x").samples)


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.2, 0.01])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("RF64", "PCM_16"), ("W64", "PCM_24"), ("AIFF", "PCM_16")),
        *(("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")),
        *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)),
    ],
)
def test_files_cut_short_are_refused(tmp_path, kind, subtype, keep):
    data = audio_bytes(NOISE, 48_000, kind, subtype)
    assert len(load(data)) == len(NOISE)
    cut = data[: int(keep * len(data))]
    path = tmp_path / "a.x"
    path.write_bytes(cut)
    for media in (cut, path):
        with pytest.raises(
            DataError, match=r"^a\.x: (cut short|cannot be decoded as an audio clip|the audio has no samples)"
        ):
            probe_audio(media, "a.x")


def test_a_file_that_ends_a_moment_early_has_its_true_length():
    """A WAV inside the padding of its chunk, and an MP3 whose header counts a frame too many."""
    odd = audio_bytes(np.zeros(333, np.float32) + 0.5, 8000, "WAV", "PCM_U8")
    assert probe_audio(odd[:-1] if len(odd) % 2 == 0 else odd, "a.wav").samples == 333
    mp3 = bytearray(audio_bytes(NOISE, 48_000, "MP3", None))
    place = next(mp3.find(name) for name in (b"Xing", b"Info") if name in mp3) + 8
    frames = struct.unpack_from(">I", mp3, place)[0]
    struct.pack_into(">I", mp3, place, frames + 1)
    info = probe_audio(bytes(mp3), "a.mp3")
    assert 0 < info.samples - len(NOISE) + 1152 <= 2 * 1152
    assert len(read_audio(bytes(mp3), "a.mp3", info.samples - 100, 100)) == 100
    struct.pack_into(">I", mp3, place, frames + 100)
    with pytest.raises(DataError, match=r"a\.mp3: cut short"):
        probe_audio(bytes(mp3), "a.mp3")


def flac_of_length(promised: int) -> bytearray:
    data = bytearray(audio_bytes(NOISE, 48_000, "FLAC"))
    data[21] = data[21] & 0xF0 | promised >> 32
    data[22:26] = (promised & 0xFFFFFFFF).to_bytes(4, "big")
    return data


@pytest.mark.parametrize("promised", [90_000, 2**36 - 1])
def test_a_flac_header_that_lies_about_its_length(promised):
    with pytest.raises(DataError, match=r"a\.flac: "):
        probe_audio(bytes(flac_of_length(promised)), "a.flac")


def test_a_flac_from_a_pipe_does_not_say_how_long_it_is(tmp_path):
    data = flac_of_length(0)
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    for media in (bytes(data), path):
        info = probe_audio(media, "a.flac")
        assert (info.samples, info.rate, info.channels) == (len(NOISE), 48_000, 2)
        assert np.abs(read_audio(media, "a.flac", 50_000, 3000) - NOISE[50_000:53_000]).max() <= 2**-15
    with pytest.raises(DataError, match=r"^a\.flac: cannot be decoded as an audio clip: "):
        probe_audio(bytes(data[: len(data) // 2]), "a.flac")
    half = len(data) // 2
    data[half : half + 40] = bytes(byte ^ 0x5A for byte in data[half : half + 40])
    with pytest.raises(DataError, match=r"^a\.x: cannot be decoded as an audio clip: damaged behind "):
        load(bytes(data))


def test_a_wav_header_that_lies():
    wav = bytearray(audio_bytes(NOISE, 48_000))
    assert wav[36:40] == b"data"
    for place, value, reason in (
        (40, 10**8, "cut short"),
        (22, 0, "cannot be decoded"),  # channels
        (24, 0, "cannot be decoded"),  # rate
        (24, 3, "3 Hz is not the rate of an audio clip"),
    ):
        lie = wav.copy()
        lie[place : place + (2 if place == 22 else 4)] = value.to_bytes(2 if place == 22 else 4, "little")
        with pytest.raises(DataError, match=rf"a\.wav: .*{reason}"):
            probe_audio(bytes(lie), "a.wav")


def test_damage_inside_a_flac_is_refused_where_it_is_read():
    data = bytearray(audio_bytes(NOISE, 48_000, "FLAC"))
    half = len(data) // 2
    data[half : half + 40] = bytes(byte ^ 0x5A for byte in data[half : half + 40])
    with pytest.raises(DataError, match=r"a\.x: cannot be decoded as an audio clip: "):
        load(bytes(data))


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (b"", "empty"),
        (b"hello" * 1000, "cannot be decoded|has no audio"),
        (bytes(20_000), "cannot be decoded|has no audio"),
        (b"\xff" * 20_000, "cannot be decoded|has no audio"),
        (np.random.default_rng(0).bytes(20_000), "cannot be decoded|has no audio"),
        (b"\xff\xfb\x90\x00" + np.random.default_rng(0).bytes(20_000), "cannot be decoded|has no audio"),
        (image_bytes(gradient()), r"has no audio track \("),
        (image_bytes(gradient(), "JPEG"), r"has no audio track \("),
        (audio_bytes(NOISE[:0], 8000), "no samples"),
        (audio_bytes(NOISE, 8000)[:10], "cannot be decoded"),
    ],
)
def test_what_is_not_audio(tmp_path, media, reason):
    path = tmp_path / "a.flac"  # whatever its suffix says
    path.write_bytes(media)
    for given in (media, path):
        with pytest.raises(DataError, match=rf"^a\.flac: .*({reason})"):
            probe_audio(given, "a.flac")


def test_a_suffix_does_not_matter(tmp_path):
    for kind in ("FLAC", "MP3"):
        for suffix in (".wav", ".jpg", ".raw", ""):
            path = tmp_path / f"{kind}{suffix}"
            path.write_bytes(audio_bytes(NOISE[:9000], 48_000, kind, None))
            assert probe_audio(path, "a").samples == 9000


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"a\.wav: cannot be read: No such file"):
        probe_audio(tmp_path / "none.wav", "a.wav")
    with pytest.raises(DataError, match=r"a\.wav: is a folder"):
        probe_audio(tmp_path, "a.wav")
    with pytest.raises(DataError, match="without a whole rate"):
        probe_audio(NOISE, "array")


def test_written_audio_is_sixteen_bit(tmp_path):
    stereo = torch.tensor(np.stack([tone(0.1, 4000), 3 * tone(0.1, 4000)]))
    path = write_audio(stereo, tmp_path / "sound", 4000)
    assert soundfile.info(path).subtype == "PCM_16"
    assert probe_audio(path, "x").rate == 4000
    seen = read_audio(path, "x", 0, 400)
    np.testing.assert_allclose(seen.T, stereo.clamp(-1, 1).numpy(), atol=2**-15)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), AttributeError("y"), MemoryError(), OverflowError("z")])
def test_whatever_a_decoder_raises_costs_one_record(error, monkeypatch):
    def broken(*_args, **_options):
        raise error

    data = audio_bytes(NOISE, 8000)
    monkeypatch.setattr(soundfile, "SoundFile", broken)
    with pytest.raises(DataError, match=rf"^a\.wav: cannot be decoded as an audio clip: {type(error).__name__}:"):
        probe_audio(data, "a.wav")
