"""What looks at a run leaves everything as it was, and a failure of it is a line."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from core.training.hooks import PreviewConfig, ValidateConfig, attempt, due_hooks, run_hooks, untouched


def drawn() -> tuple:
    """The next numbers of all global generators."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Noisy:
    """A hook that does all that a hook must be allowed to do, and then fails if it is told to."""

    name, every = "noisy", 2

    def __init__(self, fails: Exception | None = None):
        self.fails, self.called, self.done = fails, [], set()

    def is_done(self, step):
        return step in self.done

    def forget(self, step):
        pass

    def __call__(self, step, student, teacher, trackers):
        self.called.append(step)
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        student.eval()
        teacher.train()
        self.gradients = student[0](torch.ones(1, 3)).requires_grad
        if self.fails is not None:
            raise self.fails


def models() -> tuple[nn.Module, nn.Module]:
    student = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    student[1].eval()  # modes are kept layer by layer
    return student, nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()


@pytest.mark.parametrize("fails", [None, OSError(28, "No space left on device"), RuntimeError("first\nsecond")])
def test_random_states_and_modes_are_what_they_were_also_after_a_failure(fails, capsys):
    hook, (student, teacher) = Noisy(fails), models()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = drawn(), drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    assert drawn() == expected[0]
    run_hooks(due_hooks([hook], 2), 2, student, teacher, None, compiled=False)
    assert drawn() == expected[1]
    assert [module.training for module in student.modules()] == [True, True, False]
    assert not any(module.training for module in teacher.modules())
    assert hook.called == [2]
    assert not hook.gradients
    assert torch.is_grad_enabled()
    shown = capsys.readouterr().err
    if fails is None:
        assert shown == ""
    else:
        assert shown.startswith("noisy of step 2 failed, the training goes on: ")
        assert shown.count("\n") == 1


def test_hooks_are_called_at_their_steps_and_not_twice(capsys):
    first, second = Noisy(), Noisy()
    second.every = 3
    for step in range(7):
        run_hooks(due_hooks([first, second], step), step, *models(), None, compiled=False)
    first.done.add(2)
    assert first.called == [2, 4, 6]
    assert second.called == [3, 6]
    run_hooks(due_hooks([first], 2), 2, *models(), None, compiled=False)
    assert first.called == [2, 4, 6]


def test_a_failing_hook_does_not_keep_others_from_their_step(capsys):
    broken, whole = Noisy(ValueError("no")), Noisy()
    run_hooks(due_hooks([broken, whole], 2), 2, *models(), None, compiled=False)
    assert whole.called == [2]
    assert "ValueError: no" in capsys.readouterr().err


def test_an_interrupt_is_not_taken_for_a_failure():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("something", interrupt)
    assert attempt("nothing", lambda: None) is None


def test_compiled_networks_run_as_they_are_written():
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    class Squared(nn.Module):
        def forward(self, x):
            return x * x

    model = Squared()
    model.compile(backend=backend)
    with untouched((model,), compiled=True):
        model(torch.ones(2, 3))
        model(torch.ones(5, 3))
    assert calls == []
    model(torch.ones(2, 3))
    assert len(calls) == 1


def test_settings_out_of_range_are_refused():
    assert PreviewConfig().problems() == ValidateConfig().problems() == []
    assert PreviewConfig(every=-1, samples=0, batch=0, prompts={"image": []}).problems() == [
        "every: -1 must not be negative",
        "samples: 0 must be at least 1",
        "batch: 0 must be at least 1",
        "prompts.image: empty; leave it out",
    ]
    assert ValidateConfig(every=-1, records=0).problems() == [
        "every: -1 must not be negative",
        "records: 0 must be at least 1",
    ]
