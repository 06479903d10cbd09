"""The logic behind the page of `selfflow app`, without a browser and without Gradio."""

from __future__ import annotations

import json
import shlex
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.runs import LoadedRun, load_run
from core.errors import ConfigError, DataError
from tests.modalities.making import audio_bytes, gradient, image_bytes, tone
from tools.app import studio as studio_module
from tools.app import view
from tools.app.request import Request
from tools.app.studio import MOST_WAITING, Job, Limits, Studio
from tools.app.uploads import keep, keep_painted
from tools.cli import main


@pytest.fixture(scope="module")
def loaded(tiny_run) -> LoadedRun:
    return load_run(tiny_run, device="cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*"))}


def finished(studio: Studio, request: Request) -> Job:
    job = studio.wait(studio.submit(request).number, 60)
    assert job.is_over
    return job


@pytest.mark.parametrize("stream", ["image", "video", "audio"])
def test_a_request_makes_the_bytes_of_the_command_that_it_shows(stream, loaded, tmp_path):
    settings = {"solver": "heun", "steps": 2, "cfg_scale": 2.0, "cfg_interval": (0.2, 0.9)}
    request = Request(stream, ["a cat", "-- a dog"], "a 'fish'", 2, 7, settings)
    job = finished(Studio(loaded, tmp_path / "page"), request)
    assert (job.state, job.steps, job.total, len(job.files)) == ("done", 8, 8, 4)
    name, *typed = shlex.split(job.command)
    assert name == "selfflow"
    assert main([*typed[:-1], f"--out={tmp_path / 'typed'}"]) == 0
    made = files(tmp_path / "page" / stream)
    assert made == files(tmp_path / "typed")
    assert len(made) == 8
    about = json.loads(made["0000-a-cat.json"])
    assert about["sampler"]["cfg_interval"] == [0.2, 0.9]
    assert about["negative"] == "a 'fish'"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": []}, "Prompts: say what is to be made"),
        ({"prompts": ["x" * 2001]}, "Prompts: 2,001 characters, at most 2,000 are read"),
        ({"number": 0}, "Samples of each prompt: must be at least 1"),
        ({"number": None}, "Samples of each prompt: is empty; give a number"),
        ({"seed": None}, "Seed: is empty; give a number"),
        ({"number": 65}, "Samples of each prompt: makes 65 samples with this many prompts, at most 64 at once"),
        ({"settings": {"steps": 0}}, "Steps: 0 must be at least 1"),
        ({"settings": {"steps": 5000}}, "Steps: 5000 must be at most 1,000 here"),
        ({"settings": {"cfg_scale": -1.0}}, "Guidance: -1.0 must not be negative"),
        ({"settings": {"cfg_interval": (0.5, 0.2)}}, "Guidance from, to: [0.5, 0.2] must be two timesteps in [0, 1]"),
        ({"settings": {"cfg_interval": (None, 0.2)}}, "Guidance from, to: is empty; give two numbers"),
        ({"settings": {"solver": "magic"}}, "Solver: invalid choice: 'magic'"),
        ({"negative": "a dog"}, "Negative prompt: is not read without guidance"),
    ],
)
def test_a_wrong_request_is_refused_in_the_words_of_the_page(change, said, loaded, tmp_path):
    studio = Studio(loaded, tmp_path)
    with pytest.raises(ConfigError) as error:
        studio.submit(Request(**{"stream": "image", "prompts": ["a cat"], **change}))
    assert said in str(error.value)
    assert studio.jobs() == []


class Held:
    """In place of `make`: waits until it is let go."""

    def __init__(self, monkeypatch):
        self.begun, self.go, self.order = threading.Event(), threading.Event(), []
        monkeypatch.setattr(studio_module, "make", self)

    def __call__(self, options, loaded, wanted, out, progress, watch) -> list[Path]:
        self.order.append(options.seed)
        self.begun.set()
        assert self.go.wait(60)
        progress(1)
        return []


