"""What is measured, and on how many samples."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import nearest
from modalities.evaluation.networks.kinds import NetworkConfig

MEASURES = ("velocity", "probe", "knn", "health", "samples", "condition")
UNNAMED = MEASURES[:-1]  # what is measured where none is named

CONDITIONS = ("val", "random")


@dataclass
class EvaluationSettings:
    """
    Attributes:
        measures: velocity (held-out velocity loss over `timesteps`), probe and knn (class knowledge of every block),
            health (norms, rank, cosines of features, and of the run's student and teacher), samples (distances of
            generated to held-out media), condition (held-out velocity loss with a record's own condition, another's
            and none). None means all but the last that the data allow: with too few records, no classes
            or foreign ones, the measures that need them are left out, and the result says so. One that is named and
            cannot be measured is an error, before anything is measured.
        val: held-out records.
        training: training records that the probe and the neighbors learn from.
        batch: samples at once.
        timesteps: noise levels of the velocity losses.
        feature_timestep: noise level at which features are taken; class knowledge is best at a low one, not at 0.
        generated: generated samples; as many held-out records are compared with them, so there are never more.
        conditions: val (those of the held-out records) or random (classes drawn uniformly, as ADM's and SiT's
            protocol has it).
        networks: feature networks of the distances. A classifier without a path is trained on the training records.
        classifier_steps: of that classifier.
        seed: of all noise and of generation.
    """

    measures: list[str] | None = None
    val: int = 2000
    training: int = 5000
    batch: int = 50
    timesteps: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    feature_timestep: float = 0.2
    generated: int = 1000
    conditions: str = "val"
    networks: list[NetworkConfig] = field(default_factory=lambda: [NetworkConfig()])
    classifier_steps: int = 1000
    seed: int = 0

    def problems(self) -> list[str]:
        named = UNNAMED if self.measures is None else self.measures
        found = [
            f"measures: {name!r} is not one of {', '.join(MEASURES)}.{nearest(name, MEASURES)}"
            for name in named
            if name not in MEASURES
        ]
        if not named:
            found.append(f"measures: empty; choose from {', '.join(MEASURES)}")
        for name in ("val", "training", "batch", "generated", "classifier_steps"):
            if getattr(self, name) < 1:
                found.append(f"{name}: {getattr(self, name)} must be at least 1")
        if self.conditions not in CONDITIONS:
            found.append(f"conditions: {self.conditions!r} is not one of {', '.join(CONDITIONS)}")
        for timestep in (*self.timesteps, self.feature_timestep):
            if not 0 <= timestep <= 1:
                found.append(f"timesteps, feature_timestep: {timestep} must lie in [0, 1]; 0 is data, 1 is noise")
        if not self.timesteps:
            found.append("timesteps: empty")
        if "samples" in named and not self.networks:
            found.append("networks: empty; samples are measured by a feature network")
        return found
