"""A robot data set as a source of records: one window of an episode each, with the parts that a stream asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from core.errors import ConfigError, DataError
from modalities.actions.gripper import apply_gripper
from modalities.base import Deferred, Media, Record, Source
from modalities.data.order import Blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import refuse_unusable
from modalities.data.sources.selection import Selection, digest
from modalities.episodes.base import Episode, EpisodeSet
from modalities.episodes.windows import WindowPlan, padded

PARTS = ("image", "video", "action", "state")
NO_INSTRUCTION = ("skip", "null")
FILES_AT_A_TIME = 16  # of a data set with many episodes in a file; fewer than `lerobot.KEPT` are remembered


@dataclass(frozen=True)
class Reading:
    """How episodes become records.

    Attributes:
        plan: of the windows.
        gripper, gripper_places: see `modalities.actions.gripper.apply_gripper`.
        instruction: in place of those of the data set; "" takes these.
        no_instruction: of an episode without one: skip (its windows are set aside) or null (the null condition).
    """

    plan: WindowPlan
    gripper: str = "keep"
    gripper_places: tuple[int, ...] = ()
    instruction: str = ""
    no_instruction: str = "skip"


class EpisodesSource:
    """Records with the parts `image` (the image at a step), `video`, `action` and `state`, as many as are asked for,
    each under the name of its modality too, such as `action_rt1`.

    A window that reaches beyond the end of its episode is filled up with the last frame and the last action, and its
    masks say so.

    Args:
        modalities: of the parts that are read, such as image, video and action_rt1.
        selection: which side of a hold-out; all windows of an episode lie on one side.

    Raises ConfigError for parts that a robot data set does not have, or where no window can be used.
    """

    def __init__(
        self,
        episodes: EpisodeSet,
        modalities: Sequence[str],
        reading: Reading,
        selection: Selection = Selection(),  # noqa: B008 - frozen
    ):
        self.episodes, self.reading, self.selection = episodes, reading, selection
        self.parts = tuple(dict.fromkeys(part_of(name) for name in modalities))
        self._names = {name: part_of(name) for name in (*modalities, *self.parts)}
        if "state" in self.parts and not episodes.fields.states:
            raise ConfigError("state_keys: empty, and the stream has a part of states")
        sides = np.array([selection.takes({}, episodes.key(i)) for i in range(len(episodes.steps))], dtype=bool)
        counts = np.where(sides, reading.plan.count(episodes.steps), 0)
        self._short = int((sides & (counts == 0)).sum())
        self._taken = np.flatnonzero(counts)  # episodes
        self._ends = np.cumsum(counts[self._taken])
        if not len(self._taken):
            raise ConfigError(
                f"path: none of {int(sides.sum())} episodes has the steps of one window, 2 with the default settings"
                if sides.any()
                else f"split: {selection.split!r} has none of the {len(sides)} episodes"
            )
        refuse_unusable(self, f"windows of {len(self._taken)} episodes")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def taken(self) -> np.ndarray:
        """Numbers of the episodes that have windows here."""
        return self._taken

    def place(self, index: int) -> tuple[int, int]:
        """(episode, step) at which a window begins."""
        if not 0 <= index < len(self):
            raise DataError(f"robot data: record {index} of {len(self)}")
        row = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._taken[row]), index - int(self._ends[row - 1] if row else 0)

    def episode(self, number: int, images: bool = True) -> Episode:
        """An episode, with its gripper as a state. Raises DataError where its numbers cannot be used."""
        found = self.episodes.read(number, images)
        actions = apply_gripper(self.reading.gripper, found.actions, list(self.reading.gripper_places))
        return replace(found, actions=actions)

    def read(self, index: int) -> Record:
        number, start = self.place(index)
        images = bool({"image", "video"} & set(self.parts))
        episode, plan = self.episode(number, images), self.reading.plan
        origin = f"{episode.origin} step {start}"
        found: dict[str, Media] = {}
        if "image" in self.parts:
            size = episode.frame_bytes // episode.steps
            found["image"] = Media(Deferred(partial(_frame, episode, start), size))
        if "video" in self.parts:
            steps, real = padded(plan.frame_steps(start), episode.steps)
            size = len(set(steps.tolist())) * episode.frame_bytes // episode.steps
            decode = partial(episode.frames, steps.tolist())
            found["video"] = Media(Deferred(decode, size), rate=plan.video_fps(self.episodes.fps), valid=real)
        if "action" in self.parts:
            steps, real = padded(plan.action_steps(start), episode.steps)
            found["action"] = Media(_finite(episode.actions[steps], origin, "action"), valid=real)
        if "state" in self.parts:
            assert episode.states is not None  # or it was refused
            found["state"] = Media(_finite(episode.states[start : start + 1], origin, "state"))
        caption = self.reading.instruction or episode.instruction
        if not caption and self.reading.no_instruction == "skip":
            raise DataError(f"{origin}: no instruction; `no_instruction: null` takes the null condition in its place")
        return Record(
            key=f"{episode.key}@{start}",
            origin=origin,
            media=b"",  # a part of another name has none
            captions=(caption,) if caption else (),
            parts={name: found[part] for name, part in self._names.items()},
            unconditional=not caption,
        )

    def labels(self) -> list[str]:
        return []

    def blocks(self) -> Blocks | None:
        """Windows of episodes that lie in one file are cheap to read together; None where each has its own."""
        files = getattr(self.episodes, "files", None)
        if files is None:
            return None
        counts = np.diff(self._ends, prepend=0)
        _, block = np.unique(files[self._taken], return_inverse=True)
        if (np.diff(block) < 0).any():  # a file's episodes do not lie together
            return None
        return Blocks(np.bincount(block, weights=counts).astype(np.int64), FILES_AT_A_TIME)

    def account(self) -> Account:
        account = Account()
        account.add(self.episodes.account())
        account.leave("episode| too short for a window", count=self._short)
        return account

    def fingerprint(self) -> str:
        reading, selection = self.reading, self.selection
        return digest(
            "episodes",
            "1",
            self.episodes.fingerprint(),
            str(vars(reading.plan)),
            f"{self.episodes.fields} {self.episodes.fps:g} {reading.gripper} {reading.gripper_places}",
            f"{selection.split} {selection.holdout:g} {len(self)}",
        )


def episode_sources(source: Source) -> list[EpisodesSource]:
    """The robot data of a source, which may be a list of sources; empty for others."""
    if isinstance(source, EpisodesSource):
        return [source]
    inner = (part for _, part, turn in getattr(source, "runs", ()) if turn == 0)
    return [found for part in inner for found in episode_sources(part)]


def part_of(modality: str) -> str:
    """The part of a robot record that has a modality: action of action_rt1. Raises ConfigError for others."""
    kind = modality.partition("_")[0]
    if kind not in PARTS or (kind in ("image", "video") and kind != modality):
        raise ConfigError(f"a robot data set has parts of the modalities {', '.join(PARTS)}, and none of {modality}")
    return kind


def _frame(episode: Episode, step: int) -> np.ndarray:
    """uint8 (H, W, 3)"""
    return episode.frames([step])[0]


def _finite(values: np.ndarray, origin: str, what: str) -> np.ndarray:
    """The same (n, W). Raises DataError for values that are not finite."""
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        places = ", ".join(map(str, np.flatnonzero(~np.isfinite(values[first])).tolist()))
        raise DataError(f"{origin}: {what} {first} of the window has NaN or infinite values (numbers {places})")
    return values
