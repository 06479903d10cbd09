"""Numbers that are not finite end a run.

All processes of a run must decide so together: `agree` gets the answer of this process and returns that of all. The
default is right for a single process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from core.errors import NotFiniteError
from core.training.evidence import Share, describe_step
from core.training.say import say
from core.training.sharding import local

if TYPE_CHECKING:
    from core.training.records import RunFolder


def this_process(answer: bool) -> bool:
    """`agree` of a run in one process."""
    return answer


def check_finite(values: Mapping[str, float | str], agree: Callable[[bool], bool] = this_process) -> bool:
    """Whether every number of a step, its gradient norm too, is finite in every process.

    A gradient with one NaN or infinity has a norm that is not finite, so the norm stands for all gradients.
    """
    return not agree(any(isinstance(value, float) and not math.isfinite(value) for value in values.values()))


def write_bad_step(
    folder: RunFolder, step: int, stream: str, values: Mapping[str, float | str], ranks: Sequence[Share]
) -> NoReturn:
    """Leave RUN/bad_step.json as evidence and raise NotFiniteError.

    Args:
        step: number of finished steps; the bad one is the next, and its draws are a function of this number.
        values: its loss terms and gradient norm.
        ranks: the share of each process in it.
    """
    bad = {name: value for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    evidence, path = describe_step(step, stream, values, ranks), folder.path / "bad_step.json"
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
    """Whether every parameter is finite, of sharded ones what lies on this device: then a bad step is that step's
    fault, and the state is worth keeping."""
    parameters = [local(parameter) for model in models for parameter in model.parameters()]
    return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
