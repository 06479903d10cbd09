"""The joint run: one truth in four sizes, on media and on latents; what the page about it says."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch

import configs
from configs.assembly.adapters import build_adapters
from configs.assembly.trunk import build_trunk
from configs.load import load_config
from configs.methods import projector_specs
from configs.schema import Config
from core.training.config import differences, to_plain
from tools import encode

CONFIGS = Path(configs.__file__).parent
README = (CONFIGS / "README.md").read_text(encoding="utf-8")
SIZES = {"joint_290m": "290M", "joint_420m": "420M", "joint_625m": "625M", "joint_1b": "1B"}


def read(name: str, *overrides: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", list(overrides))


def changed(one: Config, other: Config) -> dict[str, tuple]:
    return {key: (old, new) for key, old, new in differences(to_plain(one), to_plain(other))}


def test_the_papers_file_differs_in_nothing_but_how_places_are_written():
    joint, mixed = read("joint_625m"), read("paper/mixed")
    found = changed(joint, mixed)
    networks = {key: found.pop(key) for key in list(found) if key.endswith("evaluation.networks")}
    assert set(networks) == {"streams.image.evaluation.networks", "streams.video.evaluation.networks"}
    pairs = list(found.items())
    assert {key.rpartition(".")[2] for key, _ in pairs} == {"path"}
    assert {key.split(".")[1] for key, _ in pairs} == {"image", "video", "audio"}
    for old, new in networks.values():
        assert [entry["kind"] for entry in old] == [entry["kind"] for entry in new]
        weights = [(a["path"], b["path"]) for a, b in zip(old, new, strict=True) if a["path"] != b["path"]]
        pairs += [("weights", pair) for pair in weights]
    for _, (old, new) in pairs:
        assert (CONFIGS / old).resolve() == (CONFIGS / "paper" / new).resolve()


@pytest.mark.parametrize("name", sorted(set(SIZES) - {"joint_625m"}))
def test_siblings_differ_in_size_alone(name):
    assert changed(read("joint_625m"), read(name)) == {"trunk.mmdit.size": ("625M", SIZES[name])}


def test_the_run_on_latents_differs_in_data_alone():
    found = changed(read("joint_625m"), read("joint_625m_latents"))
    wanted = {f"streams.{name}.data.{key}" for name in ("image", "video", "audio") for key in ("kind", "path")}
    assert {key for key in found if key.rpartition(".")[-1] in ("kind", "path")} == wanted
    assert {key.rpartition(".")[0] for key in found} == {f"streams.{name}.data" for name in ("image", "video", "audio")}
    out = re.search(r"selfflow encode \S+ --out (\S+)", README)[1]
    for name, stream in read("joint_625m_latents").streams.items():
        assert stream.data.kind == "latents"
        assert (CONFIGS / stream.data.path).resolve() == (CONFIGS.parent / out / name).resolve()


def test_what_the_paper_says_of_the_joint_run():
    streams = read("joint_625m").streams
    facts = {
        "image": ("flux2", 0.57, 38, 0.25, 4.63, 6.93, (1, 16, 16), 128),
        "video": ("wan22", 0.30, 8, 0.1, 2.95, 15.0, (12, 12, 21), 48),
        "audio": ("songbloom", 0.13, 16, 0.5, 1.0, 6.93, (250, 1, 1), 64),
    }
    adapters = build_adapters(read("joint_625m"), CONFIGS)
    for name, (kind, share, batch, mask, shift, sampled, grid, channels) in facts.items():
        entry = streams[name]
        assert (entry.media.autoencoder.kind, entry.weight, entry.batch, entry.mask_ratio) == (kind, share, batch, mask)
        assert (entry.timestep.kind, entry.timestep.shift, entry.sampling.shift) == ("logit_normal", shift, sampled)
        assert (adapters[name][name].grid(), adapters[name][name].channels) == (grid, channels)
    assert (streams["video"].timestep.high_noise_prob, streams["video"].timestep.high_noise_low) == (0.05, 0.95)
    encoder = read("joint_625m").condition.encoder
    assert (encoder.kind, encoder.path, list(encoder.layers)) == ("qwen3", "Qwen/Qwen3-4B", [9, 18, 27])
    assert (encoder.length(), encoder.channels()) == (512, 7680)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_page(name):
    config = read(name)
    with torch.device("meta"):
        trunk = build_trunk(config, build_adapters(config, CONFIGS), [], projector_specs(config.alignment, {}))
    projector = sum(parameter.numel() for parameter in trunk.projector.parameters())
    whole = sum(parameter.numel() for parameter in trunk.parameters()) - projector
    double, single = len(trunk.double_blocks), len(trunk.single_blocks)
    row = re.search(rf"\| `{name}\.yaml` \| (.*) \|", README)[1]
    wanted = f"{SIZES[name]}, depth {trunk.depth} | {whole / 1e6:,.1f}M | {projector / 1e6:.1f}M | "
    assert row.startswith(f"{wanted}{double} and {single}, {trunk.width}")


def test_commands_of_encode_on_the_page_parse():
    parser = argparse.ArgumentParser()
    encode.add_parser(parser.add_subparsers())
    commands = re.findall(r"selfflow (encode [^`\n]*)", README)
    assert commands
    for command in commands:
        options = parser.parse_args(shlex.split(command))
        assert options.text
        load_config(CONFIGS.parent / options.config, options.overrides)


def test_without_the_text_encoder_the_trunk_has_the_same_size():
    (command,) = re.findall(r"`selfflow train (configs/joint_625m\.yaml run=runs/joint_bytes [^`]*)`", README)
    config = load_config(CONFIGS / "joint_625m.yaml", shlex.split(command)[1:])
    assert config.condition.encoder is None
    with torch.device("meta"):
        adapters = build_adapters(config, CONFIGS)
        small = build_trunk(config, adapters, [], {})
        large = build_trunk(read("joint_625m"), adapters, [], {})
    sizes = [sum(parameter.numel() for parameter in trunk.parameters()) for trunk in (small, large)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.002)
