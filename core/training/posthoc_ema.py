"""Post-hoc EMA (Karras et al., arXiv 2312.02696, section 3): averages of any length, chosen after the training.

A power-function average weighs the weights of step t' with t'^gamma up to the step t at which it is looked at, so that
its length grows with the training. sigma_rel, the standard deviation of that profile relative to t, is called its
length here. Two of them are kept while the run trains and stored every so many steps. Afterwards the profile of any
other length is built from the stored ones by least squares, and the same factors combine the weights.

    length = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))
    average <- beta average + (1 - beta) weights, beta = (1 - 1 / t)^(gamma + 1)

With these betas the average is exactly the integral of the profile over weights that stay as they are during a step.
Unlike the paper's, the factors here add up to 1, so that what never changes comes out as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import CheckpointError, ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.distributed import ALONE, World
from core.training.ema import lerp_
from core.types import at_least_float32

FOLDER = "ema"  # of the snapshots, in the run folder
LONGEST = 0.28  # gamma 0, the plain mean of all steps, has 0.289
ROUGH = 0.02  # relative error of a profile that is worth a warning
_PREFIX = "ema"  # of the parts of a checkpoint


@dataclass
class PosthocEmaConfig:
    """
    Attributes:
        every: steps between snapshots of the averages, which are stored in RUN/ema; 0 keeps no such averages. A
            snapshot of two lengths takes 8 bytes per parameter on the disk, and stays forever.
        lengths: sigma_rel of the averages that are kept. Each takes 4 bytes per parameter on the training device.
    """

    every: int = 0
    lengths: list[float] = field(default_factory=lambda: [0.05, 0.10])

    def problems(self) -> list[str]:
        found = [] if self.every >= 0 else [f"every: {self.every} must not be negative"]
        found += [f"lengths: {line}" for line in map(length_problem, self.lengths) if line]
        if len(set(self.lengths)) < 2:
            found.append(f"lengths: {list(self.lengths)}: two different ones are needed to make others of them")
        return found


def length_problem(length: float) -> str | None:
    return None if 0 < length <= LONGEST else f"{length} must lie in (0, {LONGEST}], as a share of the training"


def gamma_of(length: float) -> float:
    """The exponent of the profile with this sigma_rel: the root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / length^2.

    Raises ConfigError for a length out of range.
    """
    if problem := length_problem(length):
        raise ConfigError(f"EMA length: {problem}")
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def beta_at(gamma: float, step: int) -> float:
    """Share of the old average in that of `step` finished steps (1, 2, ...); 0 at the first."""
    return (1 - 1 / step) ** (gamma + 1)


class PosthocEma:
    """The averages of one run, beside its teacher.

    Args:
        model: the student; the averages are float32 and start as copies of it.
        root: the run folder.
        world: processes that each have their share of the averages, as of the model.
    """

    def __init__(self, config: PosthocEmaConfig, model: nn.Module, root: Path, world: World = ALONE):
        self.every, self.model, self.world = config.every, model, world
        self.store = CheckpointStore(root / FOLDER, keep=1, keep_every=1, world=world)
        self._gammas = {length: gamma_of(length) for length in config.lengths}
        self._averages = {
            length: {name: at_least_float32(tensor.detach()).clone() for name, tensor in model.state_dict().items()}
            for length in config.lengths
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After every optimizer step; `step` counts it. Buffers are copied."""
        weights = dict(self.model.named_parameters())
        buffers = {name: tensor for name, tensor in self.model.state_dict().items() if name not in weights}
        for length, average in self._averages.items():
            share = 1 - beta_at(self._gammas[length], step)
            lerp_([average[name] for name in weights], list(weights.values()), share)
            for name, tensor in buffers.items():
                average[name].copy_(tensor)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The live averages as parts of a checkpoint."""
        return {part_of(length): average for length, average in self._averages.items()}

    def snapshot(self, step: int) -> None:
        """Store the averages, in float32: factors of both signs would amplify the rounding errors of half precision.

        Durable and all or nothing, like a checkpoint. Raises CheckpointError when it cannot be written.
        """
        if self.world.on_first(lambda: step not in self.store.steps() or self.store.problem(step) is not None):
            self.store.publish(step, self.state(), {"lengths": list(self._averages)})


def part_of(length: float) -> str:
    """Name of an average in a checkpoint."""
    return f"{_PREFIX}-{length:g}"


class Snapshot(NamedTuple):
    step: int
    length: float


@dataclass(frozen=True)
class Recipe:
    """How an average is built.

    Attributes:
        step: the last one that it averages.
        factors: by snapshot.
        error: of the profile, relative: |made - wanted| / |wanted| in the L2 norm.
    """

    step: int
    factors: dict[Snapshot, float]
    error: float

    def warning(self) -> str | None:
        if self.error <= ROUGH:
            return None
        return (
            f"the profile of this EMA length can be made of the snapshots only within {self.error:.0%}: choose one "
            "nearer to those that are stored, or store snapshots more often (training.posthoc_ema.every)"
        )


def solve(snapshots: list[Snapshot], length: float, step: int) -> Recipe:
    """The factors, with sum 1, of snapshots (at steps <= `step`) for an average of `length` at `step`."""
    times = np.array([snapshot.step for snapshot in snapshots], dtype=np.float64)
    gammas = np.array([gamma_of(snapshot.length) for snapshot in snapshots])
    wanted = gamma_of(length)
    gram = step * overlap(times[:, None], gammas[:, None], times, gammas)
    right = step * overlap(times, gammas, float(step), wanted)
    # The least of x G x - 2 b x where the sum of x is 1. By lstsq, since neighboring profiles are nearly the same.
    bordered = np.pad(gram, (0, 1), constant_values=1.0)
    bordered[-1, -1] = 0.0
    factors = np.linalg.lstsq(bordered, np.append(right, 1.0), rcond=None)[0][:-1]
    whole = step * float(overlap(float(step), wanted, float(step), wanted))
    missed = whole - 2 * float(factors @ right) + float(factors @ gram @ factors)
    error = math.sqrt(max(missed, 0.0) / whole)
    return Recipe(step, dict(zip(snapshots, factors.tolist(), strict=True)), error)


def overlap(
    time_a: float | np.ndarray, gamma_a: float | np.ndarray, time_b: float | np.ndarray, gamma_b: float | np.ndarray
) -> np.ndarray:
    """Integral of the product of two profiles (gamma + 1) t'^gamma / t^(gamma + 1) over the steps that both have."""
    first_is_shorter = np.less_equal(time_a, time_b)
    shorter, longer = np.minimum(time_a, time_b), np.maximum(time_a, time_b)
    exponent = np.where(first_is_shorter, gamma_b, gamma_a)  # of the longer
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (shorter / longer) ** exponent / longer


