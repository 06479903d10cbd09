"""The same training at every world size, in float64 to 1e-12 (docs/scale.md has the table of all cases)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scale.runs import BATCHES, metric_difference, train, weight_difference


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert train(1, folder, *BATCHES) == ["finished"]
    return folder


def test_two_processes_train_the_network_of_one(alone, tmp_path):
    assert train(2, tmp_path / "two", *BATCHES) == ["finished"] * 2
    assert metric_difference(alone, tmp_path / "two") < 1e-12
    assert weight_difference(alone, tmp_path / "two") < 1e-9
