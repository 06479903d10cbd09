"""Expert demonstrations of any environment that has a scripted expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import ConfigError, DataError
from core.keys import generator
from core.parallel import spread
from robotics.baselines import expert_of
from robotics.environment import ACTION_NAMES, Environment
from robotics.environments import make_environment
from robotics.lerobot_files import Episode, LeRobotWriter, encode_images

HOLD = 8  # steps, more than a chunk of 6 actions
# Demonstrations are made of these episodes on, rollouts of those from 0: a policy is never tested on what it has seen.
FIRST = 1_000_000


@dataclass(frozen=True)
class Recording:
    """What is recorded, and how the expert is disturbed.

    Attributes:
        environment, task, options: as `make_environment` takes them.
        noisy: share of the steps in which something else is carried out than the expert asked for. What is recorded is
            what it asked for, so that a policy learns to come back from its own mistakes (DART, arXiv 1703.09327).
        noise: standard deviation of that difference along x, y and z, in meters.
        seed: of the noise.
        first: number of the first episode, for a second set with other episodes than an earlier one.
        hold: steps for which success lasts at the end of an episode. With fewer than a chunk has actions, a policy
            never sees what to do after it has succeeded: the rest of its last chunks is padding.
    """

    environment: str
    task: str
    options: dict[str, Any]
    noisy: float = 0.35
    noise: float = 0.04
    seed: int = 0
    hold: int = HOLD
    first: int = 0

    def problems(self) -> list[str]:
        found = []
        if not 0 <= self.noisy <= 1:
            found.append(f"share of noisy steps: {self.noisy} is not between 0 and 1")
        if not 0 <= self.noise < 1:
            found.append(f"noise: {self.noise} meters; must be at least 0 and below 1")
        if self.first < 0:
            found.append(f"first: episode {self.first}; must be at least 0")
        if self.hold < 1:
            found.append(f"hold: {self.hold} steps; must be at least 1")
        return found


def demonstrate(recording: Recording, environment: Environment, episode: int) -> Episode | None:
    """Episode number `episode`, a function of both, until success has held for `recording.hold` steps, or for fewer
    where it takes all its steps. None where it never succeeded."""
    observation = environment.reset(episode)
    expert = expert_of(environment)
    expert.reset(observation["instruction"])
    frames, states, actions, held, ended = [], [], [], 0, False
    instruction = observation["instruction"]
    while not ended and held < recording.hold:
        if observation["instruction"] != instruction:
            raise ConfigError(f"{recording.task}: the instruction changes within an episode, which LeRobot cannot hold")
        action = expert.select_action(observation).astype(np.float32)  # as it is stored, so that a replay is exact
        frames.append(observation["image"])
        states.append(observation["state"])
        actions.append(action)
        observation, _, success, ended, _ = environment.step(action + _disturbance(recording, episode, len(actions)))
        held = held + 1 if success else 0
    if held == 0:
        return None
    images, brightness = encode_images(frames)
    return Episode(images, np.stack(states), np.stack(actions), instruction, brightness)


def _disturbance(recording: Recording, episode: int, step: int) -> np.ndarray:
    """(7,) meters."""
    random = generator("execution noise", recording.seed, recording.task, episode, step)
    drawn = np.zeros(len(ACTION_NAMES))
    if torch.rand(1, generator=random).item() < recording.noisy:
        drawn[:3] = torch.randn(3, generator=random, dtype=torch.float64).numpy() * recording.noise
    return drawn


def demonstrations(
    recordings: Sequence[Recording], count: int, items: Sequence[int]
) -> Iterator[tuple[int, Episode | None]]:
    """Each item and its demonstration: item i is episode FIRST + `first` + i % count of recording i // count, in
    ascending order."""
    made: tuple[int, Environment] | None = None
    try:
        for item in items:
            number, episode = divmod(item, count)
            recording = recordings[number]
            if made is None or made[0] != number:
                if made is not None:
                    made[1].close()
                made = number, make_environment(recording.environment, recording.task, recording.options)
            yield item, demonstrate(recording, made[1], FIRST + recording.first + episode)
    finally:
        if made is not None:
            made[1].close()


def record(
    recordings: Sequence[Recording], count: int, folder: Path, workers: int, tell: Callable[[], object]
) -> dict[str, int]:
    """Write `count` demonstrations of each recording as one data set, the same for any number of workers.

    Episodes in which the expert does not succeed are left out, counted, and not replaced.

    Args:
        recordings: of tasks in one environment with the same options.
        tell: called after each episode.

    Returns:
        Task -> number of episodes left out.

    Raises:
        ConfigError: settings out of range, a folder that is not empty, no expert.
        DataError: of some task no episode is left.
    """
    problems = [problem for recording in recordings for problem in recording.problems()]
    if problems:
        raise ConfigError(sorted(set(problems)))
    writer = _writer(recordings, folder)
    left_out = dict.fromkeys((recording.task for recording in recordings), 0)
    waiting: dict[int, Episode | None] = {}  # finished before one that comes before them
    following = 0
    items = range(count * len(recordings))
    for number, episode in spread(partial(demonstrations, recordings, count), items, workers):
        waiting[number] = episode
        while following in waiting:
            done = waiting.pop(following)
            if done is None:
                left_out[recordings[following // count].task] += 1
            else:
                writer.add(done)
            following += 1
            tell()
    for task, lost in left_out.items():
        if lost == count:
            raise DataError(f"{task}: the expert succeeded in none of {count} episodes")
    writer.finish({"recordings": [asdict(entry) for entry in recordings], "left_out": left_out})
    return left_out


def _writer(recordings: Sequence[Recording], folder: Path) -> LeRobotWriter:
    """A writer for images of the environment's size. Every task is made once, to report a mistake early."""
    for recording in recordings:
        environment = make_environment(recording.environment, recording.task, recording.options)
        expert_of(environment)
        height, width, _ = environment.reset(FIRST)["image"].shape
        rate, states, name = environment.fps, environment.state_names, environment.name
        environment.close()
    return LeRobotWriter(folder, rate, (height, width), states, ACTION_NAMES, name)
