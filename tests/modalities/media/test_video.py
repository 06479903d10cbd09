import struct

import av
import numpy as np
import pytest

from core.errors import DataError
from modalities.media import video
from modalities.media.video import index_video, read_frames
from tests.modalities.making import audio_bytes, gradient, image_bytes, numbered, numbers, tone, video_file
from tests.modalities.media.boxes import TURNS, trimmed, turned


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
    for name, options in (("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {})):
        data = video_file(tmp_path / name, noise, **options).read_bytes()
        with pytest.raises(DataError, match=rf"{name}: cut short: {len(data) * 2 // 3} of {len(data)} bytes"):
            index_video(data[: len(data) * 2 // 3], name)
    index_at_end = video_file(tmp_path / "b.mp4", noise).read_bytes()
    with pytest.raises(DataError, match=r"b\.mp4: cannot be decoded as a video: Invalid data"):
        index_video(index_at_end[: len(index_at_end) // 2], "b.mp4")


def test_frames_come_at_their_own_times(tmp_path):
    # A phone's frames, 20 to 70 ms apart.
    gaps = np.random.default_rng(0).integers(20, 70, 40)
    stamps = [int(time) for time in 5000 + np.cumsum(gaps)]
    for name in ("a.mp4", "a.mkv"):
        path = video_file(tmp_path / name, numbered(40), milliseconds=stamps)
        index = index_video(path, "x")
        np.testing.assert_allclose(index.times, (np.array(stamps) - stamps[0]) / 1000, atol=1.1e-3)
        wanted = index.shown(0.2, 24, 20)
        clock = 0.2 + np.arange(20) / 24
        assert wanted.tolist() == [int((index.times <= time + 1e-3).sum()) - 1 for time in clock]
        assert numbers(read_frames(path, "x", index, wanted)) == wanted.tolist()


def test_the_last_frame_is_not_shown_for_ever(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(24), last=24 * 3600)
    assert index_video(path, "x").seconds == pytest.approx(1.0)
    one = video_file(tmp_path / "b.mp4", numbered(1))
    assert index_video(one, "x").seconds == pytest.approx(1 / 24)


def test_counts_and_durations_of_a_header_are_not_believed(tmp_path):
    path = video_file(tmp_path / "a.avi", numbered(24), codec="mpeg4")
    for lie in (0, 7, 10_000):
        data = bytearray(path.read_bytes())
        struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, lie)
        struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, lie)
        index = index_video(bytes(data), "x")
        assert (len(index.pts), index.seconds) == (24, pytest.approx(1.0))
        assert numbers(read_frames(bytes(data), "x", index, np.arange(20, 24))) == [20, 21, 22, 23]
    path = video_file(tmp_path / "b.mp4", numbered(24))
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        data = bytearray(path.read_bytes())
        struct.pack_into(">I", data, data.index(box) + place, 2**31)
        assert index_video(bytes(data), "x").seconds == pytest.approx(1.0)


@pytest.mark.parametrize(("units", "first"), [(512 * 12, 12), (512 * 20, 20)])
def test_frames_that_an_edit_list_hides_do_not_count(tmp_path, units, first):
    data = trimmed(video_file(tmp_path / "a.mp4", numbered(40)).read_bytes(), units)
    index = index_video(data, "x")
    assert len(index.pts) == 40 - first
    assert numbers(read_frames(data, "x", index, np.arange(4))) == [first, first + 1, first + 2, first + 3]


@pytest.mark.parametrize("degrees", TURNS)
def test_phone_videos_are_turned_upright(tmp_path, degrees):
    pixels = np.zeros((6, 48, 64, 3), np.uint8)
    pixels[:, :20, :30] = 250  # a bright corner: top left as stored
    data = turned(video_file(tmp_path / "a.mp4", pixels).read_bytes(), *TURNS[degrees])
    index = index_video(data, "x")
    (seen,) = read_frames(data, "x", index, np.array([3]))
    expected = np.rot90(pixels[3], degrees // 90)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() < 30  # h264 blurs the corner's edges


def test_the_direction_of_a_turn_is_that_of_the_standard(tmp_path):
    """ISO/IEC 14496-12: (x, y) is shown at (a x + c y, b x + d y); y points down."""
    pixels = np.zeros((2, 48, 64, 3), np.uint8)
    pixels[:, :20, :30] = 250
    for a, b, c, d in ((0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1)):
        data = turned(video_file(tmp_path / "a.mp4", pixels).read_bytes(), a, b, c, d)
        (seen,) = read_frames(data, "x", index_video(data, "x"), np.array([0]))
        shown = np.array([a * 10 + c * 10, b * 10 + d * 10])  # of the point (10, 10)
        size = np.abs([a * 64 + c * 48, b * 64 + d * 48])
        column, row = shown % size
        assert seen[row, column].min() > 220
        assert seen[-1 - row, -1 - column].max() < 30


def test_mirrored_and_slanted_images_are_refused(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(2))
    for matrix in ((-1, 0, 0, 1), (0.7071, 0.7071, -0.7071, 0.7071)):
        data = turned(path.read_bytes(), *matrix)
        with pytest.raises(DataError, match="x: the container asks to mirror the image or to turn it by"):
            read_frames(data, "x", index_video(data, "x"), np.array([0]))


def test_pixels_that_are_not_square(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(3), options={"x264-params": "sar=4/3"})
    assert index_video(path, "x").aspect == pytest.approx(4 / 3)
    assert index_video(turned(path.read_bytes(), *TURNS[90]), "x").aspect == pytest.approx(3 / 4)
    assert index_video(turned(path.read_bytes(), *TURNS[180]), "x").aspect == pytest.approx(4 / 3)
    path = video_file(tmp_path / "b.mp4", numbered(3), options={"x264-params": "sar=9/1"})
    with pytest.raises(DataError, match=r"pixels 9 times as wide as high; allowed are 0\.25 to 4"):
        index_video(path, "x")


def test_frames_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "LARGEST", 48 * 64 - 1)
    with pytest.raises(DataError, match=r"x: frames of 64 x 48 pixels; at most 3071 pixels are decoded"):
        index_video(video_file(tmp_path / "a.mp4", numbered(2)), "x")


def test_text_in_a_header_may_be_broken(tmp_path):
    data = video_file(tmp_path / "a.mp4", numbered(4)).read_bytes()
    assert b"VideoHandler" in data
    assert len(index_video(data.replace(b"VideoHandler", b"Vid\xf2oHandler"), "x").pts) == 4


def test_transparency_is_ignored(tmp_path):
    red = np.zeros((16, 16, 4), np.uint8)
    red[..., 0], red[..., 3] = 255, 10
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=8)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "argb"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgba")))
        container.mux(stream.encode())
    index = index_video(tmp_path / "a.mov", "x")
    assert read_frames(tmp_path / "a.mov", "x", index, np.array([2]))[0][3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("with_video", [True, False])
def test_the_cover_of_a_song_is_no_video(tmp_path, with_video):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        if with_video:
            video_stream = container.add_stream("libx264", rate=24)
            video_stream.height, video_stream.width, video_stream.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 240, 320, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1, 240, 320)[0], format="rgb24")))
        container.mux(cover.encode())
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44100
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
        if with_video:
            for frame in numbered(6):
                container.mux(video_stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video_stream.encode())
    if with_video:
        index = index_video(tmp_path / "a.mp4", "x")
        assert numbers(read_frames(tmp_path / "a.mp4", "x", index, np.arange(6))) == list(range(6))
    else:
        with pytest.raises(DataError, match=r"a\.mp4: has no video stream"):
            index_video(tmp_path / "a.mp4", "a.mp4")


