"""selfflow import and export: weights go round byte for byte, and an imported run generates and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from autoencoders.base import LatentNormalization
from configs.assembly import normalization as normalization
from core.training.checkpoint import CheckpointStore, digest
from core.training.records import read_lines
from core.trunk.foreign import read_state_dict
from modalities.base import AutoencoderAdapter
from tests.tools.tiny import CONFIG, STEPS, published, train
from tools.cli import main

SIT = CONFIG.with_name("tiny_sit.yaml")
CLASSES = 24
AUDIOVISUAL = """
seed: 3
streams:
  clips:
    batch: 2
    data: {count: 12}
    parts:
      video: {media: {size: [16], frames: 9, fps: 8, patch: 4, patch_frames: 2}}
      audio: {std_floor: 0.25, media: {sample_rate: 4000, seconds: 1.125, hop: 50}}
condition: {text: {vocabulary: 64, max_words: 6, rows_per_word: 4}}
trunk: {mmdit: {size: tiny, width: 96, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}}
training: {steps: 2, device: cpu, ema: {decay: 0.1}}
"""


@pytest.fixture(scope="module")
def sit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sit") / "run"
    assert train(folder, config=SIT) == 0
    return folder


@pytest.fixture(scope="module")
def released(sit_run, tmp_path_factory) -> Path:
    """The run's EMA weights as a file of the released kind."""
    path = tmp_path_factory.mktemp("released") / "weights.pt"
    assert export(sit_run, path, "selfflow") == 0
    return path


def export(run: Path, path: Path, kind: str, *more: str) -> int:
    return main(["export", "--run", str(run), "--to", str(path), "--kind", kind, *more])


def bring(path: Path, run: Path, *more: str, config: Path = SIT) -> int:
    return main(["import", str(path), "--config", str(config), f"run={run}", *more])


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    store = CheckpointStore(run / "checkpoints")
    return store.load_weights(store.latest(), part)


def test_the_exported_file_is_the_ema(sit_run, released):
    file = read_state_dict(released)
    teacher = weights(sit_run, "teacher")
    assert file.keys() == teacher.keys()
    assert all(torch.equal(file[name], value) for name, value in teacher.items())


def test_the_student_of_an_older_step(tiny_run, tmp_path):
    path = tmp_path / "student.pt"
    assert export(tiny_run, path, "native-mmdit", "--student", "--step", "3") == 0
    student = CheckpointStore(tiny_run / "checkpoints").load_weights(3, "student")
    assert digest({"": read_state_dict(path)}) == digest({"": student})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_goes_round_byte_for_byte(sit_run, tmp_path, suffix):
    first, second, run = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", tmp_path / "run"
    assert export(sit_run, first, "selfflow") == 0
    assert bring(first, run) == 0
    assert published(run) == [0]
    assert digest({"": weights(run, "student")}) == digest({"": weights(sit_run, "teacher")})
    assert digest({"": weights(run, "teacher")}) == digest({"": weights(sit_run, "teacher")})
    assert export(run, second, "selfflow") == 0
    assert digest({"": read_state_dict(first)}) == digest({"": read_state_dict(second)})
    if suffix == ".safetensors":
        assert first.read_bytes() == second.read_bytes()


def test_a_joint_model_goes_round(tiny_run, tmp_path, capsys):
    path, run = tmp_path / "joint.safetensors", tmp_path / "run"
    assert export(tiny_run, path, "native-mmdit") == 0
    assert bring(path, run, config=CONFIG) == 0
    assert digest({"": weights(run, "student")}) == digest({"": weights(tiny_run, "teacher")})
    assert main(["generate", "audio", "--run", str(run), "--prompt", "notes C E G"]) == 0
    assert "kind native-mmdit" in capsys.readouterr().out


