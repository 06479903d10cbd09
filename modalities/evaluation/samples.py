"""Generated media against held-out ones, through feature networks.

Values of one network, under `samples/NETWORK/`:

    the network's distance     Frechet distance of its features: FID, FD-DINOv2, FVD (VideoMAEv2), FAD, ...; never FID
                               unless the network is the standard Inception
    sFID                       the same of Inception's spatial features
    KID                        kernel distance, for any network
    precision, recall          k = 3;  density, coverage: k = 5
    IS                         inception score; "class score" by another network with classes
    CLIP score                 of pictures and their captions, by CLIP

NETWORK is its kind, with a number behind it where there are several of one kind.
"""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError, DataError
from core.evaluation.inception_score import inception_score
from core.evaluation.kernel import kernel_distance
from core.evaluation.manifold import density_coverage, precision_recall
from core.evaluation.statistics import FeatureStatistics, RankDeficientWarning, frechet_distance
from core.keys import generator, key
from core.sampler import SamplerConfig
from modalities.conditions import Prompt
from modalities.evaluation.heldout import Reader
from modalities.evaluation.settings import EvaluationSettings
from modalities.evaluation.subject import Subject, trained_here
from modalities.generation import Generator, generate
from modalities.metrics.base import FeatureNetwork, Features
from modalities.metrics.classifier import Classifier, train_classifier
from modalities.metrics.networks import build_network
from modalities.metrics.pretrained import Clip, clip_score

CLASSIFIER_RECORDS = 50_000  # training records that a classifier learns from, at most: 150 MB of pictures in memory
FEWEST = 6  # samples: density counts the 5 nearest others

SCORE_CHUNK = 5000  # samples of one inception score, whose mean is reported (the ADM evaluator)


