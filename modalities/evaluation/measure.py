"""The measures of one model on one modality, as flat names and numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError
from core.evaluation.features import block_features
from core.evaluation.health import feature_health
from core.evaluation.inception_score import inception_score
from core.evaluation.inputs import noisy_inputs
from core.evaluation.kernel import kernel_distance
from core.evaluation.manifold import density_coverage, precision_recall
from core.evaluation.probes import knn_accuracy, linear_probe
from core.evaluation.statistics import FeatureStatistics, RankDeficientWarning, frechet_distance
from core.evaluation.velocity import velocity_loss_curve
from core.keys import generator
from core.sampler import SamplerConfig
from core.types import Taps, TokenBatch
from modalities.base import Source
from modalities.evaluation.heldout import Records, read_records, token_batch
from modalities.evaluation.settings import EvaluationSettings
from modalities.generation import Generator, generate
from modalities.metrics.base import FeatureNetwork, Features
from modalities.metrics.classifier import Classifier, train_classifier
from modalities.metrics.networks import build_network
from modalities.metrics.pretrained import Clip, clip_score


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model on one modality, with its data.

    Attributes:
        heldout, training: records; the first are not trained on.
        sampler: how samples are generated.
        sample_rate: of sounds, Hz, else None.
        data: name of the training data, for the name of a classifier trained on it.
    """

    model: Generator
    modality: str
    heldout: Source
    training: Source
    sampler: SamplerConfig
    sample_rate: int | None
    data: str

    def read(self, source: Source, count: int, settings: EvaluationSettings) -> Iterator[Records]:
        return read_records(self.model, self.modality, source, count, settings.batch, settings.seed)

    def batches(self, source: Source, count: int, settings: EvaluationSettings) -> Iterator[TokenBatch]:
        for records in self.read(source, count, settings):
            yield token_batch(self.model, self.modality, records)


