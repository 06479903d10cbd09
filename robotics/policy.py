"""A trained run as a policy: image, state and instruction in; a chunk of actions, and the video it expects, out.

The observed frame and the state are given, video and actions are denoised around them (paper App. E). What the video
takes part in is a matter of sampling levels alone, so one checkpoint is a full policy and a fast one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from configs.runs import LoadedRun, load_run
from core.errors import ConfigError, DataError, nearest
from core.keys import generator, key
from core.sampling.parts import PartSampling
from core.sampling.sampler import SamplerConfig
from modalities.action import ActionConfig
from modalities.base import Known, Record
from modalities.episodes.config import EpisodesConfig
from modalities.episodes.source import part_of
from modalities.generation import generate
from modalities.video import VideoConfig
from robotics.chunks import ChunkPlayer, Ensemble
from robotics.environment import Observation

MODES = ("joint", "fast")


@dataclass(frozen=True)
class PolicySettings:
    """How a run acts.

    Attributes:
        execute: actions of a chunk that are carried out before the next prediction; 0 is all of them, as in the paper.
        mode: joint (video and actions together) or fast (no video tokens: a shorter sequence, and no image of the
            future).
        video_steps: joint: steps of the video, where it takes fewer than the actions; 0 leaves it pure noise.
        steps, cfg_scale: of the sampler; null is the run's.
        ensemble: how overlapping predictions of one action are blended; null takes the newest.
        weights: ema or student.
        step: checkpoint; null is the newest.
        device: auto, cpu or cuda.
    """

    execute: int = 0
    mode: str = "joint"
    video_steps: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    ensemble: Ensemble | None = None
    weights: str = "ema"
    step: int | None = None
    device: str = "auto"

    def problems(self) -> list[str]:
        found = []
        if self.mode not in MODES:
            found.append(f"mode: {self.mode!r} is not one of {', '.join(MODES)}.{nearest(self.mode, MODES)}")
        if self.execute < 0:
            found.append(f"execute: {self.execute} must be at least 1, or 0 for the whole chunk")
        if self.video_steps is not None and self.mode == "fast":
            found.append("video_steps: is not read with mode fast, which has no video")
        if self.video_steps is not None and self.video_steps < 0:
            found.append(f"video_steps: {self.video_steps} must not be negative")
        return found

    def sampling(self, own: SamplerConfig, video: str | None) -> SamplerConfig:
        """The run's settings with these; `video` is the name of its part of video. Raises ConfigError."""
        changes = {name: getattr(self, name) for name in ("steps", "cfg_scale") if getattr(self, name) is not None}
        parts = dict(own.parts)
        if video is None and (self.mode == "fast" or self.video_steps is not None):
            raise ConfigError("mode, video_steps: the run makes no video beside its actions")
        if video is not None and self.mode == "fast":
            parts[video] = PartSampling(omit=True)
        elif video is not None and self.video_steps is not None:
            shared = parts.get(video, PartSampling())
            parts[video] = replace(shared, steps=self.video_steps) if self.video_steps else PartSampling(absent=True)
        found = replace(own, parts=parts, **changes)
        if problems := found.problems():
            raise ConfigError(problems)
        return found


