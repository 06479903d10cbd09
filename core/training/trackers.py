"""Metrics to Weights & Biases and TensorBoard, both optional; metrics.jsonl is written in any case."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from core.errors import AccidentError, ConfigError, first_line
from core.optional import missing
from core.training.say import say
from core.training.tracker_media import Media, to_board, to_wandb

WANDB = ("off", "offline", "online")
EVERYTHING = "metrics.jsonl has everything"


@dataclass
class LoggingConfig:
    """
    Attributes:
        wandb: off, offline (files in the run folder, for `wandb sync`) or online.
        project: name of the wandb project.
        tensorboard: event files in RUN/tensorboard.
        every: steps between values sent to wandb and TensorBoard; metrics.jsonl has every step.
    """

    wandb: str = "off"
    project: str = "selfflow"
    tensorboard: bool = False
    every: int = 1

    def problems(self) -> list[str]:
        found = [] if self.every >= 1 else [f"every: {self.every} must be at least 1"]
        if self.wandb not in WANDB:
            found.append(f"wandb: {self.wandb!r} is not one of {', '.join(WANDB)}")
        elif self.wandb != "off" and find_spec("wandb") is None:
            found.append(missing("wandb", f"wandb: {self.wandb!r}", EVERYTHING))
        if self.tensorboard and find_spec("tensorboard") is None:
            found.append(missing("tensorboard", "tensorboard: true", EVERYTHING))
        return found


class Trackers:
    """The trackers that the configuration asks for.

    One that fails during the run is reported and dropped from then on: it is no reason to stop training.

    Args:
        path: the run folder.
        config: the plain configuration of the whole run, shown beside the curves.
        identity: of the run; starts with the same identity continue one wandb run.
        step: finished steps that the run resumes from; what TensorBoard has of later ones is hidden, and wandb is not
            given the steps that it has already.

    Raises:
        ConfigError: a package is missing.
        AccidentError: wandb refuses the login or cannot be reached, or its files cannot be written.
    """

    def __init__(self, logging: LoggingConfig, path: Path, config: dict[str, Any], identity: str, step: int = 0):
        problems = logging.problems()
        if problems:
            raise ConfigError([f"logging.{line}" for line in problems])
        self.every = logging.every
        self._open: dict[str, Tracker] = {}
        if logging.wandb != "off":
            self._open["wandb"] = WandbTracker(logging, path, config, identity)
        if logging.tensorboard:
            self._open["tensorboard"] = BoardTracker(path / "tensorboard", step)

    def write(self, metrics: dict[str, float | str]) -> None:
        """Numbers of the step `metrics["step"]`, under the name of its modality where there is one."""
        step = int(metrics["step"])
        if step % self.every or not self._open:
            return
        prefix = f"{metrics['stream']}/" if "stream" in metrics else ""
        numbers = {
            f"{prefix}{name}": float(value)
            for name, value in metrics.items()
            if name != "step" and not isinstance(value, str)
        }
        self.write_numbers(step, numbers)

    def write_numbers(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers under their own names, at any step."""
        self._each(step, lambda tracker: tracker.write(numbers, step))

    def write_media(self, step: int, media: Sequence[Media]) -> None:
        """Images, videos and audio clips."""
        self._each(step, lambda tracker: tracker.write_media(media, step))

    def _each(self, step: int, use: Callable[[Tracker], None]) -> None:
        """Let every tracker be used; one that fails is ended."""
        for name, tracker in list(self._open.items()):
            try:
                use(tracker)
            except Exception as error:  # noqa: BLE001 - of another project and of the network: anything
                say(f"warning: {name} failed at step {step} and gets no more: {first_line(error)}; {EVERYTHING}")
                self._end(name)

    def close(self) -> None:
        """Write out what is buffered and end; a second call does nothing."""
        for name in list(self._open):
            self._end(name)

    def _end(self, name: str) -> None:
        try:
            self._open.pop(name).close()
        except Exception as error:  # noqa: BLE001 - as above
            say(f"warning: {name} could not be ended: {first_line(error)}; {EVERYTHING}")


class Tracker(Protocol):
    """Shows numbers and media by step."""

    def write(self, numbers: dict[str, float], step: int) -> None: ...

    def write_media(self, media: Sequence[Media], step: int) -> None: ...

    def close(self) -> None: ...


class WandbTracker:
    """One wandb run for all starts of a run. A resumed run makes some steps again; wandb keeps what it was given, and
    offline its files would have them twice, so the last step that it got is kept in `RUN/wandb_step`."""

    def __init__(self, logging: LoggingConfig, path: Path, config: dict[str, Any], identity: str):
        import wandb

        self._place = path / "wandb_step"
        try:
            self._run = wandb.init(
                project=logging.project,
                name=path.name,
                id=identity,
                resume="allow",
                dir=path,
                config=config,
                mode="online" if logging.wandb == "online" else "offline",
            )
        except Exception as error:
            raise AccidentError(
                f"logging.wandb: {logging.wandb!r}: wandb could not be started: {first_line(error)}. Log in with "
                "`wandb login`, or use logging.wandb=offline (files for `wandb sync`) or logging.wandb=off"
            ) from error
        try:
            self._known = int(self._place.read_text())
        except (OSError, ValueError):  # the first start, or killed while it was written
            self._known = 0
        self._last = self._known

    def write(self, numbers: dict[str, float], step: int) -> None:
        if step <= self._known:
            return
        if step > self._last:  # first the note: a step that is missing does less harm than one that is there twice
            self._place.write_text(str(step))
            self._last = step
        self._run.log(numbers, step=step)

    def write_media(self, media: Sequence[Media], step: int) -> None:
        if step > self._known:
            to_wandb(self._run, step, media)

    def close(self) -> None:
        self._run.finish()


class BoardTracker:
    """Event files of TensorBoard."""

    def __init__(self, path: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier start wrote of steps that will be made again is hidden.
        self._board = SummaryWriter(path, purge_step=step + 1 if path.exists() else None)
        self._shown = threading.excepthook
        threading.excepthook = self._quietly

    def write(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def write_media(self, media: Sequence[Media], step: int) -> None:
        to_board(self._board, step, media)

    def close(self) -> None:
        try:
            self._board.close()
        finally:
            threading.excepthook = self._shown

    def _quietly(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands its errors to `write` as well, which says them in one line."""
        if "AsyncWriter" not in type(failure.thread).__name__:
            self._shown(failure)
