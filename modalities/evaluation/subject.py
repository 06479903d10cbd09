"""What is evaluated, and which measures its data allow."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from core.evaluation.pair import PairPlan
from core.sampler import SamplerConfig
from modalities.data.stored import stored_manifests
from modalities.evaluation.heldout import Reader, shared_records
from modalities.evaluation.settings import MEASURES, EvaluationSettings
from modalities.generation import Generator
from modalities.metrics.networks import NetworkConfig


@dataclass(frozen=True)
class Subject:
    """A model on one modality, with its data.

    Attributes:
        heldout, training: readers of records; the first are not trained on.
        sampler: how samples are generated.
        sample_rate: of sounds, Hz, else None.
        data: name of the training data, for the name of a classifier trained on it.
        pair: how the run aligns its student with its EMA teacher; None where it does not.
    """

    model: Generator
    modality: str
    heldout: Reader
    training: Reader
    sampler: SamplerConfig
    sample_rate: int | None
    data: str
    pair: PairPlan | None = None

    @property
    def classes(self) -> list[str]:
        return self.training.classes


def plan(subject: Subject, settings: EvaluationSettings) -> tuple[list[str], list[str]]:
    """(measures, notes on what was left out or is unusual).

    Settings without `measures` get all that the data allow. Raises ConfigError for measures that were asked for by
    name and cannot be made, and for held-out records that were trained on.
    """
    measures, notes = list(settings.measures or MEASURES), []
    impossible = {name: why for name, why in impossible_measures(subject, settings).items() if name in measures}
    if impossible and settings.measures is not None:
        lines = [f"measures: {name}: {why}" for name, why in impossible.items()]
        way = "give the records classes" if len(subject.classes) < 2 else "name media"
        raise ConfigError([*lines, f"Leave out {', '.join(impossible)}, or {way}."])
    measures = [name for name in measures if name not in impossible]
    notes += [f"{name} is left out: {why}" for name, why in impossible.items()]

    tested = max(settings.heldout, settings.generated if "samples" in measures else 0)
    if overlap := shared_records(subject.heldout, subject.training, tested, settings.training):
        harmed = [name for name in measures if name != "samples"]
        if "samples" in measures and any(trained_here(network) for network in settings.networks):
            harmed.append("samples by a classifier that is trained on them")
        if harmed:
            raise ConfigError(
                f"modalities.{subject.modality}.heldout: holds records that the run is trained on: {overlap}. Name "
                f"others, or a split of both sources; this would spoil {', '.join(harmed)}"
            )
        notes.append(f"samples are compared with records that were trained on: {overlap}")
    return measures, notes


def impossible_measures(subject: Subject, settings: EvaluationSettings) -> dict[str, str]:
    """Measure -> why these data do not allow it."""
    found, modality = {}, subject.modality
    classifier = any(trained_here(network) for network in settings.networks)
    if len(subject.classes) < 2:
        seen = f"the {modality} data have {'one class' if subject.classes else 'no classes'}"
        found = {name: f"needs classes, and {seen}" for name in ("probe", "knn")}
        if classifier:
            found["samples"] = (
                f"the small classifier needs classes, and {seen}; name networks with weights: "
                f"modalities.{modality}.evaluation.networks=[{{kind: KIND, path: WEIGHTS}}]"
            )
    readers = {"heldout": subject.heldout} | ({"data": subject.training} if classifier else {})
    if stored := [name for name, reader in readers.items() if stored_manifests(reader.source)]:
        keys = " and ".join(f"modalities.{modality}.{name}" for name in stored)
        found["samples"] = f"feature networks look at media, and {keys} hold latents; name the media they were made of"
    return found


def trained_here(network: NetworkConfig) -> bool:
    return network.kind == "classifier" and not network.path
