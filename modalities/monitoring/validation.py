"""Held-out numbers of the EMA weights while a run trains: one line for each step in RUN/validation.jsonl.

Names are STREAM/ and those of modalities/evaluation/measure.py: velocity/mean, velocity/t=T (velocity/PART/... where a
stream has several parts), health/NAME/layer=K, and with alignment.ema_teacher health/align_NAME. Values are functions
of weights, data and settings alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from tqdm import tqdm

from core.evaluation.pair import PairPlan
from core.training.records import keep_lines, read_lines
from core.training.trackers import Trackers
from modalities.evaluation.measure import evaluate
from modalities.evaluation.settings import EvaluationSettings
from modalities.evaluation.subject import Subject

MEASURES = ["velocity", "health"]


@dataclass(frozen=True)
class Validated:
    """One stream: its data, how it is measured, and how the run aligns it (without the student), or None."""

    subject: Subject
    settings: EvaluationSettings
    pair: PairPlan | None


class Validation:
    """
    Args:
        path: of the lines.
        streams: name -> what to measure; the trunks are those that every call brings along.
    """

    name = "validation"

    def __init__(self, every: int, path: Path, streams: Mapping[str, Validated]):
        self.every, self.path, self.streams = every, Path(path), streams
        self._said: set[str] = set()

    def is_done(self, step: int) -> bool:
        return any(entry["step"] == step for entry in read_lines(self.path))

    def forget(self, step: int) -> None:
        keep_lines(self.path, lambda entry: entry["step"] <= step)

    def __call__(self, step: int, student: nn.Module, teacher: nn.Module, trackers: Trackers) -> None:
        student.eval()
        values: dict[str, float] = {}
        for stream, item in self.streams.items():
            model = replace(item.subject.model, trunk=teacher)
            pair = None if item.pair is None else replace(item.pair, student=student)
            measured = evaluate(replace(item.subject, model=model, pair=pair), item.settings, MEASURES, {})
            values |= {f"{stream}/{name}": value for name, value in measured.values.items()}
            for line in measured.warnings:
                self._say(f"validation of {stream}: {line}")
        append_durably(self.path, {"step": step, **values})
        trackers.write_numbers(step, {f"val/{name}": value for name, value in values.items()})

    def _say(self, line: str) -> None:
        """Once: the same records are read every time."""
        if line not in self._said:
            self._said.add(line)
            tqdm.write(f"warning: {line}", file=sys.stderr)


def append_durably(path: Path, entry: dict) -> None:
    """One more line, after the last whole one: a full disk can have left half of one."""
    keep_lines(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
