"""Generated media against held-out ones, through feature networks.

Values of one network, under `samples/NETWORK/`, or `samples/PART/NETWORK/` where the samples have several parts:

    the network's distance     Frechet distance of its features: FID, FD-DINOv2, FVD (VideoMAEv2), FAD, ...; never FID
                               unless the network is the standard Inception
    sFID                       the same of Inception's spatial features
    KID                        kernel distance, for any network
    precision, recall          k = 3;  density, coverage: k = 5
    IS                         inception score; "class score" by another network with classes
    CLIP score                 of images and their captions, by CLIP

NETWORK is its kind, with a number after it where there are several of one kind. Each looks at every part that it can.
"""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, described
from core.evaluation.inception_score import inception_score_of_runs
from core.evaluation.kernel import kernel_distance
from core.evaluation.manifold import density_coverage, precision_recall
from core.evaluation.statistics import FeatureStatistics, RankDeficientWarning, frechet_distance
from core.keys import generator
from core.sampling.sampler import SamplerConfig
from modalities.base import StoredLatents
from modalities.conditioning.conditions import Prompt
from modalities.evaluation.attempts import Measured
from modalities.evaluation.networks.base import FeatureNetwork, Features
from modalities.evaluation.networks.chosen import PartNetwork
from modalities.evaluation.networks.pretrained import Clip, clip_score
from modalities.evaluation.settings import EvaluationSettings
from modalities.evaluation.subject import FEWEST, Make, Subject
from modalities.generation import Generator


def samples(
    subject: Subject,
    settings: EvaluationSettings,
    networks: dict[str, PartNetwork],
    found: Measured,
    progress: Callable[[int], object] | None = None,
) -> None:
    """All values of all networks, by their names. A network that fails is noted and left out; the others continue."""
    device, networks = subject.model.device, dict(networks)
    real: dict[str, list[Features]] = {name: [] for name in networks}
    made: dict[str, list[Features]] = {name: [] for name in networks}
    conditions: list[Prompt] = []

    def look(side: dict[str, list[Features]], media: Mapping[str, Tensor | StoredLatents]) -> None:
        for name, one in list(networks.items()):
            try:
                if one.part not in media:
                    raise DataError(f"sampling.parts.{one.part}: nothing is made of it")
                shown = media[one.part]
                assert isinstance(shown, Tensor)  # `impossible_measures` says so of latents
                side[name].append(_on_cpu(one.network(shown.to(device))))
            except Exception as error:  # noqa: BLE001, as `Measured.attempt`
                found.fail(f"samples/{name}", described(error))
                del networks[name]
        if not networks:
            raise DataError("no feature network is left")

    def generate_and_look() -> dict[str, float]:
        for records in subject.val.records(settings.generated, settings.batch):
            conditions.extend(records.conditions)
            look(real, records.media)
        if len(conditions) < FEWEST:
            raise DataError(f"{len(conditions)} held-out records to compare with; at least {FEWEST} are needed")
        if settings.conditions == "random":
            conditions[:] = random_classes(subject.model, settings.seed, len(conditions))
        for media in generated(subject.makes, subject.stream, subject.sampler, settings, conditions, progress):
            look(made, media)
        return {}

    before = len(found.failed)
    found.attempt("samples", generate_and_look)
    if "samples" in found.failed[before:]:
        return
    for name, network in ((name, one.network) for name, one in networks.items()):
        a, b = (_moved(Features.join(side[name]), device) for side in (real, made))
        one = compare(network, a, b, settings.seed)
        if isinstance(network, Clip) and subject.model.conditions.config.kind != "none":
            one.attempt("CLIP score", partial(_clip, network, b.pool, [prompt.text for prompt in conditions]))
        found.values |= {f"samples/{name}/{measure}": value for measure, value in one.values.items()}
        found.warnings += [f"samples/{name}/{line}" for line in one.warnings]
        found.failed += [f"samples/{name}/{measure}" for measure in one.failed]


def _clip(network: Clip, images: Tensor, texts: list[str]) -> dict[str, float]:
    return {"CLIP score": clip_score(images, network.texts(texts))}


def generated(
    make: Make,
    stream: str,
    sampler: SamplerConfig,
    settings: EvaluationSettings,
    conditions: list[Prompt],
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Batches of samples, one for each condition: name of the part -> (B, *media)."""
    media = make(stream, conditions, sampler, settings.seed, None, settings.batch, progress)
    while held := list(islice(media, settings.batch)):
        yield {name: torch.stack([parts[name] for parts in held]) for name in held[0]}


def random_classes(model: Generator, seed: int, count: int) -> list[Prompt]:
    """`count` classes of the run, drawn uniformly; nothing, as often, where it has no conditions."""
    if model.conditions.config.kind == "none":
        return [Prompt("")] * count
    if model.conditions.config.kind != "label":
        raise ConfigError("conditions: random draws classes, and this run is conditioned on text; use val")
    names = model.conditions.labels
    picked = torch.randint(len(names), (count,), generator=generator(seed, "evaluation", "classes"))
    return [Prompt(names[place]) for place in picked.tolist()]


def compare(network: FeatureNetwork, real: Features, made: Features, seed: int) -> Measured:
    """Distances of generated features to real ones."""
    found = Measured()
    for name, a, b in (
        (network.distance, real.pool, made.pool),
        (spatial_name(network.distance), real.spatial, made.spatial),
    ):
        if a is not None and b is not None:
            found.attempt(name, partial(_distance, name, a, b, found.warnings))
    size = min(1000, len(real.pool), len(made.pool))
    found.attempt("KID", lambda: {"KID": kernel_distance(real.pool, made.pool, subset_size=size, seed=seed).mean})
    found.attempt("precision, recall", lambda: precision_recall(real.pool, made.pool)._asdict())
    found.attempt("density, coverage", lambda: density_coverage(real.pool, made.pool)._asdict())
    if (logits := made.logits) is not None:
        score = "IS" if network.kind == "inception" else "class score"
        found.attempt(score, lambda: {score: inception_score_of_runs(logits.softmax(1)).mean})
    return found


def _distance(name: str, real: Tensor, made: Tensor, warnings: list[str]) -> dict[str, float]:
    value, lines = frechet(name, statistics(real), statistics(made))
    warnings += lines
    return {name: value}


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
    counts = [side.count for side in (real, made) if side.rank_deficient and side.count is not None]
    if not counts:
        return distance, []
    return distance, [
        f"{name}: {min(counts)} samples for {len(made.mean)} features: the covariance lacks full "
        "rank, and the value is far too uncertain to compare models by (KID is not)"
    ]


def _on_cpu(features: Features) -> Features:
    return _moved(features, torch.device("cpu"))


def _moved(features: Features, device: torch.device) -> Features:
    spatial, logits = (None if part is None else part.to(device) for part in (features.spatial, features.logits))
    return Features(features.pool.to(device), spatial, logits)
