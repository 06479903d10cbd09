"""From a published folder to a fine-tuned run and back: whole and by LoRA, with FLUX.2's and Wan's small networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the text encoders")
pytest.importorskip("diffusers", reason="the networks that are published")

import diffusers

from configs.runs import load_run
from core.training.checkpoint import CheckpointStore
from core.training.history import read_run
from core.trunk.foreign import flux2, read_folder, wan
from tests.modalities.conditioning.small import save_text_encoder
from tests.tools.tiny import CONFIG
from tools.bench.published import randomised
from tools.cli import main

FLUX2, WAN = (CONFIG.with_name(f"tiny_{name}.yaml") for name in ("flux2", "wan"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for kind in ("qwen3", "umt5"):
        save_text_encoder(folder / kind, kind)
    shape = {"attention_head_dim": 16, "num_attention_heads": 4, "num_layers": 1, "num_single_layers": 2}
    klein = diffusers.Flux2Transformer2DModel(
        in_channels=48, joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, **shape
    )
    randomised(klein).bfloat16().save_pretrained(folder / "klein" / "transformer")
    (folder / "klein" / "model_index.json").write_text("{}")
    small = diffusers.WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=12, out_channels=12, text_dim=16, ffn_dim=64,
        num_layers=3,
    )  # fmt: skip
    randomised(small).save_pretrained(folder / "wan")
    return folder


def config_in(place: Path, name: str) -> Path:
    """The configuration beside the encoders that it names."""
    path = place / f"{name}.yaml"
    path.write_text((FLUX2 if name == "flux2" else WAN).read_text())
    return path


def finetune(place: Path, name: str, source: str, run: Path, *overrides: str) -> int:
    path = config_in(place, name)
    return main(["finetune", str(path), "--from", str(place / source), f"run={run}", *overrides])


def first(run: Path, part: str = "teacher") -> dict[str, torch.Tensor]:
    return CheckpointStore(run / "checkpoints").load_weights(0, part)


@pytest.mark.parametrize(("name", "source"), [("flux2", "klein"), ("wan", "wan")])
def test_a_published_folder_is_trained_sampled_and_written_back(place, tmp_path, name, source):
    run, out = tmp_path / "run", tmp_path / "out"
    trained = "single_blocks.1" if name == "flux2" else "blocks.1"
    assert finetune(place, name, source, run, "training.keep=9", f"training.trainable=[{trained}]") == 0
    theirs = read_folder(place / source).state
    start, end = first(run), CheckpointStore(run / "checkpoints").load_weights(3)
    ours = flux2.from_diffusers(theirs) if name == "flux2" else wan.from_diffusers(theirs, 12)
    assert all(torch.equal(start[name], value.float()) for name, value in ours.items())
    moved = {key for key, value in end.items() if not torch.equal(value, start[key])}
    assert any("blocks.1." in key for key in moved)
    assert all("blocks.1." in key or key.startswith("projector.") for key in moved)
    null = start["context.reader.null" if name == "flux2" else "null"]
    loaded = load_run(run)
    assert torch.equal(null[: len(found := loaded.assembly.text.encode([""])[0])], found)
    assert len(found) == (48 if name == "flux2" else 1)  # padded by the encoder, or an end alone
    assert read_run(run)["init"]["kind"] == f"{name}-diffusers"

    modality = "image" if name == "flux2" else "video"
    assert main(["generate", modality, "--run", str(run), "--prompt", "a red circle", "--out", str(out)]) == 0
    exported = tmp_path / "back.safetensors"
    arguments = ["export", "--run", str(run), "--step", "0", "--to", str(exported), "--drop", "projector"]
    assert main([*arguments, "--kind", f"{name}-diffusers", *(["--type", "bf16"] if name == "flux2" else [])]) == 0
    back = load_file(exported)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(("name", "source"), [("flux2", "klein"), ("wan", "wan")])
def test_import_gives_guidance_the_empty_text(place, tmp_path, name, source):
    """Without it, guidance would lead away from rows of zeros that the published network never saw."""
    run = tmp_path / "run"
    given = [str(config_in(place, name)), f"run={run}", "--fresh", "projector"]
    casts = ["--cast"] if name == "flux2" else []
    assert main(["import", str(place / source), "--config", *given, *casts]) == 0
    loaded = load_run(run)
    (features,) = loaded.assembly.text.encode([""])
    null = first(run)["context.reader.null" if name == "flux2" else "null"]
    assert torch.equal(null[: len(features)], features)
    assert not null[len(features) :].any()
    assert features.abs().sum() > 0


def test_lora_from_a_folder_to_a_file_and_on(place, tmp_path):
    pytest.importorskip("peft", reason="makes the adapters")
    run = tmp_path / "run"
    lora = ["training.adapter={rank: 2, alpha: 4, layers: ['*.qkv', single_blocks]}", "training.keep=9"]
    lora += ["training.optimizer.rates={'*lora_*': 0.02, projector: 0.001}"]
    assert finetune(place, "flux2", "klein", run, *lora) == 0
    start, end = first(run), CheckpointStore(run / "checkpoints").load_weights(3)
    moved = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert {name.split(".")[0] for name in moved} == {"double_blocks", "single_blocks", "projector"}
    assert all("lora_" in name or name.startswith("projector.") for name in moved)
    assert len([name for name in moved if "lora_B" in name]) == 2 + 4

    whole = tmp_path / "whole"  # resumed in the middle: the same
    assert finetune(place, "flux2", "klein", whole, *lora, "training.steps=2") == 0
    assert main(["train", str(config_in(place, "flux2")), f"run={whole}", *lora]) == 0
    again = CheckpointStore(whole / "checkpoints").load_weights(3)
    assert all(torch.equal(value, again[name]) for name, value in end.items())

    path, merged = tmp_path / "style.safetensors", tmp_path / "merged.safetensors"
    assert main(["export", "--run", str(run), "--to", str(path), "--kind", "lora"]) == 0
    assert len(load_file(path)) == 2 * (2 + 4)
    export = ["export", "--run", str(run), "--to", str(merged), "--kind", "flux2", "--drop", "projector"]
    assert main(export) == 0
    next_run = tmp_path / "next"  # a run that goes on from this one has its adapter in its weights
    assert finetune(place, "flux2", str(run), next_run, "training.steps=1") == 0
    theirs, ours = flux2.from_authors(load_file(merged)), first(next_run)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "source", "kind"), [("flux2", "klein", "lora"), ("wan", "wan", "lora-diffusers")])
def test_a_lora_by_the_commands_of_the_docs(place, tmp_path, capsys, name, source, kind):
    """Trained, exported, and merged into an imported base: samples are those of the run itself; then trained on."""
    pytest.importorskip("peft", reason="makes the adapters")
    run, base, path = tmp_path / "run", tmp_path / "base", tmp_path / "style.safetensors"
    lora = ["training.adapter={rank: 2, alpha: 4}", "training.optimizer.rates={'*lora_*': 0.5}", "training.ema.decay=0"]
    lora += ["method=flow_matching"]
    assert finetune(place, name, source, run, *lora) == 0
    assert main(["export", "--run", str(run), "--to", str(path), "--kind", kind]) == 0
    imported = ["import", str(place / source), "--config", str(config_in(place, name)), f"run={base}", *lora[-1:]]
    assert main([*imported, *(["--cast"] if name == "flux2" else [])]) == 0
    modality = "image" if name == "flux2" else "video"
    media = {}
    for key, folder, more in (
        ("own", run, []),
        ("merged", base, ["--lora", str(path)]),
        ("none", base, ["--lora", str(path), "--lora-strength", "0"]),
        ("plain", base, []),
    ):
        out = tmp_path / key
        asked = ["generate", modality, "--run", str(folder), "--prompt", "a red circle", "--out", str(out), *more]
        assert main(asked) == 0
        (file,) = [each for each in out.iterdir() if each.suffix != ".json"]
        media[key] = file.read_bytes()
        assert ("lora" in json.loads(file.with_suffix(".json").read_text())) == bool(more)
    assert media["merged"] == media["own"]
    assert media["plain"] == media["none"] != media["own"]

    on = tmp_path / "on"
    assert finetune(place, name, source, on, *lora, f"training.adapter.start={path}", "training.steps=1") == 0
    start, end = first(on), CheckpointStore(run / "checkpoints").load_weights(3)
    assert all(torch.allclose(start[key], value, atol=1e-6) for key, value in end.items() if "lora_" in key)
    capsys.readouterr()
    other = [*lora, f"training.adapter.start={path}", "training.adapter.rank=3"]
    assert finetune(place, name, source, tmp_path / "other", *other) == 2
    assert "has rank 2 at " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "source", "overrides", "message"),
    [
        (
            "flux2",
            "klein",
            ["trunk.flux2.single_blocks=3"],
            "has single_blocks 2 (here 3); set trunk.flux2.single",
        ),
        ("flux2", "wan", [], "its network is wan, and trunk.kind is 'flux2'; set trunk.kind=wan"),
        ("wan", "wan", ["trunk.wan.heads=2"], "has heads 4 (here 2); set trunk.wan.heads=4"),
        (
            "flux2",
            "klein",
            ["condition.encoder=null"],
            "reads features of a frozen text encoder; set ",
        ),
        ("flux2", "klein", ["trunk.flux2.text_rows=8"], "condition.encoder.max_tokens: 48 is more than"),
    ],
)
def test_what_does_not_fit_is_named(place, tmp_path, capsys, name, source, overrides, message):
    assert finetune(place, name, source, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_other_text_encoders_and_quantised_files_are_named(place, capsys):
    own = ["trunk.flux2.width=null", "trunk.flux2.heads=null", "trunk.flux2.size=klein_9b"]
    assert main(["train", str(config_in(place, "flux2")), "--dry-run", *own]) == 2
    assert "condition.encoder.width: 32 (kind 'qwen3'), but trunk.flux2.size 'klein_9b' reads features of 12288" in (
        capsys.readouterr().err
    )
    assert main(["train", str(config_in(place, "flux2")), "--dry-run", "condition.encoder.path=umt5"]) == 2
    assert "holds a model of type 'umt5'; kind 'qwen3' reads qwen3" in capsys.readouterr().err
    small = place / "klein" / "small.safetensors"
    weights = place / "klein" / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(weights).items()}, small)
    for command in ("finetune", "import"):
        given = [str(config_in(place, "flux2")), "--from", str(small)]
        given = given if command == "finetune" else [str(small), "--config", given[0], "--cast"]
        assert main([command, *given, f"run={place / 'never'}"]) == 2
        assert "weights of type float8_e4m3fn, as quantised files have" in capsys.readouterr().err
