"""Samples of the EMA weights while a run trains.

RUN/samples/step-N/
    STREAM-000.png ...   every sample, as `selfflow generate` writes it: .mp4 of videos, also with their audio, .wav
    STREAM-grid.png      all images with their prompts
    index.json           prompt, noise and stream of every file, the sampler's settings, and what failed

A folder is either complete or absent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from core.durable import sync, write_durably
from core.errors import DataError
from core.sampling.sampler import SamplerConfig
from core.training.hooks import PreviewConfig, attempt
from core.training.tracker_media import Media
from core.training.trackers import Trackers
from modalities.action import ActionAdapter
from modalities.conditioning.conditions import Prompt
from modalities.generation import Generator, generate, made_parts
from modalities.media.writing import to_bytes, write_grid
from modalities.sample_files import write_parts
from modalities.streams import Part, Parts

KINDS = {2: "audio", 3: "image", 4: "video"}  # by the axes of one sample's media


@dataclass(frozen=True)
class Previewed:
    """One stream: `prompts`, one sample each."""

    prompts: Sequence[str | Prompt]
    sampler: SamplerConfig


class Preview:
    """
    Args:
        root: folder of the previews.
        model: everything around the trunk, which every call brings along.
        streams: name -> what to make.
    """

    name = "preview"

    def __init__(self, config: PreviewConfig, root: Path, model: Generator, streams: Mapping[str, Previewed]):
        self.config, self.every, self.root = config, config.every, Path(root)
        self.model, self.streams = model, streams

    def folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def is_done(self, step: int) -> bool:
        return self.folder(step).is_dir()

    def forget(self, step: int) -> None:
        for path in self.root.glob("step-*"):
            number = path.name.removeprefix("step-")
            if number.isdigit() and int(number) > step:
                gone = self.root / f".removing-{path.name}"  # a half-removed folder must not look like a preview
                os.rename(path, gone)
        for path in [*self.root.glob(".removing-*"), *self.root.glob(".writing-*")]:
            shutil.rmtree(path)

    def __call__(self, step: int, student: nn.Module, teacher: nn.Module, trackers: Trackers) -> None:
        """A stream that fails is left out and reported. Raises DataError when all of them do."""
        model, final = replace(self.model, trunk=teacher), self.folder(step)
        aside = self.root / f".writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        entries: list[dict] = []
        shown: list[Media] = []
        failed: dict[str, str] = {}
        try:
            for stream in self.streams:
                if reason := attempt(
                    f"preview of {stream}, step {step},",
                    lambda stream=stream: self._make(model, stream, aside, entries, shown),
                ):
                    failed[stream] = reason
            if not entries:
                raise DataError("no sample could be made")
            index = {
                "step": step,
                "weights": "ema",
                "samples": entries,
                "samplers": {name: asdict(item.sampler) for name, item in self.streams.items()},
                "failed": failed,
                "torch": torch.__version__,
            }
            write_durably(aside / "index.json", json.dumps(index, indent=1) + "\n")
            sync(aside)
            os.rename(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync(self.root)
        trackers.write_media(step, [replace(item, path=final / item.path.name) for item in shown])

    def _make(self, model: Generator, stream: str, folder: Path, entries: list[dict], shown: list[Media]) -> None:
        wanted, seed, parts = (
            self.streams[stream],
            self.config.seed,
            made_parts(model.parts[stream], self.streams[stream].sampler),
        )
        texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in wanted.prompts]
        made = generate(model, stream, wanted.prompts, wanted.sampler, seed, batch_size=self.config.batch)
        images: dict[str, list[Tensor]] = {}
        for index, (text, media) in enumerate(zip(texts, made, strict=True)):
            files = write_parts(parts, media, folder / f"{stream}-{index:03d}")
            about = {"stream": stream, "prompt": text, "seed": seed, "index": index}
            entries += [{"file": path.name, **about} for path in files]
            own = files if len(files) == len(parts) else files * len(parts)  # one file holds all parts
            for (name, part), path in zip(parts.items(), own, strict=True):
                if isinstance(part.adapter, ActionAdapter):
                    continue  # trackers show no vectors; the file is there
                if KINDS[media[name].ndim] == "image":
                    images.setdefault(name, []).append(media[name])
                    continue
                place = f"{_place(stream, name, parts, '/')}/{index}"
                shown.append(_for_trackers(f"preview/{place}", part, media[name], path, text))
        for name, held in images.items():
            path = write_grid(torch.stack(held), folder / f"{_place(stream, name, parts, '-')}-grid", labels=texts)
            data = np.asarray(Image.open(path).convert("RGB"))
            place = _place(stream, name, parts, "/")
            shown.append(Media(f"preview/{place}", "image", path, data, caption=" | ".join(texts)))


def _place(stream: str, part: str, parts: Parts, between: str) -> str:
    """The name of the stream, and of the part where it is not the only one."""
    return stream if len(parts) == 1 else f"{stream}{between}{part}"


def _for_trackers(name: str, part: Part, media: Tensor, path: Path, text: str) -> Media:
    """A video (T, 3, H, W), or an audio clip (channels, samples), which becomes one channel."""
    kind, config = KINDS[media.ndim], part.adapter.config
    if kind == "video":
        return Media(name, kind, path, to_bytes(media), config.fps, text)
    return Media(name, kind, path, media.float().clamp(-1, 1).mean(0).numpy(), config.sample_rate, text)
