"""Writes episodes as a LeRobot data set of version 2.1.

Layout as huggingface/lerobot documents it: meta/info.json, tasks.jsonl, episodes.jsonl, episodes_stats.jsonl and one
Parquet file an episode. Images are PNG in the Parquet files (dtype "image"): they are so small that thousands of MP4
files would be slower to write and to read, and no smaller.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.durable import writing
from core.errors import ConfigError, DataError
from core.optional import need

VERSION = "v2.1"
CHUNK = 1000  # episodes in a folder
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
IMAGE, STATE, ACTION = "observation.images.overhead", "observation.state", "action"
COUNTERS = ("frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Episode:
    """One demonstration of N steps: what was seen before each action, and the action.

    images: N PNG files. states: float32 (N, S). actions: float32 (N, A). brightness: (4, 3), minimum, maximum, mean and
    standard deviation of each color in [0, 1].
    """

    images: Sequence[bytes]
    states: np.ndarray
    actions: np.ndarray
    instruction: str
    brightness: np.ndarray


def encode_images(frames: Sequence[np.ndarray]) -> tuple[list[bytes], np.ndarray]:
    """uint8 (H, W, 3) each -> PNG files, and `Episode.brightness`."""
    files = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
        files.append(buffer.getvalue())
    pixels = np.stack(frames).reshape(-1, 3).astype(np.float64) / 255
    return files, np.stack([pixels.min(0), pixels.max(0), pixels.mean(0), pixels.std(0)])


class LeRobotWriter:
    """
    Args:
        folder: a new or empty one.
        fps: steps per second.
        shape: (H, W) of the images.
        state_names, action_names: of their entries.
        robot: what `robot_type` says.

    Raises:
        ConfigError: the folder is not empty, or pyarrow is missing.
    """

    def __init__(
        self,
        folder: Path,
        fps: float,
        shape: tuple[int, int],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot: str,
    ):
        self._pa, self._parquet = (
            need(module, "writing a LeRobot data set", "Rollouts work") for module in ("pyarrow", "pyarrow.parquet")
        )
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; demonstrations go into a new folder")
        self.folder, self.fps, self.robot = folder, fps, robot
        self._tasks: dict[str, int] = {}
        self._lengths: list[tuple[int, str]] = []
        self._statistics: list[dict[str, Any]] = []
        self.frames = 0
        height, width = shape
        numbers = {STATE: state_names, ACTION: action_names}
        self._features: dict[str, dict[str, Any]] = {
            **{name: {"dtype": "float32", "shape": [len(of)], "names": list(of)} for name, of in numbers.items()},
            IMAGE: {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channel"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS},
        }
        with writing(folder):
            (folder / "meta").mkdir(parents=True)

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, episode: Episode) -> None:
        """The next episode.

        Raises:
            DataError: of no steps, of another width than the first line of the data set says, or the disk is full.
        """
        number, length = len(self._lengths), len(episode.actions)
        for name, values in ((STATE, episode.states), (ACTION, episode.actions)):
            expected = (length, *self._features[name]["shape"])
            if length == 0 or values.shape != expected or len(episode.images) != length:
                raise DataError(
                    f"episode {number}: {name} {values.shape}, {len(episode.images)} images; expected {expected}"
                )
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        steps = np.arange(length)
        counters = {
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self.frames + steps,
            "task_index": np.full(length, task),
        }
        stamps = (steps / self.fps).astype(np.float32)
        path = self.folder / DATA_PATH.format(episode_chunk=number // CHUNK, episode_index=number)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parquet.write_table(self._table(episode, stamps, counters), path)
        self._lengths.append((length, episode.instruction))
        self._statistics.append(_statistics(episode, {"timestamp": stamps, **counters}))
        self.frames += length

    def finish(self, about: dict[str, Any]) -> None:
        """Write what describes the set; `about` (how it was made) goes to meta/selfflow.json. info.json comes last."""
        meta = self.folder / "meta"
        episodes = [
            {"episode_index": number, "tasks": [instruction], "length": length}
            for number, (length, instruction) in enumerate(self._lengths)
        ]
        statistics = [{"episode_index": number, "stats": stats} for number, stats in enumerate(self._statistics)]
        tasks = [{"task_index": number, "task": task} for task, number in self._tasks.items()]
        info = {
            "codebase_version": VERSION,
            "robot_type": self.robot,
            "total_episodes": len(episodes),
            "total_frames": self.frames,
            "total_tasks": len(tasks),
            "total_videos": 0,
            "total_chunks": -(-len(episodes) // CHUNK),
            "chunks_size": CHUNK,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": self._features,
        }
        with writing(meta):
            for name, lines in (("tasks", tasks), ("episodes", episodes), ("episodes_stats", statistics)):
                (meta / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (meta / "selfflow.json").write_text(json.dumps(about, indent=2) + "\n")
            (meta / "info.json").write_text(json.dumps(info, indent=2) + "\n")

    def _table(self, episode: Episode, stamps: np.ndarray, counters: dict[str, np.ndarray]) -> Any:
        """Columns in the order of `features`; the schema also says to `datasets` which one holds images."""
        pa = self._pa
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        files = [{"bytes": data, "path": f"frame_{step:06d}.png"} for step, data in enumerate(episode.images)]
        columns = {
            STATE: _vectors(pa, episode.states),
            ACTION: _vectors(pa, episode.actions),
            IMAGE: pa.array(files, type=image),
            "timestamp": pa.array(stamps),
            **{name: pa.array(values.astype(np.int64)) for name, values in counters.items()},
        }
        return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(self._for_datasets())})

    def _for_datasets(self) -> dict[str, Any]:
        def described(feature: dict[str, Any]) -> dict[str, Any]:
            if feature["dtype"] == "image":
                return {"_type": "Image"}
            value = {"dtype": feature["dtype"], "_type": "Value"}
            if feature["names"] is None:
                return value
            return {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}

        return {"info": {"features": {name: described(feature) for name, feature in self._features.items()}}}


def _vectors(pa: Any, values: np.ndarray) -> Any:
    """(N, W) -> a column of fixed-size lists of float32."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _statistics(episode: Episode, scalars: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Minimum, maximum, mean, standard deviation and count of every feature; of an image per color, (3, 1, 1)."""
    count = [len(episode.actions)]
    found: dict[str, dict[str, Any]] = {}
    vectors = {STATE: episode.states, ACTION: episode.actions}
    for name, values in {**vectors, **{name: values[:, None] for name, values in scalars.items()}}.items():
        rows = (values.min(0), values.max(0), values.mean(0), values.std(0))
        found[name] = {key: row.tolist() for key, row in zip(("min", "max", "mean", "std"), rows, strict=True)}
        found[name]["count"] = count
    rows = [[[[float(level)]] for level in row] for row in episode.brightness]
    found[IMAGE] = {**dict(zip(("min", "max", "mean", "std"), rows, strict=True)), "count": count}
    return found
