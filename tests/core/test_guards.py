"""The guard against values that are not finite."""

import json

import pytest

from core.errors import NotFiniteError
from core.training.evidence import Share
from core.training.guards import check_finite, write_bad_step
from core.training.records import RunFolder, read_lines


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_values_that_are_not_finite_are_found_in_any_term(name, bad):
    values = {"stream": "image", "loss": 1.0, "grad_norm": 2.0}
    assert check_finite(values)
    assert not check_finite(values | {name: bad})
    assert not check_finite(values, agree=lambda mine: True)  # another process saw one


def test_the_evidence_of_a_bad_step(tmp_path):
    folder = RunFolder.open(tmp_path, {}, {}, set())
    folder.write_metrics({"step": 4, "loss": 1.0})
    values = {"loss": 0.1, "grad_norm": float("nan")}
    with pytest.raises(NotFiniteError, match=r"step 5 \(audio\): grad_norm is nan\. The weights were not touched"):
        write_bad_step(folder, 4, "audio", values, [Share(("a", "b"), dict(values))])
    assert json.loads((tmp_path / "bad_step.json").read_text()) == {
        "step": 4,
        "stream": "audio",
        "keys": ["a", "b"],
        "values": {"loss": "0.1", "grad_norm": "nan"},
    }
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 4, "loss": 1.0}]


def test_the_evidence_of_several_processes_tells_them_apart(tmp_path):
    folder, nan = RunFolder.open(tmp_path, {}, {}, set()), float("nan")
    shares = [Share(("a", "b"), {"loss": 0.1}), Share(("c",), {"loss": nan})]
    with pytest.raises(NotFiniteError, match="loss is nan"):
        write_bad_step(folder, 0, "audio", {"loss": nan}, shares)
    found = json.loads((tmp_path / "bad_step.json").read_text())
    assert found["keys"] == ["a", "b", "c"]
    assert found["ranks"] == [
        {"keys": ["a", "b"], "values": {"loss": "0.1"}},
        {"keys": ["c"], "values": {"loss": "nan"}},
    ]
