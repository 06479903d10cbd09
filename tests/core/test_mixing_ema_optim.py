"""Modality mixing, the EMA and the learning rate as functions of the step."""

import pickle

import pytest
import torch
from torch import nn

from core.training.ema import EmaConfig, make_teacher, update_teacher
from core.training.mixing import StreamMix
from core.training.optim import OptimizerConfig

SHARES = {"image": 0.57, "video": 0.30, "audio": 0.13}
BATCH = {"image": 38, "video": 8, "audio": 16}


def test_shares_are_met_and_depend_on_the_seed_only():
    mix = StreamMix(0, SHARES, BATCH)
    drawn = [mix.stream(step) for step in range(10_000)]
    for name, share in SHARES.items():
        assert drawn.count(name) / 10_000 == pytest.approx(share, abs=0.015)
    again, other = StreamMix(0, SHARES, BATCH), StreamMix(1, SHARES, BATCH)
    assert drawn == [again.stream(step) for step in range(10_000)]
    assert drawn != [other.stream(step) for step in range(10_000)]


def test_positions_are_consecutive_within_a_modality_and_need_no_history():
    mix, expected = StreamMix(3, SHARES, BATCH), dict.fromkeys(SHARES, 0)
    for step in range(9000):  # crosses two block boundaries
        name = mix.stream(step)
        if step % 7 == 0:
            assert mix.first_position(step) == expected[name]
        expected[name] += BATCH[name]
    fresh = pickle.loads(pickle.dumps(StreamMix(3, SHARES, BATCH)))
    assert fresh.first_position(8999) == mix.first_position(8999)


def test_shares_need_not_sum_to_one():
    assert [StreamMix(0, {"a": 2, "b": 6}, {"a": 1, "b": 1}).stream(s) for s in range(50)] == [
        StreamMix(0, {"a": 0.25, "b": 0.75}, {"a": 1, "b": 1}).stream(s) for s in range(50)
    ]


def test_teacher_equals_student_at_step_0_and_then_follows_the_closed_form():
    student = nn.Linear(4, 3)
    teacher = make_teacher(student)
    start = student.weight.detach().clone()
    assert torch.equal(teacher.weight, start)
    assert not teacher.weight.requires_grad
    assert not teacher.training
    with torch.no_grad():
        student.weight.add_(1.0)
    for _ in range(1000):
        update_teacher(teacher, student, 0.9999)
    exact = (start.double() + 1) - 0.9999**1000
    torch.testing.assert_close(teacher.weight.double(), exact, atol=2e-6, rtol=0)


def test_buffers_are_copied():
    student = nn.BatchNorm1d(3)
    teacher = make_teacher(student)
    student.running_mean.fill_(2.0)
    update_teacher(teacher, student, 0.9)
    assert torch.equal(teacher.running_mean, student.running_mean)


def test_a_horizon_longer_than_a_fifth_of_the_run_is_warned_about():
    assert "0.995" in EmaConfig(0.9999).warning(1000)
    assert EmaConfig(0.9999).warning(50_000) is None
    assert EmaConfig(0.99).warning(500) is None


def test_learning_rate_warms_up_and_cools_down():
    config = OptimizerConfig(lr=1.0, warmup=10, cooldown=20)
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[79] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    assert OptimizerConfig().lr_at(0, 10) == 1e-4
