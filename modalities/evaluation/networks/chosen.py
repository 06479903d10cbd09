"""The feature networks of a subject: which part each looks at, those with weights, and classifiers trained here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from core.durable import writing
from core.errors import CheckpointError, DataError, SelfFlowError, described
from core.keys import key as keyed
from modalities.evaluation.attempts import Measured
from modalities.evaluation.networks.base import FeatureNetwork
from modalities.evaluation.networks.classifier import Classifier, train_classifier
from modalities.evaluation.networks.kinds import NetworkConfig, build_network, kinds_for
from modalities.evaluation.records import Reader
from modalities.evaluation.settings import EvaluationSettings
from modalities.evaluation.subject import Subject, trained_here

CLASSIFIER_RECORDS = 50_000  # training records that a classifier learns from, at most: 150 MB of images in memory


@dataclass(frozen=True)
class PartNetwork:
    """A network that looks at one part of the samples."""

    part: str
    network: FeatureNetwork

    def to(self, device: torch.device) -> PartNetwork:
        return replace(self, network=self.network.to(device))


def network_names(settings: EvaluationSettings) -> list[str]:
    """The name that each network of the settings has in the result, after that of the part it looks at."""
    kinds = [config.kind for config in settings.networks]
    return [
        kind + (f"-{kinds[: place + 1].count(kind)}" if kinds.count(kind) > 1 else "")
        for place, kind in enumerate(kinds)
    ]


def result_names(subject: Subject, settings: EvaluationSettings) -> list[str]:
    """Every name that a network can have in the result, in the order of the settings."""
    return [f"{subject.prefix(part)}{name}" for name in network_names(settings) for part in subject.parts]


def parts_of(subject: Subject, config: NetworkConfig, root: Path) -> list[str]:
    """The parts that a network looks at: all that it can; the first one where it fits none, so that building it says
    what is wrong."""
    fitting = [name for name, part in subject.parts.items() if _fits(config, part.adapter.modality, root)]
    return fitting or list(subject.parts)[:1]


def _fits(config: NetworkConfig, modality: str, root: Path) -> bool:
    if config.kind != "classifier" or not config.path:
        return config.kind in kinds_for(modality)
    path = root / config.path if (root / config.path).exists() else Path(config.path)
    try:
        return Classifier.load(path).modality == modality
    except CheckpointError:
        return False


def stored_network(subject: Subject, config: NetworkConfig, part: str, root: Path) -> PartNetwork:
    """A network that comes with weights, on the CPU. Raises ConfigError, CheckpointError as `build_network`."""
    adapter = subject.parts[part].adapter
    return PartNetwork(part, build_network(config, adapter.modality, sample_rate=_rate(subject, part), root=root))


def stored_networks(
    subject: Subject, settings: EvaluationSettings, root: Path
) -> tuple[dict[str, PartNetwork], dict[str, str]]:
    """The networks of the settings that come with weights, by their names in the result, on the CPU; and why others
    cannot be used.

    Raises the first error where no network is left, not even one that is trained here.
    """
    found: dict[str, PartNetwork] = {}
    wrong: dict[str, SelfFlowError] = {}
    for name, config in zip(network_names(settings), settings.networks, strict=True):
        for part in [] if trained_here(config) else parts_of(subject, config, root):
            key = f"{subject.prefix(part)}{name}"
            try:
                found[key] = stored_network(subject, config, part, root)
            except SelfFlowError as error:
                wrong[key] = error
    if wrong and not found and not any(map(trained_here, settings.networks)):
        raise next(iter(wrong.values()))
    return found, {key: described(error) for key, error in wrong.items()}


def own_networks(
    subject: Subject, settings: EvaluationSettings, folder: Path, found: Measured
) -> dict[str, PartNetwork]:
    """The classifiers without a path, one for each part: found in `folder`, or trained on the training records and put
    there."""
    made: dict[str, PartNetwork] = {}

    def make(name: str, part: str) -> dict[str, float]:
        made[name] = PartNetwork(part, own_classifier(subject, part, settings, folder, found.warnings))
        return {}

    for name, config in zip(network_names(settings), settings.networks, strict=True):
        for part in subject.parts if trained_here(config) else ():
            key = f"{subject.prefix(part)}{name}"
            found.attempt(f"samples/{key}", partial(make, key, part))
    return made


def own_classifier(
    subject: Subject, part: str, settings: EvaluationSettings, folder: Path, warnings: list[str] | None = None
) -> Classifier:
    """One for each part, set of training data, media size, length of training and seed, so that a stale one is not
    taken.

    One that cannot be stored is used all the same, and `warnings` say so.
    """
    reader, adapter, rate = subject.training, subject.parts[part].adapter, _rate(subject, part)
    about = (reader.source.fingerprint(), str(adapter.size), str(rate), settings.classifier_steps, settings.seed)
    name = subject.stream if len(subject.parts) == 1 else f"{subject.stream}-{part}"
    path = folder / f"classifier-{name}-{keyed(*about):016x}.safetensors"
    if path.exists():
        return Classifier.load(path)
    network = train_classifier(
        _classified(reader, part, settings.batch),
        subject.classes,
        adapter.modality,
        subject.data,
        steps=settings.classifier_steps,
        seed=settings.seed,
        sample_rate=rate,
        device=subject.model.device,
    )
    try:
        with writing(path, "; it is trained again the next time"):
            os.replace(network.save(path.with_suffix(".part")), path)
    except DataError as error:
        if warnings is None:
            raise
        warnings.append(str(error))
    return network


def _classified(reader: Reader, part: str, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for records in reader.records(CLASSIFIER_RECORDS, batch):
        known = records.labels >= 0
        if known.any():
            media = records.media[part]
            assert isinstance(media, Tensor)  # samples are of media, not of stored latents: `impossible_measures`
            yield media[known], records.labels[known]


def _rate(subject: Subject, part: str) -> int | None:
    """Hz, of audio clips."""
    return getattr(subject.parts[part].adapter.config, "sample_rate", None)
