"""Samples of the EMA weights while a run trains.

RUN/samples/step-N/
    image-000.png ...    every sample, as `selfflow generate` writes it; video-000.mp4, audio-000.wav
    image-grid.png       all pictures with their prompts
    index.json           prompt, file and noise of every sample, the sampler's settings, and what failed

A folder is there as a whole or not at all.
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
from core.sampler import SamplerConfig
from core.training.hooks import PreviewConfig, attempt
from core.training.tracker_media import Media
from core.training.trackers import Trackers
from modalities.conditions import Prompt
from modalities.generation import Generator, generate
from modalities.media.writing import to_bytes, write_grid


@dataclass(frozen=True)
class Previewed:
    """One modality: `prompts`, one sample each; `rate` of its frames or samples per second, 0 for pictures."""

    prompts: Sequence[str | Prompt]
    sampler: SamplerConfig
    rate: float


class Preview:
    """
    Args:
        root: folder of the previews.
        model: everything around the trunk, which every call brings along.
        modalities: name -> what to make.
    """

    name = "preview"

    def __init__(self, config: PreviewConfig, root: Path, model: Generator, modalities: Mapping[str, Previewed]):
        self.config, self.every, self.root = config, config.every, Path(root)
        self.model, self.modalities = model, modalities

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
        """A modality that fails is left out and reported. Raises DataError when all of them do."""
        model, final = replace(self.model, trunk=teacher), self.folder(step)
        aside = self.root / f".writing-{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        entries: list[dict] = []
        shown: list[Media] = []
        failed: dict[str, str] = {}
        try:
            for modality in self.modalities:
                if reason := attempt(
                    f"preview of {modality}, step {step},",
                    lambda modality=modality: self._make(model, modality, aside, entries, shown),
                ):
                    failed[modality] = reason
            if not entries:
                raise DataError("no sample could be made")
            index = {
                "step": step,
                "weights": "ema",
                "samples": entries,
                "samplers": {name: asdict(item.sampler) for name, item in self.modalities.items()},
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

    def _make(self, model: Generator, modality: str, folder: Path, entries: list[dict], shown: list[Media]) -> None:
        wanted, seed = self.modalities[modality], self.config.seed
        texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in wanted.prompts]
        made = generate(model, modality, wanted.prompts, wanted.sampler, seed, batch_size=self.config.batch)
        pictures: list[Tensor] = []
        for index, (text, media) in enumerate(zip(texts, made, strict=True)):
            path = model.adapters[modality].write(media, folder / f"{modality}-{index:03d}")
            entries.append({"file": path.name, "modality": modality, "prompt": text, "seed": seed, "index": index})
            if modality == "image":
                pictures.append(media)
            else:
                kind, data = _for_trackers(modality, media)
                shown.append(Media(f"preview/{modality}/{index}", kind, path, data, wanted.rate, text))
        if pictures:
            path = write_grid(torch.stack(pictures), folder / f"{modality}-grid", labels=texts)
            data = np.asarray(Image.open(path).convert("RGB"))
            shown.append(Media(f"preview/{modality}", "picture", path, data, caption=" | ".join(texts)))


def _for_trackers(modality: str, media: Tensor) -> tuple[str, np.ndarray]:
    """Kind and data of a clip (T, 3, H, W), or a sound (channels, samples), which becomes one channel."""
    if modality == "video":
        return "clip", to_bytes(media)
    return "sound", media.float().clamp(-1, 1).mean(0).numpy()
