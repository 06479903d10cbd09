"""What `selfflow inspect` shows of a robot data set: its fields, episodes and instructions, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from modalities.episodes.base import EpisodeSet, Fields
from modalities.episodes.features import RldsInfo, read_info
from modalities.episodes.known import RLDS
from modalities.episodes.lerobot import LeRobotSet, usual_fields
from modalities.episodes.lerobot_meta import read_info as read_lerobot
from modalities.episodes.rlds import RldsSet


def is_robot_data(path: Path) -> bool:
    """Whether a folder is a data set of LeRobot, or of TensorFlow Datasets with steps."""
    return (path / "meta/info.json").is_file() or (path / "features.json").is_file()


def describe_robots(path: Path, number: int) -> list[str]:
    """Fields, episodes, what cannot be read, and the first episodes with their instructions.

    The index of an RLDS data set is built where it is not there yet: all of its files are read.
    """
    episodes, fps = _opened(path)
    steps = episodes.steps
    lines = [f"robot     {path}", *episodes.describe()]
    mean = f"{steps.mean():.1f} steps in the mean, {steps.min()} to {steps.max()}" if len(steps) else "none can be read"
    lines.append(f"episodes  {len(steps):,}, {int(steps.sum()):,} steps, {fps}; {mean}")
    fields = episodes.fields
    lines.append(f"read      image_key {fields.image}, action_keys {', '.join(fields.actions)}")
    lines.append(
        f"          state_keys {', '.join(fields.states) or 'none'}, instruction {fields.instruction or 'none'}"
    )
    lines += [f"  {line}" for line in episodes.account().lines()]
    if short := int((steps < 2).sum()):
        lines.append(f"  left out: {short} episodes of fewer than 2 steps")
    for index in range(min(number, len(steps))):
        try:
            episode = episodes.read(index, images=False)
        except DataError as error:
            lines.append(f"  {episodes.key(index)}: cannot be used: {error}")
            continue
        wrong = int((~np.isfinite(episode.actions).all(axis=1)).sum())
        lines.append(
            f"  {episode.key}: {episode.steps} steps, {episode.actions.shape[1]} numbers an action, "
            f"instruction {episode.instruction!r}" + (f", {wrong} actions with NaN or infinite values" if wrong else "")
        )
    return lines


def _opened(path: Path) -> tuple[EpisodeSet, str]:
    """The data set with the fields that are usual for it, and its rate in words."""
    if (path / "meta/info.json").is_file():
        features = read_lerobot(path).features
        cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
        if not cameras:
            raise ConfigError(f"{path} has no camera among its features {', '.join(features)}")
        found = LeRobotSet(path, usual_fields(path, cameras[0]))
        return found, f"{found.fps:g} fps"
    info = read_info(path)
    known = RLDS.get(info.name)
    fields, fps = (known.fields, known.fps) if known else (guessed_fields(info), 1.0)
    rate = f"{fps:g} steps a second" if known else "steps a second unknown (set fps)"
    return RldsSet(path, fields, fps, next(iter(info.splits))), rate


def guessed_fields(info: RldsInfo) -> Fields:
    """The fields of an unknown data set, by name. Raises ConfigError where there is no image or action."""
    images = [name for name, feature in info.steps.items() if feature.kind == "image"]
    actions = [n for n, feature in info.steps.items() if feature.kind == "number" and n.partition("/")[0] == "action"]
    if not images or not actions:
        raise ConfigError(f"no image or no action among its fields {', '.join(info.steps)}")
    texts = [name for name, feature in info.steps.items() if feature.kind == "text" and "instruction" in name]
    return Fields(images[0], tuple(actions), (), texts[0] if texts else "")
