import builtins
import importlib
import struct

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from core.errors import ConfigError, DataError
from modalities import files
from modalities.files import (
    index_video,
    probe_audio,
    read_audio,
    read_frames,
    read_image,
    resample,
    write_audio,
    write_grid,
    write_image,
    write_video,
)
from tests.modalities.making import numbered, numbers, picture_bytes, sound_bytes, tone, video_file


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 9, columns * 8, (rows + columns) * 4], axis=-1).astype(np.uint8)


# Pictures


def test_png_and_lossless_webp_are_exact_and_jpeg_is_close(tmp_path):
    pixels = gradient()
    assert np.array_equal(read_image(picture_bytes(pixels), "x"), pixels)
    assert np.array_equal(read_image(picture_bytes(pixels, "WEBP", lossless=True), "x"), pixels)
    jpeg = read_image(picture_bytes(pixels, "JPEG", quality=95), "x").astype(int)
    assert 0 < np.abs(jpeg - pixels).mean() < 3
    path = tmp_path / "wrong_suffix.jpg"  # judged by content
    path.write_bytes(picture_bytes(pixels))
    assert np.array_equal(read_image(path, "x"), pixels)


def test_alpha_is_composited_on_the_background():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (0, 0, 0, 51)  # one fifth opaque
    seen = read_image(picture_bytes(pixels), "x", background=(255, 100, 0))
    assert seen[0, 0].tolist() == [10, 20, 30]
    assert seen[0, 1].tolist() == [204, 80, 0]
    assert seen[1, 1].tolist() == [255, 100, 0]


def test_transparent_palettes_and_grey_with_alpha():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    seen = read_image(picture_bytes(palette, transparency=1), "x", background=(0, 0, 200))
    assert seen.tolist() == [[[255, 0, 0], [0, 0, 200]]]
    grey = Image.new("LA", (1, 1), (90, 0))
    assert read_image(picture_bytes(grey), "x", background=(1, 2, 3)).tolist() == [[[1, 2, 3]]]


def test_sixteen_bit_grey_keeps_its_range():
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert read_image(picture_bytes(levels), "x")[..., 0].tolist() == [[0, 100, 255]]
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert read_image(picture_bytes(bilevel), "x").tolist() == [[[255] * 3, [0] * 3]]


