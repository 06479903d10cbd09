"""What happened in an episode as a video: observed, and beside it what the policy had predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.durable import writing
from modalities.media.writing import write_video


class Film:
    """Observed images, and for each the prediction of it, or None.

    A prediction starts with the image that it was made from, at the control rate. The image after n steps since is
    compared with its frame n; beyond its end its last frame stays.
    """

    def __init__(self, frames: list[np.ndarray]):
        self.observed = list(frames)  # uint8 (H, W, 3) each
        self.predicted: list[np.ndarray | None] = [None] * len(frames)
        self._latest: np.ndarray | None = None
        self._age = 0

    def add(self, frame: np.ndarray, prediction: np.ndarray | None) -> None:
        """After a step: what is seen now, and the policy's last prediction, uint8 (T, H', W', 3)."""
        if prediction is not self._latest:
            self._latest, self._age = prediction, 0
        self._age += 1
        self.observed.append(frame)
        shown = None if prediction is None else prediction[min(self._age, len(prediction) - 1)]
        self.predicted.append(shown)

    def frames(self) -> np.ndarray:
        """uint8 (T, H, W, 3), or (T, H, 2 W + gap, 3) where anything was predicted: observed left, predicted right."""
        if all(frame is None for frame in self.predicted):
            return np.stack(self.observed)
        height, width, _ = self.observed[0].shape
        gap = np.full((height, max(2, width // 32), 3), 255, dtype=np.uint8)
        beside = [_fitted(frame, height, width) for frame in self.predicted]
        pairs = zip(self.observed, beside, strict=True)
        return np.stack([np.concatenate((left, gap, right), axis=1) for left, right in pairs])


def _fitted(frame: np.ndarray | None, height: int, width: int) -> np.ndarray:
    """A prediction at the size of what was observed; black where there is none."""
    if frame is None:
        return np.zeros((height, width, 3), dtype=np.uint8)
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def write_film(film: Film, path: Path, fps: float) -> Path:
    """As MP4, at the control rate."""
    video = torch.from_numpy(film.frames()).movedim(-1, 1).float() / 127.5 - 1  # (T, 3, H, W)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_video(video, path, fps)
