"""selfflow report: what the page holds, of run folders that are written by hand."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.modalities.making import tone
from tools.cli import main
from tools.report.curves import Curve, read_metrics, smooth, thin
from tools.report.media import spectrogram_of
from tools.report.tables import ABSENT, by_section

CONFIG = """method: {method}
seed: 3
run: {run}
streams:
  image:
    weight: 1.0
training:
  steps: 300
  optimizer: {{lr: 0.001}}
"""
BAD = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Text that a person can read, tags by name with their attributes, and the figures."""

    def __init__(self, markup: str):
        super().__init__()
        self.text, self.tags, self.figures, self._inside = [], [], {}, ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "figures":
            self.figures = json.loads(data)
        elif not self._inside:
            self.text.append(data)

    def has(self, text: str) -> bool:
        return text in " ".join(" ".join(self.text).split())

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def make_run(path: Path, steps: int = 300, method: str = "self_flow", loss=lambda step: 1 / step) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG.format(method=method, run=path))
    start = {
        "time": "2026-01-02T03:04:05+00:00",
        "command": ["/opt/bin/selfflow", "train", "my file.yaml", f"run={path}"],
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "machine": "Linux x86_64",
        "commit": "abc123",
    }
    (path / "run.json").write_text(json.dumps({"data": {"image": "152eaa01"}, "starts": [start], "state": "finished"}))
    (path / "data.json").write_text(json.dumps({"image": {"records": 1234, "notes": ["7 files left out: no caption"]}}))
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            entry = {"step": step, "stream": "image", "lr": 0.001, "loss": loss(step), "align/teacher": 0.5}
            file.write(json.dumps(entry) + "\n")
    return path


def add_preview(run: Path, step: int, prompt: str = "a red circle", side: int = 8) -> None:
    import soundfile

    folder = run / "samples" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    Image.new("RGB", (side, side), (step % 256, 0, 0)).save(folder / "image-000.png")
    soundfile.write(folder / "audio-000.wav", tone(0.3, 8000), 8000)
    entries = [
        {"file": name, "stream": name.split("-")[0], "prompt": prompt} for name in ("image-000.png", "audio-000.wav")
    ]
    (folder / "index.json").write_text(json.dumps({"step": step, "samples": entries}))


def report(out: Path, *folders: Path) -> Page:
    pytest.importorskip("plotly", reason="the extra `report` is not installed")
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    return Page(out.read_text())


