"""Videos whose frames show their own numbers, in many containers and codecs."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.modalities.making import video_file

HEIGHT, WIDTH, ROWS = 48, 64, slice(12, 24)


def coded(frames: int, first: int = 0) -> np.ndarray:
    """uint8 (T, 48, 64, 3): frame i shows first + i as 8 black or white blocks in rows 12 to 23, over a moving ramp."""
    pixels = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
    for i, frame in enumerate(pixels):
        frame[:] = (np.arange(WIDTH)[:, None] + 2 * i) % 64 + 80
        for bit in range(8):
            frame[ROWS, bit * 8 : bit * 8 + 8] = 255 * ((first + i) >> bit & 1)
    return pixels


def codes(frames: list[np.ndarray] | np.ndarray) -> list[int]:
    """The numbers that (T, H, W, 3) levels show."""
    found = []
    for frame in frames:
        blocks = frame[ROWS].mean(axis=(0, 2)).reshape(8, WIDTH // 8)[:, 2:-2].mean(axis=1)
        found.append(sum(int(level > 128) << bit for bit, level in enumerate(blocks)))
    return found


def uneven(frames: int = 40, first: int = 5000) -> list[int]:
    """Milliseconds of the frames of a phone."""
    return [int(time) for time in first + np.cumsum(np.random.default_rng(0).integers(20, 70, frames))]


B = {"bf": "2"}
X265 = {"x265-params": "log-level=none:bframes=2"}
VPX = {"deadline": "realtime", "cpu-used": "8"}
OPEN = {"x264-params": "open-gop=1:b-adapt=0:scenecut=0"}

# What -> (name of the file, settings of `video_file`).
FILES: dict[str, tuple[str, dict]] = {
    "h264 in MP4": ("a.mp4", {}),
    "h264 in MP4, fragments": ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "h264 in MP4, uneven": ("a.mp4", {"milliseconds": uneven()}),
    "h264 in MP4, from -0.3 s on": ("a.mp4", {"milliseconds": uneven(first=-300), "avoid_negative_ts": "disabled"}),
    "h264 in MP4, open groups": ("a.mp4", {"options": OPEN}),
    "h264 in QuickTime": ("a.mov", {}),
    "h264 in Matroska": ("a.mkv", {}),
    "h264 in Matroska, uneven": ("a.mkv", {"milliseconds": uneven()}),
    "h264 in Matroska, without duration": ("a.mkv", {"live": "1"}),
    "h264 in Matroska, open groups": ("a.mkv", {"options": OPEN}),
    "h264 in FLV": ("a.flv", {}),
    "h264 in AVI": ("a.avi", {}),
    "h264 in ASF": ("a.asf", {}),
    "h264 in MPEG-TS": ("a.ts", {}),
    "h264 in MPEG-TS, uneven": ("a.ts", {"milliseconds": uneven()}),
    "h264, raw": ("a.h264", {}),
    "hevc in MP4": ("a.mp4", {"codec": "libx265", "options": X265}),
    "hevc in MPEG-TS": ("a.ts", {"codec": "libx265", "options": X265}),
    "hevc, raw": ("a.hevc", {"codec": "libx265", "options": X265}),
    "mpeg4 in MP4": ("a.mp4", {"codec": "mpeg4"}),
    "mpeg4 in MP4, B-frames": ("a.mp4", {"codec": "mpeg4", "options": B}),
    "mpeg4 in 3GP": ("a.3gp", {"codec": "mpeg4"}),
    "mpeg4 in AVI": ("a.avi", {"codec": "mpeg4"}),
    "mpeg4 in AVI, B-frames": ("a.avi", {"codec": "mpeg4", "options": B}),
    "mpeg4 in MPEG-TS, B-frames": ("a.ts", {"codec": "mpeg4", "options": B}),
    "mpeg2 in AVI, B-frames": ("a.avi", {"codec": "mpeg2video", "options": B}),
    "mpeg2 in MPEG-PS, B-frames": ("a.mpg", {"codec": "mpeg2video", "options": B}),
    "mpeg2 in VOB, B-frames": ("a.vob", {"codec": "mpeg2video", "options": B}),
    "mpeg2 in MPEG-TS, B-frames": ("a.ts", {"codec": "mpeg2video", "options": B}),
    "mpeg2, raw, B-frames": ("a.m2v", {"codec": "mpeg2video", "options": B}),
    "mpeg1 in MPEG-PS, B-frames": ("a.mpg", {"codec": "mpeg1video", "options": B}),
    "mjpeg in AVI": ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    "wmv2 in WMV": ("a.wmv", {"codec": "wmv2"}),
    "vp8 in WebM": ("a.webm", {"codec": "libvpx", "options": VPX}),
    "vp8 in WebM, uneven": ("a.webm", {"codec": "libvpx", "options": VPX, "milliseconds": uneven()}),
    "vp9 in WebM": ("a.webm", {"codec": "libvpx-vp9", "options": VPX}),
    "vp9 in WebM, uneven": ("a.webm", {"codec": "libvpx-vp9", "options": VPX, "milliseconds": uneven()}),
    "vp9 in WebM, without duration": ("a.webm", {"codec": "libvpx-vp9", "options": VPX, "live": "1"}),
    "av1 in MP4": ("a.mp4", {"codec": "libsvtav1", "options": {"preset": "8", "crf": "5"}}),
    "GIF": ("a.gif", {"codec": "gif", "pixel_format": "rgb8", "fps": 20}),
}


def make(kind: str, folder: Path, frames: int = 40) -> Path:
    name, options = FILES[kind]
    return video_file(folder / name, coded(frames), **options)


def transport_stream(path: Path, start: float, frames: int, first: int = 0, open_groups: bool = False) -> bytes:
    """MPEG-TS of numbered frames of h264 whose clock begins at `start` seconds."""
    with av.open(str(path), "w") as container:
        options = {"g": "12", "bf": "2"} | (OPEN if open_groups else {})
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 90000)
        for i, pixels in enumerate(coded(frames, first)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(start * 90000) + 3600 * i, Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def avi_of(data: bytes, chunks: list[bytes]) -> bytes:
    """An AVI with other chunks of its video, and the index that fits."""
    movie = data.index(b"movi")
    body, index = bytearray(b"movi"), bytearray()
    for chunk in chunks:
        key = 0x10 if b"\x00\x00\x01\xb0" in chunk[:40] else 0
        index += b"00dc" + struct.pack("<III", key, len(body), len(chunk))
        body += b"00dc" + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) % 2)
    whole = bytearray(data[: movie - 8])
    for name, part in ((b"LIST", body), (b"idx1", index)):
        whole += name + struct.pack("<I", len(part)) + part
    struct.pack_into("<I", whole, 4, len(whole) - 8)
    return bytes(whole)


def chunks_of(data: bytes) -> list[bytes]:
    """Those of an AVI's video."""
    place = data.index(b"movi")
    end, found = place + struct.unpack_from("<I", data, place - 4)[0], []
    place += 4
    while place < end:
        (size,) = struct.unpack_from("<I", data, place + 4)
        found.append(data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    return found
