import io
import struct

import pytest

from core.errors import DataError
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