def test_a_run_with_samples_bad_records_and_what_people_wrote(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (100, 200, 300):
        add_preview(run, step, prompt=BAD)
    entry = {"stream": "image", "key": "5.png", "origin": "photos/5.png", "reason": f"{BAD} is empty", "replaced_by": 2}
    (run / "quarantine.jsonl").write_text(json.dumps(entry) + "\n")
    (run / "validation.jsonl").write_text(
        json.dumps(
            {"step": 100, "image/velocity/t=0.1": 1.5, "image/velocity/t=0.9": 0.5, "image/health/norm/layer=1": 7}
        )
    )
    page = report(tmp_path / "page.html", run)
    assert {"c-image-loss", "c-image-lr", "c-image-velocity-by-t", "c-image-health-norm-by-layer"} <= set(page.figures)
    assert [trace["y"] for trace in page.figures["c-image-velocity-by-t"]["data"]] == [[1.5], [0.5]]
    for shown in (
        *("self_flow, seed 3", "300 of 300", "152eaa01", "1,234", "7 files left out: no caption"),
        *("1 bad records in quarantine", "photos/5.png", "Linux x86_64", "torch 2.13.0", "git checkout abc123"),
        f"selfflow train 'my file.yaml' run={run}",
        f"selfflow train {run}/config.yaml",
    ):
        assert page.has(shown), shown
    assert page.has(f"{BAD} is empty")  # as text
    assert not [attrs for attrs in page.attributes("img") if attrs.get("src") == "x"]
    sliders = [attrs for attrs in page.attributes("input") if attrs.get("type") == "range"]
    assert [attrs["data-steps"] for attrs in sliders] == ["100,200,300"] * 2  # image and audio
    assert len(page.attributes("audio")) == 3
    assert len([attrs for attrs in page.attributes("img") if attrs.get("class") == "spectrogram"]) == 3
    wanted = [attrs.get(name, "") for _, attrs in page.tags for name in ("src", "data-src", "href") if name in attrs]
    assert all(each.startswith(("data:", "#")) for each in wanted)  # nothing is fetched


def test_several_runs_lie_over_each_other_and_their_settings_are_compared(tmp_path):
    runs = [make_run(tmp_path / name / "run", method=name) for name in ("self_flow", "flow_matching")]
    page = report(tmp_path / "page.html", *runs)
    names = {trace["name"] for trace in page.figures["c-image-loss"]["data"]}
    assert names == {"self_flow/run", "flow_matching/run"}
    assert page.has("Differences setting self_flow/run flow_matching/run method self_flow flow_matching All")


def test_a_run_that_has_hardly_begun_and_one_of_another_version(tmp_path):
    bare, other = tmp_path / "bare", tmp_path / "other"
    for folder in (bare, other):
        folder.mkdir()
    (bare / "config.yaml").write_text("method: self_flow\n")
    (other / "config.yaml").write_text("method: flow\nsteams: [a, b]\n")
    (other / "run.json").write_text('{"new": [1]}')
    (other / "metrics.jsonl").write_text('{"step": 1, "value": 2.0}\n')
    page = report(tmp_path / "page.html", bare, other)
    assert page.has("no step is recorded yet")
    assert page.has("steams")
    assert page.figures["c-value"]["data"][0]["y"] == [2.0]


def test_damaged_lines_and_losses_that_are_not_finite_are_told(tmp_path):
    run = make_run(tmp_path / "run", steps=20, loss=lambda step: math.nan if step in (5, 6) else 1.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "stream": "image", "skipped": true}\n{"ste\x00\n[1]\n{"step": 22, "str')
    page = report(tmp_path / "page.html", run)
    assert page.has("metrics.jsonl: 3 damaged lines left out")
    assert page.has("image/loss: 2 values are NaN or infinite")
    assert page.has("1 steps left out: 21 (image)")
    assert page.figures["c-image-loss"]["data"][0]["y"] == [1.0] * 4 + [None] * 2 + [1.0] * 14


def test_rollouts_and_studies_have_their_sections(tmp_path):
    episodes, study = tmp_path / "episodes", tmp_path / "study"
    episodes.mkdir()
    study.mkdir()
    success = {"last": {"successes": 1, "episodes": 2, "rate": 0.5, "wilson_95": [0.095, 0.905]}}
    found = {
        "per_episode": [{"episode_ix": 0, "instruction": "pick sponge", "steps": 16, "success": True}],
        "aggregated": {"pc_success": 50.0},
        "selfflow": {"settings": {"task": "pick"}, "success": success, "headline": "last"},
    }
    (episodes / "eval_info.json").write_text(json.dumps(found))
    value = {"mean": 2.0, "half": 0.5, "count": 2}
    entry = {"value": value, "difference": {"mean": -1.0, "half": None, "count": 2}, "verdict": "better"}
    (study / "results.json").write_text(json.dumps({"title": "Which one", "summary": {"fid": {"ours": entry}}}))
    page = report(tmp_path / "page.html", episodes, study)
    assert page.has("last (headline) 50.0 % [9.5, 90.5]")
    assert page.has("0 pick sponge 16 yes")
    assert page.has("Study: Which one")
    assert page.has("ours 2 2 ± 0.5 -1 better")


def written(path: Path, name: str, content: dict) -> None:
    path.mkdir()
    (path / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: path.mkdir(), "is no run (config.yaml), no rollouts"),
        (lambda path: make_run(path / "a", steps=1), "There are runs in it: a"),
        (lambda path: (path.mkdir(), (path / "eval_info.json").write_text("{")), "not valid JSON"),
        (lambda path: written(path, "eval_info.json", {"selfflow": {"success": {"last": {}}}}), "another shape"),
        (lambda path: written(path, "results.json", {"summary": {"fid": {"ours": {"value": {}}}}}), "another shape"),
        (lambda path: written(path, "results.json", {"summary": {"fid": [1]}}), "another shape"),
    ],
)
def test_a_folder_that_is_none_is_refused_in_one_line(tmp_path, capsys, make, said):
    make(tmp_path / "x")
    assert main(["report", str(tmp_path / "x"), "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "page.html").exists()


def test_thinning_keeps_spikes_and_gaps():
    curve = Curve()
    for step in range(10_000):
        curve.add(step, 100.0 if step == 4321 else math.nan if 8000 <= step < 9000 else 1.0)
    steps, values = thin(curve, 100)
    assert len(steps) <= 102
    assert (4321.0, 100.0) in list(zip(steps, values, strict=True))
    assert None in values
    assert sorted(steps) == steps


def test_smoothing_is_the_mean_of_equal_ranges():
    curve, values = Curve(), np.random.default_rng(0).normal(size=1000)
    for step, value in enumerate(values):
        curve.add(step, value)
    _, means = smooth(curve, 10)
    np.testing.assert_allclose(means, values.reshape(10, 100).mean(1), rtol=1e-4)


@pytest.mark.slow
def test_a_million_steps_and_many_samples_stay_under_ten_megabytes(tmp_path):
    run = make_run(tmp_path / "run", steps=0)
    drawn = random.Random(0)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 1_000_001):
            values = {f"flow/part{number}": drawn.random() for number in range(6)}
            file.write(json.dumps({"step": step, "stream": "image", "loss": drawn.random(), **values}) + "\n")
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    for step in range(10_000, 400_000, 10_000):
        add_preview(run, step)
        folder = run / "samples" / f"step-{step:08d}"
        Image.fromarray(noise).save(folder / "image-grid.png", compress_level=1)
    page = report(tmp_path / "page.html", run)
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    assert read_metrics(run / "metrics.jsonl").last == 1_000_000
    assert page.has("of 39 steps are shown")
    shutil.rmtree(run)


def test_what_a_run_lacks_is_one_row_for_each_section():
    held = [
        {"seed": "0", "streams.image.batch": "4", "streams.image.media.size": "[8]", "streams.audio.batch": "2"},
        {"seed": "1", "streams.audio.batch": "2", "streams.audio.media.hop": "64"},
        {"seed": "0", "streams.image.batch": "8", "streams.image.media.size": "[8]", "streams.audio.batch": "2"},
    ]
    names = list(dict.fromkeys(name for each in held for name in each))
    rows = [(name, [each.get(name, ABSENT) for each in held]) for name in names]
    assert by_section([row for row in rows if len(set(row[1])) > 1], held) == [
        ("seed", ["0", "1", "0"]),
        ("streams.image.batch", ["4", ABSENT, "8"]),  # the others differ in it
        ("streams.image.media.size", ["[8]", ABSENT, "[8]"]),  # alone in its section
        ("streams.audio.media.hop", [ABSENT, "64", ABSENT]),
    ]
    two = [{"streams.image.batch": "4", "streams.image.size": "8"}, {"streams.audio.batch": "2", "seed": "0"}]
    rows = [(name, [each.get(name, ABSENT) for each in two]) for each in two for name in each]
    assert by_section(rows, two) == [
        ("streams.image", ["2 settings", ABSENT]),
        ("streams.audio.batch", [ABSENT, "2"]),
        ("seed", [ABSENT, "0"]),
    ]


@pytest.mark.parametrize(("hertz", "rate"), [(440, 48_000), (440, 4_000), (1_900, 4_000)])
def test_a_tone_is_a_line_wherever_the_rate_puts_it(hertz, rate):
    sound = torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)
    uri = spectrogram_of(sound)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), dtype=float).sum(-1)
    height = 1 - (image[:, image.shape[1] // 2].argmax() + 0.5) / len(image)
    highest = max(min(1.2 * hertz, rate / 2), rate / 64)
    assert height == pytest.approx(hertz / highest, abs=0.06)
    lit = (image[:, image.shape[1] // 2] > 300).sum()
    assert lit < 0.25 * len(image)
