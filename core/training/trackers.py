"""Metrics to Weights & Biases and TensorBoard, both optional; metrics.jsonl is written in any case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from core.errors import ConfigError
from core.optional import missing
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
    """The trackers that the configuration asks for. Raises ConfigError if their package is missing.

    Args:
        path: the run folder.
        config: the plain configuration of the whole run, shown beside the curves.
        identity: of the run; starts with the same identity continue one wandb run.
    """

    def __init__(self, logging: LoggingConfig, path: Path, config: dict, identity: str):
        problems = logging.problems()
        if problems:
            raise ConfigError([f"logging.{line}" for line in problems])
        self.every, self._wandb, self._board = logging.every, None, None
        if logging.wandb != "off":
            import wandb

            self._wandb = wandb.init(
                project=logging.project,
                name=path.name,
                id=identity,
                resume="allow",
                dir=path,
                config=config,
                mode=logging.wandb,
            )
        if logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(path / "tensorboard")

    def write(self, metrics: dict[str, float | str]) -> None:
        """Numbers of the step `metrics["step"]`, under the name of its modality where there is one."""
        step = metrics["step"]
        if step % self.every or (self._wandb is None and self._board is None):
            return
        prefix = f"{metrics['modality']}/" if "modality" in metrics else ""
        self.write_numbers(
            step, {f"{prefix}{k}": v for k, v in metrics.items() if k != "step" and not isinstance(v, str)}
        )

    def write_numbers(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers under their own names, at any step."""
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def write_media(self, step: int, media: Sequence[Media]) -> None:
        """Pictures, clips and sounds."""
        if self._wandb is not None:
            to_wandb(self._wandb, step, media)
        if self._board is not None:
            to_board(self._board, step, media)

    def close(self) -> None:
        """Write out what is buffered and end; a second call does nothing."""
        if self._wandb is not None:
            self._wandb.finish()
        if self._board is not None:
            self._board.close()
        self._wandb = self._board = None
