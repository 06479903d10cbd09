"""Demonstrations as a run's own data settings read them, for comparison without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.errors import ConfigError
from modalities.base import Record
from modalities.episodes.config import EpisodesConfig
from modalities.episodes.source import EpisodesSource
from robotics.environment import ACTION_NAMES
from robotics.open_loop import Window, episode_windows
from robotics.policy import RunPolicy


def action_names(width: int) -> tuple[str, ...]:
    """Names of the numbers of an action: the environment's where it has as many, else their places."""
    return ACTION_NAMES if width == len(ACTION_NAMES) else tuple(map(str, range(width)))


def demonstrated_windows(policy: RunPolicy, folder: Path, episodes: range) -> Iterator[Window]:
    """Every step of some episodes of a data set in the format that the run was trained on.

    Args:
        episodes: by their place among those that have windows; what lies beyond the last one is left out.

    Raises ConfigError for a run on other data, and where no episode is left.
    """
    modalities = ("image", "action", "state") if policy.state_width is not None else ("image", "action")
    data, source, numbers = _demonstrations(policy, folder, modalities, episodes)
    for number in numbers:
        episode = source.episode(number)
        states = np.zeros((episode.steps, 0), np.float32) if episode.states is None else episode.states
        instruction = data.instruction or episode.instruction
        if instruction:  # a policy follows one
            frames = episode.frames(range(episode.steps))
            yield from episode_windows(
                list(frames), states, episode.actions, instruction, policy.chunk, number, source.reading.plan.stride
            )


def demonstrated_records(policy: RunPolicy, folder: Path, episodes: range, count: int) -> Iterator[Record]:
    """At most `count` windows of some episodes, evenly spaced, with all parts of the run. Raises as above."""
    entry = policy.loaded.config.streams[policy.stream]
    modalities = tuple(part.modality for part in entry.named_parts(policy.stream).values())
    _, source, numbers = _demonstrations(policy, folder, modalities, episodes)
    chosen = set(numbers)
    places = [index for index in range(len(source)) if source.place(index)[0] in chosen]
    for place in np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)):
        yield source.read(places[place])


def _demonstrations(
    policy: RunPolicy, folder: Path, modalities: tuple[str, ...], episodes: range
) -> tuple[EpisodesConfig, EpisodesSource, list[int]]:
    """The run's own settings of data, the data set under them, and the numbers of the episodes."""
    data = policy.loaded.config.streams[policy.stream].data
    if not isinstance(data, EpisodesConfig):
        raise ConfigError(f"--open-loop: the run was trained on data of kind {data.kind!r}, not on robot data")
    # All of it: what a run holds out of its own data is no matter here.
    source = replace(data, path=str(folder.resolve()), split="all", holdout=0.0, repeat=1).build(modalities, Path())
    assert isinstance(source, EpisodesSource)
    numbers = source.taken[episodes.start : episodes.stop].tolist()
    if not numbers:
        raise ConfigError(f"--first: {episodes.start}, and {folder} has {len(source.taken)} episodes with windows")
    return data, source, numbers
