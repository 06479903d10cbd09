import sys

import numpy as np
import pytest
import torch

from autoencoders.songbloom import SongBloomConfig
from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.audio import AudioAdapter, AudioConfig
from modalities.media.audio import probe_audio
from tests.modalities.making import audio_bytes, record, tone


@pytest.mark.parametrize(
    ("rate", "kind", "subtype"),
    [(8000, "FLAC", "PCM_16"), (44100, "WAV", "PCM_24"), (44100, "FLAC", "PCM_24"), (4000, "WAV", "FLOAT")],
)
def test_any_file_becomes_the_same_tone(rate, kind, subtype):
    data = audio_bytes(tone(1.0, rate), rate, kind, subtype)
    media = AudioAdapter(AudioConfig()).load(record(data), generator("a"))
    assert media.shape == (1, 4000)
    assert media.dtype == torch.float32
    np.testing.assert_allclose(media[0, 100:-100].numpy(), tone(1.0, 4000)[100:-100], atol=2e-3)


@pytest.mark.parametrize("wanted", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_keeps_pitch_place_and_loudness(rate, wanted):
    config = AudioConfig(sample_rate=wanted, seconds=0.5)
    audio = AudioAdapter(config).load(record(audio_bytes(tone(0.5, rate), rate, "FLAC", "PCM_24")), generator("a"))[0]
    inside = slice(wanted // 20, -wanted // 20)
    np.testing.assert_allclose(audio.numpy()[inside], tone(0.5, wanted)[inside], atol=1e-3)
    assert audio[inside].abs().max() == pytest.approx(0.5, rel=2e-3)
    assert audio[inside].square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=2e-3)


def test_loudness_is_left_alone():
    """Silence stays as quiet and loud floats as loud as they are in the file, to the bit where the rate is the same."""
    adapter = AudioAdapter(AudioConfig())
    for gain in (1e-4, 1.0, 20.0):
        audio = gain * tone(1.0, 4000)
        seen = adapter.load(record(audio_bytes(audio, 4000, subtype="FLOAT")), generator("a"))[0].numpy()
        assert np.array_equal(seen, audio)
        faster = gain * tone(1.0, 44_100)
        seen = adapter.load(record(audio_bytes(faster, 44_100, subtype="FLOAT")), generator("a"))[0].numpy()
        np.testing.assert_allclose(seen[200:-200], audio[200:-200], atol=2e-3 * gain)


def test_ten_seconds_of_a_song():
    config = songbloom(seconds=10)
    stereo = np.stack([tone(12.0, 44_100, 440), tone(12.0, 44_100, 660)], axis=1)
    audio = AudioAdapter(config).load(record(audio_bytes(stereo, 44_100)), generator("a"))
    assert audio.shape == (2, 480_000)
    assert (audio[:, -1000:].abs().max(dim=1).values > 0.4).all()  # to the end


def test_a_window_inside_a_long_file_equals_the_whole_resampled():
    rate, wanted = 44100, 8000
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * rate, 1)).astype(np.float32)
    whole = AudioAdapter(AudioConfig(sample_rate=wanted, seconds=3.0)).load(record(noise, rate), generator("a"))[0]
    adapter = AudioAdapter(AudioConfig(sample_rate=wanted, seconds=0.5))
    starts = []
    for i in range(6):
        window = adapter.load(record(noise, rate), generator("sample", i))[0]
        assert torch.equal(window, adapter.load(record(noise, rate), generator("sample", i))[0])
        # Windows start at multiples of 80 output samples (441 of the file).
        errors = [(whole[s : s + 4000] - window).abs().max().item() for s in range(0, 24000 - 4000 + 1, 80)]
        starts.append(int(np.argmin(errors)))
        assert min(errors) < 1e-4
    assert len(set(starts)) > 3