def velocity(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    """velocity/mean, velocity/t=...: mean squared velocity error on held-out records."""
    batches = subject.batches(subject.heldout, settings.heldout, settings)
    curve = velocity_loss_curve(subject.model.trunk, batches, settings.times, settings.seed)
    losses = dict(zip(curve.times, curve.losses[subject.modality], strict=True))
    return {"velocity/mean": curve.mean(subject.modality)} | {f"velocity/t={t:g}": loss for t, loss in losses.items()}


def class_knowledge(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    """probe/layer=..., knn/layer=...: accuracies on held-out records, of features at one noise level without labels."""
    sides = {}
    for name, source, count in (
        ("train", subject.training, settings.training),
        ("test", subject.heldout, settings.heldout),
    ):
        labels: list[Tensor] = []
        batches = _unconditional(subject, subject.read(source, count, settings), labels)
        layers = range(1, subject.model.trunk.depth + 1)
        features = block_features(subject.model.trunk, batches, layers, settings.feature_time, settings.seed)
        sides[name] = features, torch.cat(labels)
    (train, train_y), (test, test_y) = sides["train"], sides["test"]
    classes = len(subject.training.labels())
    found = {}
    for layer in train:
        arguments = (train[layer], train_y, test[layer], test_y, classes)
        if "probe" in settings.measures:
            found[f"probe/layer={layer}"] = linear_probe(*arguments, seed=settings.seed).accuracy
        if "knn" in settings.measures:
            found[f"knn/layer={layer}"] = knn_accuracy(*arguments)
    for measure in ("probe", "knn"):
        values = [value for name, value in found.items() if name.startswith(f"{measure}/")]
        if values:
            found[f"{measure}/best"] = max(values)
    return found


def _unconditional(subject: Subject, records: Iterable[Records], labels: list[Tensor]) -> Iterator[TokenBatch]:
    """Without the condition, which would tell the class; labels are collected on the way."""
    for part in records:
        if part.labels is None:
            raise ConfigError(
                f"measures: probe and knn need classes, and the {subject.modality} data have none; leave these two out"
            )
        labels.append(part.labels)
        batch = token_batch(subject.model, subject.modality, part)
        yield TokenBatch(batch.segments, batch.context.drop_all(), batch.keys)


@torch.no_grad()
def health(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    """health/...: feature norms, effective ranks and cosines of every block on one batch of held-out records."""
    trunk = subject.model.trunk
    batch = next(subject.batches(subject.heldout, settings.batch, settings))
    noisy, _, levels = noisy_inputs(batch, settings.feature_time, settings.seed)
    raw = trunk(noisy, levels, batch, Taps(raw=tuple(range(1, trunk.depth + 1)))).raw
    found = feature_health({f"layer={layer}": features for layer, features in raw.items()}, batch.counted())
    return {f"health/{name}": value for name, value in found.items()}


def samples(
    subject: Subject,
    settings: EvaluationSettings,
    networks: list[FeatureNetwork],
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """samples/NETWORK/...: Frechet distance, KID, precision, recall, density, coverage, and what the network adds."""
    real: list[list[Features]] = [[] for _ in networks]
    conditions: list[str] = []
    for records in subject.read(subject.heldout, settings.generated, settings):
        conditions += records.conditions
        for network, parts in zip(networks, real, strict=True):
            parts.append(network(records.media.to(subject.model.device)))
    if settings.conditions == "random":
        conditions = random_classes(subject, settings.seed, len(conditions))
    made: list[list[Features]] = [[] for _ in networks]
    for media in generated(subject, settings, conditions, progress):
        for network, parts in zip(networks, made, strict=True):
            parts.append(network(media.to(subject.model.device)))
    found = {}
    for network, a, b in zip(networks, real, made, strict=True):
        compared = compare(network, Features.join(a), Features.join(b), settings.seed)
        if isinstance(network, Clip):
            compared["CLIP score"] = clip_score(Features.join(b).pool, network.texts(conditions))
        found |= {f"samples/{network.kind}/{name}": value for name, value in compared.items()}
    return found


def generated(
    subject: Subject,
    settings: EvaluationSettings,
    conditions: list[str],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Batches (B, *media) of samples, one for each condition."""
    media = generate(
        subject.model, subject.modality, conditions, subject.sampler, settings.seed, None, settings.batch, progress
    )
    while held := list(islice(media, settings.batch)):
        yield torch.stack(held)


def random_classes(subject: Subject, seed: int, count: int) -> list[str]:
    """`count` classes of the run, drawn uniformly."""
    names = subject.model.conditions.labels
    if subject.model.conditions.config.kind != "label":
        raise ConfigError("conditions: random draws classes, and this run is conditioned on text; use heldout")
    picked = torch.randint(len(names), (count,), generator=generator(seed, "evaluation", "classes"))
    return [names[place] for place in picked.tolist()]


def compare(network: FeatureNetwork, real: Features, made: Features, seed: int) -> dict[str, float]:
    """Distances of generated features to real ones."""
    found = {network.distance: _frechet(real.pool, made.pool)}
    least = min(len(real.pool), len(made.pool))
    found["KID"] = kernel_distance(real.pool, made.pool, subset_size=min(1000, least), seed=seed).mean
    found |= precision_recall(real.pool, made.pool)._asdict()
    found |= density_coverage(real.pool, made.pool)._asdict()
    if real.spatial is not None and made.spatial is not None:
        found[f"s{network.distance}"] = _frechet(real.spatial, made.spatial)
    if made.logits is not None:
        score = inception_score(made.logits.softmax(1), splits=min(10, max(1, least // 100)))
        found["IS" if network.kind == "inception" else "class score"] = score.mean
    return found


def _frechet(real: Tensor, made: Tensor) -> float:
    sides = FeatureStatistics(), FeatureStatistics()
    for side, features in zip(sides, (real, made), strict=True):
        side.update(features)
    with warnings.catch_warnings():  # the report states how many samples and features there were
        warnings.simplefilter("ignore", RankDeficientWarning)
        return frechet_distance(*sides)


def feature_networks(subject: Subject, settings: EvaluationSettings, folder: Path, root: Path) -> list[FeatureNetwork]:
    """The networks of the settings; a classifier without a path is found in `folder`, or trained and put there."""
    found = []
    for config in settings.networks:
        if config.path:
            network = build_network(config, subject.modality, sample_rate=subject.sample_rate, root=root)
        else:
            network = _own_classifier(subject, settings, folder)
        found.append(network.to(subject.model.device))
    return found


def _own_classifier(subject: Subject, settings: EvaluationSettings, folder: Path) -> Classifier:
    path = folder / f"classifier-{subject.modality}.safetensors"
    if path.exists():
        return Classifier.load(path)
    classes = subject.training.labels()
    if not classes:
        raise ConfigError(
            f"networks: a small classifier needs classes, and the {subject.modality} data have none; give a network "
            "with weights, or leave `samples` out of the measures"
        )
    parts = ((records.media, records.labels) for records in subject.read(subject.training, 50_000, settings))
    network = train_classifier(
        parts,
        classes,
        subject.modality,
        subject.data,
        steps=settings.classifier_steps,
        seed=settings.seed,
        sample_rate=subject.sample_rate,
        device=subject.model.device,
    )
    folder.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return network


def evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    networks: list[FeatureNetwork],
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """All measures that the settings name."""
    found: dict[str, float] = {}
    if "velocity" in settings.measures:
        found |= velocity(subject, settings)
    if {"probe", "knn"} & set(settings.measures):
        found |= class_knowledge(subject, settings)
    if "health" in settings.measures:
        found |= health(subject, settings)
    if "samples" in settings.measures:
        found |= samples(subject, settings, networks, progress)
    return found
