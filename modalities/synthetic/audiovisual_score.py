"""How often generated videos and audio clips agree, measured on the written files.

Three ways to ask for a video with audio: both parts from the caption, the audio of a given video, and the video of
given audio. What is given is held out: drawn with another seed than the training data. Beside every share stands
what chance gives: shuffled pairs for tracks, one in 6 colors and one in 2 shapes.

    python -m tools.audiovisual RUN --number 96      scores of a run of configs/audiovisual.yaml, and its sheet
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from core.errors import ConfigError
from core.keys import generator as keyed
from core.sampling.sampler import SamplerConfig
from modalities.base import Known
from modalities.generation import Generator, generate
from modalities.media.audio import probe_audio
from modalities.media.audio import read_audio as read_samples
from modalities.media.opening import with_suffix
from modalities.media.video import index_video, read_frames
from modalities.sample_files import write_sample
from modalities.streams import Parts
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.synthetic.audiovisual_check import agreement, read_audio, read_video, words_right
from modalities.synthetic.draw import COLORS, MOVING_SHAPES

VAL_SEED = 1000  # of the data
MODES = {"pair": None, "audio of a video": "video", "video of an audio clip": "audio"}  # name -> modality that is given
CHANCE = {"color": 1 / len(COLORS), "shape": 1 / len(MOVING_SHAPES), "timbre": 1 / len(MOVING_SHAPES)}


@dataclass(frozen=True)
class Read:
    """What one file shows and sounds like: heights (T,) of both, and the words that fit them."""

    frames: np.ndarray
    seen: np.ndarray
    heard: np.ndarray
    color: str
    shape: str
    timbre: str


def score(
    model: Generator,
    stream: str,
    settings: SamplerConfig,
    folder: Path,
    number: int = 96,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Mode -> color, shape, timbre, track -> {"right": share, "chance": share}; files of every mode in `folder`.

    Args:
        stream: one with a video and an audio part.
        number: held-out samples of each mode.
        progress: called after every sampler step with the number of samples that took it.

    Raises ConfigError for a stream with other parts, or fewer than two samples.
    """
    parts = model.parts[stream]
    names = {part.adapter.modality: name for name, part in parts.items()}
    if set(names) != {"video", "audio"} or len(parts) != 2:
        raise ConfigError(f"{stream}: has {', '.join(names)}; the score is of a video with its audio")
    if number < 2:
        raise ConfigError(f"number: {number}; at least 2 samples are needed to shuffle them")
    captions, media = val(parts, names, number)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for mode, given in MODES.items():
        known = None
        if given is not None:
            adapter = parts[names[given]].adapter
            known = [{names[given]: Known.whole(adapter, row[given])} for row in media]
        made = generate(model, stream, captions, settings, seed, known, batch_size, progress)
        place = folder / mode.replace(" ", "-")
        files = [write_sample(parts, sample, place / f"{i:04d}") for i, sample in enumerate(made)]
        reads = [read_file(path, parts[names["video"]].adapter.config.frames) for path in files]
        found[mode] = shares(captions, reads)
        contact_sheet(reads, captions, place)
    return found


def val(parts: Parts, names: Mapping[str, str], number: int) -> tuple[list[str], list[dict[str, Tensor]]]:
    """Captions, and media by modality, of records that training never drew."""
    video, audio = (parts[names[modality]].adapter for modality in ("video", "audio"))
    size, config = video.config.size[0], video.config
    source = AudiovisualSource(size, VAL_SEED, number, config.frames, config.fps, audio.config.sample_rate)
    records = [source.read(index) for index in range(number)]
    media = [
        {
            modality: parts[names[modality]].adapter.load(record.part(modality), keyed("val", record.key))
            for modality in ("video", "audio")
        }
        for record in records
    ]
    return [record.captions[0] for record in records], media


def read_file(path: Path, frames: int) -> Read:
    """Image and audio of an MP4, at the same time from its beginning on."""
    index = index_video(path, str(path))
    pixels = np.stack(read_frames(path, str(path), index, np.arange(min(frames, len(index.pts)))))
    info = probe_audio(path, str(path))
    audio = read_samples(path, str(path), 0, min(info.samples, round(index.seconds * info.rate)))
    seen, color, shape = read_video(pixels)
    heard, timbre = read_audio(audio, info.rate, len(pixels))
    return Read(pixels, seen, heard, color, shape, timbre)


def shares(captions: Sequence[str], reads: Sequence[Read]) -> dict[str, dict[str, float]]:
    """Shares of samples whose image, and whose audio, fit the caption, and whose image and audio fit each other."""
    words = words_right(captions, [read.color for read in reads], [read.shape for read in reads])
    right = {
        **words,
        "timbre": float(np.mean([r.timbre == c.split()[2] for r, c in zip(reads, captions, strict=True)])),
    }
    track = agreement(np.stack([read.seen for read in reads]), np.stack([read.heard for read in reads]))
    return {**{name: {"right": share, "chance": CHANCE[name]} for name, share in right.items()}, "track": track}


def contact_sheet(reads: Sequence[Read], captions: Sequence[str], path: Path, most: int = 12, side: int = 64) -> Path:
    """A PNG with a row for each sample: its frames, and below them the height of each frame's pitch as a bar."""
    gap, band, margin = 4, 24, 14
    rows = list(zip(reads, captions, strict=True))[:most]
    columns = max(len(read.frames) for read, _ in rows)
    high = margin + side + band + 2 * gap
    sheet = Image.new("RGB", (columns * (side + gap) + gap, len(rows) * high), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (read, caption) in enumerate(rows):
        top = row * high
        draw.text((gap, top), caption, fill="black")
        for column, frame in enumerate(read.frames):
            x, y = gap + column * (side + gap), top + margin
            sheet.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX), (x, y))
            level = y + side + 2 + round((1 - float(np.clip(read.heard[column], 0, 1))) * (band - 4))
            draw.line((x, y + side + band, x + side, y + side + band), fill="lightgrey")
            draw.rectangle((x, level, x + side, level + 2), fill="black")
    path = with_suffix(path, ".png")
    sheet.save(path)
    return path
