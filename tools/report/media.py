"""Images, videos and audio of a run inside the page, within a number of bytes."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.errors import DataError
from modalities.media.audio import probe_audio, read_audio

TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".mp4": "video/mp4", ".wav": "audio/wav"}
STEPS = 24  # of the slider, at most: evenly spaced, with the first and the last
PER_STREAM = 8  # files of a stream at a step, beside its grid
LARGE_IMAGE = 120_000  # bytes; larger ones are stored as WebP of at most SIDE pixels
SIDE = 1280
WINDOW, BINS, COLUMNS = 256, 96, 320  # of a spectrogram: samples of a window, rows, columns at most
IN_BAND = 0.999  # of the energy lies in the frequencies that a spectrogram shows
FLOOR = -80.0  # dB under the loudest value, shown black
STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Item:
    """One file of the page.

    Attributes:
        kind: image, video or audio.
        uri: the file itself, as a data URI.
        size: bytes that it takes.
        spectrogram: data URI of an image; "" of what has no sound.
    """

    kind: str
    caption: str
    uri: str
    size: int
    spectrogram: str = ""


@dataclass(frozen=True)
class Found:
    """Files of one stream of a run, at a step: paths with their captions."""

    step: int
    files: list[tuple[Path, str]]


def previews(run: Path) -> dict[str, list[Found]]:
    """stream -> what RUN/samples has of it, by step. Folders without a readable index.json are passed over."""
    found: dict[str, list[Found]] = {}
    for folder in sorted((run / "samples").glob("step-*")):
        number = STEP.fullmatch(folder.name)
        index = _json(folder / "index.json")
        if not number or index is None:
            continue
        by_stream: dict[str, list[tuple[Path, str]]] = {}
        for entry in index.get("samples", []):
            stream, prompt = str(entry.get("stream", "")), str(entry.get("prompt", ""))
            # Only the last part of a name: nothing outside the folder is read.
            by_stream.setdefault(stream, []).append((folder / Path(str(entry.get("file", ""))).name, prompt))
        for stream, files in by_stream.items():
            grids = [(path, "") for path in sorted(folder.glob(f"{stream}*-grid.png"))]
            own = [(path, text) for path, text in files if path.suffix in TYPES]
            if grids:  # it shows the images already
                own = [(path, text) for path, text in own if path.suffix != ".png"]
            if kept := [*grids, *own[:PER_STREAM]]:
                found.setdefault(stream, []).append(Found(int(number[1]), kept))
    return found


def generated(run: Path) -> dict[str, list[tuple[Path, str]]]:
    """Place -> files with their prompts of RUN/generated and of what measures write, such as RUN/audiovisual."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for root in (run / "generated", run / "audiovisual"):
        for folder in [root, *sorted(path for path in root.rglob("*") if path.is_dir())]:
            files = [path for path in sorted(folder.glob("*")) if path.suffix in TYPES and path.is_file()]
            if not files:
                continue
            grids = [path for path in files if path.stem == "grid"]
            chosen = grids + [path for path in files if path.suffix != ".png"] if grids else files
            found[str(folder.relative_to(run))] = [(path, _prompt(path)) for path in chosen[:PER_STREAM]]
    return found


def _prompt(path: Path) -> str:
    about = _json(path.with_suffix(".json")) or {}
    return str(about.get("prompt", "") or "")


def spread(found: Sequence[Found], number: int) -> list[Found]:
    """At most `number` of them, evenly spaced, with the last."""
    if len(found) <= number:
        return list(found)
    places = np.linspace(len(found) - 1, 0, number).round().astype(int)
    return [found[place] for place in sorted(set(places.tolist()))]


