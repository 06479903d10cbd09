"""LeRobot data sets of format 2 (a file for each episode) and 3 (many episodes in a file), read without lerobot.

A frame is found by its number within the episode. Time stamps say at most where in a file an episode lies: rounded
ones would give the neighbor's frame as soon as a clock is not exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from modalities.data.sources.account import Account
from modalities.data.sources.selection import digest
from modalities.episodes.base import Episode, Fields, stacked, wrong_field
from modalities.episodes.lerobot_meta import LeRobotInfo, Span, read_info, read_rows
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from modalities.media.video_index import VideoIndex

KEPT = 32  # indices of video files that are remembered


class LeRobotSet:
    """
    Args:
        folder: of the data set, with meta/info.json.
        fields: what is read; `instruction` "task" is the text of the task, "" means no text.
        subset: split of meta/info.json, such as train.
        backend: that decodes videos, a key of `video_decoders.DECODERS`.

    Raises ConfigError for a folder, split or field that is not there, or of another format.
    """

    def __init__(self, folder: Path, fields: Fields, subset: str = "train", backend: str = "pyav"):
        self.folder, self.fields, self.backend = folder, fields, backend
        self.info = info = read_info(folder)
        _check_fields(info, fields)
        self.fps = info.fps
        self.episodes = info.episodes_of(subset)
        self.steps = np.array([entry.length for entry in self.episodes], dtype=np.int64)
        files = np.array([entry.data.chunk * 10**6 + entry.data.file for entry in self.episodes])
        self.files = files if info.several_in_a_file else None
        self._video = info.features[fields.image]["dtype"] == "video"
        self._spans = info.video_spans(fields.image) if self._video else {}
        self._indices: OrderedDict[Path, VideoIndex] = OrderedDict()

    def key(self, index: int) -> str:
        return f"episode_{self.episodes[index].number:06d}"

    def read(self, index: int, images: bool = True) -> Episode:
        entry, fields = self.episodes[index], self.fields
        path = self.info.data_file(entry)
        origin = f"{path} episode {entry.number}"
        stored = images and not self._video
        wanted = (*fields.actions, *fields.states, *((fields.image,) if stored else ()))
        names: list[str] = list(dict.fromkeys(wanted))
        rows = read_rows(path, names, entry, origin)
        encoded = rows.pop(fields.image) if stored else []

        def frames(numbers: Sequence[int]) -> np.ndarray:
            if self._video:
                return self._frames(entry.number, numbers)
            found = {number: read_image(encoded[number], f"{origin} step {number}") for number in set(numbers)}
            return np.stack([found[number] for number in numbers])

        size = sum(map(len, encoded)) if stored else self._video_bytes(entry.number) if images else 0
        return Episode(
            self.key(index),
            origin,
            stacked([rows[name] for name in fields.actions], entry.length, fields.actions, origin),
            stacked([rows[name] for name in fields.states], entry.length, fields.states, origin)
            if fields.states
            else None,
            " ".join(entry.task.split()) if fields.instruction else "",
            frames,
            size,
        )

    def _frames(self, number: int, numbers: Sequence[int]) -> np.ndarray:
        span = self._spans[number]
        origin = f"{span.path} episode {number}"
        index = self._index(span.path)
        first = first_frame(span, index, self.fps, origin)
        wanted = first + np.asarray(numbers)
        return np.stack(read_frames(span.path, origin, index, wanted, self.backend))

    def _index(self, path: Path) -> VideoIndex:
        if path not in self._indices:
            self._indices[path] = index_video(path, str(path))
            while len(self._indices) > KEPT:
                self._indices.popitem(last=False)
        self._indices.move_to_end(path)
        return self._indices[path]

    def _video_bytes(self, number: int) -> int:
        """The episode's share of its file."""
        span = self._spans[number]
        try:
            return span.path.stat().st_size * span.length // max(1, span.frames)
        except OSError as error:
            raise DataError(f"{span.path}: cannot be read: {error.strerror}") from error

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_indices": OrderedDict()}

    def account(self) -> Account:
        return Account()

    def fingerprint(self) -> str:
        rows = (f"{entry.number}:{entry.length}" for entry in self.episodes)
        return digest("lerobot", self.info.version, *rows)

    def describe(self) -> list[str]:
        info = self.info
        lines = [f"data set  LeRobot {info.version}, robot {info.robot}, {info.fps:g} fps, {len(info.tasks)} tasks"]
        for name, feature in info.features.items():
            shape = " x ".join(map(str, feature["shape"]))
            lines.append(f"  {name}: {feature['dtype']} {shape}{named(feature.get('names'))}")
        return lines


def first_frame(span: Span, index: VideoIndex, fps: float, origin: str) -> int:
    """Number in its file of the first frame of an episode.

    Counted: the episodes of a file lie one after another. Where a file has frames of no episode the time stamps of the
    span say where it lies, and must enclose as many frames as the episode has. Raises DataError where neither fits.
    """
    there = len(index.pts)
    if there == span.frames:
        return span.before
    half = 0.5 / fps
    low, high = np.searchsorted(index.times, [span.start - half, span.end - half])
    if span.end > span.start and high - low == span.length:
        return int(low)
    raise DataError(
        f"{origin}: the video has {there} frames, and its episodes {span.frames} steps; none can be told apart"
        if span.frames != span.length
        else f"{origin}: the video has {there} frames, and the episode {span.length} steps"
    )


def named(names: Any) -> str:
    """The names of a vector's numbers, in brackets; "" where the data set has none."""
    if isinstance(names, dict):
        names = [name for inner in names.values() for name in (inner if isinstance(inner, list) else [inner])]
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        (names,) = names
    if not isinstance(names, list) or not names:
        return ""
    shown = ", ".join(map(str, names[:8]))
    return f" ({shown}{', ...' if len(names) > 8 else ''})"


def usual_fields(folder: Path, image: str = "") -> Fields:
    """What is read where a configuration names nothing: the only camera, `action`, `observation.state`, the task.

    Raises ConfigError where there are several cameras and none is named.
    """
    info = read_info(folder)
    cameras = [name for name, feature in info.features.items() if feature["dtype"] in ("video", "image")]
    if not image and len(cameras) != 1:
        raise ConfigError(f"image_key: empty, and {folder} has {len(cameras)} cameras; name one: {', '.join(cameras)}")
    states = ("observation.state",) if "observation.state" in info.features else ()
    return Fields(image or cameras[0], ("action",), states, "task")


def _check_fields(info: LeRobotInfo, fields: Fields) -> None:
    where = str(info.folder / "meta/info.json")
    cameras = [name for name, feature in info.features.items() if feature["dtype"] in ("video", "image")]
    if fields.image not in cameras:
        raise wrong_field("image_key", fields.image, cameras, where)
    numbers = [name for name in info.features if name not in cameras]
    for setting, names in (("action_keys", fields.actions), ("state_keys", fields.states)):
        for name in names:
            if name not in numbers:
                raise wrong_field(setting, name, numbers, where)
    if fields.instruction not in ("", "task"):
        raise ConfigError(f"instruction_key: {fields.instruction!r} is not read of LeRobot data; only 'task'")
