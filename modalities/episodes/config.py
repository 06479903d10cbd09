"""The configurations of robot data: kinds `rlds` and `lerobot` of data sources."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import ConfigError
from modalities.actions.gripper import RULES
from modalities.base import Source
from modalities.data.sources.config import PathConfig, not_one_of
from modalities.data.sources.selection import SPLITS, Selection
from modalities.episodes.base import EpisodeSet, Fields
from modalities.episodes.features import read_info
from modalities.episodes.known import RLDS, chosen
from modalities.episodes.lerobot import LeRobotSet, usual_fields
from modalities.episodes.rlds import RldsSet
from modalities.episodes.source import NO_INSTRUCTION, EpisodesSource, Reading
from modalities.episodes.windows import WindowPlan
from modalities.media.video_decoders import DECODERS


@dataclass(frozen=True, kw_only=True)
class EpisodesConfig(PathConfig):
    """Robot data: a record is a window of an episode, with the parts image (the image at a step), video, action and
    state. A window that reaches beyond the end is filled up with the last frame and masked.

    Attributes:
        image_key: the camera.
        action_keys, state_keys: fields that are put one after another.
        subset: split of the data set itself.
        frames: of the video.
        actions: of a sample.
        stride: steps from one action to the next. Actions between are left out: for absolute actions alone.
        frames_per_action: frames of the video in that time; more than `stride` show images more than once.
        actions_per_frame: actions from one frame of the video to the next, for a video that looks further ahead.
        first_frame: next (the video begins with what the first action, or the first `actions_per_frame`, lead to) or
            current (with the image itself).
        gripper: how an action tells it: keep, relative (RT-1: commands that open or close become the state, 1 open) or
            inverted (1 is closed in the data); "" is as usual for the data set.
        gripper_dims: places of the grippers among the numbers of an action.
        instruction: one for all episodes, in place of theirs.
        no_instruction: of an episode without one: skip (its windows are set aside) or null (the null condition).
        split: train or test, a side of the hold-out; or all.
        holdout: share of the episodes that is held out for test, by a hash of their keys.
    """

    image_key: str = ""
    action_keys: list[str] = field(default_factory=list)
    state_keys: list[str] = field(default_factory=list)
    subset: str = "train"
    frames: int = 9
    actions: int = 6
    stride: int = 1
    frames_per_action: int = 1
    actions_per_frame: int = 1
    first_frame: str = "next"
    gripper: str = ""
    gripper_dims: list[int] = field(default_factory=list)
    instruction: str = ""
    no_instruction: str = "skip"
    split: str = "all"
    holdout: float = 0.0

    def problems(self) -> list[str]:
        found = super().problems() + self.plan().problems()
        if self.gripper:
            found += not_one_of("gripper", self.gripper, RULES)
        if self.gripper_dims and not self.gripper:
            found.append(f"gripper_dims: {list(self.gripper_dims)} without `gripper`, which says what they mean")
        if self.gripper in ("relative", "inverted") and not self.gripper_dims:
            found.append(f"gripper_dims: empty, and gripper is {self.gripper!r}; name its places in an action")
        found += not_one_of("no_instruction", self.no_instruction, NO_INSTRUCTION)
        found += not_one_of("split", self.split, SPLITS)
        if not 0 <= self.holdout < 1:
            found.append(f"holdout: {self.holdout} must lie in [0, 1)")
        elif (self.split == "all") != (self.holdout == 0):
            found.append(f"split: {self.split!r} with holdout {self.holdout:g}; set both, or neither")
        return found

    @property
    def holds_episodes(self) -> bool:
        return True

    def plan(self) -> WindowPlan:
        return WindowPlan(
            self.frames, self.actions, self.stride, self.frames_per_action, self.actions_per_frame, self.first_frame
        )

    def source(self, episodes: EpisodeSet, modalities: tuple[str, ...], reading: Reading) -> Source:
        if self.gripper:
            reading = replace(reading, gripper=self.gripper, gripper_places=tuple(self.gripper_dims))
        return EpisodesSource(episodes, modalities, reading, Selection({}, self.split, self.holdout))

    def reading(self) -> Reading:
        return Reading(self.plan(), instruction=self.instruction, no_instruction=self.no_instruction)


@dataclass(frozen=True, kw_only=True)
class RldsConfig(EpisodesConfig):
    """An RLDS data set as TensorFlow Datasets writes it. Of `fractal20220817_data` (RT-1) and `bridge_dataset` the
    fields are known, and may be left out.

    Attributes:
        path: folder of one version, with dataset_info.json, features.json and .tfrecord files.
        image_key, action_keys, state_keys: names of features of a step, such as observation/image.
        instruction_key: text of a step or of the episode.
        fps: steps a second, which the files do not say.
        cache: folder of the index; "" is one of the user's cache directory.
    """

    kind: str = "rlds"
    instruction_key: str = ""
    fps: float | None = None
    cache: str = ""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.fps is not None and not self.fps > 0:
            found.append(f"fps: {self.fps} must be above 0 steps a second")
        return found

    def build(self, modalities: tuple[str, ...], root: Path) -> Source:
        folder = root / Path(self.path).expanduser()
        info = read_info(folder)
        known = RLDS.get(info.name)
        usual = known.fields if known else Fields("", ())
        fields = chosen(usual, self.image_key, self.action_keys, self.state_keys, self.instruction_key)
        fps = self.fps or (known.fps if known else None)
        if fps is None:
            raise ConfigError(f"fps: null, and {info.name} is no data set whose rate is known; set steps a second")
        cache = root / Path(self.cache).expanduser() if self.cache else None
        reading = self.reading()
        if known and fields.actions == known.fields.actions:
            reading = replace(reading, gripper=known.gripper, gripper_places=known.gripper_places)
        return self.source(RldsSet(folder, fields, fps, self.subset, cache), modalities, reading)

    def layout(self, modality: str) -> str:
        return "the folder of a version of an RLDS data set, with dataset_info.json, features.json and .tfrecord files"


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(EpisodesConfig):
    """A LeRobot data set of format 2 or 3.

    Attributes:
        path: folder with meta/, data/ and videos/.
        image_key: such as observation.images.front; "" is the only camera.
        action_keys, state_keys: left out: action, and observation.state where there is one.
        backend: that decodes videos, as of a video's media.
    """

    kind: str = "lerobot"
    backend: str = "pyav"

    def problems(self) -> list[str]:
        return super().problems() + not_one_of("backend", self.backend, DECODERS)

    def build(self, modalities: tuple[str, ...], root: Path) -> Source:
        folder = root / Path(self.path).expanduser()
        fields = chosen(usual_fields(folder, self.image_key), "", self.action_keys, self.state_keys, "")
        return self.source(LeRobotSet(folder, fields, self.subset, self.backend), modalities, self.reading())

    def layout(self, modality: str) -> str:
        return "a LeRobot data set, with meta/info.json, data/ and videos/"
