"""Setup keeps a torch that fits and pins nothing else."""

import pytest

from scripts.setup_env import constraints, fits


@pytest.mark.parametrize(
    ("version", "kept"),
    [("2.11.0", True), ("2.13.0+cpu", True), ("2.10.1", False), ("2.14.0", False), ("3.0", False), (None, False)],
)
def test_an_installed_torch_is_kept_when_it_fits(version, kept):
    assert fits(version) == kept
    line = f"torch=={version}" if kept else "torch==2.13.0"
    assert line in constraints(version).splitlines()
    assert "torchvision==0.28.0" in constraints(version)
