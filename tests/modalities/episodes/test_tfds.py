"""RLDS that tensorflow-datasets wrote, read by it and by us, where it is installed (`pip install tensorflow-cpu
tensorflow-datasets`, about 30 s)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("crc32c", reason="TFRecords need crc32c (extra `robots`)")
pytest.importorskip("google.protobuf", reason="TFRecords need protobuf (extra `robots`)")
pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")

import tensorflow_datasets as tfds

from modalities.episodes.base import Fields
from modalities.episodes.rlds import RldsSet
from tests.modalities.episodes.making import counting, numbered_frame

pytestmark = pytest.mark.slow
FIELDS = Fields("observation/image", ("action/world", "action/gripper"), ("observation/state",), "language_instruction")
JPEG = 3  # levels of 255 by which two decoders of JPEG may differ


def by_tensorflow(folder: Path) -> Iterator[dict[str, Any]]:
    """Episode by episode what tfds reads: frames, actions, states and the text of the first step."""
    data = tfds.builder_from_directory(str(folder)).as_dataset(split="train", shuffle_files=False)
    for episode in tfds.as_numpy(data):
        steps = list(episode["steps"])
        yield {
            "frames": np.stack([step["observation"]["image"] for step in steps]),
            "actions": np.stack(
                [np.concatenate([step["action"]["world"], np.ravel(step["action"]["gripper"])]) for step in steps]
            ),
            "states": np.stack([step["observation"]["state"] for step in steps]),
            "text": steps[0]["language_instruction"].decode(),
        }


def compare(folder: Path, cache: Path) -> int:
    """Every number of both readers. Returns how many episodes."""
    ours, count = RldsSet(folder, FIELDS, 3.0, cache=cache), 0
    for number, theirs in enumerate(by_tensorflow(folder)):
        episode = ours.read(number)
        np.testing.assert_array_equal(episode.actions, theirs["actions"])
        assert episode.states is not None
        np.testing.assert_array_equal(episode.states, theirs["states"])
        frames = np.stack(episode.frames(list(range(episode.steps))))
        assert np.abs(frames.astype(int) - theirs["frames"].astype(int)).max() <= JPEG
        assert episode.instruction == theirs["text"]
        count += 1
    assert count == len(ours.steps)
    return count


def test_what_tensorflow_writes_we_read_alike(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": tfds.features.FeaturesDict(
                        {
                            "image": tfds.features.Image(shape=numbered_frame(0).shape, encoding_format="jpeg"),
                            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                        }
                    ),
                    "action": tfds.features.FeaturesDict(
                        {
                            "world": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                            "gripper": tfds.features.Tensor(shape=(1,), dtype=np.float32),
                        }
                    ),
                    "language_instruction": tfds.features.Text(),
                }
            )
        }
    )
    folder = tmp_path / "written" / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="written", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=2)
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [written(number, 3 + number) for number in range(5)]})
    writer.close_all()
    assert compare(folder, tmp_path / "cache") == 5


def written(episode: int, steps: int) -> dict[str, Any]:
    actions = counting(episode, steps)
    return {
        "steps": [
            {
                "observation": {
                    "image": numbered_frame(10 * episode + step),
                    "state": np.array([step, episode], np.float32),
                },
                "action": {"world": actions[step, :2], "gripper": actions[step, 2:]},
                "language_instruction": f"episode {episode}",
            }
            for step in range(steps)
        ]
    }
