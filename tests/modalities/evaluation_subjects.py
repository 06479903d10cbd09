"""A small labelled-picture model with sources in memory, for the tests of modalities.evaluation."""

from __future__ import annotations

import numpy as np
import torch

from autoencoders.base import Whitening
from core.errors import DataError
from core.keys import generator
from core.sampler import SamplerConfig
from core.trunk.sit import SiT, SiTConfig
from modalities.base import Record
from modalities.conditions import ConditionConfig, Conditions
from modalities.evaluation.heldout import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import make_parts

CLASSES = ["blue", "green", "red"]


class Memory:
    """Pictures of one colour with some noise; class `i % 3`. Records at `broken` are damaged; `reads` are noted."""

    def __init__(self, name: str, count: int, classes=CLASSES, broken=(), strange=()):
        self.name, self.count, self.classes, self.broken, self.strange = name, count, list(classes), broken, strange
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        self.reads.append(index)
        origin = f"{self.name}/{index}"
        if index in self.broken:
            raise DataError(f"{origin}: damaged")
        draw = np.random.default_rng([sum(self.name.encode()), index])
        label = "purple" if index in self.strange else self.classes[index % len(self.classes)] if self.classes else None
        pixels = draw.integers(0, 60, (8, 8, 3))
        if label in CLASSES:
            pixels[..., CLASSES.index(label)] += 150
        return Record(str(index), origin, pixels.astype(np.uint8), captions=(f"{label}", "longer caption"), label=label)

    def labels(self) -> list[str]:
        return sorted(self.classes)

    def fingerprint(self) -> str:
        return f"{self.name} {self.count}"


def model(kind: str = "label") -> Generator:
    trunk = SiT(SiTConfig(width=32, depth=3, heads=2, grid=2, channels=48, patch=4, num_classes=5)).eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # the zero ones would hide everything
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.2)
    adapter = ImageAdapter(ImageConfig(size=[8, 8], patch=4))
    conditions = Conditions(ConditionConfig(kind=kind), [*CLASSES, "purple"] if kind == "label" else [])
    whitening = Whitening(torch.zeros(48), torch.ones(48))
    parts = {"image": make_parts({"image": adapter})}
    return Generator(trunk, parts, {"image": whitening}, conditions, torch.device("cpu"))


def subject(heldout: Memory, training: Memory, kind: str = "label") -> Subject:
    made = model(kind)
    readers = [Reader(made, "image", source, training.labels(), seed=0) for source in (heldout, training)]
    return Subject(made, "image", *readers, SamplerConfig(steps=2), "pictures in memory")