@dataclass
class RunPolicy:
    """See `robotics.environment.Policy`.

    Attributes:
        loaded: the run; several policies may share it.
        stream: the one that has actions.
        names: kind of a part, such as video, -> its name.
        given: names of the parts that every observation gives.
        sampling: what the settings make of the run's own.
        predicted_video: uint8 (T, H, W, 3) at the control rate, of the last prediction of this episode: first the
            image that it was made from. None before the first, where no video is made, and of runs on stored latents,
            which do not say whether their videos begin with the image or after it.

    Raises:
        ConfigError: settings out of range, or a run without actions.
    """

    loaded: LoadedRun
    stream: str = ""
    settings: PolicySettings = field(default_factory=PolicySettings)

    def __post_init__(self) -> None:
        if found := self.settings.problems():
            raise ConfigError(found)
        self.stream = self.stream or acting_stream(self.loaded)
        entry = self.loaded.config.streams[self.stream]
        parts = entry.named_parts(self.stream)
        self.names = {part_of(part.modality): name for name, part in parts.items()}
        self.given = [name for name, part in parts.items() if part.given]
        self._adapters = {name: part.adapter for name, part in self.loaded.generator.parts[self.stream].items()}
        actions = self._adapters[self.names["action"]].config
        assert isinstance(actions, ActionConfig)
        self.width, self.chunk, self.rotation = actions.width, actions.actions, actions.rotation
        states = [name for name in self.given if part_of(self._adapters[name].modality) == "state"]
        self.state_width = self._adapters[states[0]].channels if states else None
        self.sampling = self.settings.sampling(entry.sampling, self.names.get("video"))
        self._first_frame = entry.data.first_frame if isinstance(entry.data, EpisodesConfig) else None
        self._player = ChunkPlayer(
            self.predict_action_chunk, self.settings.execute or self.chunk, self.settings.ensemble
        )
        self.reset("")

    @classmethod
    def from_pretrained(cls, run: Path | str, stream: str = "", **settings: Any) -> Self:
        """The policy of a run folder; `settings` are those of `PolicySettings`."""
        chosen = PolicySettings(**settings)
        return cls(load_run(run, chosen.step, chosen.device, weights=chosen.weights), stream, chosen)

    def reset(self, instruction: str, seed: int = 0) -> None:
        self._seed, self._made = seed, 0
        self.predicted_video: np.ndarray | None = None
        self._player.reset()

    def select_action(self, observation: Observation) -> np.ndarray:
        return self._player.act(observation)

    @torch.inference_mode()
    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        """float64 (K, A) in physical units. Raises DataError for an observation that the run cannot use."""
        if not observation["instruction"].strip():
            raise DataError("an observation without an instruction: the policy was trained to follow one")
        seed = key("policy", self._seed, self._made) % 2**31
        self._made += 1
        known = {name: self._known(name, observation) for name in self.given}
        made = next(
            generate(self.loaded.generator, self.stream, [observation["instruction"]], self.sampling, seed, known)
        )
        video = made.get(self.names.get("video", ""))
        if video is not None and self._first_frame is not None:
            self.predicted_video = self._at_control_rate(video, known)
        return made[self.names["action"]].double().numpy()

    def _known(self, name: str, observation: Observation) -> Known:
        """A given part, as the data of training show it."""
        adapter = self._adapters[name]
        kind = part_of(adapter.modality)
        if kind == "image":
            media: np.ndarray = observation["image"]
            if media.ndim != 3 or media.shape[2] != 3 or media.dtype != np.uint8:
                raise DataError(f"image: {media.dtype} {media.shape}; needed is uint8 (H, W, 3)")
        elif kind == "state":
            media = np.asarray(observation["state"], dtype=np.float32)[None]
            if media.shape[1] != adapter.channels:
                raise DataError(f"state: {media.shape[1]} numbers; the run was trained on {adapter.channels}")
            if not np.isfinite(media).all():
                raise DataError(f"state: not finite: {media[0].tolist()}")
        else:
            raise ConfigError(f"streams.{self.stream}.parts.{name}: given, and an observation has no {kind}")
        record = Record(name, f"the observation's {kind}", media, valid=np.ones(1, dtype=bool))
        return Known.whole(adapter, adapter.load(record, generator("observation")))

    def _at_control_rate(self, video: Tensor, known: Mapping[str, Known]) -> np.ndarray:
        """(T, 3, H, W) in [-1, 1] at the video's rate -> uint8 (T', H, W, 3), one frame for each action."""
        config = self._adapters[self.names["video"]].config
        actions = self._adapters[self.names["action"]].config
        assert isinstance(config, VideoConfig)
        assert isinstance(actions, ActionConfig)
        frames = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        if self._first_frame == "next":  # the video begins after the image
            frames = np.concatenate([self._image(known, frames), frames])
        step = config.fps / actions.rate
        return frames[[round(place * step) for place in range(int((len(frames) - 1) / step) + 1)]]

    def _image(self, known: Mapping[str, Known], like: np.ndarray) -> np.ndarray:
        """(1, H, W, 3) the observed image at the size of the video."""
        name = self.names.get("image")
        if name is None or name not in known:
            return like[:1]
        image = torch.nn.functional.interpolate(
            known[name].media[None], like.shape[1:3], mode="bilinear", antialias=True
        )
        return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def acting_stream(loaded: LoadedRun) -> str:
    """The stream of a run that has actions. Raises ConfigError where none or several have."""
    found = [
        name
        for name, entry in loaded.config.streams.items()
        if any(part.modality.partition("_")[0] == "action" for part in entry.named_parts(name).values())
    ]
    if len(found) != 1:
        told = (
            f"{len(found)} streams with actions ({', '.join(found)}); name one" if found else "no stream with actions"
        )
        raise ConfigError(f"{loaded.folder}: has {told}, and cannot act; it has {', '.join(loaded.config.streams)}")
    return found[0]
