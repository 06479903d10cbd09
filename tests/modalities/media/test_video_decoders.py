import gc
import importlib
import multiprocessing
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError
from modalities.media import video_pyav
from modalities.media.video import index_video, read_frames
from modalities.media.video_decoders import DECODERS
from tests.modalities.making import numbered, numbers, video_file
from tests.modalities.media.boxes import TURNS, trimmed, turned


@pytest.fixture(params=["decord", "torchcodec"])
def optional(request, tmp_path):
    """A backend that is installed and can decode here; skipped with the reason where it cannot."""
    path = video_file(tmp_path / "probe.mp4", numbered(2))
    try:
        read_frames(path, "x", index_video(path, "x"), np.array([0]), request.param)
    except ConfigError as error:
        pytest.skip(str(error))
    return request.param


def moving(frames: int = 40, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): waves and a red square that move, so that every frame and every pixel differs."""
    time, rows, columns = np.mgrid[:frames, :height, :width]
    waves = [np.sin((columns + 3 * time) / 9), np.sin((rows - 2 * time) / 7), np.sin((rows + columns + time) / 13)]
    pixels = 127 + 100 * np.stack(waves, axis=-1)
    for i, frame in enumerate(pixels):
        frame[i % 30 : i % 30 + 9, 2 * i % 50 : 2 * i % 50 + 9] = 250, 20, 30
    return pixels.astype(np.uint8)


def stamps() -> list[int]:
    return [int(time) for time in 5000 + np.cumsum(np.random.default_rng(0).integers(20, 70, 40))]


FILES = {
    "h264, key frames near": ("a.mp4", {"gop": 12}),
    "h264, one key frame": ("a.mp4", {"gop": 250}),
    "h264 in Matroska": ("a.mkv", {}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4"}),
    "mpeg4 in AVI": ("a.avi", {"codec": "mpeg4"}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "variable rate, starts at 5 s": ("a.mp4", {"milliseconds": stamps()}),
    "variable rate, starts at 5 s, Matroska": ("a.mkv", {"milliseconds": stamps()}),
    "BT.709 colors": ("a.mp4", {"options": {"x264-params": "colormatrix=bt709"}}),
    "full range": ("a.mp4", {"pixel_format": "yuvj420p"}),
    "4:4:4": ("a.mp4", {"pixel_format": "yuv444p"}),
    "oblong pixels": ("a.mp4", {"options": {"x264-params": "sar=4/3"}}),
}


@pytest.mark.parametrize("kind", FILES)
def test_all_backends_give_the_same_levels(tmp_path, optional, kind):
    name, options = FILES[kind]
    path = video_file(tmp_path / name, moving(), **options)
    index = index_video(path, "x")
    for wanted in (np.arange(40), np.array([37]), np.array([31, 5, 5, 14, 13]), index.shown(0.3, 24, 20)):
        expected = read_frames(path, "x", index, wanted)
        for media in (path, path.read_bytes()):
            seen = read_frames(media, "x", index, wanted, optional)
            assert len(seen) == len(wanted)
            assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("degrees", TURNS)
def test_all_backends_turn_images_upright(tmp_path, optional, degrees):
    data = turned(video_file(tmp_path / "a.mp4", moving(6, 120, 160)).read_bytes(), *TURNS[degrees])
    index = index_video(data, "x")
    seen, expected = (read_frames(data, "x", index, np.arange(6), backend) for backend in (optional, "pyav"))
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("a.mp4", (48, 64), {"pixel_format": "yuv420p10le"}),
        ("a.webm", (47, 61), {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    ],
)
def test_ten_bits_and_odd_sides_differ_at_the_edges_of_colors_only(tmp_path, optional, name, size, options):
    path = video_file(tmp_path / name, moving(40, *size), **options)
    index = index_video(path, "x")
    seen, own = (np.stack(read_frames(path, "x", index, np.arange(40), b)).astype(int) for b in (optional, "pyav"))
    assert np.abs(seen - own).mean() < 4
    # The same frames: each is nearer to its own than to any other.
    assert np.abs(seen[:, None] - own[None]).mean(axis=(2, 3, 4)).argmin(axis=1).tolist() == list(range(40))


def test_a_backend_that_would_give_other_frames_refuses(tmp_path, optional):
    """decord decodes what an edit list hides, and torn frames behind the key frames of open groups."""
    cut = trimmed(video_file(tmp_path / "a.mp4", numbered(40)).read_bytes(), 512 * 15)
    open_groups = video_file(tmp_path / "b.mkv", numbered(40), options={"x264-params": "open-gop=1"})
    # Without B-frames' own times in the container others guess them.
    untimed = video_file(tmp_path / "c.avi", numbered(40), codec="mpeg4", options={"bf": "2"})
    mpeg4 = video_file(tmp_path / "d.mp4", numbered(40), codec="mpeg4", options={"bf": "2"})
    for media in (cut, open_groups, untimed, mpeg4):
        index = index_video(media, "x")
        wanted = np.arange(13, 20)
        try:
            seen = read_frames(media, "x", index, wanted, optional)
        except DataError:
            continue
        assert np.array_equal(seen, read_frames(media, "x", index, wanted))
    with pytest.raises(DataError, match=f"x: {optional} .*; use pyav"):
        read_frames(untimed, "x", index_video(untimed, "x"), np.arange(13, 20), optional)


def rewritten(folder: Path, build: int) -> bytes:
    """4:4:4 that names another version of x264, which decodes alike without transforms of 8 x 8."""
    options = {"x264-params": "8x8dct=0"}
    data = video_file(folder / "a.mp4", moving(), pixel_format="yuv444p", options=options).read_bytes()
    assert re.search(rb"x264 - core \d+", data)
    return re.sub(rb"x264 - core \d+", b"x264 - core %d" % build, data)


def test_444_of_an_old_x264_is_decoded_from_the_first_frame_on(tmp_path, monkeypatch):
    """Only the beginning of the file says of which version it is, and FFmpeg decodes those before 151 otherwise."""
    old, new = rewritten(tmp_path, 142), rewritten(tmp_path, 164)
    assert not index_video(new, "x").whole
    index = index_video(old, "x")
    assert index.whole
    expected = read_frames(new, "x", index_video(new, "x"), np.arange(40))

    def no_seek(*args, seek=False, **kwargs):
        assert not seek
        return by_stamp(*args, seek=seek, **kwargs)

    by_stamp = video_pyav._by_stamp
    monkeypatch.setattr(video_pyav, "_by_stamp", no_seek)
    for window in (np.arange(40), np.array([30]), np.array([14, 15])):
        seen = read_frames(old, "x", index, window)
        assert all(np.array_equal(a, expected[number]) for a, number in zip(seen, window, strict=True))
    for backend in ("decord", "torchcodec"):
        for window in (np.array([0]), np.array([30])):
            with pytest.raises(DataError, match=rf"^x: {backend} does not decode 4:4:4 of an x264 before build 151"):
                read_frames(old, "x", index, window, backend)


def rotated(folder: Path, name: str, degrees: int, pixels: np.ndarray) -> Path:
    """With a display matrix, which PyAV takes over from an MP4."""
    source = folder / "source.mp4"
    source.write_bytes(turned(video_file(source, pixels).read_bytes(), *TURNS[degrees]))
    with av.open(str(source)) as given, av.open(str(folder / name), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return folder / name


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.mp4"])
@pytest.mark.parametrize("size", [(120, 160), (160, 160)])
def test_rotated_files_are_turned_or_refused(tmp_path, optional, name, degrees, size):
    path = rotated(tmp_path, name, degrees, moving(6, *size))
    index = index_video(path, "x")
    expected = read_frames(path, "x", index, np.arange(6))
    stored = read_frames(tmp_path / "source.mp4", "x", index_video(tmp_path / "source.mp4", "x"), np.arange(6))
    assert np.array_equal(expected, stored)  # the matrix is there
    if optional == "decord" and name == "a.mkv":
        with pytest.raises(DataError, match=r"^x: decord does not turn the images of this container; use pyav$"):
            read_frames(path, "x", index, np.arange(6), optional)
    else:
        assert np.array_equal(read_frames(path, "x", index, np.arange(6), optional), expected)


@pytest.mark.parametrize("backend", DECODERS)
def test_mirrored_images_are_refused_by_all(tmp_path, backend):
    data = turned(video_file(tmp_path / "a.mp4", numbered(2)).read_bytes(), -1, 0, 0, 1)
    with pytest.raises(DataError, match="x: the container asks to mirror the image"):
        read_frames(data, "x", index_video(data, "x"), np.array([0]), backend)


def test_times_of_single_precision_are_near_enough(tmp_path, optional):
    """Five hours after the clock's zero a float32 cannot tell milliseconds apart."""
    first = 5 * 3600 * 1000 + 7
    path = video_file(tmp_path / "a.mp4", numbered(40), milliseconds=[first + 41 * i for i in range(40)])
    index = index_video(path, "x")
    assert numbers(read_frames(path, "x", index, np.arange(30, 40), optional)) == list(range(30, 40))


