"""The folder meta/ of a LeRobot data set, of either format, and rows of its Parquet files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need
from modalities.episodes.base import wrong_field

NEEDED = ("codebase_version", "fps", "features", "data_path")


@dataclass(frozen=True)
class Place:
    """Where in a file of many episodes one lies: number of chunk and file, and its first row there."""

    chunk: int
    file: int
    row: int = 0


@dataclass(frozen=True)
class EpisodeEntry:
    """
    Attributes:
        number, length: of the episode, T.
        task: its text, "" where there is none.
        data: where its rows lie; of format 2 the whole file is its.
        videos: camera -> (chunk, file, first second, last second), of format 3.
    """

    number: int
    length: int
    task: str
    data: Place
    videos: dict[str, tuple[int, int, float, float]]


@dataclass(frozen=True)
class Span:
    """Where the frames of an episode lie.

    Attributes:
        length: its frames.
        before: frames of the episodes before it in the file.
        frames: of all episodes in the file.
        start, end: in seconds by the data set's own account; 0 where it has none.
    """

    path: Path
    length: int
    before: int
    frames: int
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class LeRobotInfo:
    """
    Attributes:
        version: such as v2.1.
        features: name -> dtype, shape and names.
        episodes: all of the data set, in their order.
        splits: name -> [first, last) of its episodes.
    """

    folder: Path
    version: str
    robot: str
    fps: float
    features: dict[str, dict[str, Any]]
    episodes: list[EpisodeEntry]
    splits: dict[str, tuple[int, int]]
    tasks: list[str]
    data_path: str
    video_path: str
    chunk_size: int

    @property
    def several_in_a_file(self) -> bool:
        return self.version.startswith("v3")

    def episodes_of(self, subset: str) -> list[EpisodeEntry]:
        if not self.splits and subset == "train":  # old sets have one split
            return self.episodes
        if subset not in self.splits:
            raise wrong_field("subset", subset, list(self.splits), f"{self.folder}/meta/info.json")
        first, last = self.splits[subset]
        return [entry for entry in self.episodes if first <= entry.number < last]

    def data_file(self, entry: EpisodeEntry) -> Path:
        if self.several_in_a_file:
            return self.folder / self.data_path.format(chunk_index=entry.data.chunk, file_index=entry.data.file)
        chunk = entry.number // self.chunk_size
        return self.folder / self.data_path.format(episode_chunk=chunk, episode_index=entry.number)

    def video_spans(self, camera: str) -> dict[int, Span]:
        """Episode -> where its frames lie. Raises ConfigError where the data set does not say."""
        if not self.several_in_a_file:
            found = {}
            for entry in self.episodes:
                names = {"episode_chunk": entry.number // self.chunk_size, "episode_index": entry.number}
                path = self.folder / self.video_path.format(video_key=camera, **names)
                found[entry.number] = Span(path, entry.length, 0, entry.length)
            return found
        files: dict[tuple[int, int], list[EpisodeEntry]] = {}
        for entry in self.episodes:
            if camera not in entry.videos:
                raise ConfigError(f"image_key: {camera}: meta/episodes of {self.folder} does not say where it lies")
            files.setdefault(entry.videos[camera][:2], []).append(entry)
        found = {}
        for (chunk, file), entries in files.items():
            path = self.folder / self.video_path.format(video_key=camera, chunk_index=chunk, file_index=file)
            frames, before = sum(entry.length for entry in entries), 0
            for entry in sorted(entries, key=lambda entry: entry.videos[camera][2]):
                start, end = entry.videos[camera][2:]
                found[entry.number] = Span(path, entry.length, before, frames, start, end)
                before += entry.length
        return found


def read_info(folder: Path) -> LeRobotInfo:
    """Raises ConfigError for a folder that is no LeRobot data set, or of a format that is not read."""
    path = folder / "meta/info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"path: {path} cannot be read ({error.strerror}); a LeRobot data set has meta/, data/ and videos/"
        ) from error
    except ValueError as error:
        raise ConfigError(f"path: {path} is not valid JSON ({error})") from error
    if missing := [name for name in NEEDED if name not in info]:
        raise ConfigError(f"path: {path} lacks {', '.join(missing)}")
    version = str(info["codebase_version"])
    if not version.startswith(("v2", "v3")):
        raise ConfigError(f"path: {folder} has the format {version}; v2 and v3 are read")
    episodes, tasks = _read_v3(folder) if version.startswith("v3") else _read_v2(folder)
    splits = {}
    for name, text in (info.get("splits") or {}).items():
        first, _, last = str(text).partition(":")
        splits[name] = int(first), int(last)
    return LeRobotInfo(
        folder,
        version,
        str(info.get("robot_type") or "unknown"),
        float(info["fps"]),
        info["features"],
        episodes,
        splits,
        tasks,
        info["data_path"],
        info.get("video_path") or "",
        int(info.get("chunks_size", 1000)),
    )


def _read_v2(folder: Path) -> tuple[list[EpisodeEntry], list[str]]:
    found = [
        EpisodeEntry(int(row["episode_index"]), int(row["length"]), _first(row.get("tasks")), Place(0, 0), {})
        for row in _lines(folder / "meta/episodes.jsonl")
    ]
    tasks = [str(row["task"]) for row in _lines(folder / "meta/tasks.jsonl")]
    return sorted(found, key=lambda entry: entry.number), tasks


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"path: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"path: {path} has a line that is not valid JSON ({error})") from error


def _read_v3(folder: Path) -> tuple[list[EpisodeEntry], list[str]]:
    parquet = need("pyarrow.parquet", "kind: lerobot", "All other sources work")
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise ConfigError(f"path: {folder}/meta/episodes holds no Parquet file")
    rows: list[dict[str, Any]] = []
    for path in paths:
        names = parquet.read_schema(path).names
        wanted = [name for name in names if not name.startswith(("stats/", "meta/"))]
        rows += parquet.read_table(path, columns=wanted).to_pylist()
    rows.sort(key=lambda row: row["episode_index"])
    first: dict[tuple[int, int], int] = {}  # first row of each file in the whole data set
    for row in rows:
        file = row["data/chunk_index"], row["data/file_index"]
        first[file] = min(first.get(file, row["dataset_from_index"]), row["dataset_from_index"])
    found = []
    for row in rows:
        file = row["data/chunk_index"], row["data/file_index"]
        cameras = [name.split("/")[1] for name in row if name.startswith("videos/") and name.endswith("/file_index")]
        videos = {
            camera: tuple(
                row[f"videos/{camera}/{name}"]
                for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            )
            for camera in cameras
        }
        place = Place(*file, row["dataset_from_index"] - first[file])
        found.append(EpisodeEntry(row["episode_index"], row["length"], _first(row.get("tasks")), place, videos))
    tasks = parquet.read_table(folder / "meta/tasks.parquet").to_pylist()
    return found, [_first([value for value in row.values() if isinstance(value, str)]) for row in tasks]


def _first(texts: Any) -> str:
    return str(texts[0]) if texts else ""


def read_rows(path: Path, names: list[str], entry: EpisodeEntry, origin: str) -> dict[str, Any]:
    """Columns of an episode's rows: vectors as (T, ...) arrays, images as lists of bytes.

    Raises DataError where the rows are not those of the episode.
    """
    parquet = need("pyarrow.parquet", "kind: lerobot", "All other sources work")
    import pyarrow as pa

    wanted = [*names, "episode_index", "frame_index"]
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            if missing := [name for name in wanted if name not in file.schema_arrow.names]:
                raise DataError(f"{origin}: the file has no column {missing[0]!r}")
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
            first, last = entry.data.row, entry.data.row + entry.length
            low, high = np.searchsorted(ends, [first, last - 1], side="right")
            groups = range(int(low), min(int(high) + 1, len(ends)))
            start = int(ends[low - 1]) if low else 0
            table = file.read_row_groups(groups, columns=wanted, use_threads=False).slice(first - start, entry.length)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{origin}: not a Parquet file, or damaged: {error}") from error
    there = table.column("episode_index").to_numpy()
    steps = table.column("frame_index").to_numpy()
    if len(there) != entry.length or (there != entry.number).any() or (steps != np.arange(entry.length)).any():
        raise DataError(f"{origin}: its {entry.length} rows are not where meta/ says, or not in order")
    return {name: _column(table.column(name), f"{origin}: {name}") for name in names}


def _column(column: Any, what: str) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(column.type):  # images, with the bytes beside a path
        found = [row and row.get("bytes") for row in column.to_pylist()]
        if not all(isinstance(row, bytes) for row in found):
            raise DataError(f"{what}: an image without its bytes")
        return found
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(kind(column.type) for kind in kinds):
        widths = {None if row is None else len(row) for row in column}
        if len(widths) != 1 or None in widths:
            raise DataError(f"{what}: vectors of several lengths, or missing ones")
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1)
    return column.to_numpy()
