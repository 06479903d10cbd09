"""Hooks that observe a run while it trains, without changing a bit of it: previews, validation."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from core.training.say import say
from core.training.trackers import Trackers


@dataclass
class PreviewConfig:
    """Samples of the EMA weights, into RUN/samples/step-N and the trackers.

    Attributes:
        every: steps between previews; 0 makes none.
        prompts: stream -> texts (class names, in runs with labels), one sample each. A stream without an entry gets
            conditions of its own data.
        samples: how many a stream without prompts gets.
        seed: of the noise; sample i has the same noise in every preview.
        batch: samples at once; changes no byte.
    """

    every: int = 0
    prompts: dict[str, list[str]] = field(default_factory=dict)
    samples: int = 4
    seed: int = 0
    batch: int = 4

    def problems(self) -> list[str]:
        found = [] if self.every >= 0 else [f"every: {self.every} must not be negative"]
        found += [f"{n}: {getattr(self, n)} must be at least 1" for n in ("samples", "batch") if getattr(self, n) < 1]
        return found + [f"prompts.{name}: empty; leave it out" for name, texts in self.prompts.items() if not texts]


@dataclass
class ValidateConfig:
    """Held-out velocity loss, and health of features and alignment, of the EMA weights, into RUN/validation.jsonl and
    the trackers. Timesteps, seed and batch are those of streams.NAME.evaluation.

    Attributes:
        every: steps between validations; 0 makes none.
        records: held-out records of each stream, at most.
    """

    every: int = 0
    records: int = 256

    def problems(self) -> list[str]:
        found = [] if self.every >= 0 else [f"every: {self.every} must not be negative"]
        return found if self.records >= 1 else [*found, f"records: {self.records} must be at least 1"]


class Hook(Protocol):
    """
    Attributes:
        name: for messages.
        every: steps between calls.
    """

    name: str
    every: int

    def is_done(self, step: int) -> bool:
        """Whether this step has been looked at, so that a resume does not do it twice."""
        ...

    def forget(self, step: int) -> None:
        """Remove what was made of the steps after `step`, which a resumed run does again."""

    def __call__(self, step: int, student: nn.Module, teacher: nn.Module, trackers: Trackers) -> None:
        """Look at the networks after `step` finished steps; may put them into eval mode, and must not change them."""


def due_hooks(hooks: Sequence[Hook], step: int) -> list[Hook]:
    """The hooks that are due at this step and have not run yet."""
    return [hook for hook in hooks if step and step % hook.every == 0 and not hook.is_done(step)]


def run_hooks(
    due: Sequence[Hook], step: int, student: nn.Module, teacher: nn.Module, trackers: Trackers, compiled: bool
) -> None:
    """Call the hooks. One that fails is reported, whatever the reason is."""
    with untouched((student, teacher), compiled):
        for hook in due:
            attempt(f"{hook.name} of step {step}", lambda hook=hook: hook(step, student, teacher, trackers))


def attempt(what: str, action: Callable[[], None]) -> str | None:
    """Do something that the training can do without: a failure is one line on stderr, and its reason is returned."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - a full disk, a missing codec, no memory: none is worth the run
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        say(f"{what} failed, the training goes on: {reason}")
        return reason
    return None


@contextmanager
def untouched(models: Sequence[nn.Module], compiled: bool) -> Generator[None, None, None]:
    """Global random states and the modes of all layers are afterwards what they were before; no gradients within.

    Args:
        compiled: run compiled networks as they are written: other shapes would otherwise be compiled into the same
            cache, and could change which kernels the training gets.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        ):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, training in modes:
            module.training = training