def fit(found: Sequence[Found], budget: int) -> tuple[list[tuple[int, list[Item]]], str]:
    """Items of as many steps as `budget` bytes hold, STEPS at most, and a line about what is left out, or ""."""
    cache: dict[Path, Item | None] = {}

    def items(one: Found) -> list[Item]:
        for path, caption in one.files:
            if path not in cache:
                cache[path] = embed(path, caption)
        return [item for path, _ in one.files if (item := cache[path]) is not None]

    number = min(STEPS, len(found))
    last = items(found[-1])
    size = sum(item.size for item in last)
    number = min(number, max(1, budget // max(1, size)))  # steps are about alike
    while True:
        chosen = [(one.step, items(one)) for one in spread(found, number)]
        if number == 1 or sum(item.size for _, held in chosen for item in held) <= budget:
            break
        number -= 1
    left = ""
    if size > budget:
        step, held = chosen[-1]
        kept: list[Item] = []
        for item in held:
            if sum(other.size for other in kept) + item.size <= budget:
                kept.append(item)
        chosen[-1] = (step, kept)
        left = f"{len(held) - len(kept)} files are too large for the page. "
    if len(chosen) < len(found):
        left += f"{len(chosen)} of {len(found)} steps are shown; all lie in {found[-1].files[0][0].parent.parent}"
    return chosen, left.strip()


def embed(path: Path, caption: str) -> Item | None:
    """A file for the page; None where it is gone or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    mime = TYPES[path.suffix]
    kind = mime.partition("/")[0]
    if kind == "image" and len(data) > LARGE_IMAGE:
        try:
            data, mime = _small_image(data), "image/webp"
        except (OSError, ValueError):  # PIL, of a file that is no image
            return None
    heard = spectrogram(path) if kind != "image" else ""
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return Item(kind, caption, uri, len(uri) + len(heard), heard)


def _small_image(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=85)
    return out.getvalue()


def spectrogram(path: Path) -> str:
    """Data URI of the log-magnitude spectrogram of a file's sound: time to the right, frequency upwards on a linear
    axis to where its energy ends, FLOOR to 0 dB of its loudest value. "" for a file without sound."""
    try:
        info = probe_audio(path, str(path))
        sound = read_audio(path, str(path), 0, info.samples)
    except DataError:
        return ""
    return spectrogram_of(torch.from_numpy(sound).mean(1))


def spectrogram_of(sound: torch.Tensor) -> str:
    """That of (samples,) at any rate; "" where there are none."""
    if not len(sound):
        return ""
    share = used_band(sound)
    window = WINDOW << int(-math.log2(share))  # the rows that are kept have about the same number
    hop = max(window // 4, len(sound) // COLUMNS)
    size = max(window, 1 << (hop - 1).bit_length())
    sound = torch.nn.functional.pad(sound, (size // 2, size // 2))
    power = torch.stft(sound, size, hop, window=torch.hann_window(size), center=False, return_complex=True).abs() ** 2
    power = power[: math.ceil(share * len(power))]
    power = torch.nn.functional.adaptive_avg_pool1d(power.T, BINS).T  # (bins, columns)
    decibels = 10 * torch.log10(power / power.max().clamp_min(1e-12) + 1e-12)
    shown = (decibels.clamp(FLOOR, 0) / -FLOOR + 1).flip(0).numpy()  # in [0, 1], high frequencies on top
    out = io.BytesIO()
    Image.fromarray(_coloured(shown)).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def used_band(sound: torch.Tensor) -> float:
    """The share of the frequencies up to half the sample rate in which the sound has its energy, a fifth added; at
    least 1/32. The sound of an MP4 file is often stored at a rate that is many times its own."""
    energy = torch.fft.rfft(sound.double()).abs().square().cumsum(0)
    end = int(torch.searchsorted(energy, IN_BAND * energy[-1]))
    return min(max(1.2 * end / len(energy), 1 / 32), 1.0)


def _coloured(values: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of values in [0, 1]: from black over violet and orange to light yellow."""
    stops = np.asarray([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, stops[:, each]) for each in range(3)], axis=-1).astype(np.uint8)


def _json(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
