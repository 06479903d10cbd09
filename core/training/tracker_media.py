"""Images, videos and audio clips for Weights & Biases and TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image

WandbVideo = Literal["gif", "mp4", "webm", "ogg"]


@dataclass(frozen=True)
class Media:
    """One file that a tracker is to show.

    Attributes:
        name: of the curve, such as "preview/image".
        kind: image, video or audio.
        path: the file.
        data: uint8 (H, W, 3) of an image, uint8 (T, H, W, 3) of a video, float (samples,) in [-1, 1] of an audio clip.
        rate: frames or samples per second.
    """

    name: str
    kind: str
    path: Path
    data: np.ndarray
    rate: float = 0.0
    caption: str = ""


def to_wandb(run: Any, step: int, media: Sequence[Media]) -> None:
    """The files themselves, so that nothing is encoded twice."""
    import wandb

    kinds = {"image": wandb.Image, "audio": wandb.Audio}
    shown = {
        item.name: (
            wandb.Video(str(item.path), caption=item.caption, format=cast(WandbVideo, item.path.suffix[1:]))
            if item.kind == "video"
            else kinds[item.kind](str(item.path), caption=item.caption)
        )
        for item in media
    }
    run.log(shown, step=step)


def to_board(board: Any, step: int, media: Sequence[Media]) -> None:
    """TensorBoard plays a video as an animated GIF; its own way to make one needs a further package."""
    # Made from a .proto file, without stubs.
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    for item in media:
        if item.kind == "image":
            board.add_image(item.name, item.data, step, dataformats="HWC")
        elif item.kind == "audio":
            board.add_audio(item.name, torch.from_numpy(item.data)[None], step, sample_rate=round(item.rate))
        else:
            _, height, width, channels = item.data.shape
            moving = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=animated(item.data, item.rate)
            )
            board.file_writer.add_summary(Summary(value=[Summary.Value(tag=item.name, image=moving)]), step)


def animated(frames: np.ndarray, rate: float) -> bytes:
    """uint8 (T, H, W, 3) -> a GIF that repeats."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=others, duration=max(round(1000 / rate), 20), loop=0)
    return out.getvalue()
