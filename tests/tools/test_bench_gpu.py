"""`python -m tools.bench.gpu`, every line of it, on a CPU."""

from __future__ import annotations

import json

import pytest
import torch

from tools.bench import gpu
from tools.bench.measure import Row


@pytest.fixture
def quick(monkeypatch):
    """Without the product of large matrices."""
    monkeypatch.setattr(gpu, "matrix_peak", lambda device, precision: 0.1)


def test_what_fails_is_a_line_and_the_others_are_measured(quick, monkeypatch, capsys, tmp_path):
    def fail() -> list[Row]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = Row("plain", "tokens", 3.0, "tokens/s")
    monkeypatch.setattr(gpu, "jobs", lambda *_: {"compiled": fail, "plain": lambda: [row]})
    assert gpu.main(["--tiny", "--json", str(tmp_path / "a.json")]) == 1
    shown = capsys.readouterr().out
    assert "| plain | tokens | 3 tokens/s |" in shown
    assert "- compiled: OutOfMemoryError: CUDA out of memory" in shown
    assert json.loads((tmp_path / "a.json").read_text())["rows"][0]["value"] == 3.0
    assert gpu.measured({"late": fail}, minutes=-1) == ([], {"late": "not begun after -1 minutes"})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_runs_on_a_cpu(quick, tmp_path):
    todo = gpu.jobs(gpu.TINY, "mmdit:tiny", tmp_path, tiny=True)
    assert list(todo) == ["peak", "plain", "saves", "collectives", "recomputed", "compiled", "compiled and recomputed"]
    rows, failed = gpu.measured({name: job for name, job in todo.items() if "compiled" not in name}, 60)
    assert failed == {}
    found = {(row.section, row.what): row.value for row in rows}
    assert all(value > 0 for value in found.values())
    for section in ("plain", "recomputed"):
        assert sum(row.section == section for row in rows) == 7
    assert found["saves", "checkpoint"] > 0.001
    assert sum(name == "collectives" for name, _ in found) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_compiled_sections_run_on_a_cpu(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # a killed compiler can leave half a file
    todo = gpu.jobs(gpu.TINY, "mmdit:tiny", tmp_path, tiny=True)
    rows, failed = gpu.measured({name: job for name, job in todo.items() if "compiled" in name}, 60)
    assert failed == {}
    assert {row.section for row in rows} == {"compiled", "compiled and recomputed"}
