"""Guidance on a run whose condition was never dropped: evaluation says it, and keeps it in its results."""

from __future__ import annotations

from tests.tools.test_evaluate import HELDOUT, evaluate, few, results
from tests.tools.tiny import train


def test_guidance_of_samples_without_a_null_condition_is_said(tmp_path, capsys):
    run = tmp_path / "run"
    settings = ["streams.video=null", "streams.audio=null", "condition.cfg_dropout=0", "training.steps=1"]
    assert train(run, *settings, HELDOUT[0]) == 0
    options = [*few("image"), "streams.image.evaluation.measures=[samples]", "streams.image.sampling.cfg_scale=3"]
    assert evaluate(run, *options) == 0
    said = "cfg_scale: 3, and the condition of this run was never dropped in training"
    assert f"warning: streams.image.sampling.{said}" in capsys.readouterr().err
    assert any(said in line for line in results(run / "evaluation")["image"]["warnings"])
    assert evaluate(run, *options[:-1]) == 0
    assert said not in capsys.readouterr().err