def test_a_model_of_several_parts_goes_round(tmp_path, capsys):
    config = tmp_path / "videos.yaml"
    config.write_text(AUDIOVISUAL)
    run, path, new = tmp_path / "run", tmp_path / "videos.safetensors", tmp_path / "new"
    assert train(run, config=config) == 0
    assert export(run, path, "native-mmdit") == 0
    found = document(path)
    assert set(found["normalization"]) == {"video", "audio"}
    assert found["meaning"]["media.audio.sample_rate"] == 4000
    assert bring(path, new, config=config) == 0
    assert digest({"": weights(new, "student")}) == digest({"": weights(run, "teacher")})
    stored = [CheckpointStore(folder / "checkpoints").extra(step) for folder, step in ((run, 2), (new, 0))]
    assert stored[0]["normalization"] == stored[1]["normalization"]
    assert bring(path, tmp_path / "other", "streams.clips.parts.audio.std_floor=0.9", config=config) == 2
    shown = capsys.readouterr().err
    assert "  audio: means differ by up to" in shown
    assert "  video: " not in shown
    # Without the data all statistics are the file's.
    absent = "streams.clips.data={kind: folder, path: nowhere}"
    assert bring(path, tmp_path / "absent", absent, config=config) == 0
    extra = CheckpointStore(tmp_path / "absent" / "checkpoints").extra(0)
    assert extra["normalization"] == stored[0]["normalization"]


def test_an_imported_run_generates_what_the_original_does(sit_run, released, tmp_path):
    run, images = tmp_path / "run", []
    assert bring(released, run) == 0
    for folder in (sit_run, run):
        out = tmp_path / folder.parent.name
        assert main(["generate", "image", "--run", str(folder), "--class", "red circle", "--out", str(out)]) == 0
        images += sorted(out.glob("0000-*.png"))
    assert len(images) == 2
    assert images[0].read_bytes() == images[1].read_bytes()


def test_training_goes_on_from_imported_weights(released, tmp_path):
    run, rate = tmp_path / "run", 1e-4
    settings = ("training.steps=1", f"training.optimizer.lr={rate}")
    assert bring(released, run, *settings) == 0
    before = weights(run, "student")
    assert train(run, *settings, config=SIT) == 0
    assert published(run) == [0, 1]
    assert [entry["step"] for entry in read_lines(run / "metrics.jsonl")] == [1]
    after = weights(run, "student")
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert 0 < moved <= 1.01 * rate  # AdamW's first step moves no weight by more than the learning rate


def test_another_configuration_does_not_go_on_from_them(released, tmp_path, capsys):
    run = tmp_path / "run"
    assert bring(released, run) == 0
    assert train(run, "seed=4", config=SIT) == 2
    assert "seed: 3 when the run was started, 4 now" in capsys.readouterr().err


def test_parts_left_out_and_parts_made_fresh(sit_run, tmp_path, capsys):
    path = tmp_path / "sit.pt"
    assert export(sit_run, path, "sit") == 2
    assert "projector does not belong" in capsys.readouterr().err
    assert export(sit_run, path, "sit", "--drop", "projector") == 0
    assert bring(path, tmp_path / "refused") == 2
    assert "4 missing: projector.linear1.weight" in capsys.readouterr().err
    assert bring(path, tmp_path / "plain", "method=flow_matching") == 0
    assert bring(path, tmp_path / "tuned", "--fresh", "projector") == 0
    assert train(tmp_path / "plain", "method=flow_matching", config=SIT) == 0
    assert train(tmp_path / "tuned", config=SIT) == 0
    teacher = weights(sit_run, "teacher")
    start = CheckpointStore(tmp_path / "tuned" / "checkpoints").load_weights(0, "student")
    changed = {name.split(".")[0] for name, value in start.items() if not torch.equal(value, teacher[name])}
    assert changed == {"projector"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trunk.sit.depth=4"], "10 missing: blocks.3.attn.qkv.weight"),
        (["trunk.sit.depth=4"], "depth 4, the file has 3"),
        (["--kind", "repa"], "not of kind 'repa': projectors is missing"),
        (["--drop", "projectors"], "'projectors' is no part of"),
        (["--labels", "absent.txt"], "absent.txt cannot be read"),
        (["condition.kind=text", "--labels", "absent.txt"], "--labels: not read with condition.kind 'text'"),
    ],
)
def test_what_does_not_fit_leaves_no_run(released, tmp_path, capsys, more, message):
    assert bring(released, tmp_path / "run", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused(sit_run, released, capsys):
    before = published(sit_run)
    assert bring(released, sit_run) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert published(sit_run) == before


def test_class_names_from_a_file(released, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(CLASSES)) + "\n")
    run = tmp_path / "run"
    assert bring(released, run, "--labels", str(names)) == 0
    assert CheckpointStore(run / "checkpoints").extra(0)["labels"][5] == "thing 5"
    assert main(["generate", "image", "--run", str(run), "--class", "thing 5"]) == 0
    capsys.readouterr()
    for text, message in (("a\n\nb", "names.txt:2 is empty"), ("a\nb\na", "'a' is on line 1 and on line 3")):
        names.write_text(text)
        assert bring(released, tmp_path / "other", "--labels", str(names)) == 2
        assert message in capsys.readouterr().err


