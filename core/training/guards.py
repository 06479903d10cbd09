"""What ends a run early: a request to stop, and numbers that are not finite.

Both are decisions that all processes of a run must take together. `agree` is the one place for that: it gets the
answer of this process and returns that of all. The default is right for a single process.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from core.errors import NotFiniteError
from core.training.say import say

if TYPE_CHECKING:
    from core.training.records import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def this_process(answer: bool) -> bool:
    """`agree` of a run in one process."""
    return answer


class StopRequest:
    """While it is open, SIGTERM and SIGINT (Ctrl-C) only set `requested`, to be read at the end of a step.

        with StopRequest() as stop:
            for step in ...:
                ...
                if stop.requested: publish and leave

    A second signal ends the process at once, by that signal, so the shell sees the usual 128 + number. The previous
    handlers come back at the end. Outside the main thread Python cannot install handlers: the context then does
    nothing but say so. Data workers that are forked meanwhile keep the default SIGTERM, by which they are ended, and
    leave SIGINT, which a terminal sends to them too, to this process.
    """

    def __init__(self, agree: Callable[[bool], bool] = this_process):
        self._agree, self._set, self._previous, self._owner = agree, False, {}, os.getpid()

    @property
    def requested(self) -> bool:
        """Whether any process has been asked to stop; must be read equally often by all of them."""
        return self._agree(self._set)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            print("not in the main thread: SIGTERM and Ctrl-C will not wait for the end of a step", file=sys.stderr)
            return self
        self._owner = os.getpid()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, _: FrameType | None) -> None:
        worker = os.getpid() != self._owner
        if worker and number == signal.SIGINT:
            return
        if worker or self._set:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._set = True
        name = signal.Signals(number).name
        # os.write and not print: a handler may interrupt a print, which would then raise for re-entering it.
        os.write(2, f"\n{name}: stopping after this step with a checkpoint; once more to stop at once\n".encode())


def check_finite(values: Mapping[str, float | str], agree: Callable[[bool], bool] = this_process) -> bool:
    """Whether every number of a step, its gradient norm too, is finite in every process.

    A gradient with one NaN or infinity has a norm that is not finite, so the norm stands for all gradients.
    """
    return not agree(any(isinstance(value, float) and not math.isfinite(value) for value in values.values()))


def write_bad_step(
    folder: RunFolder, step: int, stream: str, keys: Sequence[str], values: Mapping[str, float | str]
) -> NoReturn:
    """Leave RUN/bad_step.json as evidence and raise NotFiniteError.

    Args:
        step: number of finished steps; the bad one is the next, and its draws are a function of this number.
        keys: of the samples in it.
        values: its loss terms and gradient norm.
    """
    bad = {name: value for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    # Written as text, since NaN and infinity are no JSON.
    evidence = {
        "step": step,
        "stream": stream,
        "keys": list(keys),
        "values": {k: str(v) for k, v in values.items()},
    }
    path = folder.path / "bad_step.json"
    try:
        folder.flush()
        path.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        say(f"warning: {path} cannot be written ({error.strerror}); it would hold\n{json.dumps(evidence)}")
    what = ", ".join(f"{name} is {value}" for name, value in bad.items()) or "another process failed"
    raise NotFiniteError(
        f"step {step + 1} ({stream}): {what}. The weights were not touched; samples and values are in {path}",
        step + 1,
    )


@torch.no_grad()
def all_finite(*models: nn.Module) -> bool:
    """Whether every parameter is finite: then a bad step is that step's fault, and the state is worth keeping."""
    parameters = [parameter for model in models for parameter in model.parameters()]
    return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
