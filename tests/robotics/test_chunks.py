"""Which action of which chunk is taken, written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from robotics.chunks import ChunkPlayer, Ensemble, adaptive_weights, temporal_weights
from robotics.environment import Observation


def seen(step: int, instruction: str = "pick can") -> Observation:
    return Observation(
        image=np.full((1, 1, 3), step, dtype=np.uint8), state=np.zeros(0, np.float32), instruction=instruction
    )


def numbered(observation: Observation) -> np.ndarray:
    """(4, 1): action i of a chunk predicted at step s is 10 s + i."""
    return 10.0 * observation["image"][0, 0, 0] + np.arange(4.0)[:, None]


def played(player: ChunkPlayer, steps: int) -> list[float]:
    return [float(player.act(seen(step))[0]) for step in range(steps)]


@pytest.mark.parametrize(
    ("execute", "expected"),
    [
        (1, [0, 10, 20, 30, 40, 50]),
        (3, [0, 1, 2, 30, 31, 32]),
        (4, [0, 1, 2, 3, 40, 41]),
    ],
)
def test_k_actions_of_a_chunk_then_the_next(execute, expected):
    assert played(ChunkPlayer(numbered, execute), 6) == expected


def test_another_instruction_drops_the_rest():
    player = ChunkPlayer(numbered, 4)
    said = ["open", "open", "place", "place", "place"]
    assert [float(player.act(seen(step, said[step]))[0]) for step in range(5)] == [0, 1, 20, 21, 22]
    blended = ChunkPlayer(numbered, 1, Ensemble("temporal", 0.0, horizon=4))
    # step 0: 0; step 1: mean of 1 and 10; step 2: another instruction, so 20 alone
    assert [float(blended.act(seen(step, said[step]))[0]) for step in range(3)] == [0, 5.5, 20]


def test_reset_drops_the_rest_too():
    player = ChunkPlayer(numbered, 4)
    player.act(seen(0))
    player.reset()
    assert float(player.act(seen(7))[0]) == 70


def test_temporal_ensemble_by_hand():
    player = ChunkPlayer(numbered, 1, Ensemble("temporal", 0.5, horizon=2))
    old, new = 1 / (1 + math.exp(-0.5)), math.exp(-0.5) / (1 + math.exp(-0.5))
    assert played(player, 3) == pytest.approx([0, 1 * old + 10 * new, 11 * old + 20 * new])
    # executing two of each chunk, the chunk before still tells of the first of them
    both = ChunkPlayer(numbered, 2, Ensemble("temporal", 0.0, horizon=2))
    assert played(both, 5) == [0, 1, (2 + 20) / 2, (3 + 21) / 2, (22 + 40) / 2]


def test_weights_sum_to_one_and_follow_their_formulas():
    assert temporal_weights(3, 0.0) == pytest.approx([1 / 3] * 3)
    assert temporal_weights(3, 0.1) == pytest.approx(np.exp([0, -0.1, -0.2]) / np.exp([0, -0.1, -0.2]).sum())
    # the opposite of the newest, a right angle to it, itself: cosines -1, 0, 1
    predictions = np.array([[-2.0, 0], [0, 3], [1, 0]])
    expected = np.exp([-0.1, 0, 0.1])
    assert adaptive_weights(predictions, 0.1) == pytest.approx(expected / expected.sum(), abs=1e-6)
    assert adaptive_weights(np.zeros((2, 3)), 0.1) == pytest.approx([0.5, 0.5])  # standing still has no direction


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="0 must be at least 1"):
        ChunkPlayer(numbered, 0)
    with pytest.raises(ConfigError, match="'mean' is not one of temporal, adaptive"):
        ChunkPlayer(numbered, 1, Ensemble("mean"))
    with pytest.raises(ConfigError, match="6 actions of a chunk are to be executed; the policy predicts 4"):
        ChunkPlayer(numbered, 6).act(seen(0))
    with pytest.raises(DataError, match="not finite"):
        ChunkPlayer(lambda _: np.full((2, 7), np.nan)).act(seen(0))