def test_one_is_made_at_a_time_in_order_and_each_can_be_stopped(loaded, tmp_path, monkeypatch):
    held, studio = Held(monkeypatch), Studio(loaded, tmp_path)
    first, second, third, fourth = (studio.submit(Request("image", ["a"], seed=seed)).number for seed in range(4))
    assert held.begun.wait(60)
    assert [job.state for job in studio.jobs()] == ["running", "waiting", "waiting", "waiting"]
    studio.stop(third)
    studio.stop(first)
    assert [job.state for job in studio.jobs()] == ["running", "waiting", "stopped", "waiting"]
    held.go.set()
    assert studio.wait(fourth, 60).state == "done"
    states = {job.number: (job.state, *job.notes) for job in studio.jobs()}
    assert states[first] == ("stopped", "stopped; what was finished is there")
    assert states[second] == ("done",)
    assert states[third] == ("stopped", "stopped before it began")
    assert held.order == [0, 1, 3]
    studio.stop(second)  # it is over
    assert studio.wait(second, 0).state == "done"


def test_a_long_queue_takes_no_more(loaded, tmp_path, monkeypatch):
    held, studio = Held(monkeypatch), Studio(loaded, tmp_path)
    studio.submit(Request("image", ["a"]))
    assert held.begun.wait(60)
    last = [studio.submit(Request("image", ["a"])).number for _ in range(MOST_WAITING)][-1]
    with pytest.raises(ConfigError, match=f"{MOST_WAITING} requests are waiting already"):
        studio.submit(Request("image", ["a"]))
    held.go.set()
    assert studio.wait(last, 60).state == "done"


