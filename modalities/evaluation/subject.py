"""What is evaluated, and which measures its data allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from core.errors import ConfigError
from core.evaluation.pair import PairPlan
from core.sampling.sampler import SamplerConfig
from modalities.evaluation.networks.kinds import NetworkConfig
from modalities.evaluation.records import Reader, shared_records
from modalities.evaluation.settings import UNNAMED, EvaluationSettings
from modalities.generation import Generator, generate
from modalities.latents.format import stored_manifests
from modalities.streams import Parts

Make = Callable[..., Iterator[dict[str, Tensor]]]

FEWEST = 6  # samples and held-out records to compare: density counts the 5 nearest others
FEWEST_TO_PROBE = 5  # training records: a fifth of them chooses the penalty
FEWEST_TO_CLASSIFY = 3  # training records of the small classifier: one is set aside


@dataclass(frozen=True)
class Subject:
    """A model on one stream, with its data.

    Attributes:
        val, training: readers of records; the first are not trained on.
        sampler: how samples are generated.
        data: name of the training data, for the name of a classifier trained on it.
        pair: how the run aligns its student with its EMA teacher; None where it does not.
        make: what makes the samples, such as other devices, called like `generate` without its model; None for the
            model itself.
    """

    model: Generator
    stream: str
    val: Reader
    training: Reader
    sampler: SamplerConfig
    data: str
    pair: PairPlan | None = None
    make: Make | None = None

    @property
    def makes(self) -> Make:
        return self.make or partial(generate, self.model)

    @property
    def parts(self) -> Parts:
        return self.model.parts[self.stream]

    def prefix(self, part: str) -> str:
        """What stands before the name of a value that is one part's: nothing where the stream has no other."""
        return "" if len(self.parts) == 1 else f"{part}/"

    @property
    def classes(self) -> list[str]:
        return self.training.classes


def plan(subject: Subject, settings: EvaluationSettings) -> tuple[list[str], list[str]]:
    """(measures, notes on what was left out or is unusual).

    Settings without `measures` get all that the data allow. Raises ConfigError for measures that were asked for by
    name and cannot be made, for held-out records of classes that the model does not know, and for those that were
    trained on.
    """
    refuse_strangers(subject)
    measures, notes = list(settings.measures or UNNAMED), []
    impossible = {name: why for name, why in impossible_measures(subject, settings).items() if name in measures}
    if impossible and settings.measures is not None:
        lines = [f"measures: {name}: {why}" for name, why in impossible.items()]
        way = ", or give the records classes" if len(subject.classes) < 2 else ""
        raise ConfigError([*lines, f"Leave out {', '.join(impossible)}{way}."])
    measures = [name for name in measures if name not in impossible]
    notes += [f"{name} is left out: {why}" for name, why in impossible.items()]

    tested = max(settings.val, settings.generated if "samples" in measures else 0)
    if overlap := shared_records(subject.val, subject.training, tested, settings.training):
        harmed = [name for name in measures if name != "samples"]
        if "samples" in measures and any(trained_here(network) for network in settings.networks):
            harmed.append("samples by a classifier that is trained on them")
        if harmed:
            raise ConfigError(
                f"streams.{subject.stream}.val: holds records that the run is trained on: {overlap}. Name "
                f"others, or a split of both sources; this would spoil {', '.join(harmed)}"
            )
        notes.append(f"samples are compared with records that were trained on: {overlap}")
    return measures, notes


def refuse_strangers(subject: Subject) -> None:
    """Raises ConfigError where the model is conditioned on classes and knows none of the held-out records'."""
    conditions, classes = subject.model.conditions, subject.val.source.labels()
    if conditions.config.kind == "label" and classes and not set(classes) & set(conditions.labels):
        raise ConfigError(
            f"streams.{subject.stream}.val: its classes ({few(classes)}) are none of the classes that the "
            f"run was trained on ({few(conditions.labels)}), so that nothing can be measured on them"
        )


def few(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def impossible_measures(subject: Subject, settings: EvaluationSettings) -> dict[str, str]:
    """Measure -> why these data do not allow it, as far as it can be known without reading them."""
    found, stream = {}, subject.stream
    classifiers = [trained_here(network) for network in settings.networks]
    # A classifier that cannot be trained is noted on the way, where other networks can do the measuring.
    classifier, training = bool(classifiers) and all(classifiers), min(len(subject.training), settings.training)
    seen = subject.val.source.labels()
    if training < FEWEST_TO_PROBE:
        found["probe"] = f"{training} training records; at least {FEWEST_TO_PROBE} are needed"
    if not set(seen) & set(subject.classes):
        strange = f"({few(seen)}) are none of the training data's ({few(subject.classes)})" if seen else "are not known"
        found |= dict.fromkeys(("probe", "knn"), f"the classes of the held-out records {strange}")
    if classifier and len(subject.training) < FEWEST_TO_CLASSIFY:
        found["samples"] = (
            f"the small classifier needs at least {FEWEST_TO_CLASSIFY} training records, and there are "
            f"{len(subject.training)}"
        )
    if (compared := min(len(subject.val), settings.generated)) < FEWEST:
        side = "held-out records" if len(subject.val) < settings.generated else "generated samples"
        found["samples"] = f"{compared} {side} to compare; at least {FEWEST} are needed"
    if settings.conditions == "random" and subject.model.conditions.config.kind == "text":
        found["samples"] = "conditions: random draws classes, and this run is conditioned on text; use val"
    if subject.model.conditions.config.kind == "none":
        found["condition"] = "the run is trained without conditions"
    elif len(subject.val) < 2:
        found["condition"] = "one held-out record, and another's condition is needed"
    if len(subject.classes) < 2:
        seen = f"the {stream} data have {'one class' if subject.classes else 'no classes'}"
        found |= {name: f"needs classes, and {seen}" for name in ("probe", "knn")}
        if classifier:
            found["samples"] = (
                f"the small classifier needs classes, and {seen}; name networks with weights: "
                f"streams.{stream}.evaluation.networks=[{{kind: KIND, path: WEIGHTS}}]"
            )
    readers = {"val": subject.val} | ({"data": subject.training} if any(classifiers) else {})
    if stored := [name for name, reader in readers.items() if stored_manifests(reader.source)]:
        keys = " and ".join(f"streams.{stream}.{name}" for name in stored)
        found["samples"] = f"feature networks look at media, and {keys} hold latents; name the media they were made of"
    return found


def trained_here(network: NetworkConfig) -> bool:
    return network.kind == "classifier" and not network.path