def test_channels_are_mixed_or_doubled():
    left, right = tone(1.0, 4000, 300), tone(1.0, 4000, 500)
    stereo = record(np.stack([left, right], axis=1), 4000)
    mono = record(left[:, None], 4000)
    mixed = AudioAdapter(AudioConfig()).load(stereo, generator("a"))
    np.testing.assert_allclose(mixed[0].numpy(), (left + right) / 2, atol=1e-6)
    config = AudioConfig(channels=2)
    assert torch.equal(AudioAdapter(config).load(stereo, generator("a")), torch.tensor(stereo.media.T))
    doubled = AudioAdapter(config).load(mono, generator("a"))
    assert torch.equal(doubled[0], doubled[1])
    surround = np.stack([tone(1.0, 4000, 100 * (i + 1)) for i in range(6)], axis=1)
    for media in (surround, audio_bytes(surround, 4000, subtype="FLOAT")):
        with pytest.raises(DataError, match="6 channels, stereo takes files with 1 or 2"):
            AudioAdapter(config).load(record(media, 4000), generator("a"))
        mixed = AudioAdapter(AudioConfig()).load(record(media, 4000), generator("a"))
        np.testing.assert_allclose(mixed[0].numpy(), surround.mean(axis=1), atol=1e-6)


def test_short_audio_is_padded_or_refused():
    item = record(tone(0.25, 8000)[:, None], 8000)
    media = AudioAdapter(AudioConfig()).load(item, generator("a"))
    assert (media[0, 1000:] == 0).all()
    assert media[0, :1000].abs().max() > 0.4
    with pytest.raises(DataError, match=r"folder/file: 0\.250 s, a window needs 1 s"):
        AudioAdapter(AudioConfig(short="refuse")).load(item, generator("a"))
    whole = record(tone(1.0, 44100)[:, None], 44100)
    assert AudioAdapter(AudioConfig(short="refuse")).load(whole, generator("a")).shape == (1, 4000)


def half_silent(rate: int = 8000, seconds: float = 3.0, start: float = 0.0) -> np.ndarray:
    """(samples,), a tone in one half of the time, from `start` seconds on, and digital silence in the other."""
    audio = np.zeros(round(rate * seconds), np.float32)
    place, length = round(start * rate), len(audio) // 2
    audio[place : place + length] = tone(length / rate, rate)[: len(audio) - place]
    return audio


def test_another_window_is_drawn_where_one_is_silent():
    """160 audio clips, half tone, half silence: every one of them is good, at every draw."""
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    data = audio_bytes(half_silent(), 8000)
    for i in range(160):
        window = adapter.load(record(data), generator("sample", i))
        assert window.any()
        assert torch.equal(window, adapter.load(record(data), generator("sample", i)))


def test_the_first_window_is_taken_as_before_where_it_is_not_silent():
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (24_000, 1)).astype(np.float32)
    for i in range(5):
        start = int(torch.randint(20_001, (), generator=generator("sample", i)))
        window = adapter.load(record(audio, 8000), generator("sample", i))
        assert torch.equal(window[0], torch.tensor(audio[start : start + 4000, 0]))


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "array"])
def test_a_click_in_a_long_silence_is_found(rate, place, kind):
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    audio = np.zeros(60 * rate, np.float32)
    click = min(round(place * len(audio)), len(audio) - 1000)
    audio[click : click + 500] = 0.5
    media = audio[:, None] if kind == "array" else audio_bytes(audio, rate, kind)
    item = record(media, rate if kind == "array" else None)
    window = adapter.load(item, generator("a"))
    assert window.abs().max() > 0.3
    assert torch.equal(window, adapter.load(item, generator("a")))


def test_a_file_is_bad_only_if_all_of_it_is_silent():
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    for media in (np.zeros((80_000, 1), np.float32), np.zeros((100, 1), np.float32)):
        with pytest.raises(DataError, match=r"^folder/file: silent: every sample is 0$"):
            adapter.load(record(media, 8000), generator("a"))
    opposite = np.stack([tone(3.0, 8000), -tone(3.0, 8000)], axis=1)
    with pytest.raises(DataError, match="silent"):
        adapter.load(record(opposite, 8000), generator("a"))  # mixed to one channel, nothing is left


def test_a_window_that_is_not_finite_is_not_the_file():
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    audio = tone(60.0, 8000)
    audio[: 59 * 8000] = np.nan
    for i in range(3):
        window = adapter.load(record(audio[:, None], 8000), generator("sample", i))
        assert window.isfinite().all()
    with pytest.raises(DataError, match="folder/file: holds samples that are not finite"):
        adapter.load(record(np.full((80_000, 1), np.nan, np.float32), 8000), generator("a"))


def test_a_few_windows_are_decoded_of_a_file_that_is_not_silent(monkeypatch):
    monkeypatch.setattr("modalities.audio.audio_blocks", lambda *_: pytest.fail("the whole file was decoded"))
    adapter = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5))
    for i in range(20):
        adapter.load(record(tone(60.0, 8000)[:, None], 8000), generator("sample", i))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), AttributeError("y"), MemoryError("z"), RuntimeError("w")])
