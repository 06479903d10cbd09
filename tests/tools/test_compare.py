"""selfflow compare on a study of seconds: what it trains, skips, resumes, refuses, and every number of its report."""

from __future__ import annotations

import json
import math
import re
import shutil
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

import configs
import tools.compare.compare
from configs.load import load_config
from configs.methods import METHODS
from core.errors import ConfigError, DataError
from core.training.records import read_lines
from tests.thinned import thinned
from tests.tools.small_weights import encoder_settings, save_encoders
from tests.tools.tiny import CONFIG, published, result
from tools.cli import main
from tools.compare.compare import costs
from tools.compare.plan import load_study, plan
from tools.compare.summary import Estimate

STUDIES = sorted((Path(configs.__file__).parent / "studies").glob("*.yaml"))
STUDY = """
title: Two arms
about: A study of seconds.
config: base.yaml
seeds: [0, 5]
evaluate_every: 2
along: [velocity]
arms:
  plain: [method=flow_matching]
  Self-Flow: [method=self_flow]
metrics: {velocity/mean: lower, knn/best: higher}
labels: {velocity/mean: held-out loss}
"""
BASE = f"""
base: {CONFIG.with_name("tiny_sit.yaml")}
streams:
  image:
    val: {{size: 8, seed: 1, count: 40}}
    evaluation: {{measures: [velocity, knn], val: 40, training: 60, timesteps: [0.2, 0.8]}}
"""


def write(folder: Path, **replaced: str) -> Path:
    """The study's files, lines that begin with a key of `replaced` exchanged."""
    text = STUDY
    for key, line in replaced.items():
        text = re.sub(rf"(?m)^ *{key}:.*$", lambda _, line=line: line, text)
    (folder / "base.yaml").write_text(BASE)
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


