"""Executing predicted chunks of actions: k of them before the next prediction, overlapping ones blended or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.errors import ConfigError, DataError
from robotics.environment import Observation


def temporal_weights(count: int, decay: float) -> np.ndarray:
    """(count,) weights of predictions of one action, the oldest first, that sum to 1.

    exp(-decay i) with i = 0 for the oldest, after ACT (arXiv 2304.13705); Octo in SIMPLER takes decay 0, their mean.
    """
    weights = np.exp(-decay * np.arange(count))
    return weights / weights.sum()


def adaptive_weights(predictions: np.ndarray, alpha: float) -> np.ndarray:
    """(n,) weights of predictions (n, A) of one action, the newest last, that sum to 1.

    exp(alpha cos), with the cosine between a prediction and the newest, after CogACT (arXiv 2411.19650), which takes
    alpha 0.1: what disagrees with the newest, such as another way around an obstacle, counts less.
    """
    newest = predictions[-1]
    lengths = np.linalg.norm(predictions, axis=1) * np.linalg.norm(newest)
    cosines = predictions @ newest / (lengths + 1e-7)
    weights = np.exp(alpha * cosines)
    return weights / weights.sum()


@dataclass(frozen=True)
class Ensemble:
    """How overlapping predictions of one action become one.

    Attributes:
        kind: temporal or adaptive.
        rate: the decay or the alpha of its weights.
        horizon: predictions at most, the newest ones. CogACT takes 2 for the Google robot.
    """

    kind: str = "adaptive"
    rate: float = 0.1
    horizon: int = 2

    def problems(self) -> list[str]:
        found = []
        if self.kind not in ("temporal", "adaptive"):
            found.append(f"ensemble.kind: {self.kind!r} is not one of temporal, adaptive")
        if self.horizon < 1:
            found.append(f"ensemble.horizon: {self.horizon} must be at least 1")
        return found

    def blend(self, predictions: np.ndarray) -> np.ndarray:
        """(n, A), the newest last -> (A,)."""
        if self.kind == "temporal":
            weights = temporal_weights(len(predictions), self.rate)
        else:
            weights = adaptive_weights(predictions, self.rate)
        return weights @ predictions


class ChunkPlayer:
    """One action at a time from a policy that predicts chunks of them.

    Args:
        predict: observation -> (K, A), the action to take now first.
        execute: actions that are taken before the next prediction, 1 to K.
        ensemble: blends what earlier chunks predicted for the same step; None takes the newest alone.

    Raises:
        ConfigError: settings out of range.
    """

    def __init__(
        self, predict: Callable[[Observation], np.ndarray], execute: int = 1, ensemble: Ensemble | None = None
    ):
        problems = [] if ensemble is None else ensemble.problems()
        if execute < 1:
            problems.append(f"actions executed of a chunk: {execute} must be at least 1")
        if problems:
            raise ConfigError(problems)
        self.predict, self.execute, self.ensemble = predict, execute, ensemble
        self._chunks: deque[tuple[int, np.ndarray]] = deque(maxlen=1 if ensemble is None else ensemble.horizon)
        self.reset()

    def reset(self) -> None:
        """Forget what was predicted: a new episode."""
        self._chunks.clear()
        self._step = 0  # of the episode
        self._instruction: str | None = None

    def act(self, observation: Observation) -> np.ndarray:
        """The action (A,) for this step. What was predicted for another instruction is dropped.

        Raises:
            ConfigError: a chunk is shorter than what is to be executed of it.
            DataError: it is not finite.
        """
        if observation["instruction"] != self._instruction:
            self._chunks.clear()
            self._instruction = observation["instruction"]
        if not self._chunks or self._step - self._chunks[-1][0] >= self.execute:
            self._chunks.append((self._step, self._predicted(observation)))
        reaching = [chunk[self._step - made] for made, chunk in self._chunks if self._step - made < len(chunk)]
        self._step += 1
        return reaching[-1] if self.ensemble is None else self.ensemble.blend(np.stack(reaching))

    def _predicted(self, observation: Observation) -> np.ndarray:
        chunk = np.asarray(self.predict(observation))
        if len(chunk) < self.execute:
            raise ConfigError(f"{self.execute} actions of a chunk are to be executed; the policy predicts {len(chunk)}")
        if not np.isfinite(chunk).all():
            raise DataError("the policy predicts actions that are not finite")
        return chunk