def test_without_the_data(released, tmp_path, capsys, monkeypatch):
    """The classes are numbers; the normalization has to be published."""
    config = tmp_path / "config.yaml"
    config.write_text(SIT.read_text().replace("{size: 8, count: 60}", "{kind: folder, path: nowhere, captions: none}"))
    assert bring(released, tmp_path / "run", config=config) == 2
    shown = capsys.readouterr().err
    assert "streams.image.media.autoencoder: has no published normalization" in shown
    assert "nowhere" in shown

    statistics = LatentNormalization(torch.full((48,), 0.1), torch.full((48,), 0.5))
    monkeypatch.setattr(AutoencoderAdapter, "normalization", statistics)
    assert bring(released, tmp_path / "run", config=config) == 0
    assert f"{CLASSES} classes, '0' to '{CLASSES - 1}': numbers" in capsys.readouterr().out
    # What is published with the weights of an autoencoder stays with them; this one has none.
    assert set(CheckpointStore(tmp_path / "run" / "checkpoints").extra(0)["normalization"]) == {"image"}
    assert main(["generate", "image", "--run", str(tmp_path / "run"), "--class", "7"]) == 0


def test_an_imported_run_can_be_inspected(released, tmp_path, capsys):
    assert bring(released, tmp_path / "run") == 0
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "checkpoint 0: intact" in shown
    assert "0 of 4 published" in shown
    assert main(["inspect", str(tmp_path / "run"), "--digest"]) == 0
    (teacher,) = digest({"": weights(tmp_path / "run", "teacher")}).values()
    assert capsys.readouterr().out.splitlines() == ["step 0", f"student {teacher}", f"teacher {teacher}"]


def document(path: Path) -> dict:
    """What a .safetensors file says of its weights, read as another project would."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["selfflow"])


@pytest.fixture(scope="module")
def spoken(sit_run, tmp_path_factory) -> Path:
    """The run's EMA weights in a file that says what they mean."""
    path = tmp_path_factory.mktemp("spoken") / "weights.safetensors"
    assert export(sit_run, path, "selfflow") == 0
    return path


@pytest.fixture(scope="module")
def joint(tiny_run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("joint") / "weights.safetensors"
    assert export(tiny_run, path, "native-mmdit") == 0
    return path


def test_a_file_says_what_its_weights_mean(spoken, joint, sit_run, tiny_run):
    found = document(joint)
    assert found["meaning"]["trunk.mmdit.rope_theta"] == 2000.0
    assert found["meaning"]["trunk.mmdit.rope_axes"] == [16, 16, 16]
    assert found["meaning"]["condition.text.max_words"] == 6
    assert found["meaning"]["media.video.stride"] == [2, 4, 4]
    assert found["meaning"]["media.audio.exponent"] == 0.5
    assert found["normalization"] == CheckpointStore(tiny_run / "checkpoints").extra(STEPS)["normalization"]
    assert set(found["normalization"]) == {"image", "video", "audio"}
    assert found["version"]
    assert found["labels"] == []
    assert document(spoken)["labels"] == CheckpointStore(sit_run / "checkpoints").extra(4)["labels"]
    for path in (spoken, joint):
        assert "/" not in path.read_bytes()[:4000].decode("latin-1").split('"selfflow":')[1].split("normalization")[0]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("trunk.mmdit.heads=4", "trunk.mmdit.heads: 4, and the file's weights were trained with 2"),
        ("trunk.mmdit.rope_theta=10000", "trunk.mmdit.rope_theta: 10000.0, and the file's weights were trained with"),
        ("trunk.mmdit.rope_axes=[24,12,12]", "trunk.mmdit.rope_axes: [24, 12, 12], and the file's"),
        ("trunk.mmdit.time_scale=1", "trunk.mmdit.time_scale: 1.0, and the file's weights were trained with 1000.0"),
        ("trunk.mmdit.qk_norm=false", "trunk.mmdit.qk_norm: False, and the file's weights were trained with True"),
        ("condition.text.ngrams=[3]", "condition.text.ngrams: [3], and the file's weights were trained with [3, 4]"),
        ("condition.text.rows_per_word=8", "condition.text.rows_per_word: 8, and the file's"),
        ("condition.text.max_words=9", "condition.text.max_words: 9, and the file's weights were trained with 6"),
        ("condition.text.vocabulary=128", "condition.text.vocabulary: 128, and the file's"),
        ("streams.audio.media.sample_rate=8000", "media.audio.sample_rate: 8000, and the file's"),
        ("streams.video.media.fps=16", "media.video.fps: 16.0, and the file's"),
        ("streams.video.media.first_frame_alone=false", "media.video.first_frame_alone: False, and"),
    ],
)
def test_other_settings_of_the_same_shapes_are_refused_by_name(joint, tmp_path, capsys, change, line):
    more = ()
    if "first_frame_alone" in change:
        frames = ("streams.video.media.frames=4", "streams.video.data.frames=4")
        more = (*frames, "streams.video.modes={first_frame: 0}")
    assert bring(joint, tmp_path / "run", change, *more, config=CONFIG) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert "--accept" in shown
    assert not (tmp_path / "run").exists()


