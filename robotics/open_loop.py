"""Predicted against demonstrated actions, without running anything: which dimension fails, and how far ahead.

A good video beside bad actions, or a dimension that was read in other units, shows here before any rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from core.errors import DataError
from core.keys import key
from robotics.environment import Observation


class ChunkPolicy(Protocol):
    """The part of a policy that the open loop asks."""

    def reset(self, instruction: str, seed: int = 0) -> None: ...

    def predict_action_chunk(self, observation: Observation) -> np.ndarray: ...


@dataclass(frozen=True)
class Window:
    """What was seen at a step of a demonstration, and what was done from it on.

    actions: float (K, A), in the units of the data. valid: bool (K,), False beyond the end of the episode. seed: of the
    policy's draws for it.
    """

    observation: Observation
    actions: np.ndarray
    valid: np.ndarray
    seed: int = 0


def episode_windows(
    frames: Sequence[np.ndarray],
    states: np.ndarray,
    actions: np.ndarray,
    instruction: str,
    horizon: int,
    seed: int = 0,
    stride: int = 1,
) -> Iterator[Window]:
    """A window from each step of a demonstration on; beyond its end the last action is repeated and not valid.

    Args:
        frames: uint8 (H, W, 3) of each of the T steps, what was seen before action k at place k.
        states: (T, S). actions: (T, A), in the units of the policy.
        horizon: K, actions of a window.
        stride: steps from one of them to the next.
    """
    for step, frame in enumerate(frames):
        wanted = step + np.arange(horizon) * stride
        yield Window(
            Observation(image=frame, state=states[step], instruction=instruction),
            actions[np.minimum(wanted, len(actions) - 1)],
            wanted < len(actions),
            key("open loop", seed, step),
        )


def open_loop(policy: ChunkPolicy, windows: Iterable[Window], names: tuple[str, ...]) -> dict[str, Any]:
    """Mean absolute errors in the units of the actions, over the valid ones.

    Returns:
        windows: their number. horizon: steps compared, the shorter of the two chunks. error, constant: each with
        `by_dimension` {name: error}, `by_step` [error of the mean over dimensions], `by_step_and_dimension`; `constant`
        is the error of always predicting the mean demonstrated action, which a policy must beat to have learned
        anything. counts: valid actions at each step.

    Raises:
        DataError: no windows, actions of another width than `names`, or predictions that are not finite.
    """
    predicted, demonstrated, valid = [], [], []
    for window in windows:
        policy.reset(window.observation["instruction"], window.seed)
        chunk = np.asarray(policy.predict_action_chunk(window.observation), dtype=np.float64)
        steps = min(len(chunk), len(window.actions))
        if chunk.shape[1:] != (len(names),) or window.actions.shape[1:] != (len(names),):
            raise DataError(
                f"actions predicted {chunk.shape} and demonstrated {window.actions.shape}; both must be"
                f" (steps, {len(names)}): {', '.join(names)}"
            )
        if not np.isfinite(chunk).all():
            raise DataError("the policy predicts actions that are not finite")
        predicted.append(chunk[:steps])
        demonstrated.append(window.actions[:steps])
        valid.append(window.valid[:steps])
    if not predicted:
        raise DataError("no windows to compare with")
    horizon = min(len(chunk) for chunk in predicted)
    ours = np.stack([chunk[:horizon] for chunk in predicted])  # (W, K, A)
    theirs = np.stack([chunk[:horizon] for chunk in demonstrated]).astype(np.float64)
    mask = np.stack([flags[:horizon] for flags in valid]).astype(bool)  # (W, K)
    mean = theirs[mask].mean(axis=0)  # (A,)
    return {
        "windows": len(predicted),
        "horizon": horizon,
        "counts": mask.sum(axis=0).tolist(),
        "error": _errors(np.abs(ours - theirs), mask, names),
        "constant": _errors(np.abs(mean - theirs), mask, names),
    }


def _errors(distance: np.ndarray, mask: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Errors of (W, K, A) where the mask (W, K) holds. A step that no window reaches has no error: None."""
    counts = mask.sum(axis=0)  # (K,)
    sums = (distance * mask[..., None]).sum(axis=0)  # (K, A)
    steps = [row / count if count else None for row, count in zip(sums, counts, strict=True)]
    overall = sums.sum(axis=0) / counts.sum()
    return {
        "by_dimension": dict(zip(names, overall.tolist(), strict=True)),
        "by_step": [None if row is None else float(row.mean()) for row in steps],
        "by_step_and_dimension": [
            None if row is None else dict(zip(names, row.tolist(), strict=True)) for row in steps
        ],
    }


def open_loop_table(report: dict[str, Any]) -> str:
    """Markdown: a row for each step ahead, a column for each dimension, and the constant predictor's row."""
    names = list(report["error"]["by_dimension"])
    lines = [f"| step | windows | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for step, row in enumerate(report["error"]["by_step_and_dimension"]):
        cells = ["" if row is None else f"{row[name]:.4f}" for name in names]
        lines.append(f"| +{step} | {report['counts'][step]} | {' | '.join(cells)} |")
    for title, row in (("all", "error"), ("constant predictor", "constant")):
        cells = [f"{report[row]['by_dimension'][name]:.4f}" for name in names]
        lines.append(f"| {title} | {report['windows']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
