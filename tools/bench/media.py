"""Media of ordinary sizes, drawn from noise, to measure reading with: `python -m tools.bench.media FOLDER`.

FOLDER/image  64 JPEG images of 512 x 512 pixels, quality 90
FOLDER/video  8 H.264 videos of 640 x 360 pixels, 96 frames at 24 per second, a key frame every 48
FOLDER/audio  16 FLAC audio clips of 30 s, 44.1 kHz, stereo, 16 bit

and the same files as FOLDER/NAME.tar, FOLDER/NAME.parquet and, where mosaicml-streaming is installed, FOLDER/NAME.mds.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from core.keys import key
from core.optional import need

COUNTS = {"image": 64, "video": 8, "audio": 16}
SUFFIXES = {"image": "jpg", "video": "mp4", "audio": "flac"}
FRAMES, FPS = 96, 24
RATE, SECONDS = 44_100, 30
ROWS = 16  # of a row group, samples of a shard
WITHOUT = "Measuring your own files works"


def main(folder: Path) -> None:
    for name, count in COUNTS.items():
        files = {f"{index:04}": DRAW[name](index) for index in range(count)}
        write_folder(folder / name, files, SUFFIXES[name])
        write_tar(folder / f"{name}.tar", files, SUFFIXES[name])
        write_parquet(folder / f"{name}.parquet", files, name)
        write_mds(folder / f"{name}.mds", files, name)
        size = sum(map(len, files.values()))
        print(f"{name}: {count} files, {size / count / 1000:,.0f} kB each")


def rng(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(key("bench", *parts))


def scene(index: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): smooth patches with grain, which compress about as photographs do."""
    draw = rng("scene", index)
    coarse = Image.fromarray(draw.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return (smooth + draw.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def draw_image(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene(index, 512, 512)).save(file, "JPEG", quality=90)
    return file.getvalue()


def draw_video(index: int) -> bytes:
    """A view that moves over a scene."""
    av, view, file = need("av", "drawing videos", WITHOUT), scene(index, 720, 1280), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "48", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(FRAMES):
            top, left = 2 * number, 4 * number
            pixels = np.ascontiguousarray(view[top : top + 360, left : left + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def draw_audio(index: int) -> bytes:
    """Chords with a little noise."""
    soundfile, draw, file = need("soundfile", "drawing audio clips", WITHOUT), rng("sound", index), io.BytesIO()
    times = np.arange(RATE * SECONDS) / RATE
    tones = (np.sin(2 * np.pi * pitch * times) for pitch in draw.uniform(100, 2000, 4))
    notes = sum(tones, start=np.zeros(len(times))) / 10
    soundfile.write(file, notes[:, None] + draw.normal(0, 0.02, (len(times), 2)), RATE, format="FLAC")
    return file.getvalue()


DRAW = {"image": draw_image, "video": draw_video, "audio": draw_audio}


def write_folder(folder: Path, files: dict[str, bytes], suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.{suffix}").write_bytes(data)


def write_tar(path: Path, files: dict[str, bytes], suffix: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{name}.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, files: dict[str, bytes], column: str) -> None:
    pa = need("pyarrow", "writing Parquet", WITHOUT)
    table = pa.table({column: list(files.values())})
    need("pyarrow.parquet", "writing Parquet", WITHOUT).write_table(table, path, row_group_size=ROWS)


def write_mds(folder: Path, files: dict[str, bytes], column: str) -> None:
    try:
        # Only installed for this kind of data, so that a type checker may not see it.
        from streaming import MDSWriter  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError):
        return
    size = ROWS * max(map(len, files.values()))
    with MDSWriter(out=str(folder), columns={column: "bytes"}, hashes=["xxh64"], size_limit=size) as writer:
        for data in files.values():
            writer.write({column: data})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