def test_other_heads_of_a_sit_are_refused_or_meant(spoken, tmp_path, capsys):
    """The shapes agree, so these weights once loaded in silence."""
    assert bring(spoken, tmp_path / "run", "trunk.sit.heads=4") == 2
    assert "trunk.sit.heads: 4, and the file's weights were trained with 2" in capsys.readouterr().err
    assert bring(spoken, tmp_path / "run", "trunk.sit.heads=4", "--accept", "trunk.sit.heads") == 0
    assert CheckpointStore(tmp_path / "run" / "checkpoints").extra(0)["imported"]["accepted"] == ["trunk.sit.heads"]
    capsys.readouterr()
    assert bring(spoken, tmp_path / "other", "--accept", "trunk.sit.head") == 2
    assert "'trunk.sit.head' is nothing that is compared. Did you mean: 'trunk.sit.heads'?" in capsys.readouterr().err


def test_statistics_of_other_data_are_refused_unless_chosen(spoken, sit_run, tmp_path, capsys, monkeypatch):
    """Trained on these, they brightened every sample of an imported run from 201 to 39."""
    real = normalization.measured
    dark = LatentNormalization(torch.full((48,), -0.9), torch.full((48,), 0.05))
    monkeypatch.setattr(normalization, "measured", lambda config, streams: {"image": dark})
    assert bring(spoken, tmp_path / "refused") == 2
    shown = capsys.readouterr().err
    assert "trained on latents of other statistics" in shown
    assert "  image: means differ by up to" in shown
    assert "--statistics file" in shown
    assert not (tmp_path / "refused").exists()

    images, red = {}, ["--class", "red circle"]
    assert main(["generate", "image", "--run", str(sit_run), *red, "--out", str(tmp_path / "a")]) == 0
    for choice in ("file", "data"):
        run, out = tmp_path / choice, tmp_path / f"{choice} made"
        assert bring(spoken, run, "--statistics", choice) == 0
        assert main(["generate", "image", "--run", str(run), *red, "--out", str(out)]) == 0
        images[choice] = (out / "0000-red-circle.png").read_bytes()
    assert images["file"] == (tmp_path / "a" / "0000-red-circle.png").read_bytes()
    assert images["data"] != images["file"]

    # What was taken is what training goes on with.
    monkeypatch.setattr(normalization, "measured", real)
    assert train(tmp_path / "file", "training.steps=1", config=SIT) == 0
    theirs = CheckpointStore(sit_run / "checkpoints").extra(4)["normalization"]
    assert CheckpointStore(tmp_path / "file" / "checkpoints").extra(1)["normalization"] == theirs


def test_statistics_but_for_rounding_are_the_same(spoken, sit_run, tmp_path, monkeypatch):
    real = normalization.measured

    def rounded(config, streams):
        return {name: LatentNormalization(v.mean + 1e-5, v.std * 1.0001) for name, v in real(config, streams).items()}

    monkeypatch.setattr(normalization, "measured", rounded)
    assert bring(spoken, tmp_path / "run") == 0
    theirs = CheckpointStore(sit_run / "checkpoints").extra(4)["normalization"]
    assert CheckpointStore(tmp_path / "run" / "checkpoints").extra(0)["normalization"] == theirs


def test_statistics_of_a_file_without_any(released, tmp_path, capsys):
    assert bring(released, tmp_path / "run", "--statistics", "file") == 2
    assert "--statistics: " in capsys.readouterr().err
    assert bring(released, tmp_path / "run", "--accept", "labels") == 2
    assert "does not say what its weights mean, so nothing is compared" in capsys.readouterr().err
    assert bring(released, tmp_path / "run") == 0
    assert "note: the file does not say what its weights mean" in capsys.readouterr().out


