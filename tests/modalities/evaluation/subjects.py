"""Small models with sources in memory, for the tests of modalities.evaluation: labeled images, videos with audio."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from autoencoders.base import LatentNormalization
from core.errors import DataError
from core.keys import generator
from core.sampling.sampler import SamplerConfig
from core.trunk.context import ContextConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.sit import SiT, SiTConfig
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import Record
from modalities.conditioning.conditions import ConditionConfig, Conditions
from modalities.evaluation.records import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import Parts, make_parts
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.video import VideoAdapter, VideoConfig

CLASSES = ["blue", "green", "red"]


class Memory:
    """Images of one color with some noise; class `i % 3`. Records at `broken` are damaged; `reads` are noted."""

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


def drawn(trunk: nn.Module) -> nn.Module:
    """Every weight drawn: the zero ones would hide everything."""
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.2)
    return trunk.eval()


def model(kind: str = "label") -> Generator:
    trunk = drawn(SiT(SiTConfig(width=32, depth=3, heads=2, grid=2, channels=48, patch=4, num_classes=5)))
    adapter = ImageAdapter(ImageConfig(size=[8, 8], patch=4))
    conditions = Conditions(ConditionConfig(kind=kind), [*CLASSES, "purple"] if kind == "label" else [])
    normalization = LatentNormalization(torch.zeros(48), torch.ones(48))
    parts = {"image": make_parts({"image": adapter})}
    return Generator(trunk, parts, {"image": normalization}, conditions, torch.device("cpu"))


def subject(val: Memory, training: Memory, kind: str = "label") -> Subject:
    made = model(kind)
    readers = [Reader(made, "image", source, training.labels(), seed=0) for source in (val, training)]
    return Subject(made, "image", *readers, SamplerConfig(steps=2), "images in memory")


STREAM = "clips"  # a name that is none of its parts'


def audiovisual_parts() -> Parts:
    """A video of 27 tokens with 96 channels and its audio, 41 tokens with 64."""
    video = VideoAdapter(VideoConfig(size=[12, 12], frames=5, patch=4))
    return make_parts({"video": video, "audio": AudioAdapter(AudioConfig(seconds=0.625, hop=64))})


def audiovisual_source(seed: int, count: int) -> AudiovisualSource:
    return AudiovisualSource(size=12, seed=seed, count=count, frames=5)


def audiovisual_trunk(parts: Parts, classes: int, **more) -> MMDiT:
    channels = {name: part.adapter.channels for name, part in parts.items()}
    context = ContextConfig(kind="labels", num_classes=classes)
    return drawn(MMDiT(MMDiTConfig("tiny", 96, 2, 1, 1, mlp_ratio=1.0, channels=channels, context=context), **more))


def audiovisual_subject(val: int = 24, training: int = 30) -> Subject:
    """A model of classes on the stream `videos`: videos with their audio, drawn in code."""
    parts, classes = audiovisual_parts(), audiovisual_source(0, 1).labels()
    normalization = {
        name: LatentNormalization(torch.zeros(width), torch.ones(width))
        for name, width in ((name, part.adapter.channels) for name, part in parts.items())
    }
    conditions = Conditions(ConditionConfig(kind="label"), classes)
    made = Generator(
        audiovisual_trunk(parts, len(classes)), {STREAM: parts}, normalization, conditions, torch.device("cpu")
    )
    sources = audiovisual_source(1, val), audiovisual_source(0, training)
    readers = [Reader(made, STREAM, source, classes, seed=0) for source in sources]
    return Subject(made, STREAM, *readers, SamplerConfig(steps=2), "videos in memory")
