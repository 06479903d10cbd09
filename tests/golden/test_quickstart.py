"""The first losses of the quickstart recipe must not drift from commit to commit.

The numbers in quickstart.txt are renewed, after a change that is meant to change them, by

    python -m tests.golden.test_quickstart > tests/golden/quickstart.txt
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import configs
from configs.build import build_trainer
from configs.load import load_config
from core.training.records import read_lines

RECIPE = Path(configs.__file__).parent / "quickstart.yaml"
GOLDEN = Path(__file__).with_name("quickstart.txt")
STEPS = 16
# Small batches, and a learning rate that is at once at its height, so that few steps show most of the arithmetic.
OVERRIDES = [
    *(f"streams.{name}.batch=4" for name in ("image", "video", "audio")),
    *("training.optimizer.warmup=0", "training.optimizer.cooldown=0", "training.device=cpu", f"training.steps={STEPS}"),
]
TOLERANCE = 1e-4  # relative; kernels of another CPU round differently
NAMES = ("step", "stream", "loss", "align/teacher", "grad_norm")


def measure(folder: Path) -> list[dict]:
    """The metrics of the first steps."""
    trainer = build_trainer(load_config(RECIPE, [f"run={folder}", *OVERRIDES]), RECIPE.parent)
    trainer.fit()
    return read_lines(folder / "metrics.jsonl")


def read() -> list[list[str]]:
    return [line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]


def test_the_first_losses_of_the_quickstart_recipe(tmp_path):
    wanted, entries = read(), measure(tmp_path)
    assert [[str(entry["step"]), entry["stream"]] for entry in entries] == [row[:2] for row in wanted]
    assert {row[1] for row in wanted} == {"image", "video", "audio"}
    for entry, row in zip(entries, wanted, strict=True):
        for name, value in zip(NAMES[2:], row[2:], strict=True):
            assert entry[name] == pytest.approx(float(value), rel=TOLERANCE), f"step {row[0]}: {name}"


def test_the_golden_losses_move(tmp_path):
    """They would not notice a drift if nothing was learned within them."""
    assert all(float(row[2]) > 0 for row in read())
    images = [float(row[2]) for row in read() if row[1] == "image"]
    assert images[-1] < 0.97 * images[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    print(f"# Losses of configs/quickstart.yaml with {' '.join(OVERRIDES)},")
    print(f"# float32 on a CPU, one thread; compared with a relative tolerance of {TOLERANCE:g}. To renew this file:")
    print("#     python -m tests.golden.test_quickstart > tests/golden/quickstart.txt")
    print(f"# {' '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder:
        for entry in measure(Path(folder)):
            print(entry["step"], entry["stream"], *(f"{entry[name]:.7g}" for name in NAMES[2:]))
