"""A trace of one optimizer step, line by line: inputs, every layer's output, losses, gradients, updates.

The step is the trainer's own `train_step`; this only observes it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.flow import velocity
from core.training.evidence import named_tensors
from core.training.loader import Microbatch, Raw
from core.training.trainer import Trainer
from core.types import LossTerm, TrunkOutput


@dataclass(frozen=True)
class Statistic:
    """Of one tensor: how it is spread, without the values that are not finite, and how many these are."""

    name: str
    shape: tuple[int, ...]
    least: float
    mean: float
    rms: float
    largest: float
    not_finite: int

    @staticmethod
    def of(name: str, tensor: Tensor) -> Statistic:
        values = tensor.detach().double()
        good = values[values.isfinite()]
        if good.numel() == 0:
            nan = float("nan")
            return Statistic(name, tuple(tensor.shape), nan, nan, nan, nan, values.numel())
        least, largest = (float(value) for value in torch.aminmax(good))
        rms = float(good.square().mean().sqrt())
        shape = tuple(tensor.shape)
        return Statistic(name, shape, least, float(good.mean()), rms, largest, values.numel() - good.numel())

    def __str__(self) -> str:
        spread = " ".join(f"{value:>11.4g}" for value in (self.least, self.mean, self.rms, self.largest))
        wrong = f"  {self.not_finite} NOT FINITE" if self.not_finite else ""
        return f"{spread}  {self.name} {'x'.join(map(str, self.shape)) or 'number'}{wrong}"


HEADER = f"{'least':>11} {'mean':>11} {'rms':>11} {'largest':>11}  of"


class Listener:
    """Open around a step; each observation is passed to `tell` as one line, in the order in which it happens.

    `first_bad` is afterwards the name of the first tensor with a value that is not finite, or "".
    """

    def __init__(self, trainer: Trainer, tell: Callable[[str], None]):
        self.trainer, self.tell, self.first_bad = trainer, tell, ""
        self._microbatch = -1
        self._current: Microbatch | None = None
        self._gradients: dict[str, Statistic] = {}

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        trainer = cast(Any, self.trainer)  # whose methods are replaced for a moment
        complete, objective = trainer.complete, trainer.objective
        before = {name: parameter.detach().clone() for name, parameter in trainer.student.named_parameters()}
        with ExitStack() as hooks:
            for role, network in (("student", trainer.student), ("teacher", trainer.teacher)):
                for name, module in network.named_modules():
                    hook = module.register_forward_hook(self._heard(f"{role} {name}".rstrip()))
                    hooks.callback(hook.remove)
            for name, parameter in trainer.student.named_parameters():
                if parameter.requires_grad:
                    hooks.callback(parameter.register_post_accumulate_grad_hook(self._gradient(name)).remove)
            try:
                trainer.complete = self._completed(complete)
                trainer.objective = _Heard(objective, self._losses)
                yield
            finally:
                del trainer.complete
                trainer.objective = objective
        self._tell_parameters(before)

    def _note(self, statistic: Statistic) -> None:
        if statistic.not_finite and not self.first_bad:
            self.first_bad = statistic.name
        self.tell(str(statistic))

    def _completed(self, complete: Callable[[Raw, int], Microbatch]) -> Callable[[Raw, int], Microbatch]:
        def completed(raw: Raw, step: int) -> Microbatch:
            found = complete(raw, step)
            self._microbatch, self._current = self._microbatch + 1, found
            self.tell(f"microbatch {self._microbatch}: {len(found.keys)} samples of {found.stream}")
            for place, key in enumerate(found.keys):
                self.tell(f"  {place}  {key}")
            self.tell(HEADER)
            for name, tensor in named_tensors({"batch": found.batch, "drawn": found.drawn, "targets": found.targets}):
                self._note(Statistic.of(name, tensor))
            return found

        return completed

    def _heard(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def heard(_: nn.Module, __: Any, output: Any) -> None:
            for inner, tensor in named_tensors(output):
                self._note(Statistic.of(f"{name} {inner}".rstrip(), tensor))
            if name == "student" and isinstance(output, TrunkOutput):
                self._errors(output)

        return heard

    def _errors(self, output: TrunkOutput) -> None:
        """The mean squared error of the velocity, sample by sample."""
        found = self._current
        assert found is not None
        assert output.velocity is not None  # of the student
        for segment, noise, predicted in zip(found.batch.segments, found.drawn.noise, output.velocity, strict=True):
            error = (predicted.detach().double() - velocity(segment.x0, noise)).square().mean(-1)  # (B, N)
            mask = segment.loss_mask().double()
            each = (error * mask).sum(1) / mask.sum(1).clamp(min=1.0)  # (B,)
            shown = " ".join(f"{value:.4g}" for value in each.tolist())
            self.tell(f"squared error of {segment.name}, sample by sample: {shown}")

    def _losses(self, terms: dict[str, LossTerm]) -> None:
        for name, term in terms.items():
            self._note(Statistic.of(f"loss {name} (weight {term.weight:g})", term.mean()))

    def _gradient(self, name: str) -> Callable[[Tensor], None]:
        def accumulated(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._gradients[name] = Statistic.of(f"gradient {name}", parameter.grad)

        return accumulated

    def _tell_parameters(self, before: dict[str, Tensor]) -> None:
        """The gradients of the whole step before they were clipped, then what the update changed."""
        self.tell("gradients")
        self.tell(HEADER)
        for statistic in self._gradients.values():
            self._note(statistic)
        self.tell("updates")
        self.tell(HEADER)
        for name, parameter in self.trainer.student.named_parameters():
            self._note(Statistic.of(f"update {name}", parameter.detach() - before[name]))


class _Heard:
    """The objective, whose terms are heard."""

    def __init__(self, objective: Any, tell: Callable[[dict[str, LossTerm]], None]):
        self._objective, self._tell = objective, tell

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, LossTerm]:
        terms = self._objective(*arguments, **named)
        self._tell(terms)
        return terms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)
