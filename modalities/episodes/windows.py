"""Which steps of an episode a sample shows: its image, its video and its actions, and what of them is padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import nearest

FIRST_FRAMES = ("next", "current")


@dataclass(frozen=True)
class WindowPlan:
    """
    Attributes:
        frames: F, of the video.
        actions: A.
        stride: steps from one action to the next; actions between are not looked at, which suits absolute ones.
        frames_per_action: frames of the video in that time; more than `stride` show an image more than once.
        actions_per_frame: actions from one frame of the video to the next, for a video that looks further ahead.
        first_frame: next (the video begins with what the first action, or the first `actions_per_frame`, lead to) or
            current (with the image itself).
    """

    frames: int
    actions: int
    stride: int = 1
    frames_per_action: int = 1
    actions_per_frame: int = 1
    first_frame: str = "next"

    def problems(self) -> list[str]:
        names = ("frames", "actions", "stride", "frames_per_action", "actions_per_frame")
        found = [f"{name}: {getattr(self, name)} must be at least 1" for name in names if getattr(self, name) < 1]
        if self.first_frame not in FIRST_FRAMES:
            hint = nearest(self.first_frame, FIRST_FRAMES)
            found.append(f"first_frame: {self.first_frame!r} is not one of {', '.join(FIRST_FRAMES)}.{hint}")
        if not found and self.stride % self.frames_per_action and self.frames_per_action % self.stride:
            found.append(
                f"frames_per_action: {self.frames_per_action} and stride {self.stride}: one must be a multiple of the "
                "other, so that frames lie on steps"
            )
        if self.frames_per_action > 1 and self.actions_per_frame > 1:
            found.append(
                f"actions_per_frame: {self.actions_per_frame} with frames_per_action {self.frames_per_action}; one of "
                "them must be 1"
            )
        return found

    def rate(self, fps: float) -> float:
        """Actions a second in a data set of `fps` steps a second."""
        return fps / self.stride

    def video_fps(self, fps: float) -> float:
        """Frames a second of the video."""
        return fps / self.stride * self.frames_per_action / self.actions_per_frame

    def count(self, steps: int | np.ndarray) -> int | np.ndarray:
        """Windows in an episode of so many steps: every step begins one whose first frame, or whose image and
        first action, lie in it."""
        last = max(1, self._frame(0)) if self.first_frame == "next" else 1
        return np.maximum(np.asarray(steps) - last, 0)

    def frame_steps(self, start: int) -> np.ndarray:
        """(F,) steps of the video's frames, which may lie beyond the end of the episode."""
        return start + self._frame(np.arange(self.frames))

    def action_steps(self, start: int) -> np.ndarray:
        """(A,) steps of the actions, which may lie beyond the end of the episode."""
        return start + np.arange(self.actions) * self.stride

    def _frame(self, number: int | np.ndarray) -> np.ndarray:
        first = int(self.first_frame == "next")
        return (np.asarray(number) + first) * self.stride * self.actions_per_frame // self.frames_per_action


def padded(steps: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of a window, with those beyond the end replaced by the last one, and which are real.

    Args:
        length: T of the episode.
    """
    return np.minimum(steps, length - 1), steps < length