def test_exif_orientation_turns_the_picture_upright():
    pixels = gradient(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    seen = read_image(picture_bytes(pixels, "PNG", exif=exif), "x")
    assert np.array_equal(seen, np.rot90(pixels, k=-1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_name_origin_and_reason(kind):
    data = picture_bytes(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    for cut in (len(data) // 2, 30, 5):
        with pytest.raises(DataError, match=r"folder/a\.png: cannot be decoded as a picture: .+"):
            read_image(data[:cut], "folder/a.png")


def test_what_is_not_a_picture(tmp_path):
    wav = sound_bytes(tone(0.1, 8000), 8000)
    with pytest.raises(DataError, match=r"a.png: cannot be decoded as a picture: not one of PNG, JPEG"):
        read_image(wav, "a.png")
    with pytest.raises(DataError, match=r"a.png: the file is empty \(0 bytes\)"):
        read_image(b"", "a.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be read: No such file"):
        read_image(tmp_path / "a.png", "a.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path, "a.png")
    with pytest.raises(DataError, match="float values"):
        read_image(picture_bytes(Image.new("F", (4, 4)), "TIFF"), "a.tif")
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), got float64"):
        read_image(np.zeros((4, 4, 3)), "array")


# Video


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_decoded_range_holds_the_frames_on_screen(tmp_path, suffix, as_bytes):
    path = video_file(tmp_path / f"a{suffix}", numbered(40), fps=24, gop=12)
    media = path.read_bytes() if as_bytes else path
    index = index_video(media, "x")
    assert len(index.pts) == 40
    assert index.seconds == pytest.approx(40 / 24, abs=2e-3)
    # At its own rate every frame comes once, whatever the rounding of the container's time stamps.
    assert index.shown(0.0, 24, 40).tolist() == list(range(40))
    assert index.count(24) == 40
    # 24 -> 10 frames per second from 0.5 s on: frame floor(24 t).
    wanted = index.shown(0.5, 10, 8)
    assert wanted.tolist() == [12, 14, 16, 19, 21, 24, 26, 28]
    assert numbers(read_frames(media, "x", index, wanted)) == wanted.tolist()
    # Faster than the file: frames are shown again.
    assert index.shown(0.0, 48, 4).tolist() == [0, 0, 1, 1]
    # The video ends.
    assert index.shown(1.5, 24, 9).tolist() == [36, 37, 38, 39]


def test_frames_without_a_seekable_key_frame_near(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(30), gop=250)
    index = index_video(path, "x")
    assert numbers(read_frames(path, "x", index, np.array([29, 29, 7]))) == [29, 29, 7]


def test_an_array_is_a_video_too():
    index = index_video(numbered(10), "x", rate=10.0)
    assert index.seconds == 1.0
    wanted = index.shown(0.2, 5, 4)
    assert numbers(read_frames(numbered(10), "x", index, wanted)) == [2, 4, 6, 8]
    with pytest.raises(DataError, match="without a rate"):
        index_video(numbered(3), "x")


def test_a_video_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    data = video_file(tmp_path / "a.mp4", noise, movflags="faststart").read_bytes()
    with pytest.raises(DataError, match=r"a.mp4: cut short: \d+ of 24 frames"):
        index_video(data[: len(data) * 2 // 3], "a.mp4")
    index_at_end = video_file(tmp_path / "b.mp4", noise).read_bytes()
    with pytest.raises(DataError, match=r"b\.mp4: cannot be decoded as a video: Invalid data"):
        index_video(index_at_end[: len(index_at_end) // 2], "b.mp4")


def test_damage_inside_a_video_is_refused_when_the_clip_needs_it(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(24), gop=6)
    with av.open(str(path)) as container:
        place = {packet.pts: packet.pos for packet in container.demux(video=0)}
    index = index_video(path, "a.mp4")
    data = bytearray(path.read_bytes())
    start = place[int(index.pts[12])]
    data[start : start + 4] = b"\xff" * 4  # the length of the picture's first unit
    assert numbers(read_frames(bytes(data), "a.mp4", index, np.arange(6))) == list(range(6))
    assert numbers(read_frames(bytes(data), "a.mp4", index, np.arange(18, 24))) == list(range(18, 24))
    with pytest.raises(DataError, match=r"a\.mp4: .*(decoded)"):
        read_frames(bytes(data), "a.mp4", index, np.arange(24))


def test_what_is_not_a_video(tmp_path):
    for media, reason in (
        (b"", "empty"),
        (b"once upon a time\n" * 100, "cannot be decoded"),
        (bytes(4096), "cannot be decoded"),
        (sound_bytes(tone(0.2, 8000), 8000), "no video stream"),
        (picture_bytes(gradient()), "is not a video but png"),
        (picture_bytes(gradient(), "JPEG"), "is not a video but jpeg"),
        (tmp_path / "a.mp4", "No such file"),
    ):
        with pytest.raises(DataError, match=rf"a\.mp4: .*{reason}"):
            index_video(media, "a.mp4")


# Sound


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
    ],
)
@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_files_are_read_at_their_resolution(kind, subtype, error, rate):
    stereo = np.stack([tone(0.3, rate, 440), tone(0.3, rate, 660)], axis=1)
    data = sound_bytes(stereo, rate, kind, subtype)
    info = probe_audio(data, "x")
    assert (info.samples, info.rate, info.channels) == (len(stereo), rate, 2)
    seen = read_audio(data, "x", 100, 2000)
    assert seen.dtype == np.float32
    assert np.abs(seen - stereo[100:2100]).max() <= error


def test_resampling_keeps_a_tone_in_place():
    seen = resample(tone(0.5, 44100)[:, None], 44100, 8000)[:, 0]
    assert abs(len(seen) - 4000) <= 1
    np.testing.assert_allclose(seen[200:3800], tone(0.5, 8000)[200:3800], atol=1e-3)


def test_damaged_sounds_are_refused(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    wav, flac = sound_bytes(noise, 8000), sound_bytes(noise, 8000, "FLAC")
    with pytest.raises(DataError, match=r"a\.wav: cut short: 8000 of 16044 bytes"):
        probe_audio(wav[:8000], "a.wav")
    (tmp_path / "a.wav").write_bytes(wav[:8000])
    with pytest.raises(DataError, match=r"a\.wav: cut short"):
        probe_audio(tmp_path / "a.wav", "a.wav")
    streamed = wav[:4] + struct.pack("<I", 0xFFFFFFFF) + wav[8:]
    assert probe_audio(streamed, "a.wav").samples == 8000
    with pytest.raises(DataError, match=r"a.flac: .*(lost sync|cut short)"):
        read_audio(flac[: len(flac) // 2], "a.flac", 0, 8000)
    for media, reason in (
        (b"", "empty"),
        (b"hello" * 100, "Format not recognised"),
        (picture_bytes(gradient()), "Format not recognised"),
        (sound_bytes(noise[:0], 8000), "no samples"),
        (tmp_path / "none.wav", "No such file"),
    ):
        with pytest.raises(DataError, match=rf"a\.wav: .*{reason}"):
            probe_audio(media, "a.wav")
    with pytest.raises(DataError, match="without a whole rate"):
        probe_audio(noise[:, None], "array")


def test_a_missing_package_is_one_line(monkeypatch):
    real = importlib.import_module

    def import_module(name: str):
        if name in ("av", "soundfile", "soxr"):
            raise builtins.ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(files.importlib, "import_module", import_module)
    for call in (
        lambda: index_video(b"x", "a.mp4"),
        lambda: probe_audio(b"x", "a.wav"),
        lambda: resample(np.zeros((8, 1)), 8, 4),
    ):
        with pytest.raises(ConfigError, match=r"pip install -e '\.\[media\]'") as caught:
            call()
        assert "\n" not in str(caught.value)


# Writing


def test_a_written_picture_is_read_back_exactly(tmp_path):
    pixels = gradient()
    media = torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1
    path = write_image(media, tmp_path / "deep" / "a.0.5")
    assert path == tmp_path / "deep" / "a.0.5.png"
    assert np.array_equal(read_image(path, "x"), pixels)
    assert write_image(media * 3, tmp_path / "b.png") == tmp_path / "b.png"  # clipped
    assert np.array_equal(read_image(tmp_path / "b.png", "x")[0, 0], [0, 0, 0])


def test_a_grid_holds_every_picture_and_its_label(tmp_path):
    levels = torch.linspace(-1, 1, 5)
    images = levels[:, None, None, None].expand(5, 3, 16, 16)
    plain = read_image(write_grid(images, tmp_path / "plain", columns=3), "x")
    assert plain.shape == (2 * 132 + 4, 3 * 132 + 4, 3)  # 16 pixels enlarged to 128, gaps of 4
    for i, level in enumerate([0, 64, 128, 191, 255]):
        tile = plain[4 + i // 3 * 132 :, 4 + i % 3 * 132 :][:128, :128]
        assert (tile == level).all()
    labels = ["red", "größe ✓", "a very long label that does not fit under its picture", "", "last"]
    labelled = read_image(write_grid(images, tmp_path / "labelled", columns=3, labels=labels), "x")
    assert labelled.shape == (2 * 146 + 4, 3 * 132 + 4, 3)
    assert (labelled[4 + 128 : 4 + 142, 4:132] < 128).any()


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (300, 401)])
def test_a_written_clip_plays_back(tmp_path, size):
    clip = torch.tensor(numbered(9, *size)).permute(0, 3, 1, 2) / 127.5 - 1
    path = write_video(clip, tmp_path / "clip", fps=7.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 7.5
        assert min(stream.height, stream.width) >= 256
        assert stream.height % 2 == stream.width % 2 == 0
        assert stream.codec_context.name == "h264"
    index = index_video(path, "x")
    wanted = index.shown(0.0, 7.5, 20)
    assert numbers(read_frames(path, "x", index, wanted)) == list(range(9))


def test_a_clip_is_written_without_h264_too(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    clip = torch.tensor(numbered(5, 16, 16)).permute(0, 3, 1, 2) / 127.5 - 1
    path = write_video(clip, tmp_path / "clip.mp4", fps=8)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    index = index_video(path, "x")
    assert numbers(read_frames(path, "x", index, np.arange(5))) == list(range(5))


def test_a_written_sound_is_sixteen_bit(tmp_path):
    stereo = torch.tensor(np.stack([tone(0.1, 4000), 3 * tone(0.1, 4000)]))
    path = write_audio(stereo, tmp_path / "sound", 4000)
    assert soundfile.info(path).subtype == "PCM_16"
    assert probe_audio(path, "x").rate == 4000
    seen = read_audio(path, "x", 0, 400)
    np.testing.assert_allclose(seen.T, stereo.clamp(-1, 1).numpy(), atol=2**-15)
