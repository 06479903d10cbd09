"""Parts of one record are cut at the same time: from arrays, and from files with audio in every kind of source."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from core.errors import DataError
from core.keys import generator
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.training.mixing import StreamMix
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import Media, Record, Windows
from modalities.conditioning.conditions import ConditionConfig, Conditions
from modalities.data.loader import StepDataset, load_media, load_parts
from modalities.data.sources.build import build_source
from modalities.data.sources.folder import FolderConfig
from modalities.data.together import STARTS, common_starts
from modalities.media.opening import WindowError
from modalities.media.writing import to_bytes, write_video
from modalities.streams import Stream, make_parts
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.synthetic.audiovisual_check import agreement, read_audio, read_video
from modalities.video import VideoAdapter, VideoConfig
from tests.modalities.data.containers import KINDS, stored
from tests.modalities.making import numbered, numbers, tone

FRAMES, FPS, RATE, LONG = 9, 8, 4000, 18  # the files are twice as long as a window
SOURCE = AudiovisualSource(frames=LONG, count=24)


def adapters(short_video: str = "refuse", short_audio: str = "pad", **video) -> dict:
    return {
        "video": VideoAdapter(VideoConfig([16], FRAMES, FPS, patch_frames=2, short=short_video, **video)),
        "audio": AudioAdapter(AudioConfig(RATE, FRAMES / FPS, hop=125, short=short_audio)),
    }


PARTS = make_parts(adapters())


def as_video(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """MP4s of the synthetic source, with their captions beside them."""
    folder = tmp_path_factory.mktemp("files")
    found = []
    for index in range(len(SOURCE)):
        caption, _, video, audio = SOURCE.draw(index)
        found.append(write_video(as_video(video), folder / f"{index:02d}", FPS, torch.tensor(audio.T), RATE))
        found[-1].with_suffix(".txt").write_text(caption)
    return found


def dataset(source, parts=PARTS) -> StepDataset:
    stream = Stream(source, parts, TimestepConfig(), 0.25)
    return StepDataset(
        0, StreamMix(0, {"av": 1.0}, {"av": 8}), {"av": stream}, NoisingConfig(), Conditions(ConditionConfig(), [])
    )


def heights(media: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) of a loaded video, and of its audio."""
    return read_video(to_bytes(media[0]))[0], read_audio(media[1].numpy().T, RATE, FRAMES)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_audio_belongs_to_the_loaded_frames(kind, files, tmp_path):
    source = build_source(stored(kind, files, tmp_path / kind), ("video", "audio"), Path())
    loaded = [load_parts("av", PARTS, source.read(index), 0, 0) for index in range(len(files))]
    seen, heard = (np.stack(rows) for rows in zip(*map(heights, loaded), strict=True))
    found = agreement(seen, heard)
    assert found["right"] == 1
    assert found["chance"] < 0.5
    batch = dataset(source)[0]
    assert [part.name for part in batch.parts] == ["video", "audio"]
    assert [tuple(part.latents.shape) for part in batch.parts] == [(8, 80, 96), (8, 37, 125)]
    assert batch.counts == {"video": 8 * 80, "audio": 8 * 37}
    assert batch.rejected == ()


def test_the_window_is_a_function_of_the_sample_and_the_epoch(files):
    source = build_source(stored("folder", files, Path()), ("video", "audio"), Path())
    record = source.read(0)
    once, again, later = (load_parts("av", PARTS, record, epoch, 0) for epoch in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))
    assert not torch.equal(once[1], later[1])
    backwards = load_parts("av", dict(reversed(PARTS.items())), record, 0, 0)
    assert all(torch.equal(*pair) for pair in zip(once, reversed(backwards), strict=True))


