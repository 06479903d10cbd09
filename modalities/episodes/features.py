"""features.json and dataset_info.json of TensorFlow Datasets: which features a record has, and of which shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError

STEPS = "steps"


@dataclass(frozen=True)
class Feature:
    """
    Attributes:
        kind: image, text, number, or other (a kind that is not read).
        shape: of one value, without the steps.
        dtype: of numbers, as TensorFlow calls it.
        encoding: of images, such as jpeg.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = ""


@dataclass(frozen=True)
class RldsInfo:
    """
    Attributes:
        name: of the data set.
        steps: name of a feature of a step, without `steps/` -> what it is.
        episode: features of an episode.
        splits: split -> its shards, in order, with the number of episodes in each.
    """

    name: str
    steps: dict[str, Feature]
    episode: dict[str, Feature]
    splits: dict[str, dict[Path, int]]


def read_info(folder: Path) -> RldsInfo:
    """Read a folder that TensorFlow Datasets wrote. Raises ConfigError where it is not one."""
    info, features = (_json(folder / name) for name in ("dataset_info.json", "features.json"))
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise ConfigError(f"path: {folder} has the format {info['fileFormat']!r}; TFRecords are read")
    found = _flat(features, "")
    steps = {name.removeprefix(f"{STEPS}/"): each for name, each in found.items() if name.startswith(f"{STEPS}/")}
    if not steps:
        raise ConfigError(
            f"path: {folder} is no RLDS data set: its features.json has no {STEPS!r}, but "
            f"{', '.join(found) or 'nothing'}"
        )
    episode = {name: each for name, each in found.items() if not name.startswith(f"{STEPS}/")}
    name = info.get("name", folder.parent.name)
    return RldsInfo(name, steps, episode, {split["name"]: _shards(folder, name, split) for split in info["splits"]})


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"path: {path} cannot be read ({error.strerror}); an RLDS data set is the folder of its version, with "
            "dataset_info.json, features.json and .tfrecord files"
        ) from error
    except ValueError as error:
        raise ConfigError(f"path: {path} is not valid JSON ({error})") from error


def _flat(node: dict[str, Any], name: str) -> dict[str, Feature]:
    """Names joined by "/", as in the records."""
    if "featuresDict" in node:
        inner = node["featuresDict"]["features"]
        return {key: each for own, value in inner.items() for key, each in _flat(value, _join(name, own)).items()}
    if "sequence" in node:
        return _flat(node["sequence"]["feature"], name)
    for kind in ("tensor", "image"):
        if kind in node:
            about = node[kind]
            shape = tuple(int(side) for side in about.get("shape", {}).get("dimensions", ()))
            text = about.get("dtype") == "string"
            found = Feature(
                "text" if text else "number" if kind == "tensor" else "image", shape, about.get("dtype", "")
            )
            return {name: found if kind == "tensor" else Feature("image", shape, "uint8", about["encodingFormat"])}
    if "text" in node:
        return {name: Feature("text")}
    return {name: Feature("other")}


def _join(first: str, second: str) -> str:
    return f"{first}/{second}" if first else second


def _shards(folder: Path, name: str, split: dict[str, Any]) -> dict[Path, int]:
    """Shard -> its episodes. Raises DataError where one is missing."""
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    found = {}
    for number, length in enumerate(lengths):
        values = {
            "DATASET": name,
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
            "SHARD_INDEX": f"{number:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
        }
        found[folder / template.format(**values)] = length
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(found)} shards are missing, such as {missing[0]}")
    return found
