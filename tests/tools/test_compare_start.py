"""selfflow compare where all arms start from one run, are measured elsewhere too, and have references of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.training.history import read_run
from tests.tools.tiny import CONFIG, published
from tools.cli import main
from tools.compare.plan import load_study

STUDY = """
config: other.yaml
start: first.yaml
elsewhere: {first set: first.yaml}
seeds: [5]
evaluate_every: 4
along: []
arms:
  plain: [method=flow_matching]
  part: [method=flow_matching, "training.trainable=[final_layer]"]
  part of Self-Flow: [method=self_flow, "training.trainable=[final_layer]"]
against: {part of Self-Flow: part}
metrics: {velocity/mean: lower, first set/velocity/mean: lower}
"""
BASE = f"""
base: {CONFIG.with_name("tiny_sit.yaml")}
streams:
  image:
    val: {{size: 8, seed: 1, count: 40}}
    evaluation: {{measures: [velocity], val: 20, timesteps: [0.5]}}
"""


def write(folder: Path, study: str = STUDY) -> Path:
    """The study and its two configurations, whose records are drawn with different seeds."""
    for name, data, val, seed in (("first", 0, 1, 7), ("other", 2, 3, 0)):
        text = f"seed: {seed}\nmethod: flow_matching\n{BASE}    data: {{seed: {data}}}\n"
        (folder / f"{name}.yaml").write_text(text.replace("seed: 1,", f"seed: {val},"))
    (folder / "tuned.yaml").write_text(study)
    return folder / "tuned.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """(study, its folder of results); to be read, or copied."""
    study = write(tmp_path_factory.mktemp("study"))
    assert main(["compare", str(study), "--out", str(study.parent / "out")]) == 0
    return study, study.parent / "out" / "tuned"


@pytest.mark.slow
def test_every_arm_starts_from_the_weights_of_one_run(finished):
    _, out = finished
    assert published(out / "start") == [4]
    runs = [run for run in out.glob("*/seed-*") if run.is_dir()]
    assert len(runs) == 3
    origins = [read_run(run)["init"] for run in runs]
    assert {origin["source"] for origin in origins} == {str((out / "start").resolve())}
    assert len({origin["weights"] for origin in origins}) == 1


@pytest.mark.slow
def test_elsewhere_is_measured_as_the_other_configuration_says(finished, tmp_path):
    """What `selfflow evaluate` finds with those held-out records, for the start and for an arm."""
    _, out = finished
    told = json.loads((out / "results.json").read_text())
    for run, value in (
        (out / "start", told["start"]["first set/velocity/mean"]),
        (out / "part" / "seed-5", told["results"]["part"]["5"]["4"]["first set/velocity/mean"]),
    ):
        settings = "measures: [velocity], val: 20, timesteps: [0.5]"
        overrides = ["streams.image.val={size: 8, seed: 1, count: 40}", f"streams.image.evaluation={{{settings}}}"]
        assert main(["evaluate", "--run", str(run), "--out", str(tmp_path / run.name), *overrides]) == 0
        (path,) = (tmp_path / run.name).glob("*.json")
        assert json.loads(path.read_text())["values"]["velocity/mean"] == value
    assert told["start"]["velocity/mean"] != told["start"]["first set/velocity/mean"]


@pytest.mark.slow
def test_the_report_shows_the_start_and_differences_to_each_reference(finished):
    _, out = finished
    told, text = json.loads((out / "results.json").read_text()), (out / "report.md").read_text()
    by_seed = told["results"]
    for metric in ("velocity/mean", "first set/velocity/mean"):
        assert f"| *start of all arms* | | {told['start'][metric]:.4g} | | |" in text
        summary = told["summary"][metric]
        assert not {"difference"} & {*summary["plain"], *summary["part"]}  # they are references
        ours, part = (by_seed[arm]["5"]["4"][metric] for arm in ("part of Self-Flow", "part"))
        assert summary["part of Self-Flow"]["difference"]["mean"] == pytest.approx(ours - part)
    assert "the difference to `plain` (of part of Self-Flow: to `part`) leaves out 0" in text
    assert "from the weights of one run of first.yaml" in text


@pytest.mark.slow
def test_a_second_command_trains_and_measures_nothing(finished, tmp_path):
    study, out = finished
    shutil.copytree(study.parent, tmp_path / "study")
    study, out = tmp_path / "study" / study.name, tmp_path / "study" / "out" / "tuned"
    folders = [*out.glob("*/seed-*"), out / "start"]
    before = {path: path.stat().st_mtime_ns for run in folders for path in run.rglob("*") if path.is_file()}
    assert main(["compare", str(study), "--out", str(out.parent), "--arms", "plain"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("line", "replaced", "expected"),
    [
        ("part of Self-Flow: part}", "part of SelfFlow: part}", "against: 'part of SelfFlow' is not one of the arms."),
        ("part of Self-Flow: part}", "part: part}", "against: 'part' is compared with itself"),
        ("  plain:", "  start:", "arms: 'start' is the folder of the run that the arms start from"),
        ("{first set:", "{first/set:", "elsewhere: 'first/set' is the name of a folder"),
    ],
)
def test_what_a_study_cannot_be_is_refused(line, replaced, expected, tmp_path):
    assert line in STUDY
    study = write(tmp_path, STUDY.replace(line, replaced))
    with pytest.raises(ConfigError, match=expected):
        load_study(study)


def test_elsewhere_needs_held_out_records(tmp_path, capsys):
    study = write(tmp_path)
    first = tmp_path / "first.yaml"
    first.write_text("\n".join(line for line in first.read_text().splitlines() if not line.startswith("    val:")))
    assert main(["compare", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "elsewhere: first set: no stream of " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
