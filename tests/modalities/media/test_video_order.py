"""Frames come in the order and at the times in which they are shown, whatever the file says of them."""

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.media.video import index_video, read_frames
from modalities.media.video_packets import read_packets
from tests.modalities.making import video_file
from tests.modalities.media.video_files import (
    FILES,
    avi_of,
    chunks_of,
    coded,
    codes,
    make,
    transport_stream,
    uneven,
)

WINDOWS = [range(40), [0], [39], range(13, 20), [11], [12], [25, 24, 25], range(30, 40)]


def windows(count: int) -> list[list[int]]:
    return [[number for number in window if number < count] for window in WINDOWS]


@pytest.mark.parametrize("kind", FILES)
def test_every_window_shows_its_own_numbers(tmp_path, kind):
    path = make(kind, tmp_path)
    for media in (path, path.read_bytes()):
        index = index_video(media, "x")
        first = 40 - len(index.pts)  # of frames before the clock's zero, which MP4 does not show
        assert first == (0 if kind != "h264 in MP4, from -0.3 s on" else sum(time < 0 for time in uneven(40, -300)))
        for window in filter(None, windows(len(index.pts))):
            seen = codes(read_frames(media, "x", index, np.array(window)))
            assert seen == [number + first for number in window]


@pytest.mark.parametrize("kind", [kind for kind in FILES if "uneven" not in kind and "from" not in kind])
def test_frames_without_display_times_come_at_the_rate_of_the_file(tmp_path, kind):
    index = index_video(make(kind, tmp_path), "x")
    rate = FILES[kind][1].get("fps", 24)
    np.testing.assert_allclose(index.times, np.arange(40) / rate, atol=1.5e-3)
    assert index.seconds == pytest.approx(40 / rate, abs=2e-3)


@pytest.mark.parametrize("rate", [25, 30, 50])
@pytest.mark.parametrize(("name", "codec"), [("a.h264", "libx264"), ("a.m2v", "mpeg2video"), ("a.avi", "libx264")])
def test_the_rate_of_a_raw_stream_is_its_own(tmp_path, name, codec, rate):
    path = video_file(tmp_path / name, coded(40), fps=rate, codec=codec)
    assert index_video(path, "x").seconds == pytest.approx(40 / rate)


def test_a_clock_that_is_set_anew_in_a_broadcast(tmp_path):
    early, late = (transport_stream(tmp_path / "a.ts", start, 20, first) for start, first in ((0, 0), (100, 20)))
    again = transport_stream(tmp_path / "b.ts", 0, 20, 20)
    before = transport_stream(tmp_path / "b.ts", 100, 20, 0)
    for data in (early + again, early + late, before + again):
        index = index_video(data, "x")
        assert index.counted
        assert index.seconds == pytest.approx(40 / 25)
        assert codes(read_frames(data, "x", index, np.arange(40))) == list(range(40))
        assert codes(read_frames(data, "x", index, np.array([22, 38]))) == [22, 38]
    mpg = video_file(tmp_path / "a.mpg", coded(20), fps=25, codec="mpeg2video", options={"bf": "2"}).read_bytes()
    index = index_video(mpg + mpg, "x")
    assert codes(read_frames(mpg + mpg, "x", index, np.arange(40))) == [*range(20), *range(20)]


def test_a_clock_that_overflows(tmp_path):
    data = transport_stream(tmp_path / "a.ts", (2**33 - 126_000) / 90_000 - 0.6, 40)
    index = index_video(data, "x")
    assert index.seconds == pytest.approx(40 / 25)
    assert codes(read_frames(data, "x", index, np.arange(40))) == list(range(40))


