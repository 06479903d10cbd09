"""selfflow generate from the command line: files, their JSON, the parts to keep, and wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modalities.media.audio import probe_audio, read_audio
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from tests.modalities.making import audio_bytes, image_bytes, tone
from tests.tools.tiny import CONFIG, STEPS, published, train
from tools.cli import main
from tools.generate import generate as generate_tool

SUFFIX = {"image": ".png", "video": ".mp4", "audio": ".wav"}


def generate(run: Path, modality: str, out: Path, *options: str, asked: tuple[str, ...] = ("--prompt", "a cat")) -> int:
    return main(["generate", modality, "--run", str(run), "--out", str(out), *asked, *options])


def media(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] == "0"}


@pytest.mark.parametrize("modality", SUFFIX)
def test_the_same_seed_gives_the_same_files_for_any_batch_size(modality, tiny_run, tmp_path, capsys):
    for size in ("8", "1", "3"):
        options = ("--prompt", "a dog!", "--number", "4", "--batch-size", size, "--cfg-scale", "2")
        assert generate(tiny_run, modality, tmp_path / size, *options) == 0
    assert f"8 files in {tmp_path / '3'}" in capsys.readouterr().out
    files = media(tmp_path / "8")
    names = [*(f"{i:04d}-a-cat" for i in range(4)), *(f"{i:04d}-a-dog" for i in range(4, 8))]
    assert list(files) == [f"{name}{suffix}" for name in names for suffix in sorted((".json", SUFFIX[modality]))]
    assert media(tmp_path / "1") == files
    assert media(tmp_path / "3") == files
    assert (tmp_path / "8" / "grid.png").exists() == (modality == "image")
    assert generate(tiny_run, modality, tmp_path / "seed", "--number", "8", "--seed", "1") == 0
    assert len(set(media(tmp_path / "seed").values()) & set(files.values())) == 0


@pytest.mark.slow
def test_several_devices_give_the_same_files(tiny_run, tmp_path):
    """Broken: each process numbers its samples from 0, so that they have the same noise."""
    for devices in ("1", "2"):
        options = ("--prompt", "a dog!", "--number", "2", "--devices", devices, "--batch-size", "2", "--cfg-scale", "2")
        assert generate(tiny_run, "image", tmp_path / devices, *options) == 0
    assert len(media(tmp_path / "1")) == 8
    assert media(tmp_path / "2") == media(tmp_path / "1")
    assert generate(tiny_run, "image", tmp_path / "4", "--devices", "0") == 2


def test_the_json_beside_a_file_holds_all_that_made_it(tiny_run, tmp_path):
    options = ("--seed", "5", "--steps", "4", "--solver", "heun", "--shift", "2", "--cfg-scale", "1.5")
    options += ("--cfg-interval", "0.2", "0.9", "--no-correct-last", "--step", "3")
    assert generate(tiny_run, "image", tmp_path, *options) == 0
    about = json.loads((tmp_path / "0000-a-cat.json").read_text())
    assert about.pop("torch")
    assert about == {
        "prompt": "a cat",
        "negative": None,
        "stream": "image",
        "parts": {"image": {"modality": "image", "was": "made"}},
        "files": {},
        "text": {"words": 2, "limit": 6, "cut": False, "words_read_in_part": {"cat": 0.667}},
        "seed": 5,
        "index": 0,
        "step": 3,
        "weights": "ema",
        "warnings": [],
        "method": "self_flow",
        "sampler": {
            "solver": "heun",
            "steps": 4,
            "shift": 2.0,
            "shift_rule": "fixed",
            "shift_tokens": 4096,
            "cfg_scale": 1.5,
            "cfg_interval": [0.2, 0.9],
            "conditioning_noise": 0.0,
            "batch_invariant": True,
            "start": 1.0,
            "end": 0.0,
            "parts": {},
            "correct_last": False,
        },
    }


def test_settings_of_one_part(tiny_run, tmp_path, capsys):
    options = ("--steps", "4", "--part", "image.stop_at=0.5", "--part", "image.shift=3")
    assert generate(tiny_run, "image", tmp_path / "out", *options) == 0
    about = json.loads((tmp_path / "out" / "0000-a-cat.json").read_text())
    assert about["sampler"]["parts"]["image"]["stop_at"] == 0.5
    assert about["sampler"]["parts"]["image"]["shift"] == 3.0
    for wrong, line in (
        ("imgae.steps=3", "--part imgae: is not one of image. Did you mean: 'image'?"),
        ("image.stop=3", "--part image.stop: unknown key"),
        ("image.stop_at=3", "--part image.stop_at: 3.0 must lie in [0, 1)"),
        ("image.steps=few", "--part image.steps: expected int, got 'few'"),
        ("image.omit=true", "--part: nothing is left to make; absent or omitted: image"),
        ("image", "--part 'image': expected key=value"),
    ):
        assert generate(tiny_run, "image", tmp_path / "out", "--part", wrong) == 2
        assert line in capsys.readouterr().err


def test_the_defaults_are_the_runs_own_and_its_folder(tmp_path):
    run = tmp_path / "run"
    assert train(run, "training.steps=1", "streams.image.sampling.steps=2") == 0
    assert main(["generate", "image", "--run", str(run), "--prompt", "x"]) == 0
    about = json.loads((run / "generated" / "image" / "0000-x.json").read_text())
    assert about["sampler"]["steps"] == 2
    assert about["step"] == 1


def test_a_mask_keeps_the_dark_pixels_exactly(tiny_run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8, 3), dtype=np.uint8)
    mask[2:, 3:] = 255
    (tmp_path / "cat.png").write_bytes(image_bytes(pixels))
    (tmp_path / "mask.png").write_bytes(image_bytes(mask))
    options = ("--image", str(tmp_path / "cat.png"), "--mask", str(tmp_path / "mask.png"))
    assert generate(tiny_run, "image", tmp_path / "out", *options) == 0
    result = read_image(tmp_path / "out" / "0000-a-cat.png", "")
    light = mask[..., 0] > 0
    assert np.array_equal(result[~light], pixels[~light])
    assert not np.array_equal(result[light], pixels[light])
    about = json.loads((tmp_path / "out" / "0000-a-cat.json").read_text())
    assert about["parts"] == {"image": {"modality": "image", "was": "kept in part"}}
    assert about["files"] == {"image": str(tmp_path / "cat.png"), "mask": str(tmp_path / "mask.png")}


def test_a_first_frame_is_the_first_frame(tiny_run, tmp_path):
    pixels = np.full((8, 8, 3), (200, 60, 40), dtype=np.uint8)
    (tmp_path / "frame.png").write_bytes(image_bytes(pixels))
    assert generate(tiny_run, "video", tmp_path / "out", "--first-frame", str(tmp_path / "frame.png")) == 0
    path = tmp_path / "out" / "0000-a-cat.mp4"
    index = index_video(path, "")
    frames = np.stack(read_frames(path, "", index, np.arange(3))).astype(int)
    assert frames.shape[0] == 3
    assert np.abs(frames[0] - pixels[0, 0]).max() <= 12  # what the codec and its colors cost
    assert np.abs(frames[1] - pixels[0, 0]).max() > 12


def test_continued_audio_begins_with_what_was_given(tiny_run, tmp_path):
    start = tone(0.15, 4000)  # 600 samples, of which 8 whole hops of 64 are kept
    (tmp_path / "start.wav").write_bytes(audio_bytes(start, 4000))
    assert generate(tiny_run, "audio", tmp_path / "out", "--continue", str(tmp_path / "start.wav")) == 0
    path = tmp_path / "out" / "0000-a-cat.wav"
    assert probe_audio(path, "").samples == 1200
    audio = read_audio(path, "", 0, 1200)[:, 0]
    assert np.abs(audio[:512] - start[:512]).max() <= 1.01 / 32768
    assert np.abs(audio[600:]).max() > 0


@pytest.mark.parametrize(
    ("modality", "options", "expected"),
    [
        ("image", ("--number", "0"), "--number and --batch-size must be at least 1"),
        ("image", ("--steps", "0"), "--steps: 0 must be at least 1"),
        ("image", ("--cfg-scale", "nan"), "--cfg-scale: nan is not a finite number"),
        ("image", ("--cfg-scale", "inf"), "--cfg-scale: inf is not a finite number"),
        ("image", ("--cfg-scale", "1e30"), "--cfg-scale: 1e+30 must be at most 1000"),
        ("image", ("--cfg-scale=-2",), "--cfg-scale: -2.0 must not be negative"),
        ("image", ("--shift", "nan"), "--shift: nan is not a finite number"),
        ("image", ("--cfg-interval", "nan", "1"), "--cfg-interval: [nan, 1.0] must be two timesteps in [0, 1]"),
        ("image", ("--negative", "a dog"), "--negative: is not read without guidance; set a scale above 1"),
        ("image", ("--cfg-interval", "0.9", "0.1"), "--cfg-interval: [0.9, 0.1] must be two timesteps in [0, 1]"),
        (
            "image",
            ("--diffusion-form", "constant"),
            "--diffusion-form: no setting of solver 'euler'; it belongs to sde",
        ),
        ("image", ("--first-frame", "x.png"), "--first-frame: goes with streams that have video; image has image"),
        ("image", ("--mask", "x.png"), "--image and --mask go together"),
        ("image", ("--continue", "x.wav"), "--continue: goes with streams that have audio; image has image"),
        ("video", ("--first-frame", "x.png", "--video", "x.mp4"), "--video gives all frames; not with --first-frame"),
        ("audio", ("--continue", "x.wav", "--audio", "x.wav"), "--audio gives the whole audio; not with --continue"),
        ("video", ("--first-frame", "nowhere.png"), "nowhere.png: cannot be read"),
        ("audio", ("--continue", "nowhere.wav"), "nowhere.wav: cannot be read"),
        ("image", ("--step", "5"), "no checkpoint of step 5"),
        ("image", ("--device", "cuda"), "training.device: 'cuda' was asked for, but torch sees no GPU"),
    ],
)
def test_a_wrong_request_is_one_clear_error(modality, options, expected, tiny_run, tmp_path, capsys):
    if "cuda" in options:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    assert generate(tiny_run, modality, tmp_path / "out", *options) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_all_of_a_sample_leaves_nothing_to_make(tiny_run, tmp_path, capsys):
    (tmp_path / "a.wav").write_bytes(audio_bytes(tone(0.3, 4000), 4000))
    (tmp_path / "a.png").write_bytes(image_bytes(np.zeros((8, 8, 3), dtype=np.uint8)))
    for stream, option, name in (("audio", "--audio", "a.wav"), ("audio", "--continue", "a.wav")):
        assert generate(tiny_run, stream, tmp_path / "out", option, str(tmp_path / name)) == 2
        assert f"{option}: give all of a sample, so that nothing is left to make" in capsys.readouterr().err
    assert generate(tiny_run, "image", tmp_path / "out", "--image", str(tmp_path / "a.png")) == 2
    assert "--image: give all of a sample" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_modality_or_a_run_that_is_not_there(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "training.steps=1", "streams.audio=null") == 0
    assert generate(run, "audio", tmp_path / "out") == 2
    assert "was not trained on audio; it has image, video" in capsys.readouterr().err
    assert generate(run, "vidoe", tmp_path / "out") == 2
    assert "it has image, video. Did you mean: 'video'?" in capsys.readouterr().err
    assert generate(tmp_path / "nowhere", "image", tmp_path / "out") == 2
    assert "holds no intact checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["tiny.yaml", "tiny_sit.yaml"])
def test_classes_instead_of_texts(config, tmp_path, capsys):
    run = tmp_path / "run"
    settings = ("training.steps=2", "condition.kind=label")
    assert train(run, *settings, config=CONFIG.with_name(config)) == 0
    assert published(run) == [2]
    asked = ("--class", "red circle", "--class", "blue square")
    assert generate(run, "image", tmp_path / "out", "--batch-size", "1", asked=asked) == 0
    assert generate(run, "image", tmp_path / "two", asked=asked) == 0
    assert media(tmp_path / "out") == media(tmp_path / "two")
    assert {"0000-red-circle.png", "0001-blue-square.png"} <= set(media(tmp_path / "out"))
    assert generate(run, "image", tmp_path / "out", asked=("--class", "red circel")) == 2
    assert "Did you mean: 'red circle'?" in capsys.readouterr().err
    assert generate(run, "image", tmp_path / "out") == 2
    assert "condition.kind 'label'; ask with --class NAME" in capsys.readouterr().err


def test_nothing_is_overwritten(tiny_run, tmp_path):
    """The numbers go on, for another seed, the same one, and with files that someone else put there."""
    first = ("--number", "2", "--seed", "4")
    assert generate(tiny_run, "image", tmp_path, *first) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {f"{n}{s}" for n in ("0000-a-cat", "0001-a-cat", "grid") for s in (".png", ".json")}
    (tmp_path / "0007-mine.png").write_bytes(b"mine")
    (tmp_path / "grid-2.png").write_bytes(b"mine")
    assert generate(tiny_run, "image", tmp_path, "--number", "2", "--seed", "5") == 0
    assert generate(tiny_run, "image", tmp_path, *first) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after["0007-mine.png"] == after["grid-2.png"] == b"mine"
    added = ("0008-a-cat", "0009-a-cat", "0010-a-cat", "0011-a-cat", "grid-3", "grid-4")
    assert set(after) - set(before) == {"0007-mine.png", "grid-2.png"} | {
        f"{name}{suffix}" for name in added for suffix in (".png", ".json")
    }
    assert after["0008-a-cat.png"] != after["0000-a-cat.png"]
    for pair in (("0010-a-cat", "0000-a-cat"), ("0011-a-cat", "0001-a-cat")):  # the same seed, the same bytes
        assert after[f"{pair[0]}.png"] == after[f"{pair[1]}.png"]
        assert after[f"{pair[0]}.json"] == after[f"{pair[1]}.json"]
    grid = json.loads(after["grid-4.json"])
    assert grid["files"] == ["0010-a-cat.png", "0011-a-cat.png"]
    assert grid["seed"] == 4


def test_an_output_place_that_cannot_be_used_is_told_before_the_work(tiny_run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        # A run that is not there would be the next thing to be refused.
        assert generate(tmp_path / "nowhere", "image", out) == 2
        assert "file is no folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_student_instead_of_the_ema(tiny_run, tmp_path):
    for which in ("ema", "student"):
        assert generate(tiny_run, "image", tmp_path / which, "--weights", which) == 0
        assert json.loads((tmp_path / which / "0000-a-cat.json").read_text())["weights"] == which
    assert media(tmp_path / "ema")["0000-a-cat.png"] != media(tmp_path / "student")["0000-a-cat.png"]
    assert generate(tiny_run, "image", tmp_path / "default") == 0
    assert media(tmp_path / "default") == media(tmp_path / "ema")


def test_a_negative_prompt_takes_the_place_of_the_null_condition(tiny_run, tmp_path):
    def made(name: str, *options: str) -> dict[str, bytes]:
        assert generate(tiny_run, "image", tmp_path / name, "--cfg-scale", "3", "--number", "3", *options) == 0
        return media(tmp_path / name)

    plain, dog = made("plain"), made("dog", "--negative", "a dog")
    assert plain["0000-a-cat.png"] != dog["0000-a-cat.png"]
    assert json.loads(dog["0000-a-cat.json"])["negative"] == "a dog"
    assert made("one by one", "--negative", "a dog", "--batch-size", "1") == dog
    assert made("other", "--negative", "blue")["0000-a-cat.png"] != dog["0000-a-cat.png"]
    # Led away from itself, a prompt stays where it is without guidance.
    same = made("same", "--negative", "a cat")
    assert generate(tiny_run, "image", tmp_path / "none", "--number", "3") == 0
    unguided = read_image(tmp_path / "none" / "0000-a-cat.png", "").astype(int)
    assert np.abs(read_image(tmp_path / "same" / "0000-a-cat.png", "").astype(int) - unguided).max() <= 1
    assert same["0000-a-cat.png"] != plain["0000-a-cat.png"]


def test_a_negative_class(tmp_path, capsys):
    run, asked = tmp_path / "run", ("--class", "red circle")
    assert train(run, "training.steps=2", config=CONFIG.with_name("tiny_sit.yaml")) == 0
    guided = ("--cfg-scale", "4")
    assert generate(run, "image", tmp_path / "null", *guided, asked=asked) == 0
    assert generate(run, "image", tmp_path / "blue", *guided, "--negative", "blue square", asked=asked) == 0
    about = json.loads((tmp_path / "blue" / "0000-red-circle.json").read_text())
    assert (about["prompt"], about["negative"]) == ("red circle", "blue square")
    assert generate(run, "image", tmp_path / "x", *guided, "--negative", "blue sqare", asked=asked) == 2
    assert "class 'blue sqare' is not one of the run's classes. Did you mean: 'blue square'?" in capsys.readouterr().err


def test_a_run_without_a_condition_takes_no_prompt_and_no_guidance(tiny_run, tmp_path, capsys, monkeypatch):
    real = generate_tool.load_run

    def unconditional(*arguments):
        loaded = real(*arguments)
        loaded.config.condition.kind = "none"
        return loaded

    monkeypatch.setattr(generate_tool, "load_run", unconditional)
    for asked in (("--prompt", "a cat"), ("--class", "cat"), ("--negative", "a dog")):
        assert generate(tiny_run, "image", tmp_path / "out", asked=asked) == 2
        assert "condition.kind 'none'; ask with --number N alone" in capsys.readouterr().err
    assert generate(tiny_run, "image", tmp_path / "out", "--cfg-scale", "3", asked=()) == 2
    assert "--cfg-scale: 3, and this run was trained without a condition" in capsys.readouterr().err


def test_guidance_without_a_null_condition_is_said(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "training.steps=1", "condition.cfg_dropout=0") == 0
    capsys.readouterr()
    assert generate(run, "image", tmp_path / "plain") == 0
    assert "warning" not in capsys.readouterr().err
    assert generate(run, "image", tmp_path / "guided", "--cfg-scale", "3", "--number", "2") == 0
    assert capsys.readouterr().err.count("warning: cfg_scale: 3, and the condition of this run was never dropped") == 1
    (line,) = json.loads((tmp_path / "guided" / "0001-a-cat.json").read_text())["warnings"]
    assert "condition.cfg_dropout: 0" in line
    assert generate(run, "image", tmp_path / "negative", "--cfg-scale", "3", "--negative", "a dog") == 0
    assert "warning" not in capsys.readouterr().err  # there the null condition is not used


def test_a_class_asked_of_a_run_with_texts(tiny_run, tmp_path, capsys):
    assert generate(tiny_run, "image", tmp_path / "out", asked=("--class", "cat")) == 2
    assert "condition.kind 'text'; ask with --prompt" in capsys.readouterr().err
    assert published(tiny_run)[-1] == STEPS
