"""What windows of robot data must have in common with the media of the parts that they become."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from configs.assembly.adapters import Adapters, media_key
from configs.schema import Config
from core.errors import ConfigError
from modalities.action import ActionConfig
from modalities.base import Source
from modalities.episodes.source import EpisodesSource, episode_sources, part_of
from modalities.video import VideoConfig


def check_windows(config: Config, sources: Mapping[str, Source], adapters: Adapters, section: str = "data") -> None:
    """Raise ConfigError where a window would not be what its part takes: it would silently be cut or slowed down.

    Args:
        sources: stream -> what its `section` opens.
    """
    problems = []
    for stream, source in sources.items():
        for found in episode_sources(source):
            where = f"streams.{stream}.{section}"
            for name, adapter in adapters[stream].items():
                key = media_key(config.streams[stream], stream, name)
                problems += [f"{key}.{line}" for line in _differences(adapter.config, found, where)]
                if name not in (part_of(adapter.modality), adapter.modality):
                    problems.append(
                        f"streams.{stream}.parts.{name}: of robot data the part of the modality {adapter.modality} is "
                        f"called {part_of(adapter.modality)}"
                    )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _differences(media: object, source: EpisodesSource, where: str) -> Iterator[str]:
    plan, fps = source.reading.plan, source.episodes.fps
    if isinstance(media, ActionConfig):
        if media.actions != plan.actions:
            yield f"actions: {media.actions}, and {where}.actions is {plan.actions}"
        if not math.isclose(media.rate, plan.rate(fps)):
            yield (
                f"rate: {media.rate:g} actions a second, and {where} has {plan.rate(fps):g} ({fps:g} steps a second, "
                f"stride {plan.stride})"
            )
    if isinstance(media, VideoConfig):
        if media.frames != plan.frames:
            yield f"frames: {media.frames}, and {where}.frames is {plan.frames}"
        if not math.isclose(media.fps, plan.video_fps(fps)):
            yield (
                f"fps: {media.fps:g}, and {where} has {plan.video_fps(fps):g} ({fps:g} steps a second, stride "
                f"{plan.stride}, frames_per_action {plan.frames_per_action}, actions_per_frame "
                f"{plan.actions_per_frame})"
            )
    if getattr(media, "flip", False):
        yield f"flip: true would mirror the image and not what the robot does; not with {where}"
    if getattr(media, "crop", "") == "random":
        yield f"crop: 'random' would cut an image and its video at different places; not with {where}"