def compare(study: Path, out: Path, *options: str) -> int:
    return main(["compare", str(study), "--out", str(out), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """(study, out) of a whole study; to be read, or copied."""
    folder = tmp_path_factory.mktemp("study")
    study, out = write(folder), folder / "out"
    assert compare(study, out) == 0
    return study, out


def runs(out: Path) -> dict[tuple[str, int], Path]:
    return {(arm, seed): out / "small" / arm / f"seed-{seed}" for arm in ("plain", "Self-Flow") for seed in (0, 5)}


def measured(out: Path, arm: str, seed: int, step: int, metric: str) -> float:
    path = runs(out)[arm, seed] / "evaluation" / f"step-{step:08d}-image.json"
    return json.loads(path.read_text())["values"][metric]


def test_every_run_is_an_ordinary_run_folder_with_its_evaluations(finished):
    for folder in runs(finished[1]).values():
        assert published(folder) == [2, 4]
        assert [entry["step"] for entry in read_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]
        along, last = (
            json.loads((folder / "evaluation" / f"step-0000000{step}-image.json").read_text()) for step in (2, 4)
        )
        assert along["measures"] == ["velocity"]
        assert last["measures"] == ["velocity", "knn"]


def test_arms_of_a_seed_share_their_start_and_seeds_do_not(finished, tmp_path):
    """The first loss of plain flow matching in both arms would be the same; another seed's is another."""
    study = write(tmp_path)
    study.write_text(study.read_text().replace("method=self_flow]", "method=layersync]"))
    assert compare(study, tmp_path / "out") == 0
    folder = tmp_path / "out" / "small"
    first = {
        (arm, seed): read_lines(folder / arm / f"seed-{seed}" / "metrics.jsonl")[0]["flow/image"]
        for arm in ("plain", "Self-Flow")
        for seed in (0, 5)
    }
    assert first["plain", 0] == first["Self-Flow", 0]
    assert first["plain", 5] == first["Self-Flow", 5]
    assert first["plain", 0] != first["plain", 5]


def test_the_report_has_the_numbers_of_the_evaluations(finished):
    _, out = finished
    told = json.loads((out / "small" / "results.json").read_text())
    text = (out / "small" / "report.md").read_text()
    for metric, better in {"velocity/mean": "lower", "knn/best": "higher"}.items():
        values = {arm: [measured(out, arm, seed, 4, metric) for seed in (0, 5)] for arm in ("plain", "Self-Flow")}
        for arm, pair in values.items():
            entry = told["summary"][metric][arm]
            assert entry["value"]["count"] == 2
            assert entry["value"]["mean"] == pytest.approx(sum(pair) / 2)
            if pair[0] != pair[1]:  # of two values the interval is t (1 degree of freedom) times half their distance
                assert entry["value"]["half"] == pytest.approx(12.7062 * abs(pair[0] - pair[1]) / 2, rel=1e-4)
            assert [told["results"][arm][seed]["4"][metric] for seed in ("0", "5")] == pair
        changes = [ours - plain for ours, plain in zip(values["Self-Flow"], values["plain"], strict=True)]
        entry = told["summary"][metric]["Self-Flow"]
        assert entry["difference"]["mean"] == pytest.approx(sum(changes) / 2)
        clear = abs(sum(changes)) > 12.7062 * abs(changes[0] - changes[1]) > 1e-6
        word = ("better" if (sum(changes) < 0) == (better == "lower") else "worse") if clear else "unclear"
        assert entry["verdict"] == word
    shown = Estimate(**told["summary"]["velocity/mean"]["Self-Flow"]["difference"]).text()
    assert re.search(rf"\| Self-Flow \| 2 \| .* \| {re.escape(shown)} \| \w+ \|", text)
    assert "## held-out loss (lower is better)" in text
    assert "## knn/best (higher is better)" in text
    assert "Not finished" not in text


def test_the_report_says_how_to_repeat_it(finished):
    study, out = finished
    text = (out / "small" / "report.md").read_text()
    about = json.loads((out / "small" / "results.json").read_text())["about"]
    assert text.startswith("# Two arms\n\nA study of seconds.\n")
    assert f"- command: `selfflow compare {study} --out {out}`" in text
    assert "- image: synthetic, 60 records to train on and 40 held out" in text
    assert set(about) == {"command", "image", "machine", "python", "torch", "commit"}
    assert all(about.values())


def test_costs_are_counted_and_are_the_axis_of_the_figure(finished, tmp_path, monkeypatch):
    study, out = finished
    told = json.loads((out / "small" / "results.json").read_text())
    plain, ours = (told["costs"][arm] for arm in ("plain", "Self-Flow"))
    assert plain["flops"]["teacher"] == 0
    assert ours["flops"]["teacher"] > 0.1 * ours["flops"]["student"]
    for cost in (plain, ours):
        parts = cost["flops"]
        assert parts["total"] == parts["student"] + parts["teacher"] + parts["encoders"]
        # 6 FLOPs for each weight of a block and each token: the smallest sum that a count could give
        assert parts["student"] > 6 * 4 * 4 * 3 * 12 * 32 * 32
    assert ours["parameters"] > plain["parameters"]  # its projector
    text = (out / "small" / "report.md").read_text()
    assert f"| {plain['parameters']:,} |" in text
    assert f"| {ours['flops']['total'] / plain['flops']['total']:.2f} |" in text

    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, x, *rest, **named: drawn.append(x) or plot(axes, x, *rest, **named))
    shutil.copytree(out, tmp_path / "out")
    assert compare(study, tmp_path / "out", "--report-only") == 0
    totals = [cost["flops"]["total"] for cost in (plain, ours)]
    assert drawn == [[2, 4], [2 * totals[0], 4 * totals[0]], [2, 4], [2 * totals[1], 4 * totals[1]]]


def test_encoders_are_part_of_the_cost_and_missing_ones_are_refused(tmp_path, capsys):
    pytest.importorskip("transformers", reason="REPA's encoders need transformers")
    save_encoders(tmp_path)
    (encoder,) = encoder_settings(tmp_path, "image")
    study = write(tmp_path)
    study.write_text(study.read_text().replace("[method=self_flow]", json.dumps(["method=repa", encoder])))
    loaded = load_study(study)
    counted = costs(loaded, plan(loaded, study, tmp_path / "out" / "small"))
    plain, repa = (counted[arm].flops for arm in ("plain", "Self-Flow"))
    assert plain["encoders"] == repa["teacher"] == 0
    assert repa["encoders"] > 0
    assert repa["total"] == repa["student"] + repa["encoders"]

    shutil.rmtree(tmp_path / "image")
    assert compare(study, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "arms.Self-Flow: streams.image.encoders.dinov2.path: " in message
    assert not (tmp_path / "out").exists()
    assert compare(study, tmp_path / "out", "--arms", "plain", "--seeds", "0") == 0  # a machine without the weights


def test_figures_are_images_with_curves(finished):
    _, out = finished
    drawn = sorted((out / "small").glob("*.png"))
    names = ["differences.png", "velocity-mean.png"]  # k-NN was measured at the end only, and has no curve
    assert [path.name for path in drawn] == names
    report = (out / "small" / "report.md").read_text()
    assert "![held-out loss](velocity-mean.png)" in report
    assert "](differences.png)" in report
    for path in drawn:
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_a_second_run_trains_and_measures_nothing(finished, tmp_path):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("seed-*/**/*") if path.is_file()}
    assert len(before) > 40
    assert compare(study, tmp_path / "out") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_missing_is_made_again_and_is_the_same(finished, tmp_path):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    cut, unmeasured = (runs(tmp_path / "out")[arm] for arm in (("Self-Flow", 5), ("plain", 0)))
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    shutil.rmtree(cut / "evaluation")
    (unmeasured / "evaluation" / "step-00000004-image.json").unlink()
    assert compare(study, tmp_path / "out", "--report-only") == 0
    text = (tmp_path / "out" / "small" / "report.md").read_text()
    assert "**Not finished:** plain seed 0, Self-Flow seed 5." in text
    assert compare(study, tmp_path / "out") == 0
    assert len(read_lines(cut / "timings.jsonl")) == 6  # two steps were done twice
    for place, folder in runs(out).items():
        assert result(runs(tmp_path / "out")[place]) == result(folder)
    old, new = (json.loads((folder / "small" / "results.json").read_text()) for folder in (out, tmp_path / "out"))
    assert new["results"] == old["results"]
    assert new["summary"] == old["summary"]


def test_other_measuring_settings_measure_again_without_training(finished, tmp_path):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    assert compare(study, tmp_path / "out", "--set", "settings=[streams.image.evaluation.val=20]") == 0
    for place, folder in runs(tmp_path / "out").items():
        assert len(read_lines(folder / "timings.jsonl")) == 4
        value = measured(tmp_path / "out", *place, 4, "velocity/mean")
        assert value != measured(out, *place, 4, "velocity/mean")
    assert "val=20" in (tmp_path / "out" / "small" / "report.md").read_text()


def test_arms_and_seeds_share_a_study(tmp_path):
    study, out = write(tmp_path), tmp_path / "out"
    assert compare(study, out, "--arms", "Self-Flow", "--seeds", "5") == 0
    assert [path for path in runs(out).values() if path.exists()] == [runs(out)["Self-Flow", 5]]
    text = (out / "small" / "report.md").read_text()
    assert "**Not finished:** plain seed 0, plain seed 5, Self-Flow seed 0." in text
    assert re.search(r"\| Self-Flow \| 1 \| [\d.]+ \|  \|  \|", text)
    assert compare(study, out, "--arms", "plain, Self-Flow", "--seeds", "5") == 0
    text = (out / "small" / "report.md").read_text()
    assert re.search(r"\| Self-Flow \| 1 \| [\d.]+ \| -?[\d.e-]+ \| unclear \|", text)  # one seed has no interval


def test_a_report_needs_neither_data_nor_more_training(finished, tmp_path, capsys):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "small" / "report.md").unlink()
    gone = ("streams.image.data.path=gone", "streams.image.data.kind=folder", "streams.image.val=null")
    assert compare(study, tmp_path / "out", "--report-only", "--set", f"settings=[{','.join(gone)}]") == 0
    assert (tmp_path / "out" / "small" / "report.md").exists()
    assert compare(study, tmp_path / "nothing", "--report-only") == 2
    assert "nothing to report; no run stands in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--arms", "plain,self_flow"],
            "--arms: 'self_flow' is not one of plain, Self-Flow. Did you mean: 'Self-Flow'?",
        ),
        (["--seeds", "0,1"], "--seeds: '1' is not one of 0, 5."),
        (["--set", "sedes=[1]"], "sedes: unknown key; allowed: title, about, config"),
        (["--set", "seeds=[1, 1]"], "seeds: [1, 1] must be one or more different numbers"),
        (["--set", "along=[velocty]"], "along: 'velocty' is not one of velocity, probe"),
        (["--set", "arms.plain=[method=flow_maching]"], "arms.plain: setting 'method=flow_maching': method: "),
        (["--set", "arms.plain=[method=flow_maching]"], "Did you mean: 'flow_matching'?"),
        (["--set", "settings=[training.steps=0]"], "every arm: setting 'training.steps=0': training.steps: 0 must be"),
        (["--set", "arms.plain=[training.steps=8]"], "{'plain': 8, 'Self-Flow': 4} differ"),
        (["--set", "arms.plain=[seed=8]"], "'seed=8' is set by the study itself"),
        (["--set", "arms={a/b: [], c: []}"], "'a/b' is the name of a folder"),
        (["--set", "metrics={velocity/mean: less}"], "metrics: velocity/mean: 'less' is not one of lower, higher"),
        (["--set", "labels={velocity/maen: loss}"], "labels: 'velocity/maen' is not one of the metrics. Did you mean"),
        (["--set", "settings=[streams.image.val=null]"], "every arm: streams.image.val: not set"),
        (
            ["--set", "arms.Self-Flow=[alignment.ema_teacher.student_layer=3]"],
            "arms.Self-Flow: alignment.ema_teacher: ",
        ),
        (
            ["--set", "along=[samples]", "--set", 'settings=["streams.image.evaluation.networks=[]"]'],
            "networks: empty",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_trained(options, expected, tmp_path, capsys):
    study = write(tmp_path)
    assert compare(study, tmp_path / "out", *options) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_the_second_study_is_checked_before_the_first_is_trained(tmp_path, capsys):
    study = write(tmp_path)
    (tmp_path / "other.yaml").write_text(STUDY.replace("method=self_flow", "method=self_flwo"))
    assert main(["compare", str(study), str(tmp_path / "other.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean: 'self_flow'?" in capsys.readouterr().err
    assert main(["compare", str(study), str(study), "--out", str(tmp_path / "out")]) == 2
    assert "two studies named small" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_arm_that_diverges_is_given_up_and_named_and_the_others_go_on(tmp_path, capsys):
    study, out = (
        write(tmp_path, plain="  plain: [method=flow_matching, training.optimizer.lr=1.0e30]"),
        tmp_path / "out",
    )
    assert compare(study, out) == 1
    assert "plain, seed 0 is given up: " in capsys.readouterr().err
    text = (out / "small" / "report.md").read_text()
    assert "**Not finished:** plain seed 0, plain seed 5." in text
    assert published(runs(out)["Self-Flow", 5]) == [2, 4]


ERRORS = [DataError("photo.png: damaged"), RuntimeError("CUDA out of memory"), OSError(28, "")]


@pytest.mark.parametrize(("error", "stage"), thinned(product(ERRORS, ["train", "measure"]), 5))
def test_a_run_that_fails_in_any_way_is_named_and_the_others_are_reported(error, stage, tmp_path, capsys, monkeypatch):
    real = getattr(tools.compare.compare, stage)

    def failing(one, *rest):
        if (one.arm, one.seed) == ("plain", 5):
            raise error
        return real(one, *rest)

    monkeypatch.setattr(f"tools.compare.compare.{stage}", failing)
    study, out = write(tmp_path), tmp_path / "out"
    assert compare(study, out) == 1
    shown = capsys.readouterr().err
    assert "plain, seed 5 is given up: " in shown
    assert "Traceback" not in shown
    text = (out / "small" / "report.md").read_text()
    assert "**Not finished:** plain seed 5." in text
    assert re.search(r"## Warnings of the measurements\n\n- plain, seed 5 is given up: .*\n", text)
    assert re.search(r"\| Self-Flow \| 2 \|", text)
    monkeypatch.undo()
    assert compare(study, out) == 0
    assert "Not finished" not in (out / "small" / "report.md").read_text()


def test_a_measure_that_fails_is_written_beside_the_others_and_made_the_next_time(finished, tmp_path, monkeypatch):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    path = runs(tmp_path / "out")["plain", 0] / "evaluation" / "step-00000004-image.json"
    whole = json.loads(path.read_text())
    path.write_text("damaged")
    with monkeypatch.context() as patch:
        patch.setattr("modalities.evaluation.measure.knn_accuracy", lambda *_: math.nan)
        assert compare(study, tmp_path / "out") == 1
    result = json.loads(path.read_text())
    assert result["failed"] == ["knn"]
    assert result["values"] == {name: value for name, value in whole["values"].items() if "knn" not in name}
    assert "plain, seed 0, step 4: knn failed" in (tmp_path / "out" / "small" / "report.md").read_text()
    assert compare(study, tmp_path / "out") == 0
    assert json.loads(path.read_text()) == whole


def test_an_output_place_that_cannot_be_used_is_refused_before_anything_is_trained(tmp_path, capsys):
    study = write(tmp_path)
    for taken in (tmp_path / "taken", tmp_path / "out" / "small"):
        taken.parent.mkdir(exist_ok=True)
        taken.write_text("a file")
        out = taken if taken.name == "taken" else taken.parent
        assert compare(study, out) == 2
        assert f"--out: {taken} is no folder" in capsys.readouterr().err


def test_a_study_without_a_report_does_not_keep_the_next_one_from_its_turn(finished, tmp_path, capsys):
    study, out = finished
    shutil.copytree(out, tmp_path / "out")
    other = study.with_name("other.yaml")
    other.write_text(STUDY)
    report = tmp_path / "out" / "small" / "report.md"
    report.unlink()
    assert main(["compare", str(other), str(study), "--out", str(tmp_path / "out"), "--report-only"]) == 2
    assert "error: other: nothing to report; no run stands in" in capsys.readouterr().err
    assert report.exists()


def test_a_metric_that_no_run_has_is_named_with_its_neighbor(finished, tmp_path):
    _, out = finished
    shutil.copytree(out, tmp_path / "out")
    study = write(tmp_path, metrics="metrics: {velocity/mean: lower, knn/bets: higher}")
    assert compare(study, tmp_path / "out", "--report-only") == 0
    shown = (tmp_path / "out" / "small" / "report.md").read_text()
    assert "No run has a value of the name `knn/bets` at the last step. Did you mean: 'knn/best'?" in shown


def test_the_study_for_a_first_look_is_small_and_right():
    path = Path(main.__code__.co_filename).parents[1] / "configs" / "studies" / "tiny.yaml"
    study = load_study(path)
    assert len(study.arms) * len(study.seeds) <= 6
    assert list(study.labels) == list(study.metrics)


# The numbers


def test_a_study_that_compares_nothing_is_refused(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("title: nothing\n")
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert len(caught.value.problems) == 3  # config, arms, metrics


def test_without_matplotlib_nothing_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "tools.compare.compare.importlib.util.find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    assert main(["compare", "no.yaml", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: compare: its report needs the package matplotlib, which is not installed: pip install -e '.[plots]'. "
        "Training and `selfflow evaluate` work without it"
    )


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_along_can_be_planned(path, tmp_path):
    study = load_study(path)
    assert len(plan(study, path, tmp_path)) == len(study.arms) * len(study.seeds)


def test_every_base_of_a_study_is_a_configuration():
    bases = sorted((STUDIES[0].parent / "base").glob("*.yaml"))
    assert {load_config(path, []).method for path in bases} <= set(METHODS)
    assert len(bases) >= len(STUDIES)