def test_a_file_with_audio_only_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=44100)
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        samples.sample_rate = 44100
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    with pytest.raises(DataError, match=r"a\.mp4: has no video stream"):
        index_video(tmp_path / "a.mp4", "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_flipped_bytes_never_raise_anything_else(tmp_path, name):
    """Each either refused as DataError, or decoded to frames; h264 and its containers cannot notice all of them."""
    good = video_file(tmp_path / name, numbered(12), codec="mpeg4" if name == "a.avi" else "libx264").read_bytes()
    refused = 0
    for seed in range(25):
        rng, data = np.random.default_rng(seed), bytearray(good)
        for place in rng.integers(0, len(data), 1 + seed % 4):
            data[place] ^= int(rng.integers(1, 256))
        try:
            index = index_video(bytes(data), "x")
            frames = read_frames(bytes(data), "x", index, np.arange(min(6, len(index.pts))))
            assert all(frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames)
        except DataError:
            refused += 1
    assert refused


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_most_single_flipped_bytes_are_noticed(tmp_path, codec):
    blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    moving = np.stack([np.roll(blocks, 3 * i, 1) for i in range(12)])
    good, refused = video_file(tmp_path / "a.mp4", moving, codec=codec).read_bytes(), 0
    for seed in range(20):
        rng, data = np.random.default_rng(seed), bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        try:
            index = index_video(bytes(data), "x")
            read_frames(bytes(data), "x", index, np.arange(len(index.pts)))
        except DataError:
            refused += 1
    assert refused >= 10


def test_damage_inside_a_video_is_refused_when_the_video_needs_it(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(24), gop=6)
    with av.open(str(path)) as container:
        place = {packet.pts: packet.pos for packet in container.demux(video=0)}
    index = index_video(path, "a.mp4")
    data = bytearray(path.read_bytes())
    start = place[int(index.pts[12])]
    data[start : start + 4] = b"\xff" * 4  # the length of the image's first unit
    assert numbers(read_frames(bytes(data), "a.mp4", index, np.arange(6))) == list(range(6))
    assert numbers(read_frames(bytes(data), "a.mp4", index, np.arange(18, 24))) == list(range(18, 24))
    with pytest.raises(DataError, match=r"a\.mp4: .*(decoded)"):
        read_frames(bytes(data), "a.mp4", index, np.arange(24))


def test_what_is_not_a_video(tmp_path):
    for media, reason in (
        (b"", "empty"),
        (b"once upon a time\n" * 100, "cannot be decoded"),
        (bytes(4096), "cannot be decoded"),
        (audio_bytes(tone(0.2, 8000), 8000), "no video stream"),
        (image_bytes(gradient()), "is not a video but png"),
        (image_bytes(gradient(), "JPEG"), "is not a video but jpeg"),
        (tmp_path / "a.mp4", "No such file"),
    ):
        with pytest.raises(DataError, match=rf"a\.mp4: .*{reason}"):
            index_video(media, "a.mp4")
