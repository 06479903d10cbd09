"""For all tests: one thread, deterministic kernels, and a reason where a test is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


class Skipped:
    """Names of the tests and files that were skipped, for a run elsewhere of these alone."""

    def __init__(self, path: Path):
        self.path, self.names = path, set()

    def note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped:
            self.names.add(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport = note

    def pytest_sessionfinish(self) -> None:
        self.path.write_text("".join(f"{name}\n" for name in sorted(self.names)))


def function(name: str) -> str:
    """A test's name without its parameters, which may depend on what is installed."""
    return name.partition("[")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--skipped-to", type=Path, metavar="FILE", help="write the names of the skipped tests to FILE")
    parser.addoption("--only", type=Path, metavar="FILE", help="run only the tests of a file of --skipped-to")


def pytest_configure(config: pytest.Config) -> None:
    config.option.log_level = config.option.log_level or "WARNING"  # torch's checkpoints log hundreds of lines below it
    if config.option.skipped_to and not hasattr(config, "workerinput"):  # not in the workers of pytest-xdist
        config.pluginmanager.register(Skipped(config.option.skipped_to))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.only:
        wanted = {function(name) for name in config.option.only.read_text().splitlines()}
        chosen, left_out = [], []
        for item in items:
            names = {function(item.nodeid), item.nodeid.partition("::")[0]}
            (chosen if wanted & names else left_out).append(item)
        items[:] = chosen
        config.hook.pytest_deselected(items=left_out)
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
