"""What files ask of a decoder: any colors, transparency, sizes and failures."""

import resource
import struct
import sys

import av
import numpy as np
import pytest

from core.errors import DataError
from modalities.media.video import index_video, read_frames
from tests.modalities.making import numbered, video_file

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (30, 200, 120)]
# name -> (weights of red and blue in the luma, FFmpeg's number): ITU-R BT.601, 709, 2020
MATRICES = {
    "601": (0.299, 0.114, 6),
    "709": (0.2126, 0.0722, 1),
    "2020": (0.2627, 0.0593, 9),
    "none": (0.299, 0.114, 2),
}


def levels(rgb: tuple[int, int, int], matrix: str, full: bool, bits: int) -> list[int]:
    """Y, Cb, Cr."""
    kr, kb, _ = MATRICES[matrix]
    red, green, blue = (level / 255 for level in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / 2 / (1 - kb), (red - luma) / 2 / (1 - kr)
    step, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        return [round(luma * top), *(min(top, round(part * top + 128 * step)) for part in chroma)]
    return [round((16 + 219 * luma) * step), *(round((128 + 224 * part) * step) for part in chroma)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(
    ("name", "codec", "pixels", "bits"),
    [
        ("a.mp4", "libx264", "yuv420p", 8),
        ("a.mp4", "libx264", "yuv444p", 8),
        ("a.mp4", "libx264", "yuv420p10le", 10),
        ("a.mkv", "ffv1", "yuv422p10le", 10),
        ("a.mkv", "ffv1", "yuv420p16le", 16),
        ("a.webm", "libvpx-vp9", "yuv420p", 8),
    ],
)
def test_colors_come_out_at_full_range(tmp_path, name, codec, pixels, bits, matrix, full):
    options = {"libx264": {"crf": "1"}, "libvpx-vp9": {"crf": "1", "b": "0", "deadline": "realtime", "cpu-used": "8"}}
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = MATRICES[matrix][2], 2 if full else 1
        stream.codec_context.thread_count = 1
        for rgb in COLORS:
            frame = av.VideoFrame(64, 64, pixels)
            for plane, level in zip(frame.planes, levels(rgb, matrix, full, bits), strict=True):
                row = plane.line_size // (2 if bits > 8 else 1)
                plane.update(np.full((plane.height, row), level, np.uint16 if bits > 8 else np.uint8).tobytes())
            frame.colorspace, frame.color_range = MATRICES[matrix][2], 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    index = index_video(tmp_path / name, "x")
    seen = read_frames(tmp_path / name, "x", index, np.arange(len(COLORS)))
    for frame, rgb in zip(seen, COLORS, strict=True):
        assert np.abs(frame[32, 32].astype(int) - rgb).max() <= 4


def test_transparency_of_vp9_shows_the_background(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0], pixels[:32, :, 3] = 255, 255
    options = {"auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "8"}
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuva420p"
        stream.codec_context.thread_count = 1
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    index = index_video(tmp_path / "a.webm", "x")
    for number in (0, 4):
        (seen,) = read_frames(tmp_path / "a.webm", "x", index, np.array([number]), background=(0, 200, 0))
        assert np.abs(seen[5, 5].astype(int) - (255, 0, 0)).max() < 6
        assert np.abs(seen[60, 60].astype(int) - (0, 200, 0)).max() < 6
    for backend in ("decord", "torchcodec"):
        with pytest.raises(DataError, match=f"x: {backend} ignores transparency; use pyav"):
            read_frames(tmp_path / "a.webm", "x", index, np.array([0]), backend)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "form"),
    [
        ("a.webm", "libvpx", "yuv420p", "<HH"),  # in the first frame, not in the container
        ("a.gif", "gif", "rgb8", "<HH"),
        ("a.mov", "png", "rgb24", ">II"),
        ("a.avi", "ffv1", "yuv420p", "<II"),
        ("a.avi", "rawvideo", "yuv420p", "<II"),
    ],
)
def test_an_image_of_any_promised_size_takes_no_memory(tmp_path, name, codec, pixels, form):
    data = video_file(tmp_path / name, numbered(4, 96, 128), codec=codec, pixel_format=pixels).read_bytes()
    size = struct.pack(form, 128, 96)
    assert size in data

    def read(data: bytes) -> None:
        index = index_video(data, "x")
        read_frames(data, "x", index, np.arange(len(index.pts)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (16_000, 60_000):
        promised = struct.pack(form, min(side, 16_383 if codec == "libvpx" else side), side)
        with pytest.raises(DataError, match=r"^x: "):
            read(data.replace(size, promised))
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 200e6


@pytest.mark.parametrize("error", [RuntimeError, IndexError, MemoryError, AttributeError, ZeroDivisionError, OSError])
@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_whatever_a_decoder_raises_sets_the_file_aside(tmp_path, monkeypatch, error, backend):
    path = video_file(tmp_path / "a.mp4", numbered(4))
    index = index_video(path, "x")

    def fail(*args, **kwargs):
        raise error("out of luck")

    if backend == "pyav":
        monkeypatch.setattr(av, "open", fail)
    elif backend == "decord":
        decord = pytest.importorskip("decord")
        monkeypatch.setattr(decord, "VideoReader", fail)
    else:
        decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
        monkeypatch.setattr(decoders, "VideoDecoder", fail)
    with pytest.raises(DataError, match=r"^a\.mp4: cannot be decoded as a video: .*out of luck"):
        read_frames(path, "a.mp4", index, np.arange(4), backend)
    if backend == "pyav":
        with pytest.raises(DataError, match=rf"^a\.mp4: cannot be decoded as a video: {error.__name__}: out of luck"):
            index_video(path, "a.mp4")
