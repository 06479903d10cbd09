"""Running a policy in an environment, episode by episode, and what is kept of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.keys import key
from robotics.environment import Environment, Policy
from robotics.environments import make_environment
from robotics.policies import make_policy
from robotics.success import judge
from robotics.videos import Film, write_film


@dataclass(frozen=True)
class Rollout:
    """What is run. Two rollouts with equal settings give equal episodes.

    Attributes:
        environment, task, options: as `make_environment` takes them.
        policy, acting: as `make_policy` takes them.
        seed: of the policy's draws. Episodes are functions of (task, number) alone.
        checkpoint: fingerprint of the weights of a run's policy, "" of others: a run that has been trained further, or
            anew, is another policy.
    """

    environment: str
    task: str
    policy: str
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    acting: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""

    def settings(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def run_episode(
    environment: Environment, policy: Policy, episode: int, seed: int, filmed: bool = False
) -> tuple[dict[str, Any], Film | None]:
    """One episode to its end: its record (JSON), and its images if it is filmed.

    The record: episode_ix, seed (of the policy in this episode), instruction (at the beginning, and what it became),
    steps, sum_reward, max_reward, success by every rule, first_success (number of steps, or None), info of the last
    step, policy_s and seconds (mean time of an action, time of the episode).
    """
    start = time.perf_counter()
    observation = environment.reset(episode)
    instructions = [observation["instruction"]]
    drawn = key("policy", seed, environment.task, episode)
    policy.reset(instructions[0], drawn)
    film = Film([observation["image"]]) if filmed else None
    fulfilled: list[bool] = []
    rewards: list[float] = []
    spent, ended, info = 0.0, False, {}
    while not ended:
        began = time.perf_counter()
        action = policy.select_action(observation)
        spent += time.perf_counter() - began
        observation, reward, success, ended, info = environment.step(action)
        if observation["instruction"] != instructions[-1]:
            instructions.append(observation["instruction"])
        fulfilled.append(success)
        rewards.append(reward)
        if film is not None:
            film.add(observation["image"], getattr(policy, "predicted_video", None))
    record = {
        "episode_ix": episode,
        "seed": drawn,
        "instruction": instructions[0],
        **({"later_instructions": instructions[1:]} if len(instructions) > 1 else {}),
        "steps": len(rewards),
        "sum_reward": float(np.sum(rewards)),
        "max_reward": float(np.max(rewards)),
        "success": judge(fulfilled),
        "first_success": fulfilled.index(True) + 1 if any(fulfilled) else None,
        "info": info,
        "policy_s": round(spent / len(rewards), 6),
        "seconds": round(time.perf_counter() - start, 6),
    }
    return record, film


def run_episodes(rollout: Rollout, filmed: frozenset[int], videos: Path, episodes: Sequence[int]) -> Iterator[Any]:
    """Records of these episodes, by one environment and one policy; those of `filmed` also as MP4 in `videos`.

    A record of a filmed episode names its file in `video`.
    """
    environment = make_environment(rollout.environment, rollout.task, rollout.options)
    try:
        policy = make_policy(rollout.policy, environment, rollout.acting)
        for episode in episodes:
            record, film = run_episode(environment, policy, episode, rollout.seed, episode in filmed)
            if film is not None:
                path = write_film(film, videos / f"episode_{episode:06d}.mp4", environment.fps)
                record["video"] = path.name
            yield record
    finally:
        environment.close()
