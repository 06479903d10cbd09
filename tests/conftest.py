"""For all tests: one thread, deterministic kernels, and a reason where a test is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def pytest_configure(config: pytest.Config) -> None:
    config.option.log_level = config.option.log_level or "WARNING"  # torch's checkpoints log hundreds of lines below it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny joint model, to be read only."""
    from tests.tools.tiny import train

    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert train(folder) == 0
    return folder