def stored_snapshots(store: CheckpointStore, root: Path, step: int) -> list[Snapshot]:
    """The intact ones of a run folder at or before a step; damaged ones are reported and left out. Raises
    CheckpointError where there is none."""
    found = []
    for time in store.steps():
        if time > step:
            continue
        try:
            store.require(time)
            found += [Snapshot(time, length) for length in store.extra(time)["lengths"]]
        except CheckpointError as error:
            store.report(f"EMA snapshot left out: {error}")
    if not found:
        raise CheckpointError(
            f"{root} has no EMA snapshots up to step {step}; a run makes them with training.posthoc_ema.every=STEPS"
        )
    return found


def reconstruct(root: Path, length: float, step: int) -> tuple[dict[str, Tensor], Recipe]:
    """The average of a length over the steps up to the last snapshot at or before `step`, on the CPU, float32.

    Holds one part of one snapshot at a time beside a float64 sum. Raises CheckpointError where there are no snapshots,
    ConfigError for a length out of range.
    """
    gamma_of(length)  # refused before anything is read
    store, total = CheckpointStore(root / FOLDER), {}
    snapshots = stored_snapshots(store, root, step)
    recipe = solve(snapshots, length, snapshots[-1].step)
    for snapshot, factor in recipe.factors.items():
        for name, tensor in store.load_weights(snapshot.step, part_of(snapshot.length)).items():
            total[name] = total[name].add_(tensor.double(), alpha=factor) if name in total else tensor.double() * factor
    return {name: tensor.float() for name, tensor in total.items()}, recipe
