"""The measures of one model on one stream, as flat names and numbers.

    velocity/mean, velocity/t=T       mean squared velocity error on held-out records, of all times and of time T
    probe/layer=K, probe/best         accuracy of a linear probe of block K on held-out records; its largest
    knn/layer=K, knn/best             the same of a vote of the nearest training records
    health/NAME/layer=K               NAME of core.evaluation.health.LayerHealth: norm, effective_rank, token_cosine,
                                      mean_cosine
    health/align_NAME                 NAME of core.evaluation.health.PairHealth and core.evaluation.pair, of student and
                                      EMA teacher noised as in training: cosine, cosine_noisier, cosine_same,
                                      share_noisier, norm_student, norm_teacher, level_student, level_teacher,
                                      level_gap, share_masked. Only of runs with alignment.ema_teacher
    samples/NETWORK/NAME              distances of generated to held-out media (modalities/evaluation/samples.py)
    condition/own, other, none        mean squared velocity error on held-out records with their own conditions, with
                                      those of other held-out records, and with the null condition; the same noise
    condition/gain                    other / own - 1: how much the loss rises where the condition is wrong

In a stream of several parts these are velocity/PART/..., samples/PART/NETWORK/... and condition/PART/...; the others
are over the tokens of all parts.

Numbers are the same for any batch size up to float rounding, and for equal settings and seed in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from core.errors import DataError
from core.evaluation.features import block_features
from core.evaluation.health import LayerHealth
from core.evaluation.inputs import noisy_inputs
from core.evaluation.pair import pair_health
from core.evaluation.probes import knn_accuracy, linear_probe
from core.evaluation.velocity import velocity_loss_curve
from core.keys import key
from core.types import FeatureLayers, TokenBatch
from modalities.conditioning.conditions import Prompt
from modalities.evaluation.attempts import Measured
from modalities.evaluation.networks.chosen import PartNetwork
from modalities.evaluation.records import Reader, token_batch
from modalities.evaluation.samples import samples
from modalities.evaluation.settings import EvaluationSettings
from modalities.evaluation.subject import Subject

# Held-out records that health looks at: means over tens of thousands of tokens, which more would not change.
HEALTH_RECORDS = 256


def evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    measures: list[str],
    networks: dict[str, PartNetwork],
    progress: Callable[[int], object] | None = None,
    found: Measured | None = None,
) -> Measured:
    """The measures that are named (see `plan`). One that fails on the way is a note, and the others are made.

    Args:
        networks: of the samples, by the name that they have in the result.
        progress: called with the number of samples that took a step of the sampler.
        found: is added to, and returned; so that whoever interrupts the work has what was measured.

    Raises DataError when not one could be made.
    """
    found = Measured() if found is None else found
    if "velocity" in measures:
        found.attempt("velocity", partial(velocity, subject, settings))
    if wanted := [name for name in ("probe", "knn") if name in measures]:
        class_knowledge(subject, settings, wanted, found)
    if "health" in measures:
        found.attempt("health", partial(health, subject, settings))
        if subject.pair is not None:
            found.attempt("health/align", partial(alignment, subject, settings))
    if "condition" in measures:
        found.attempt("condition", partial(condition, subject, settings))
    if "samples" in measures:
        samples(subject, settings, networks, found, progress)
    if not found.values:
        raise DataError("\n".join([f"{subject.stream}: nothing could be measured", *found.warnings]))
    for name, reader in (("held-out", subject.val), ("training", subject.training)):
        if reader.unusable:
            first = next(iter(reader.unusable.values()))
            found.warnings.append(f"{len(reader.unusable)} {name} records cannot be used; the first: {first}")
    return found


def velocity(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    batches = subject.val.batches(settings.val, settings.batch)
    curve = velocity_loss_curve(subject.model.trunk, batches, settings.timesteps, settings.seed)
    found: dict[str, float] = {}
    for part in curve.losses:  # not those that are given in every sample
        under = f"velocity/{subject.prefix(part)}"
        found[f"{under}mean"] = curve.mean(part)
        found |= {f"{under}t={t:g}": loss for t, loss in zip(curve.timesteps, curve.losses[part], strict=True)}
    return found


def condition(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    own = [prompt for records in subject.val.records(settings.val, settings.batch) for prompt in records.conditions]
    chosen = {"own": own, "other": others(own), "none": own}
    found: dict[str, float] = {}
    for how, conditions in chosen.items():
        batches = _conditioned(subject, settings, conditions, how == "none")
        curve = velocity_loss_curve(subject.model.trunk, batches, settings.timesteps, settings.seed)
        found |= {f"condition/{subject.prefix(part)}{how}": curve.mean(part) for part in curve.losses}
    for name in [name for name in found if name.endswith("own")]:
        found[f"{name.removesuffix('own')}gain"] = found[f"{name.removesuffix('own')}other"] / found[name] - 1
    return found


def others(conditions: list[Prompt]) -> list[Prompt]:
    """For each condition, the next one in the list that says something else; the list goes round.

    Raises DataError where all say the same.
    """
    found = []
    for place, own in enumerate(conditions):
        following = conditions[place + 1 :] + conditions[:place]
        other = next((prompt for prompt in following if prompt.text != own.text), None)
        if other is None:
            raise DataError(f"all {len(conditions)} held-out records have one condition, {own.text!r}")
        found.append(other)
    return found


def _conditioned(
    subject: Subject, settings: EvaluationSettings, conditions: list[Prompt], drop: bool
) -> Iterator[TokenBatch]:
    """The held-out records under these conditions, or, to `drop`, under the null condition."""
    place = 0
    for records in subject.val.records(settings.val, settings.batch):
        own = conditions[place : place + len(records.keys)]
        place += len(own)
        batch = token_batch(subject.model, subject.stream, replace(records, conditions=own))
        yield replace(batch, context=batch.context.drop_all()) if drop else batch


def class_knowledge(subject: Subject, settings: EvaluationSettings, measures: list[str], found: Measured) -> None:
    """Accuracies of features at one noise level without the condition, which would tell the class."""
    # layer -> training features and classes, held-out features and classes
    sides: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def look() -> dict[str, float]:
        # Not the same noise on both sides: it is keyed by the record's key, and a folder of held-out records may hold
        # "cat/1.png" just as the other one does. Equal noise would then give the class away.
        noise = key(settings.seed, "training")
        train, train_y = _features(subject, subject.training, settings.training, settings, noise)
        test, test_y = _features(subject, subject.val, settings.val, settings, settings.seed)
        for name, labels in (("training", train_y), ("held-out", test_y)):
            without = int((labels < 0).sum())
            if without == len(labels):
                raise DataError(f"not one of {without} {name} records is of a class of the training data")
            if without:
                found.warnings.append(
                    f"probe, knn: {without} {name} records are left out: not of a class of the training data"
                )
        if len(train_y[train_y >= 0].unique()) < 2:
            raise DataError(f"the {len(train_y)} training records that were read are of one class")
        for layer in train:
            sides[layer] = (*known(train[layer], train_y), *known(test[layer], test_y))
        return {}

    def known(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return rows[labels >= 0].to(subject.model.device), labels[labels >= 0]

    def probe(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> float:
        return linear_probe(train, train_y, test, test_y, len(subject.classes), seed=settings.seed).accuracy

    def neighbors(train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor) -> float:
        return knn_accuracy(train, train_y, test, test_y, len(subject.classes))

    found.attempt(", ".join(measures), look)
    for measure in measures if sides else []:
        accuracy = {"probe": probe, "knn": neighbors}[measure]
        found.attempt(measure, partial(_by_layer, measure, accuracy, sides))


def _by_layer(
    measure: str, accuracy: Callable[..., float], sides: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]]
) -> dict[str, float]:
    found = {f"{measure}/layer={layer}": accuracy(*side) for layer, side in sides.items()}
    return found | {f"{measure}/best": max(found.values())}


def _features(
    subject: Subject, reader: Reader, count: int, settings: EvaluationSettings, seed: int
) -> tuple[dict[int, Tensor], Tensor]:
    """layer -> (n, D) mean over the tokens; (n,) classes, -1 for none."""
    labels: list[Tensor] = []

    def unconditional() -> Iterator[TokenBatch]:
        for records in reader.records(count, settings.batch):
            labels.append(records.labels)
            batch = token_batch(subject.model, subject.stream, records)
            yield TokenBatch(batch.segments, batch.context.drop_all(), batch.keys)

    trunk = subject.model.trunk
    layers = range(1, trunk.depth + 1)
    return block_features(trunk, unconditional(), layers, settings.feature_timestep, seed), torch.cat(labels)


@torch.no_grad()
def health(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    trunk, count = subject.model.trunk, min(settings.val, HEALTH_RECORDS)
    layers = {layer: LayerHealth() for layer in range(1, trunk.depth + 1)}
    for batch in subject.val.batches(count, settings.batch):
        noisy, _, levels = noisy_inputs(batch, settings.feature_timestep, settings.seed)
        raw = trunk(noisy, levels, batch, FeatureLayers(raw=tuple(layers), stop_after=trunk.depth)).raw
        for layer, entry in layers.items():
            entry.update(raw[layer], batch.loss_mask())
    return {
        f"health/{name}/layer={layer}": value
        for layer, entry in layers.items()
        for name, value in entry.result().items()
    }


def alignment(subject: Subject, settings: EvaluationSettings) -> dict[str, float]:
    assert subject.pair is not None  # asked by `evaluate`
    batches = subject.val.batches(min(settings.val, HEALTH_RECORDS), settings.batch)
    aligned = pair_health(subject.pair, subject.model.trunk, batches, settings.seed)
    return {f"health/align_{name}": value for name, value in aligned.items()}