def late_audio(path: Path, late: float, audio: np.ndarray, start: float = 0.0) -> Path:
    """A numbered video of LONG frames whose audio track, the end of `audio` (S,) at 48 kHz, begins `late` seconds later
    than its image, on a clock that begins at `start`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "5"})
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.thread_count = 1
        track = container.add_stream("aac", rate=48_000, layout="mono")
        track.bit_rate = 192_000
        video.codec_context.time_base = Fraction(1, 48_000)
        packets = []
        for i, pixels in enumerate(numbered(LONG, 64, 64)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round((start + i / FPS) * 48_000), Fraction(1, 48_000)
            packets += video.encode(frame)
        first = round(late * 48_000)
        frame = av.AudioFrame.from_ndarray(audio[None, first:], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, round(start * 48_000) + first
        frame.time_base = Fraction(1, 48_000)
        packets += [*video.encode(), *track.encode(frame), *track.encode()]
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


def chirp() -> np.ndarray:
    """(S,) at 48 kHz, of LONG frames: its pitch rises, so that every place audio clips different."""
    seconds = np.arange(LONG * 48_000 // FPS) / 48_000
    return (0.5 * np.sin(2 * np.pi * (200 * seconds + 150 * seconds**2))).astype(np.float32)


def shift_of(audio: torch.Tensor, start: float, wave: np.ndarray) -> float:
    """Seconds by which a loaded audio lies later than `wave` (S,) at 48 kHz from `start` on."""
    here = audio[0].numpy()
    inside = np.flatnonzero(np.abs(here) > 0.01)
    low, high = inside[0] + 200, min(inside[-1], len(here)) - 200
    shifts = np.arange(-150, 151)
    place = round(start * RATE)
    at = [wave[:: 48_000 // RATE][place + low - s : place + high - s] for s in shifts]
    return float(shifts[np.argmax([np.dot(here[low:high], other) for other in at])]) / RATE


@pytest.mark.parametrize(("suffix", "tolerance"), [("mp4", 0.001), ("mkv", 0.002), ("ts", 0.025)])
@pytest.mark.parametrize("start", [0.0, 0.75])
def test_image_and_audio_stay_together_where_the_audio_begins_later(suffix, tolerance, start, tmp_path):
    """In MPEG-TS nothing states how many samples the encoder put before the audio: 1024, which is 0.021 s."""
    wave, late = chirp(), 0.4
    record = Record("a", "a", late_audio(tmp_path / f"a.{suffix}", late, wave, start))
    video, audio = (adapter.windows(record) for adapter in adapters().values())
    assert audio.first - video.first == pytest.approx(late, abs=0.03)
    low, high = common_starts({"video": video, "audio": audio}, "a")
    assert low == pytest.approx(audio.first)
    assert high == pytest.approx(video.first + 1.125, abs=0.002)
    for offset in (0.5, 0.813, 1.1):
        frames, waveform = (each.load(video.first + offset, generator("a")) for each in (video, audio))
        shown = numbers((to_bytes(frames)).astype(float))
        assert shown == [int(offset * FPS) + k for k in range(FRAMES)]
        assert abs(shift_of(waveform, offset, wave)) <= tolerance
    early = audio.load(video.first + 0.125, generator("a"))  # silent where the audio has not begun
    assert early[0, : round((0.275 - 0.03) * RATE)].abs().max() < 0.02
    assert early[0, round(0.3 * RATE) :].abs().max() > 0.3
    assert abs(shift_of(early, 0.125, wave)) <= tolerance


def test_a_window_of_audio_begins_at_its_sample_at_any_rate():
    """Not only where a sample of the file and one of the adapter coincide: 11025 and 4000 Hz do so every 40 ms."""
    adapter = AudioAdapter(AudioConfig(RATE, 0.5, hop=125))
    for rate in (11_025, 44_100, 48_000, RATE):
        seconds = np.arange(2 * rate) / rate
        record = Record("a", "a", (0.5 * np.sin(2 * np.pi * 330 * seconds))[:, None].astype(np.float32), rate=rate)
        for start in (0.2, 0.3333, 1.4999, -0.1, 1.7):
            audio = adapter.windows(record).load(start, generator("a"))[0].numpy()
            wanted = round(start * RATE) + np.arange(2000)
            true = np.where((wanted >= 0) & (wanted < 2 * RATE), 0.5 * np.sin(2 * np.pi * 330 * wanted / RATE), 0)
            inside = (wanted > 200) & (wanted < 2 * RATE - 200)
            assert np.abs(audio - true)[inside].max() < 0.005
            assert (audio[wanted < 0] == 0).all()
            assert (audio[wanted >= 2 * RATE] == 0).all()


def pair(video_frames: int = LONG, audio: np.ndarray | None = None) -> Record:
    """A record of arrays: a numbered video at FPS, and an audio clip (S,) at RATE."""
    wave = tone(video_frames / FPS, RATE) if audio is None else audio
    video = numbered(video_frames, 16, 16)
    return Record(
        "a", "a", video, rate=FPS, parts={"video": Media(video, rate=FPS), "audio": Media(wave[:, None], rate=RATE)}
    )


def test_the_places_where_all_parts_have_a_window():
    def of(first, last, fills):
        return Windows(first, last, fills, lambda *_: torch.zeros(1))

    def found(**windows):
        return common_starts(windows, "a")

    assert found(v=of(0, 5, False), a=of(1, 3, True)) == (1, 3)
    assert found(v=of(0, 0, False), a=of(0.3, 0.0, True)) == (0, 0)  # the audio begins later, and the video has no room
    assert found(v=of(0, 5, False), a=of(4, 3, True)) == (4, 4)  # short audio: where it begins
    assert found(v=of(0, 5, False), a=of(7, 6, True)) == (5, 5)
    assert found(v=of(0, 1, True), a=of(4, 9, True)) == (4, 4)  # the longest decides
    assert found(v=of(0, -1, True), a=of(0.2, -0.5, True)) == (0, 0)
    with pytest.raises(DataError, match="a: v and a have no window in common"):
        found(v=of(0, 1, False), a=of(2, 3, False))


def test_audio_shorter_than_a_window_follows_its_setting():
    record = pair(FRAMES, tone(0.5, RATE))
    _, audio = load_parts("av", PARTS, record, 0, 0)
    assert audio[0, :2000].abs().max() > 0.4
    assert (audio[0, 2000:] == 0).all()
    with pytest.raises(DataError, match=r"a: 0\.500 s, a window needs 1\.125 s"):
        load_parts("av", make_parts(adapters(short_audio="refuse")), record, 0, 0)
    # One that fills a window is cut where it is there, however long the video is.
    record = pair(10 * FRAMES, tone(1.2, RATE))
    for epoch in range(10):
        frames, audio = load_parts("av", make_parts(adapters(short_audio="refuse")), record, epoch, 0)
        assert audio[0, -100:].abs().max() > 0.4
        assert numbers(to_bytes(frames).astype(float))[0] == 0
    with pytest.raises(DataError, match="4 frames at 8 fps"):
        load_parts("av", PARTS, pair(4), 0, 0)
    frames, _ = load_parts("av", make_parts(adapters(short_video="repeat_last")), pair(4), 0, 0)
    assert numbers(to_bytes(frames).astype(float)) == [0, 1, 2, 3, 3, 3, 3, 3, 3]


def test_another_window_is_drawn_where_the_audio_is_silent_or_the_image_damaged(monkeypatch):
    wave = np.concatenate([np.zeros(2 * RATE, np.float32), tone(2, RATE)])
    record = pair(4 * FPS, wave)
    for epoch in range(20):
        frames, audio = load_parts("av", PARTS, record, epoch, 0)
        assert audio.any()
        assert numbers(to_bytes(frames).astype(float))[-1] >= 2 * FPS - 1
    with pytest.raises(DataError, match=rf"a: silent: every sample is 0 \(windows tried: {STARTS}\)"):
        load_parts("av", PARTS, pair(4 * FPS, np.zeros(4 * RATE, np.float32)), 0, 0)

    tried = []

    def damaged(self, record, index, wanted, draw):
        tried.append(tuple(wanted))
        if len(tried) < 3:
            raise WindowError("a: cannot be decoded")
        return torch.zeros(FRAMES, 3, 16, 16)

    monkeypatch.setattr(VideoAdapter, "_read", damaged)
    load_parts("av", PARTS, pair(), 0, 0)
    assert len(tried) == 3
    assert len(set(tried)) > 1


def test_whatever_goes_wrong_with_a_part_costs_that_record(monkeypatch):
    monkeypatch.setattr("modalities.video.index_video", lambda *_: 1 / 0)
    with pytest.raises(DataError, match="a: cannot be decoded: ZeroDivisionError"):
        load_parts("av", PARTS, pair(), 0, 0)


def test_a_file_without_an_audio_track_is_a_bad_record_with_that_reason(files, tmp_path):
    for path in files[1:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).with_suffix(".txt").write_text("a red circle")
    write_video(as_video(numbered(LONG, 16, 16)), tmp_path / "silent", FPS)
    (tmp_path / "silent.txt").write_text("a red circle")
    source = build_source(FolderConfig(path=str(tmp_path)), ("video", "audio"), Path())
    batch = dataset(source)[0]
    assert {entry.key for entry in batch.rejected} == {"silent.mp4"}
    assert "no audio track" in batch.rejected[0].reason
    assert "silent.mp4" not in batch.keys


def test_one_part_alone_keeps_its_bits(files):
    """Of a stream with one part, and where one part of several is measured."""
    source = build_source(stored("folder", files, Path()), ("video", "audio"), Path())
    for name, part in PARTS.items():
        (media,) = load_parts(name, {name: part}, source.read(2), 3, 7)
        record = source.read(2)
        assert torch.equal(media, load_media(part.adapter, record, generator(7, name, 3, record.key, "media")))


def test_what_is_changed_at_random_differs_between_epochs():
    parts = make_parts(adapters(flip=True))
    record = AudiovisualSource(count=1).read(0)
    loaded = [load_parts("av", parts, record, epoch, 0) for epoch in range(12)]
    assert len({media[0].numpy().tobytes() for media in loaded}) == 2
    assert len({media[1].numpy().tobytes() for media in loaded}) == 1
