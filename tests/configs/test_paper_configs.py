"""The paper's experiments: every file loads, and says what the paper says (sizes, tokens, p(t), weights, samplers)."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

import configs
from configs.assembly.adapters import build_adapters
from configs.assembly.trunk import build_trunk
from configs.load import load_config
from configs.methods import METHODS, projector_specs
from configs.schema import Config
from core.errors import ConfigError
from core.keys import generator
from core.schedule import sample_timesteps
from core.training.config import differences, load, to_plain, to_yaml
from modalities.evaluation.networks.kinds import kinds_for
from modalities.targets.build import FAMILIES
from tests.thinned import thinned
from tools import cli, train

CONFIGS = Path(configs.__file__).parent
PAPER = CONFIGS / "paper"
FILES = sorted(path.stem for path in PAPER.glob("*.yaml") if path.stem != "common")
REPA = [name for name in FILES if "_repa" in name]
MIXED = [name for name in FILES if name.startswith("mixed")]
README = (CONFIGS / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"selfflow train (configs/[^`\n]*)", README)


def read(name: str, *overrides: str) -> Config:
    return load_config(PAPER / f"{name}.yaml", list(overrides))


def stream(name: str, *overrides: str):
    (only,) = read(name, *overrides).streams.values()
    return only


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_complete_and_reads_back_from_what_it_prints(name, tmp_path):
    config = read(name)
    printed = tmp_path / "printed.yaml"
    printed.write_text(to_yaml(config))
    assert load(Config, printed) == config
    assert config.training.precision == "bf16"
    assert config.training.ema.decay == 0.9999
    assert (config.training.optimizer.lr, config.training.optimizer.weight_decay) == (1e-4, 0)
    assert (config.training.optimizer.warmup, config.training.optimizer.cooldown, config.training.optimizer.clip) == (
        0,
        0,
        1,
    )
    assert config.condition.cfg_dropout == 0.1
    for modality, entry in config.streams.items():
        assert entry.val is not None
        assert {network.kind for network in entry.evaluation.networks} <= set(kinds_for(modality)) - {"classifier"}
        assert entry.val.path != entry.data.path
        assert entry.sampling.cfg_scale == 1  # all numbers of the paper are without guidance


def test_the_common_part_is_not_an_experiment():
    with pytest.raises(ConfigError, match="streams: empty"):
        read("common")


@pytest.mark.parametrize(("name", "method"), thinned(product(sorted(set(FILES) - set(REPA)), METHODS), 5))
def test_method_alone_makes_a_baseline_of_an_experiment(name, method):
    if method == "repa":
        with pytest.raises(ConfigError, match="encoders: empty"):
            read(name, "method=repa")
        return
    config = read(name, f"method={method}")
    assert config.noising.kind == METHODS[method]["noising"]["kind"]
    assert config.alignment.present() == list(METHODS[method].get("alignment", {}))


@pytest.mark.parametrize("name", REPA)
def test_repa_differs_from_its_experiment_in_method_and_encoder_alone(name):
    config = read(name)
    ours = read(name.split("_repa")[0])
    changed = {key for key, _, _ in differences(to_plain(ours), to_plain(config))}
    (modality,) = config.streams
    allowed = ("method", "noising.", "alignment.", f"streams.{modality}.encoders.")
    own = {"streams.audio.timestep.shift"} if modality == "audio" else set()
    assert {key for key in changed if not key.startswith(allowed)} == own
    assert (config.method, config.alignment.external.weight, config.alignment.external.layer) == ("repa", 0.5, None)
    (encoder,) = stream(name).encoders.values()
    assert modality in FAMILIES[encoder.kind].modalities


@pytest.mark.parametrize("name", ["t2i_flux2", "t2v", "t2a"])
def test_a_modality_alone_is_trained_as_in_the_mix(name):
    config, mixed = read(name), read("mixed")
    (modality,) = config.streams
    changed = differences(to_plain(mixed)["streams"][modality], to_plain(config)["streams"][modality], f"{modality}.")
    assert {key for key, _, _ in changed} - {"image.data.path"} == {f"{modality}.batch", f"{modality}.loss_weight"}
    assert stream(name).loss_weight == 1
    assert (config.trunk, config.condition) == (mixed.trunk, mixed.condition)


@pytest.mark.parametrize(
    ("name", "modality", "grid", "channels", "mask_ratio"),
    [
        ("imagenet_sdvae", "image", (1, 16, 16), 16, 0.25),
        ("imagenet_rae", "image", (1, 16, 16), 768, 0.25),
        ("t2i_sdvae", "image", (1, 16, 16), 16, 0.25),
        ("t2i_flux2", "image", (1, 16, 16), 128, 0.25),
        ("t2v", "video", (12, 12, 21), 48, 0.1),
        ("t2a", "audio", (250, 1, 1), 64, 0.5),
        ("mixed", "image", (1, 16, 16), 128, 0.25),
        ("mixed", "video", (12, 12, 21), 48, 0.1),
        ("mixed", "audio", (250, 1, 1), 64, 0.5),
    ],
)
def test_tokens_of_a_sample(name, modality, grid, channels, mask_ratio):
    config = read(name)
    adapter = build_adapters(config, PAPER)[modality][modality]
    assert (adapter.grid(), adapter.channels) == (grid, channels)
    assert config.streams[modality].mask_ratio == mask_ratio


@pytest.mark.parametrize(
    ("name", "size", "millions", "layers"),
    [
        ("t2i_sdvae", None, 625, (21, 6, 15)),
        ("t2i_flux2", None, 625, (21, 6, 15)),
        ("t2v", None, 625, (21, 6, 15)),
        ("t2a", None, 625, (21, 6, 15)),
        ("mixed", None, 625, (21, 6, 15)),
        ("t2i_sdvae", "290M", 290, (8, 2, 6)),
        ("t2i_sdvae", "420M", 420, (14, 4, 10)),
        ("t2i_sdvae", "1B", 1000, (28, 8, 20)),
        ("imagenet_sdvae", None, 675, (28, 8, 20)),
    ],
)
def test_size_and_layers_of_the_trunk(name, size, millions, layers):
    config = read(name, *([f"trunk.mmdit.size={size}"] if size else []))
    classes = [f"n{number:08}" for number in range(1000)] if config.condition.kind == "label" else []
    with torch.device("meta"):
        trunk = build_trunk(config, build_adapters(config, PAPER), classes, projector_specs(config.alignment, {}))
    whole = sum(parameter.numel() for parameter in trunk.parameters())
    projector = sum(parameter.numel() for parameter in trunk.projector.parameters())
    assert whole - projector == pytest.approx(millions * 1e6, rel=0.012)
    assert (trunk.depth, *config.alignment.ema_teacher.layers(trunk.depth)) == layers


@pytest.mark.parametrize("kind", ["sit", "ddt"])
def test_rae_trains_with_either_trunk(kind):
    config = read("imagenet_rae", f"trunk.kind={kind}")
    classes = [f"n{number:08}" for number in range(1000)]
    with torch.device("meta"):
        trunk = build_trunk(config, build_adapters(config, PAPER), classes, projector_specs(config.alignment, {}))
    assert trunk.depth >= 28


# Of p(t), by closed form: the share of times below each bound. Median of a logit-normal with shift a: a / (1 + a).
@pytest.mark.parametrize(
    ("name", "modality", "shares"),
    [
        ("imagenet_sdvae", "image", {0.1: 0.1, 0.5: 0.5, 0.9: 0.9}),
        ("t2i_sdvae", "image", {0.1: 0.1, 0.5: 0.5, 0.9: 0.9}),
        ("imagenet_rae", "image", {0.9618: 0.752, 0.9809: 0.876}),  # 24.8 % lie on the plateau, which begins at .9618
        ("t2i_flux2", "image", {0.822: 0.5}),
        ("t2v", "video", {0.747: 0.95 * 0.5, 0.95: 0.95 * 0.969}),  # 5 % are uniform in [.95, 1]
        ("t2a", "audio", {0.5: 0.5}),
        ("t2a_baseline", "audio", {0.4286: 0.5}),
        ("t2a_repa_mert", "audio", {0.4286: 0.5}),
        ("mixed", "image", {0.822: 0.5}),
        ("mixed", "video", {0.747: 0.95 * 0.5}),
        ("mixed", "audio", {0.5: 0.5}),
    ],
)
def test_times(name, modality, shares):
    config = read(name).streams[modality].timestep
    times = sample_timesteps(config, 100_000, generator("paper", name))
    for bound, share in shares.items():
        assert (times < bound).float().mean().item() == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(
    ("name", "modality", "solver", "steps", "shift"),
    [
        ("imagenet_sdvae", "image", "sde", 250, 1.0),
        ("imagenet_rae", "image", "euler", 50, 6.93),
        ("t2i_sdvae", "image", "euler", 50, 1.78),
        ("t2i_flux2", "image", "euler", 50, 6.93),
        ("t2v", "video", "euler", 50, 15.0),
        ("t2a", "audio", "euler", 50, 6.93),
        ("t2a_baseline", "audio", "euler", 50, 6.93),
        ("mixed", "image", "euler", 50, 6.93),
        ("mixed", "video", "euler", 50, 15.0),
        ("mixed", "audio", "euler", 50, 6.93),
    ],
)
def test_samplers(name, modality, solver, steps, shift):
    sampling = read(name).streams[modality].sampling
    times = sampling.timesteps()
    assert (sampling.solver, len(times) - 1, times[0], times[-1]) == (solver, steps, 1, 0)
    if solver == "sde":
        assert (sampling.diffusion_form, sampling.last_step, times[-2]) == ("sigma", "mean", pytest.approx(0.04))
    else:
        assert times[steps // 2] == pytest.approx(shift / (1 + shift))


@pytest.mark.parametrize(
    ("name", "generated"),
    [("imagenet_sdvae", 50_000), ("imagenet_rae", 50_000), ("t2i_sdvae", 50_000), ("t2v", 5_000), ("t2a", 20_000)],
)
def test_sizes_of_the_evaluation(name, generated):
    assert stream(name).evaluation.generated == generated
    assert stream(name).evaluation.conditions == ("random" if name.startswith("imagenet") else "val")


@pytest.mark.parametrize(
    ("name", "steps"),
    [("imagenet_sdvae", 4e6), ("imagenet_rae", 1e6), ("t2i_sdvae", 1e6), ("t2v", 6e5), ("t2a", 3.5e5), ("mixed", 1e6)],
)
def test_steps(name, steps):
    assert read(name).training.steps == steps


def test_the_mixes_are_those_of_table_6():
    weights = set()
    for name in MIXED:
        streams = read(name).streams
        assert [entry.weight for entry in streams.values()] == [0.57, 0.30, 0.13]
        assert [entry.batch for entry in streams.values()] == [38, 8, 16]
        weights.add(tuple(entry.loss_weight for entry in streams.values()))
        assert {key for key, _, _ in differences(to_plain(read("mixed")), to_plain(read(name)))} <= {
            f"streams.{modality}.loss_weight" for modality in streams
        }
    assert weights == {
        (0.067, 0.319, 0.614),
        (0.105, 0.506, 0.389),
        (0.131, 0.628, 0.241),
        (0.196, 0.079, 0.725),
        (0.308, 0.123, 0.569),
    }
    assert all(sum(triple) == pytest.approx(1) for triple in weights)


@pytest.mark.slow
def test_every_command_of_the_readme_is_one_that_works():
    parser = argparse.ArgumentParser()
    train.add_parser(parser.add_subparsers())
    runs = {}
    for command in COMMANDS:
        options = parser.parse_args(["train", *shlex.split(command)])
        config = load_config(CONFIGS.parent / options.config, options.overrides)
        if options.dry_run:
            continue
        assert config.run, command
        assert config.run not in runs, "two commands, one run folder"
        runs[config.run] = options.config.stem
    joint = {"joint_625m", "joint_625m_latents", "joint_1b"}
    assert set(runs.values()) == {*FILES, *joint}, "every file has its command"
    for override in re.findall(r"`'(streams\.[^`]*)'`", README):
        read("mixed", override)


@pytest.mark.parametrize("name", ["t2a", "imagenet_sdvae_repa"])
def test_a_dry_run_needs_neither_data_nor_weights_and_says_what_is_missing(name, tmp_path, capsys):
    shutil.copytree(CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    path = tmp_path / "configs" / "paper" / f"{name}.yaml"
    own = ["trunk.mmdit.size=290M", "streams.audio.batch=2"] if name == "t2a" else ["streams.image.batch=2"]
    assert cli.main(["train", str(path), "--dry-run", *own]) == 0
    said = capsys.readouterr().out
    (entry,) = read(name).streams.values()
    assert re.search(rf"  data      not there: path: .*{Path(entry.data.path).name} does not exist", said)
    assert f"{entry.media.autoencoder.path} is not on this machine" in said
    if name == "t2a":
        assert "Qwen/Qwen3-4B is not on this machine" in said
        assert "250 x 1 x 1 (t, h, w) of 64 channels: 250 a sample, 500 a step of 2 samples" in said
        assert "condition 512 tokens of 7,680 channels a sample" in said
    else:
        assert "1,000 classes" in said
        assert "  not there encoder dinov2 (its work is not counted): facebook/dinov2-base" in said
    assert cli.main(["train", str(path), "--print-config"]) == 0
    assert f"method: {read(name).method}" in capsys.readouterr().out