def test_another_order_of_classes_is_refused(spoken, sit_run, tmp_path, capsys):
    labels = CheckpointStore(sit_run / "checkpoints").extra(4)["labels"]
    names = tmp_path / "names.txt"
    names.write_text("\n".join([labels[1], labels[0], *labels[2:]]) + "\n")
    assert bring(spoken, tmp_path / "run", "--labels", str(names)) == 2
    line = f"labels: class 0 is {labels[1]!r}, and {labels[0]!r} in the file in another order"
    assert line in capsys.readouterr().err
    assert bring(spoken, tmp_path / "run", "--labels", str(names), "--accept", "labels") == 0


def test_without_the_data_the_file_has_names_and_statistics(spoken, sit_run, tmp_path, capsys):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(SIT.read_text().replace("{size: 8, count: 60}", "{kind: folder, path: nowhere, captions: none}"))
    assert bring(spoken, run, config=config) == 0
    shown = capsys.readouterr().out
    assert "24 classes, 'blue circle' to 'yellow triangle': the file's names" in shown
    assert "statistics of the latents: the file's, of image" in shown
    for folder, out in ((run, "a"), (sit_run, "b")):
        asked = ["--class", "red circle", "--out", str(tmp_path / out)]
        assert main(["generate", "image", "--run", str(folder), *asked]) == 0
    assert (tmp_path / "a" / "0000-red-circle.png").read_bytes() == (
        tmp_path / "b" / "0000-red-circle.png"
    ).read_bytes()


def test_a_native_pickle_says_it_too_and_a_released_one_cannot(tiny_run, released, tmp_path, capsys):
    path = tmp_path / "joint.pt"
    assert export(tiny_run, path, "native-mmdit") == 0
    assert "note" not in capsys.readouterr().out
    assert bring(path, tmp_path / "run", "trunk.mmdit.heads=4", config=CONFIG) == 2
    assert "trunk.mmdit.heads: 4, and the file's weights were trained with 2" in capsys.readouterr().err
    assert bring(path, tmp_path / "run", config=CONFIG) == 0
    # As the project that released these weights loads them: a plain state dict.
    content = torch.load(released, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in content.values())


def test_guidance_of_weights_whose_condition_was_never_dropped(tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "w.safetensors"
    assert train(run, "training.steps=1", "condition.cfg_dropout=0", config=SIT) == 0
    assert export(run, path, "native-sit") == 0
    assert bring(path, tmp_path / "new") == 0
    assert "note: the condition of these weights was never dropped" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused(released, tmp_path, capsys):
    state = read_state_dict(released)
    state["blocks.1.attn.qkv.weight"][3, :5] = float("nan")
    state["final_layer.linear.bias"][0] = float("inf")
    torch.save(state, tmp_path / "broken.pt")
    assert bring(tmp_path / "broken.pt", tmp_path / "run") == 2
    shown = capsys.readouterr().err
    assert "NaN or infinite: blocks.1.attn.qkv.weight (5 of " in shown
    assert "final_layer.linear.bias (1 of " in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "model", "ema", "module._orig_mod", "ema_model.module"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_come_off_and_are_named(released, tmp_path, capsys, prefix, suffix):
    path = tmp_path / f"wrapped{suffix}"
    state = {f"{prefix}.{name}": value.clone() for name, value in read_state_dict(released).items()}
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    assert bring(path, tmp_path / "run") == 0
    assert f"prefix {prefix}. taken off {len(state)} names" in capsys.readouterr().out
    assert digest({"": weights(tmp_path / "run", "student")}) == digest({"": read_state_dict(released)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_when_asked_for(released, tmp_path, capsys, dtype):
    path, state = tmp_path / "half.safetensors", read_state_dict(released)
    save_file({name: value.to(dtype) for name, value in state.items()}, path)
    assert bring(path, tmp_path / "run") == 2
    shown = capsys.readouterr().err
    assert f"{len(state)} of another type" in shown
    assert "--cast" in shown
    assert bring(path, tmp_path / "run", "--cast") == 0
    assert f"{len(state)} tensors of {str(dtype)[6:]} cast to float32" in capsys.readouterr().out
    cast = weights(tmp_path / "run", "student")
    assert all(torch.equal(cast[name], value.to(dtype).float()) for name, value in state.items())