def test_open_groups_of_pictures_are_known(tmp_path):
    path = video_file(tmp_path / "a.mkv", numbered(40), options={"x264-params": "open-gop=1"})
    assert not index_video(path, "x").closed
    assert index_video(video_file(tmp_path / "b.mkv", numbered(40)), "x").closed
    assert numbers(read_frames(path, "x", index_video(path, "x"), np.arange(8, 16))) == list(range(8, 16))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "bytes"])
def test_damaged_files_are_refused_and_nothing_hangs(tmp_path, optional, damage):
    path = video_file(tmp_path / "a.mp4", moving())
    index, data = index_video(path, "x"), bytearray(path.read_bytes())
    if damage == "bytes":
        for seed in range(12):
            broken = bytearray(data)
            rng = np.random.default_rng(seed)
            for place in rng.integers(0, len(data), 8):
                broken[place] = int(rng.integers(256))
            with suppress(DataError):
                assert len(read_frames(bytes(broken), "x", index, np.arange(10, 30), optional)) == 20
        return
    broken = {"empty": b"", "text": b"once upon a time\n" * 100, "cut": bytes(data[: len(data) // 2])}[damage]
    with pytest.raises(DataError, match=r"^a\.mp4: [^\n]+$"):
        read_frames(broken, "a.mp4", index, np.arange(3), optional)


# Processes


def _read_in_a_worker(path: Path, backend: str, results) -> None:
    gc.collect()  # frees what the parent has closed: a worker must not wait for threads that it does not have
    index = index_video(path, "x")
    results.put(numbers(read_frames(path, "x", index, np.array([20, 3]), backend)))


@pytest.mark.parametrize("backend", DECODERS)
def test_workers_read_what_their_parent_has_read_before_the_fork(tmp_path, backend):
    """decord hangs where a file that the parent holds open is read by its child; nothing is left open."""
    path = video_file(tmp_path / "a.mp4", numbered(40))
    index = index_video(path, "x")
    try:
        assert numbers(read_frames(path, "x", index, np.arange(5, 9), backend)) == [5, 6, 7, 8]
    except ConfigError as error:
        pytest.skip(str(error))
    if os.path.isdir("/proc/self/fd"):
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        assert str(path) not in {os.readlink(link) for link in links if os.path.islink(link)}
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_read_in_a_worker, args=(path, backend, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    hung = [worker for worker in workers if worker.is_alive()]
    for worker in hung:
        worker.kill()
    assert not hung
    assert [results.get() for _ in workers] == [[20, 3], [20, 3]]


# What is missing, and what only one of the two environments has


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_missing_backend_is_one_line(tmp_path, monkeypatch, backend):
    path = video_file(tmp_path / "a.mp4", numbered(2))
    real = importlib.import_module

    def import_module(name: str):
        if name.partition(".")[0] == backend:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ConfigError) as caught:
        read_frames(path, "x", index_video(path, "x"), np.array([0]), backend)
    assert str(caught.value) == (
        f"backend: '{backend}' needs the package {backend}, which is not installed: "
        "make setup-full (extra full). backend: pyav works without it"
    )


class Decoder:
    """Stands in for torchcodec's: frames 0, 1, ... of a file, gray of level 6 i, at 24 frames per second."""

    count, shift, failure = 12, 0.0, ""

    def __init__(self, source, stream_index, dimension_order, num_ffmpeg_threads, device):
        assert (stream_index, dimension_order, num_ffmpeg_threads, device) == (0, "NHWC", 1, "cpu")
        if self.failure:
            raise RuntimeError(self.failure)

    def __len__(self) -> int:
        return self.count

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        times = torch.tensor(indices) / 24 + self.shift
        return SimpleNamespace(pts_seconds=times, data=torch.tensor(numbered(12))[indices])


def test_frames_of_torchcodec_are_checked_against_the_index(tmp_path, monkeypatch):
    path = video_file(tmp_path / "a.mp4", numbered(12))
    index = index_video(path, "x")

    def read(**changes) -> list[int]:
        changed = type("Changed", (Decoder,), changes)
        monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=changed))
        return numbers(read_frames(path, "x", index, np.array([3, 7, 3]), "torchcodec"))

    assert read() == [3, 7, 3]
    with pytest.raises(DataError, match="x: torchcodec sees 11 frames where the file shows 12; use pyav"):
        read(count=11)
    with pytest.raises(DataError, match="x: torchcodec finds other frames at 2 of 2 times; use pyav"):
        read(shift=1 / 24)
    with pytest.raises(DataError, match="x: cannot be decoded as a video: no key frame"):
        read(failure="no key frame")
    with pytest.raises(
        ConfigError, match=r"^backend: 'torchcodec' needs the libraries of FFmpeg .*pyav works"
    ) as caught:
        read(failure="Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not properly installed")
    assert "\n" not in str(caught.value)
