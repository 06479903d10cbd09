import io
import struct

import pytest

from core.errors import DataError
from modalities.media.video import index_video
from modalities.media.video_length import check_length, stated_length
from tests.modalities.making import numbered, video_file


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mov", {}),
        ("a.mkv", {}),
        ("a.webm", {}),
        ("a.avi", {}),
    ],
)
def test_whole_files_state_their_own_length(tmp_path, name, options):
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx"}.get(name, "libx264")
    path = video_file(tmp_path / name, numbered(8), codec=codec, **options)
    data = path.read_bytes()
    assert stated_length(io.BytesIO(data)) == len(data)
    for media in (path, data, data + b"junk that some program left behind"):
        check_length(media, "x")
    with pytest.raises(DataError, match=rf"x: cut short: {len(data) - 9} of {len(data)} bytes are there"):
        check_length(data[:-9], "x")
    for cut in (len(data) // 2, len(data) // 10, 40, 13, 5, 1):  # inside a header nothing may be stated yet
        assert (stated_length(io.BytesIO(data[:cut])) or len(data)) <= len(data)


def test_a_stream_of_unknown_length_states_nothing(tmp_path):
    ts = video_file(tmp_path / "a.ts", numbered(8)).read_bytes()
    live = video_file(tmp_path / "a.mkv", numbered(8), live="1").read_bytes()
    piped = bytearray(video_file(tmp_path / "a.avi", numbered(8), codec="mpeg4").read_bytes())
    struct.pack_into("<I", piped, 4, 0xFFFFFFFF)
    for data in (ts, live, bytes(piped), b"", b"some text", struct.pack(">I4s", 0, b"mdat") + bytes(64)):
        assert stated_length(io.BytesIO(data)) is None
    large = struct.pack(">I4s", 16, b"ftyp") + bytes(8) + struct.pack(">I4sQ", 1, b"mdat", 2**33)
    assert stated_length(io.BytesIO(large)) == 16 + 2**33


@pytest.mark.parametrize("more", [2, 8, 9, 44, 100_000])
@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_riff_that_says_too_much_with_all_data_there_is_whole(tmp_path, more, codec):
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = video_file(tmp_path / "a.avi", numbered(12), codec=codec, pixel_format=pixel_format)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, struct.unpack_from("<I", data, 4)[0] + more)
    assert len(index_video(bytes(data), "x").pts) == 12
    check_length(bytes(data), "x")
    for cut in (len(data) - 9, len(data) * 2 // 3, data.index(b"movi") + 100):  # what is cut is still found
        with pytest.raises(DataError, match="x: cut short"):
            check_length(bytes(data[:cut]), "x")


def test_what_lies_behind_the_frames_may_be_missing(tmp_path):
    data = video_file(tmp_path / "a.avi", numbered(12), codec="mpeg4").read_bytes()
    assert len(index_video(data[: data.index(b"idx1")], "x").pts) == 12


def test_the_second_part_of_a_large_avi_counts(tmp_path):
    """OpenDML: more than 1 GB is written as several RIFFs behind each other."""
    data = video_file(tmp_path / "a.avi", numbered(12), codec="mpeg4").read_bytes()
    movie = b"LIST" + struct.pack("<I", 1004) + b"movi" + bytes(1000)
    more = b"RIFF" + struct.pack("<I", 4 + len(movie)) + b"AVIX" + movie
    assert stated_length(io.BytesIO(data + more)) == len(data + more)
    with pytest.raises(DataError, match=rf"x: cut short: {len(data + more) - 500} of {len(data + more)} bytes"):
        check_length((data + more)[:-500], "x")


@pytest.mark.parametrize("more", [1, 8, 5000])
def test_a_segment_of_matroska_that_says_too_much(tmp_path, more):
    data = bytearray(video_file(tmp_path / "a.mkv", numbered(12)).read_bytes())
    place = data.index(b"\x18\x53\x80\x67") + 4
    size = int.from_bytes(data[place : place + 8], "big") + more
    data[place : place + 8] = size.to_bytes(8, "big")
    assert len(index_video(bytes(data), "x").pts) == 12
    with pytest.raises(DataError, match="x: cut short"):
        index_video(bytes(data[: len(data) * 2 // 3]), "x")


def test_the_last_box_of_an_mp4_that_says_too_much(tmp_path):
    data = bytearray(video_file(tmp_path / "a.mp4", numbered(12), movflags="faststart").read_bytes())
    place = data.index(b"mdat") - 4
    struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + 8)
    assert len(index_video(bytes(data), "x").pts) == 12
    with pytest.raises(DataError, match="x: cut short"):
        index_video(bytes(data[:-9]), "x")