def samples(
    subject: Subject,
    settings: EvaluationSettings,
    networks: dict[str, FeatureNetwork],
    warnings: list[str],
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """All values of all networks. Raises DataError for fewer than `FEWEST` held-out records."""
    device = subject.model.device
    real: dict[str, list[Features]] = {name: [] for name in networks}
    conditions: list[Prompt] = []
    for records in subject.heldout.records(settings.generated, settings.batch):
        conditions += records.conditions
        for name, network in networks.items():
            real[name].append(_on_cpu(network(records.media.to(device))))
    if len(conditions) < FEWEST:
        raise DataError(f"samples: {len(conditions)} held-out records to compare with; at least {FEWEST} are needed")
    if settings.conditions == "random":
        conditions = random_classes(subject.model, settings.seed, len(conditions))
    made: dict[str, list[Features]] = {name: [] for name in networks}
    for media in generated(subject.model, subject.modality, subject.sampler, settings, conditions, progress):
        for name, network in networks.items():
            made[name].append(_on_cpu(network(media.to(device))))
    found = {}
    for name, network in networks.items():
        a, b = (_moved(Features.join(side[name]), device) for side in (real, made))
        values, lines = compare(network, a, b, settings.seed)
        if isinstance(network, Clip) and subject.model.conditions.config.kind != "none":
            values["CLIP score"] = clip_score(b.pool, network.texts([prompt.text for prompt in conditions]))
        found |= {f"samples/{name}/{measure}": value for measure, value in values.items()}
        warnings += [f"samples/{name}/{line}" for line in lines]
    return found


def generated(
    model: Generator,
    modality: str,
    sampler: SamplerConfig,
    settings: EvaluationSettings,
    conditions: list[Prompt],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Batches (B, *media) of samples, one for each condition."""
    media = generate(model, modality, conditions, sampler, settings.seed, None, settings.batch, progress)
    while held := list(islice(media, settings.batch)):
        yield torch.stack(held)


def random_classes(model: Generator, seed: int, count: int) -> list[Prompt]:
    """`count` classes of the run, drawn uniformly; nothing, as often, where it has no conditions."""
    if model.conditions.config.kind == "none":
        return [Prompt("")] * count
    if model.conditions.config.kind != "label":
        raise ConfigError("conditions: random draws classes, and this run is conditioned on text; use heldout")
    names = model.conditions.labels
    picked = torch.randint(len(names), (count,), generator=generator(seed, "evaluation", "classes"))
    return [Prompt(names[place]) for place in picked.tolist()]


def compare(network: FeatureNetwork, real: Features, made: Features, seed: int) -> tuple[dict[str, float], list[str]]:
    """Distances of generated features to real ones, and warnings."""
    found, warnings = {}, []
    for name, a, b in (
        (network.distance, real.pool, made.pool),
        (spatial_name(network.distance), real.spatial, made.spatial),
    ):
        if a is not None and b is not None:
            found[name], lines = frechet(name, statistics(a), statistics(b))
            warnings += lines
    least = min(len(real.pool), len(made.pool))
    found["KID"] = kernel_distance(real.pool, made.pool, subset_size=min(1000, least), seed=seed).mean
    found |= precision_recall(real.pool, made.pool)._asdict()
    found |= density_coverage(real.pool, made.pool)._asdict()
    if made.logits is not None:
        score = inception_score(made.logits.softmax(1), splits=-(-len(made.logits) // SCORE_CHUNK))
        found["IS" if network.kind == "inception" else "class score"] = score.mean
    return found, warnings


def spatial_name(distance: str) -> str:
    """FID -> sFID, framewise FID -> framewise sFID."""
    return distance.replace("FID", "sFID")


def statistics(features: Tensor) -> FeatureStatistics:
    found = FeatureStatistics()
    found.update(features)
    return found


def frechet(name: str, real: FeatureStatistics, made: FeatureStatistics) -> tuple[float, list[str]]:
    """The distance, and a line where a side has no more samples than features."""
    with python_warnings.catch_warnings():  # the line says it in the result
        python_warnings.simplefilter("ignore", RankDeficientWarning)
        distance = frechet_distance(real, made)
    poor = [side for side in (real, made) if side.rank_deficient]
    if not poor:
        return distance, []
    return distance, [
        f"{name}: {min(side.count for side in poor)} samples for {len(made.mean)} features: the covariance lacks full "
        "rank, and the value is far too uncertain to compare models by (KID is not)"
    ]


def _on_cpu(features: Features) -> Features:
    return _moved(features, torch.device("cpu"))


def _moved(features: Features, device: torch.device) -> Features:
    parts = (features.pool, features.spatial, features.logits)
    return Features(*(None if part is None else part.to(device) for part in parts))


def feature_networks(
    subject: Subject, settings: EvaluationSettings, folder: Path, root: Path
) -> dict[str, FeatureNetwork]:
    """The networks of the settings, by the name that they have in the result, on the model's device.

    A classifier without a path is found in `folder`, or trained on the training records and put there.
    """
    kinds = [config.kind for config in settings.networks]
    found: dict[str, FeatureNetwork] = {}
    for place, config in enumerate(settings.networks):
        if trained_here(config):
            network = own_classifier(subject, settings, folder)
        else:
            network = build_network(config, subject.modality, sample_rate=subject.sample_rate, root=root)
        number = f"-{kinds[: place + 1].count(config.kind)}" if kinds.count(config.kind) > 1 else ""
        found[config.kind + number] = network.to(subject.model.device)
    return found


def own_classifier(subject: Subject, settings: EvaluationSettings, folder: Path) -> Classifier:
    """One for each set of training data, media size, length of training and seed, so that a stale one is not taken."""
    reader, size = subject.training, subject.model.adapters[subject.modality].size
    about = (reader.source.fingerprint(), str(size), str(subject.sample_rate), settings.classifier_steps, settings.seed)
    path = folder / f"classifier-{subject.modality}-{key(*about):016x}.safetensors"
    if path.exists():
        return Classifier.load(path)
    network = train_classifier(
        _classified(reader, settings.batch),
        subject.classes,
        subject.modality,
        subject.data,
        steps=settings.classifier_steps,
        seed=settings.seed,
        sample_rate=subject.sample_rate,
        device=subject.model.device,
    )
    part = network.save(path.with_suffix(".part"))
    os.replace(part, path)
    return network


def _classified(reader: Reader, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for records in reader.records(CLASSIFIER_RECORDS, batch):
        known = records.labels >= 0
        if known.any():
            yield records.media[known], records.labels[known]