@pytest.mark.parametrize("open_groups", [False, True])
def test_a_recording_that_begins_between_key_frames(tmp_path, open_groups):
    data = transport_stream(tmp_path / "a.ts", 0, 60, open_groups=open_groups)
    for cut in (len(data) // 5 // 188 * 188, len(data) // 5 // 188 * 188 + 50):
        index = index_video(data[cut:], "x")
        assert len(index.pts) == 48  # from the second key frame on
        assert codes(read_frames(data[cut:], "x", index, np.arange(48))) == list(range(12, 60))
        assert codes(read_frames(data[cut:], "x", index, np.array([30]))) == [42]


def test_two_frames_in_one_packet(tmp_path):
    """DivX: a B-frame lies in the chunk of the frame that it needs, and an empty image stands in its place."""
    data = video_file(tmp_path / "a.avi", coded(40), codec="mpeg4", options={"bf": "1"}).read_bytes()
    chunks, packed = chunks_of(data), []
    kinds = [chunk[chunk.index(b"\x00\x00\x01\xb6") + 4] >> 6 for chunk in chunks]
    assert 2 in kinds
    for i, chunk in enumerate(chunks):
        if kinds[i] == 2:
            packed.append(b"\x00\x00\x01\xb6\x51\x80\x7f")
        else:
            packed.append(chunk + (chunks[i + 1] if kinds[i + 1 : i + 2] == [2] else b""))
    user = data[data.index(b"Lavc") :].partition(b"\x00\x00\x01")[0]
    divx = avi_of(data, packed).replace(user, b"DivX503b1393p".ljust(len(user), b" "))
    index = index_video(divx, "x")
    assert codes(read_frames(divx, "x", index, np.arange(40))) == list(range(40))
    assert codes(read_frames(divx, "x", index, np.array([17]))) == [17]


def test_frames_that_were_left_out_in_recording_take_their_time(tmp_path):
    data = video_file(tmp_path / "a.avi", coded(40), codec="mpeg4", fps=25).read_bytes()
    chunks = chunks_of(data)
    dropped = avi_of(data, [*chunks[:10], b"", b"", *chunks[10:]])
    index = index_video(dropped, "x")
    assert codes(read_frames(dropped, "x", index, np.arange(40))) == list(range(40))
    assert index.times[10] - index.times[9] == pytest.approx(3 / 25)


def test_frames_of_vp8_that_are_never_shown_are_not_counted():
    class Packet:
        pts, dts, duration, size, is_keyframe, is_discard, is_corrupt = 1, 1, 1, 3, False, False, False

        def __init__(self, head: int):
            self.head = head

        def __bytes__(self) -> bytes:
            return bytes([self.head, 0, 0])

    _, packets = read_packets([Packet(0x11), Packet(0x01)], "vp8", reorders=False)
    assert [packet.hidden for packet in packets] == [False, True]


# The other libraries: all of a file, or none of it


@pytest.fixture(params=["decord", "torchcodec"])
def optional(request, tmp_path):
    path = video_file(tmp_path / "probe.mp4", coded(2))
    try:
        read_frames(path, "x", index_video(path, "x"), np.array([0]), request.param)
    except ConfigError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("kind", FILES)
def test_a_backend_takes_all_windows_of_a_file_or_none(tmp_path, optional, kind):
    path = make(kind, tmp_path)
    index = index_video(path, "x")
    right, reasons = 0, set()
    for window in windows(len(index.pts)):
        if not window:
            continue
        try:
            seen = read_frames(path, "x", index, np.array(window), optional)
        except DataError as error:
            reasons.add(str(error))
            continue
        assert codes(seen) == codes(read_frames(path, "x", index, np.array(window)))
        right += 1
    assert bool(right) != bool(reasons)
    assert len(reasons) <= 1
    if kind in ALWAYS:
        assert not reasons


ALWAYS = (
    "h264 in MP4",
    "h264 in MP4, fragments",
    "h264 in MP4, uneven",
    "h264 in QuickTime",
    "h264 in Matroska",
    "h264 in Matroska, uneven",
    "mpeg4 in MP4",
    "mpeg4 in AVI",
    "vp8 in WebM, uneven",
    "vp9 in WebM, uneven",
    "mjpeg in AVI",
)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("h264 in AVI", "does not know frames that have no display times"),
        ("mpeg2 in AVI, B-frames", "does not know frames that have no display times"),
        ("mpeg4 in AVI, B-frames", "does not know frames that have no display times"),
        ("h264 in MPEG-TS", "reads MP4 and QuickTime, Matroska and WebM, AVI, not mpegts"),
        ("wmv2 in WMV", "reads MP4 and QuickTime, Matroska and WebM, AVI, not asf"),
    ],
)
@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_backend_refuses_whole_files_by_name(tmp_path, kind, reason, backend):
    """Neither library is needed to know."""
    path = make(kind, tmp_path)
    index = index_video(path, "x")
    for window in ([0], [39], [20, 21]):
        with pytest.raises(DataError, match=rf"^x: {backend} {reason}; use pyav$"):
            read_frames(path, "x", index, np.array(window), backend)
