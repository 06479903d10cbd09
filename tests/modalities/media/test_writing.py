import av
import numpy as np
import pytest
import torch

from modalities.media.audio import probe_audio, read_audio
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from modalities.media.writing import write_grid, write_image, write_video
from tests.modalities.making import gradient, numbered, numbers


def test_a_written_image_is_read_back_exactly(tmp_path):
    pixels = gradient()
    media = torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1
    path = write_image(media, tmp_path / "deep" / "a.0.5")
    assert path == tmp_path / "deep" / "a.0.5.png"
    assert np.array_equal(read_image(path, "x"), pixels)
    assert write_image(media * 3, tmp_path / "b.png") == tmp_path / "b.png"  # clipped
    assert np.array_equal(read_image(tmp_path / "b.png", "x")[0, 0], [0, 0, 0])


def test_a_grid_holds_every_image_and_its_label(tmp_path):
    levels = torch.linspace(-1, 1, 5)
    images = levels[:, None, None, None].expand(5, 3, 16, 16)
    plain = read_image(write_grid(images, tmp_path / "plain", columns=3), "x")
    assert plain.shape == (2 * 132 + 4, 3 * 132 + 4, 3)  # 16 pixels enlarged to 128, gaps of 4
    for i, level in enumerate([0, 64, 128, 191, 255]):
        tile = plain[4 + i // 3 * 132 :, 4 + i % 3 * 132 :][:128, :128]
        assert (tile == level).all()
    labels = ["red", "größe ✓", "a very long label that does not fit under its image", "", "last"]
    labeled = read_image(write_grid(images, tmp_path / "labelled", columns=3, labels=labels), "x")
    assert labeled.shape == (2 * 146 + 4, 3 * 132 + 4, 3)
    assert (labeled[4 + 128 : 4 + 142, 4:132] < 128).any()


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (300, 401)])
def test_a_written_video_plays_back(tmp_path, size):
    video = torch.tensor(numbered(9, *size)).permute(0, 3, 1, 2) / 127.5 - 1
    path = write_video(video, tmp_path / "clip", fps=7.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 7.5
        assert min(stream.height, stream.width) >= 256
        assert stream.height % 2 == stream.width % 2 == 0
        assert stream.codec_context.name == "h264"
    index = index_video(path, "x")
    wanted = index.shown(0.0, 7.5, 20)
    assert numbers(read_frames(path, "x", index, wanted)) == list(range(9))


def test_a_video_is_written_without_h264_too(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    video = torch.tensor(numbered(5, 16, 16)).permute(0, 3, 1, 2) / 127.5 - 1
    path = write_video(video, tmp_path / "clip.mp4", fps=8)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    index = index_video(path, "x")
    assert numbers(read_frames(path, "x", index, np.arange(5))) == list(range(5))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_video_carries_its_audio_at_the_right_time_and_pitch(tmp_path, channels):
    """Silence for half a second, then 440 Hz."""
    rate, time = 4000, np.arange(4000) / 4000
    wave = np.where(time < 0.5, 0, 0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    audio = torch.tensor(np.stack([wave] * channels))
    path = write_video(torch.zeros(8, 3, 16, 16), tmp_path / "a", 8, audio, rate)
    assert len(index_video(path, "a").pts) == 8
    info = probe_audio(path, "a")
    assert info.channels == channels
    heard = read_audio(path, "a", 0, info.samples)[:, 0]
    assert np.abs(heard[: int(0.45 * info.rate)]).max() < 0.02
    part = heard[int(0.55 * info.rate) : int(0.95 * info.rate)]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 2**17))
    assert np.argmax(spectrum) * info.rate / 2**17 == pytest.approx(440, abs=2)
    assert np.sqrt(2 * np.mean(part**2)) == pytest.approx(0.5, abs=0.02)
