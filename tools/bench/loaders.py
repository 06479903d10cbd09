"""Our loading beside that of other libraries, on the same files, in one process and in turn.

    python -m tools.bench.media media
    python -m tools.bench.loaders media [ROUNDS]

Every side makes the same of a file: an image of 512 pixels -> (3, 256, 256), antialiased; a video of 96 frames ->
(45, 3, 192, 336) of frames at 24 a second; 30 s of audio at 44.1 kHz -> (2, 480,000), 10 s at 48 kHz. "ours" is what a
worker calls for one record, without caption, noise and tokens, which other libraries do not have; "ours, whole sample"
is with them. Nothing is compared for equality: filters differ. A library that is not installed is left out. Counted is
the CPU time of this process, which has one thread where a library lets it.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import configs
from configs.assembly import Assembly
from configs.load import load_config
from core.optional import need
from modalities.data.loader import StepDataset, load_parts
from tools.bench.bench import markdown
from tools.bench.data import only
from tools.bench.measure import Row, rate_row, side_by_side

CONFIG = Path(configs.__file__).with_name("joint_625m.yaml")
ROUNDS = 3
BESIDE = ("measuring it", "It is left out")
SIDE, FRAMES, FPS, HEIGHT, WIDTH = 256, 45, 24, 192, 336
SECONDS, RATE = 10, 48_000
Load = Callable[[Path], Tensor]


def main(folder: Path, rounds: int = ROUNDS) -> None:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in LOADERS:
        rows += loader_rows(folder / name, name, rounds)
    print("\n".join(markdown(rows)))


def loader_rows(folder: Path, name: str, rounds: int) -> list[Row]:
    """Files per second and core of every library that is installed."""
    files = sorted(folder.iterdir())
    dataset = only(our_data(folder, name), name)
    stream = dataset.streams[name]

    def alone() -> None:
        for index in range(len(files)):
            load_parts(name, stream.parts, stream.source.read(index), 0, 0)

    def whole() -> None:
        for position in range(len(files)):
            dataset.collate(name, [dataset.sample(name, position, [])], ())

    sides: dict[str, Callable[[], object]] = {"ours": alone, "ours, whole sample": whole}
    for library, (needed, load) in LOADERS[name].items():
        if all(importlib.util.find_spec(package) for package in needed):
            sides[library] = all_of(load, files)
    times = side_by_side(sides, rounds, 1, "cpu", time.process_time)
    return [rate_row(name, side, times, side, len(files), "files/CPU s") for side in sides]


def our_data(folder: Path, name: str) -> StepDataset:
    """The paper's media of one modality, of a folder."""
    overrides = [f"streams.{other}=null" for other in LOADERS if other != name]
    overrides.append(f"streams.{name}.data={{kind: folder, path: {folder.resolve()}, caption: words}}")
    return Assembly(load_config(CONFIG, overrides), folder).dataset


def all_of(load: Load, files: Sequence[Path]) -> Callable[[], None]:
    def run() -> None:
        for path in files:
            load(path)

    return run


def pillow(path: Path) -> Tensor:
    """What torchvision's ImageFolder does by default, and transforms of v1."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 127.5 - 1


def torchvision(path: Path) -> Tensor:
    io = need("torchvision.io", *BESIDE)
    pixels = io.decode_image(str(path), io.ImageReadMode.RGB)  # (3, H, W) uint8
    return resized(pixels[None], SIDE, SIDE)[0]


def torchcodec_video(path: Path) -> Tensor:
    decoder = need("torchcodec.decoders", *BESIDE).VideoDecoder(
        str(path), num_ffmpeg_threads=1, seek_mode="approximate"
    )
    return resized(decoder.get_frames_in_range(0, FRAMES).data, HEIGHT, WIDTH)


def decord(path: Path) -> Tensor:
    library = need("decord", *BESIDE)
    reader = library.VideoReader(str(path), ctx=library.cpu(0), num_threads=1)
    frames = torch.from_numpy(reader.get_batch(range(FRAMES)).asnumpy())  # (T, H, W, 3) uint8
    return resized(frames.permute(0, 3, 1, 2), HEIGHT, WIDTH)


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, height, width) float32 in [-1, 1]; resized as bytes, as torchvision's v2 does."""
    small = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return small.float() / 127.5 - 1


def torchcodec_audio(path: Path) -> Tensor:
    decoder = need("torchcodec.decoders", *BESIDE).AudioDecoder(str(path), sample_rate=RATE, num_channels=2)
    return decoder.get_samples_played_in_range(0, SECONDS).data


def torchaudio_file(path: Path) -> Tensor:
    torchaudio = need("torchaudio", *BESIDE)
    wave, rate = torchaudio.load(str(path), num_frames=44_100 * SECONDS)
    return torchaudio.functional.resample(wave, rate, RATE)


# modality -> library -> (packages, how it loads one file)
LOADERS: dict[str, dict[str, tuple[tuple[str, ...], Load]]] = {
    "image": {"Pillow": (("PIL",), pillow), "torchvision": (("torchvision",), torchvision)},
    "video": {"torchcodec": (("torchcodec",), torchcodec_video), "decord": (("decord",), decord)},
    "audio": {
        "torchcodec": (("torchcodec",), torchcodec_audio),
        "torchaudio": (("torchaudio", "torchcodec"), torchaudio_file),
    },
}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
