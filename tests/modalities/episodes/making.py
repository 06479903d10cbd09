"""Small robot data sets on disk, RLDS and LeRobot, whose frames and actions hold the number of their step."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from modalities.episodes.example import example_type
from modalities.episodes.tfrecord import crc32c, masked

BITS, BLOCK = 12, 8  # of a number that is painted into an image
CAMERA = "observation.images.front"


def numbered_frame(number: int) -> np.ndarray:
    """uint8 (BLOCK, BITS * BLOCK, 3): the bits of a number as black and white blocks, which survive compression."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8) * 255
    row = bits.repeat(BLOCK)
    return np.broadcast_to(row[None, :, None], (BLOCK, BITS * BLOCK, 3)).copy()


def number_in(frame: np.ndarray) -> int:
    """The inverse."""
    bits = frame[BLOCK // 2, BLOCK // 2 :: BLOCK, 0] > 127
    return int(sum(1 << place for place, bit in enumerate(bits) if bit))


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()


def framed(data: bytes) -> bytes:
    """A record as it lies in a TFRecord file."""
    crc, length = crc32c(), struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc(length))) + data + struct.pack("<I", masked(crc(data)))


def serialized(features: Mapping[str, Any]) -> bytes:
    """A tf.train.Example of lists of bytes, or of arrays of floating point or integer numbers."""
    example = example_type()()
    for name, values in features.items():
        feature = example.features.feature[name]
        if len(values) and isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif np.asarray(values).dtype.kind == "f":
            feature.float_list.value.extend(np.asarray(values, dtype=np.float32).ravel().tolist())
        else:
            feature.int64_list.value.extend(np.asarray(values, dtype=np.int64).ravel().tolist())
    return example.SerializeToString()


def counting(episode: int, steps: int, width: int = 3) -> np.ndarray:
    """(T, W) actions: number of the frame they were taken at, number of the episode, and 0.5."""
    found = np.full((steps, width), 0.5, dtype=np.float32)
    found[:, 0], found[:, 1] = np.arange(steps), episode
    return found


def example(
    episode: int, steps: int, actions: np.ndarray | None = None, text: str = "pick it up", frame: bytes | None = None
) -> bytes:
    """An episode whose frames hold episode * 100 + step, unless all are one `frame`."""
    actions = counting(episode, steps) if actions is None else actions
    frames = [frame or jpeg(numbered_frame(episode * 100 + step)) for step in range(steps)]
    return serialized(
        {
            "steps/observation/image": frames,
            "steps/observation/state": np.stack([np.arange(steps), np.arange(steps) ** 2], axis=1).astype(np.float32),
            "steps/action/world": actions[:, :2],
            "steps/action/gripper": actions[:, 2:],
            "steps/language_instruction": [text.encode()] * steps,
            "steps/is_first": np.arange(steps) == 0,
            "id": [f"episode {episode}".encode()],
        }
    )


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(side) for side in shape]} if shape else {}, "dtype": dtype}}


def features_dict(**features: dict[str, Any]) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


FEATURES = features_dict(
    id={"text": {}},
    steps={
        "sequence": {
            "feature": features_dict(
                observation=features_dict(
                    image={
                        "image": {
                            "shape": {"dimensions": [str(BLOCK), str(BITS * BLOCK), "3"]},
                            "dtype": "uint8",
                            "encodingFormat": "jpeg",
                        }
                    },
                    state=tensor("float32", 2),
                ),
                action=features_dict(world=tensor("float32", 2), gripper=tensor("float32", 1)),
                language_instruction={"text": {}},
                is_first=tensor("bool"),
            )
        }
    },
)
RLDS_KEYS = {
    "image_key": "observation/image",
    "action_keys": ["action/world", "action/gripper"],
    "state_keys": ["observation/state"],
    "instruction_key": "language_instruction",
    "fps": 3.0,
}