def test_whatever_goes_wrong_with_a_record_costs_that_record(error, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr("modalities.audio.resample", broken)
    with pytest.raises(
        DataError, match=rf"^folder/file: cannot be decoded as an audio clip: {type(error).__name__}: {error}"
    ):
        AudioAdapter(AudioConfig()).load(record(tone(1.0, 8000)[:, None], 8000), generator("a"))
    monkeypatch.setattr("modalities.audio.resample", lambda *_: load_nothing())
    with pytest.raises(ConfigError, match="a setting"):  # what is wrong for all of them is not set aside
        AudioAdapter(AudioConfig()).load(record(tone(1.0, 8000)[:, None], 8000), generator("a"))


def load_nothing():
    raise ConfigError("a setting")


def test_silence_and_values_that_are_not_finite_are_refused():
    adapter = AudioAdapter(AudioConfig())
    with pytest.raises(DataError, match="folder/file: silent"):
        adapter.load(record(audio_bytes(np.zeros(4000), 4000)), generator("a"))
    broken = tone(1.0, 4000)
    broken[2000] = np.nan
    with pytest.raises(DataError, match="folder/file: holds samples that are not finite"):
        adapter.load(record(audio_bytes(broken, 4000, subtype="FLOAT")), generator("a"))


def test_files_that_are_damaged_are_refused_and_none_is_silent(tmp_path):
    """What the files themselves can be is tested with `modalities.media.audio`."""
    adapter, whole = AudioAdapter(AudioConfig(sample_rate=8000, seconds=0.5)), tone(3.0, 48_000)
    flac, mp3 = audio_bytes(whole, 48_000, "FLAC"), audio_bytes(whole, 48_000, "MP3", None)
    for media in (b"", flac[: len(flac) // 2], mp3[: len(mp3) // 2], flac[:100], b"no audio" * 99, tmp_path / "none"):
        for i in range(3):
            with pytest.raises(DataError, match=r"^folder/file: "):
                adapter.load(record(media), generator("sample", i))
    infinite = tone(1.0, 8000)
    infinite[5000] = np.inf
    with pytest.raises(DataError, match="folder/file: holds samples that are not finite"):
        AudioAdapter(AudioConfig(sample_rate=8000)).load(record(infinite[:, None], 8000), generator("a"))


@pytest.mark.parametrize("channels", [1, 2])
def test_tokens_invert(channels):
    adapter = AudioAdapter(AudioConfig(channels=channels))
    media = torch.rand(3, channels, 4000, generator=generator("a")) * 2 - 1
    tokens = adapter.encode(media)
    assert adapter.grid() == (64, 1, 1)
    assert tokens.shape == (3, 64, 64 * channels)
    assert adapter.channels == 64 * channels
    torch.testing.assert_close(adapter.decode(tokens), media, atol=3e-6, rtol=0)
    assert adapter.ids()[:3].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]


@pytest.mark.parametrize(("samples", "count"), [(0, 0), (63, 0), (64, 1), (1000, 15), (3999, 62), (4000, 64)])
def test_given_frames_lie_within_the_prefix(samples, count):
    conditioning_mask = AudioAdapter(AudioConfig()).prefix_mask(samples)
    assert conditioning_mask.shape == (64,)
    assert conditioning_mask.sum() == count
    assert conditioning_mask[:count].all()


def test_a_given_frame_does_not_see_behind_the_prefix_and_keeps_it():
    adapter = AudioAdapter(AudioConfig())
    data = audio_bytes(tone(0.25, 8000), 8000, subtype="FLOAT")
    media, known = adapter.load_prefix(record(data))
    assert media.shape == (1, 4000)
    assert known == 1000
    other = media.clone()
    other[:, known:] = torch.rand(1, 3000, generator=generator("a"))
    conditioning_mask = adapter.prefix_mask(known)
    tokens = adapter.encode(media[None])
    assert torch.equal(tokens[:, conditioning_mask], adapter.encode(other[None])[:, conditioning_mask])
    filled = torch.where(
        conditioning_mask[None, :, None], tokens, torch.randn(tokens.shape, generator=generator("fill"))
    )
    kept = (int(conditioning_mask.sum()) - 1) * 64
    assert known - kept < 2 * 64
    torch.testing.assert_close(adapter.decode(filled)[0, :, :kept], media[:, :kept], atol=1e-6, rtol=0)


def test_a_long_prefix_is_cut_to_a_window():
    adapter = AudioAdapter(AudioConfig())
    media, known = adapter.load_prefix(record(tone(2.0, 8000)[:, None], 8000))
    assert known == 4000
    assert media.shape == (1, 4000)


def test_written_audio_has_its_rate(tmp_path):
    adapter = AudioAdapter(AudioConfig(channels=2))
    info = probe_audio(adapter.write(torch.zeros(2, 4000), tmp_path / "a"), "a")
    assert (info.samples, info.rate, info.channels) == (4000, 4000, 2)


def test_every_problem_of_a_config_is_named():
    config = AudioConfig(seconds=0.0, channels=3, hop=0, exponent=1.5, short="loop", resampler="sox")
    names = ["hop", "exponent", "seconds", "channels", "short", "resampler"]
    assert [line.split(":")[0] for line in config.problems()] == names
    assert config.problems()[-1] == "resampler: 'sox' is not one of soxr, torchaudio. Did you mean: 'soxr'?"
    assert AudioConfig(sample_rate=0).problems() == ["sample_rate: 0 must be at least 1 Hz"]
    assert len(AudioConfig(seconds=float("nan")).problems()) == 1
    with pytest.raises(ConfigError, match="channels: 3 is not one of 1"):
        AudioAdapter(config)


def test_a_resampler_that_is_not_installed_is_said_before_any_audio_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(ConfigError, match="resampler: 'torchaudio' needs the package torchaudio"):
        AudioAdapter(AudioConfig(resampler="torchaudio"))


def test_the_resampler_of_the_config_does_the_work():
    pytest.importorskip("torchaudio", reason="torchaudio is part of the full environment")
    item = record(audio_bytes(tone(1.0, 44_100), 44_100))
    one, other = (
        AudioAdapter(AudioConfig(resampler=name)).load(item, generator("a")) for name in ("soxr", "torchaudio")
    )
    assert 0 < (one - other)[:, 200:-200].abs().max() < 1e-3


def songbloom(path="nowhere", **settings) -> AudioConfig:
    config = {"sample_rate": 48_000, "channels": 2, "autoencoder": SongBloomConfig(path=str(path))}
    return AudioConfig(**{**config, **settings})


def test_tokens_of_an_autoencoder_are_known_without_its_weights():
    adapter = AudioAdapter(songbloom(seconds=10))
    assert (adapter.has_weights, adapter.posterior_noise) == (True, True)
    assert (adapter.grid(), adapter.channels) == ((250, 1, 1), 64)
    assert adapter.prefix_mask(4000).sum() == 2
    assert adapter.kept_prefix(4000).sum() == 2 * 1920
    assert adapter.prefix_mask(480_000).all()
    assert adapter.kept_prefix(480_000).all()
    assert not adapter.kept_prefix(1919).any()


def test_audio_goes_through_an_autoencoder_to_a_file(tmp_path):
    small = pytest.importorskip("tests.autoencoders.small")
    adapter = AudioAdapter(songbloom(small.save("songbloom", tmp_path / "weights"), seconds=0.12))
    media = adapter.load(record(audio_bytes(tone(0.5, 22_050), 22_050)), generator("a"))
    tokens = adapter.encode(media[None])
    assert tokens.shape == (1, 3, 64)
    assert adapter.normalization is None
    decoded = adapter.decode(tokens)
    assert decoded.shape == (1, 2, 5760)
    info = probe_audio(adapter.write(decoded[0], tmp_path / "a"), "a", None)
    assert (info.rate, info.samples) == (48_000, 5760)


def test_problems_of_an_autoencoder_are_named():
    problems = songbloom(sample_rate=44_100, channels=1, hop=64).problems()
    assert problems == [
        "hop: not read by autoencoder.kind 'songbloom'; leave it out",
        "sample_rate: 44100 must be 48000 for autoencoder.kind 'songbloom'",
        "channels: 1 must be 2 for autoencoder.kind 'songbloom'",
    ]
    assert songbloom(seconds=0.5).problems() == [
        "seconds: 0.5 at 48000 Hz: samples: 24000 is not a multiple of 1920; the nearest legal sizes: 23040 or 24960"
    ]