def test_a_request_that_takes_too_long_ends_and_so_does_one_with_a_bug(loaded, tmp_path, monkeypatch, capsys):
    job = finished(Studio(loaded, tmp_path, Limits(seconds=1e-9)), Request("image", ["a"]))
    assert job.state == "stopped"
    assert "took longer than 1e-09 s (--time-limit)" in job.notes[0]
    studio = Studio(loaded, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(studio_module, "make", lambda *_: 1 / 0)
        job = finished(studio, Request("image", ["a"]))
    assert job.state == "failed"
    assert job.notes[0].startswith("a bug of selfflow: ZeroDivisionError")
    assert "Traceback" in capsys.readouterr().err
    assert finished(studio, Request("image", ["a"])).state == "done"  # the worker is still there


def test_previews_are_made_on_the_way(loaded, tmp_path):
    studio = Studio(loaded, tmp_path)
    seen = []
    change = studio._change
    studio._change = lambda number, **changes: (seen.append(changes.get("preview")), change(number, **changes))[1]
    for stream in ("image", "video", "audio"):
        seen.clear()
        job = finished(studio, Request(stream, ["a", "b"]))
        shown = [preview for preview in seen if preview]
        assert len(shown[0]) == 2  # one of each sample
        assert all(uri.startswith("data:image/png;base64,") for uri in shown[0])
        assert job.preview == ()


def test_what_is_painted_is_made_anew_and_the_rest_stays(loaded, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stroke = np.zeros((16, 16, 4), dtype=np.uint8)
    stroke[:8, :8, 3] = 255  # the upper left quarter, on a canvas of twice the size
    value = {"background": Image.fromarray(pixels).convert("RGBA"), "layers": [Image.fromarray(stroke)]}
    image, mask = keep_painted(value, tmp_path, "image")
    assert image is not None
    assert image.parent == tmp_path / "given"
    assert keep_painted(value, tmp_path, "image") == (image, mask)  # once
    job = finished(
        Studio(loaded, tmp_path), Request("image", ["a"], files={"image": f"image={image}", "mask": f"image={mask}"})
    )
    assert job.state == "done", job.notes
    made = np.asarray(Image.open(job.files[0]))
    same = (made == pixels).all(-1)
    assert same[4:].all()
    assert same[:, 4:].all()
    assert not same[:4, :4].all()


def test_painting_on_nothing_is_refused_and_an_empty_editor_gives_nothing(tmp_path):
    empty, stroke = Image.new("RGBA", (8, 8)), Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    assert keep_painted(None, tmp_path, "image") == (None, None)
    assert keep_painted({"background": None, "layers": [empty]}, tmp_path, "image") == (None, None)
    assert keep_painted({"background": empty, "layers": []}, tmp_path, "image") == (None, None)
    with pytest.raises(ConfigError, match="there is no image under it"):
        keep_painted({"background": empty, "layers": [stroke]}, tmp_path, "image")


def test_uploads_are_kept_within_the_output_folder(tmp_path):
    out, upload = tmp_path / "out", tmp_path / "a song.WAV"
    upload.write_bytes(b"RIFF" * 1000)
    kept = keep(upload, out, "Audio to continue", 1)
    assert kept.parent == out / "given"
    assert kept.suffix == ".wav"
    assert kept.read_bytes() == upload.read_bytes()
    odd = upload.with_name("x.a$(b)")
    odd.write_bytes(b"x")
    assert keep(odd, out, "Video", 1).suffix == ""
    with pytest.raises(ConfigError, match=r"Audio to continue: 0\.0 MB, at most 0\.001 MB"):
        keep(upload, out, "Audio to continue", 0.001)
    with pytest.raises(ConfigError, match="the uploaded file is gone"):
        keep(tmp_path / "none.wav", out, "Video", 1)


def test_given_files_reach_the_sampler_and_wrong_ones_are_named(loaded, tmp_path):
    first = tmp_path / "first.png"
    first.write_bytes(image_bytes(gradient()))
    job = finished(Studio(loaded, tmp_path), Request("video", ["a"], files={"first_frame": f"video={first}"}))
    assert job.state == "done", job.notes
    start = tmp_path / "start.wav"
    start.write_bytes(audio_bytes(tone(0.1, 8000), 8000))
    job = finished(Studio(loaded, tmp_path), Request("audio", ["a"], files={"continue": f"audio={start}"}))
    assert job.state == "done", job.notes
    with pytest.raises(DataError, match=r"first\.png"):
        Studio(loaded, tmp_path).submit(Request("audio", ["a"], files={"continue": f"audio={first}"}))


class Text(HTMLParser):
    """What an HTML document says, and its tags."""

    def __init__(self, document: str):
        super().__init__()
        self.said, self.tags = [], []
        self.feed(document)

    def handle_data(self, data):
        self.said.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_gallery_shows_the_newest_with_their_settings_and_no_markup_of_people(loaded, tmp_path):
    evil = "<script>alert(1)</script>"
    studio = Studio(loaded, tmp_path)
    for stream in ("image", "video", "audio"):
        assert finished(studio, Request(stream, [evil], seed=11, settings={"steps": 2})).state == "done"
    (tmp_path / "image" / "0009-damaged.json").write_text("{")
    shown = Text(view.gallery(tmp_path, ["image", "video", "audio"]))
    assert [tag for tag, _ in shown.tags if tag == "script"] == []
    assert shown.said.count(evil) == 3
    media = [attributes["src"] for tag, attributes in shown.tags if tag in ("img", "video", "audio")]
    served = [address.removeprefix("gradio_api/file=") for address in media if not address.startswith("data:")]
    assert [Path(path).suffix for path in served] == [".wav", ".mp4", ".png"]  # newest first
    assert all(Path(path).is_relative_to(tmp_path) and Path(path).is_file() for path in served)
    assert "11, sample 0" in shown.said
    assert sum("download" in attributes for tag, attributes in shown.tags if tag == "a") == 6
    assert Text(view.gallery(tmp_path, ["image", "video", "audio"], "video")).said.count(evil) == 1
    assert Text(view.jobs_view(studio.jobs())).said.count(evil) == 3
    assert "<b>" not in view.message("no <b>bold</b>\nsecond line")


def test_without_gradio_one_line_says_how_to_get_it(tiny_run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["app", str(tiny_run)]) == 2
    assert "pip install -e '.[app]'" in capsys.readouterr().err
    assert main(["app", str(tiny_run), "--time-limit", "0"]) == 2
    assert "--time-limit: 0 must be above 0" in capsys.readouterr().err