def write_rlds(folder: Path, shards: Sequence[Sequence[bytes]], name: str = "numbers") -> Path:
    """Shards of serialized episodes, as TensorFlow Datasets lays them out."""
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(FEATURES))
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(len(shard)) for shard in shards],
    }
    info = {"name": name, "fileFormat": "tfrecord", "splits": [split], "version": "1.0.0"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for number, shard in enumerate(shards):
        path = folder / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        path.write_bytes(b"".join(framed(data) for data in shard))
    return folder


def write_video(path: Path, numbers: Sequence[int], rate: Fraction, gop: int = 4, jitter: Sequence[int] = ()) -> None:
    """MP4 of numbered frames.

    Args:
        jitter: added to the time stamps, in thousandths of a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "g": str(gop), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, BLOCK * 2, "yuv420p"
        stream.codec_context.thread_count, stream.codec_context.time_base = 1, Fraction(1, 90_000)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number).repeat(2, axis=0), format="rgb24")
            late = jitter[place] if place < len(jitter) else 0
            frame.pts, frame.time_base = round(place / rate * 90_000) + 90 * late, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def lerobot_info(version: str, count: int, frames: int, **more: Any) -> dict[str, Any]:
    several = version.startswith("v3")
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    old = "chunk-{episode_chunk:03d}"
    return {
        "codebase_version": version,
        "robot_type": "counter",
        "total_episodes": count,
        "total_frames": frames,
        "chunks_size": 1000,
        "fps": 30,
        "splits": {"train": f"0:{count}"},
        "data_path": f"data/{place}.parquet" if several else f"data/{old}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{{video_key}}/{place}.mp4"
        if several
        else f"videos/{old}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": {
            "action": {"dtype": "float32", "shape": [3], "names": None},
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
            CAMERA: {"dtype": "video", "shape": [BLOCK * 2, BITS * BLOCK, 3], "names": ["height", "width", "channel"]},
        },
        **more,
    }


def lerobot_rows(episode: int, steps: int, before: int, actions: np.ndarray | None = None) -> pa.Table:
    actions = counting(episode, steps) if actions is None else actions
    states = np.stack([np.arange(steps), np.arange(steps) ** 2], axis=1).astype(np.float32)
    return pa.table(
        {
            "action": pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), actions.shape[1]),
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(states.ravel()), 2),
            "timestamp": pa.array(np.arange(steps, dtype=np.float32) / 30),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, episode),
            "index": np.arange(steps) + before,
            "task_index": np.zeros(steps, dtype=np.int64),
        }
    )


def write_lerobot_2(folder: Path, lengths: Sequence[int], rate: Fraction = Fraction(30), **more: Any) -> Path:
    """A file for each episode; frames hold episode * 100 + step."""
    (folder / "meta").mkdir(parents=True)
    info = lerobot_info("v2.1", len(lengths), sum(lengths), **more)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "count"}) + "\n")
    rows = [{"episode_index": e, "tasks": ["count"], "length": steps} for e, steps in enumerate(lengths)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for episode, steps in enumerate(lengths):
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(lerobot_rows(episode, steps, sum(lengths[:episode])), path)
        video = folder / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        write_video(video, [episode * 100 + step for step in range(steps)], rate)
    return folder


def write_lerobot_3(
    folder: Path,
    lengths: Sequence[int],
    rate: Fraction = Fraction(30),
    jitter: Callable[[int], int] = lambda place: 0,
    extra: int = 0,
) -> Path:
    """All episodes in one file of data and one video.

    Args:
        rate: of the video, while the time stamps in meta/ are those of 30 frames a second.
        extra: frames behind the last episode that belong to none.
    """
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(lerobot_info("v3.0", len(lengths), sum(lengths))))
    parquet.write_table(pa.table({"task_index": [0], "task": ["count"]}), folder / "meta/tasks.parquet")
    rows, tables, numbers, before = [], [], [], 0
    for episode, steps in enumerate(lengths):
        rows.append(
            {
                "episode_index": episode,
                "tasks": ["count"],
                "length": steps,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": before,
                "dataset_to_index": before + steps,
                f"videos/{CAMERA}/chunk_index": 0,
                f"videos/{CAMERA}/file_index": 0,
                f"videos/{CAMERA}/from_timestamp": before / 30,
                f"videos/{CAMERA}/to_timestamp": (before + steps) / 30,
            }
        )
        tables.append(lerobot_rows(episode, steps, before))
        numbers += [episode * 100 + step for step in range(steps)]
        before += steps
    parquet.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    path = folder / "data/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.concat_tables(tables), path, row_group_size=7)
    shown = numbers + [4000 + place for place in range(extra)]
    video = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    write_video(video, shown, rate, jitter=[jitter(place) for place in range(len(shown))])
    return folder
