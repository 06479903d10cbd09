"""`selfflow bench` on networks of a few thousand weights, with stand-ins for a checkout of the official repository."""

import argparse
import json
import math
import statistics
import textwrap
import time
from pathlib import Path

import pytest
import torch

import configs
from configs.assembly import Assembly
from configs.load import load_config
from core.errors import ConfigError, SelfFlowError
from tools.bench import bench, data
from tools.bench.growth import attention_flops
from tools.bench.measure import in_own_process, matrix_peak, peak_memory, ratio_row, side_by_side
from tools.bench.peer import Peer
from tools.bench.sections import check_losses, sampling_rows, sit_trainer, step_flops
from tools.bench.sides import HEADS, Setup, build_sit, sit_config, trunk_config

TINY = ["--size", "tiny", "--grid", "3", "--batch", "2", "--rounds", "2", "--warmup", "1", "--steps", "3"]
TINY += ["--threads", "1", "--tokens", "4", "--batches", "2"]
CONFIG = Path(__file__).parent / "tiny.yaml"
AUDIOVISUAL = Path(configs.__file__).with_name("audiovisual.yaml")
SETUP = Setup("tiny", batch=2, grid=3, rounds=2, warmup=0, steps=6, threads=1)

# Our trunk behind the official interface, and the official sampler's formulas (in its own time, data at 1).
STAND_IN_MODEL = """
    import torch
    from core.trunk.projectors import ProjectorSpec
    from core.trunk.sit import SiT, SiTConfig
    from core.types import Context, NoiseLevels, Segment, FeatureLayers, TokenBatch

    SIGN = 1

    class SelfFlowPerTokenDiT(SiT):
        def __init__(self, *, input_size, patch_size, in_channels, hidden_size, depth, num_heads, mlp_ratio,
                     num_classes, learn_sigma):
            super().__init__(SiTConfig(
                width=hidden_size, depth=depth, heads=num_heads, grid=input_size // patch_size,
                channels=in_channels * patch_size**2, patch=patch_size, num_classes=num_classes,
                mlp_ratio=mlp_ratio, learn_sigma=learn_sigma), projectors={"teacher": ProjectorSpec()})

        def forward(self, x, timesteps, vector, return_features=0, return_raw_features=0):
            size, length, _ = x.shape
            if timesteps.ndim == 1:
                levels = NoiseLevels(timesteps[:, None])
            else:
                levels = NoiseLevels(timesteps, torch.arange(length).expand(size, -1))
            side = self.config.grid
            ids = torch.tensor([[[0, i // side, i % side] for i in range(length)]])
            context = Context(torch.zeros(size, dtype=torch.bool), vector)
            projected = {"teacher": return_features} if return_features else {}
            taps = FeatureLayers((return_raw_features,) * bool(return_raw_features), projected)
            out = super().forward((x,), levels, TokenBatch((Segment("image", x, ids),), context), taps)
            velocity, features = SIGN * out.velocity[0], [*out.raw.values(), *out.projected.values()]
            return (velocity, *features) if features else velocity
"""
STAND_IN_SAMPLING = """
    import torch

    LAST = 0.04

    def denoise_loop(*, model, num_steps, mode, x, vector, cfg_scale, guidance_low, guidance_high):
        assert mode == "SDE"
        times, half = torch.linspace(0, 0.96, num_steps), len(x) // 2
        dt = times[1] - times[0]
        for number, t in enumerate(times):
            guided = cfg_scale > 1 and guidance_low <= 1 - t <= guidance_high
            seen = torch.cat([x[half:], x[half:]]) if guided else x
            v = model(seen, timesteps=(1 - t).expand(len(x)), vector=vector)
            if guided:
                null, condition = v.chunk(2)
                v = (null + cfg_scale * (condition - null)).repeat(2, 1, 1)
            score = (-t * v - x) / ((1 - t) ** 2 + t * (1 - t))
            drift = -v + (1 - t) * score
            if number == num_steps - 1:
                return x + LAST * drift
            x = x + drift * dt + torch.sqrt(2 * (1 - t) * dt) * torch.randn(x.shape)
"""


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def checkout(folder, model=STAND_IN_MODEL, sampling=STAND_IN_SAMPLING):
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "model.py").write_text(textwrap.dedent(model))
    (folder / "src" / "sampling.py").write_text(textwrap.dedent(sampling))
    return folder


def run(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    options = parser.parse_args(["bench", *TINY, *map(str, arguments)])
    return options.run(options)


def test_report_of_every_section(tmp_path, capsys):
    out = tmp_path / "bench.json"
    trunk = ["--trunk", "mmdit:tiny", "--text-tokens", 3, "--peak-tflops", 1, "--recompute", 2]
    assert run("--only", ",".join([*bench.SECTIONS, "trunk"]), *trunk, "--json", out) == 0
    report = json.loads(out.read_text())
    assert {row["section"] for row in report["rows"]} == {*bench.SECTIONS, "trunk mmdit:tiny"}
    table = capsys.readouterr().out
    for row in report["rows"]:
        assert f"| {row['section']} | {row['what']} |" in table
        if row["what"] == "whole step less the two network passes":  # a difference of times, which noise can turn
            assert math.isfinite(row["value"])
        else:
            assert row["value"] > 0
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row["times"].values())
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
    named = {(row["section"], row["what"]): row["value"] for row in report["rows"]}
    network = trunk_config("mmdit:tiny", SETUP, 3)
    parameters = sum(parameter.numel() for parameter in network[0](network[1], projectors=HEADS).parameters())
    assert named["trunk mmdit:tiny", "parameters"] == parameters / 1e6
    rate = named["trunk mmdit:tiny", "model FLOPs per second"]
    assert named["trunk mmdit:tiny", "model FLOP utilization of 1 TFLOP/s"] == pytest.approx(100 * rate)
    rate = named["step", "model FLOPs per second"]
    assert named["step", "model FLOP utilization of 1 TFLOP/s"] == pytest.approx(100 * rate)
    assert 0 < named["tokens", "4 tokens, recompute 2: attention's share of the FLOPs"] < 100
    assert named["batch", "batch 2, Self-Flow, recompute 2: the rest, by token"] > 0
    assert report["setup"]["grid"] == 3


def test_the_peak_is_measured_where_it_is_not_given(monkeypatch, capsys):
    monkeypatch.setattr(bench, "matrix_peak", lambda *of: {("cpu", "fp32"): 0.25}[of[:2]])
    assert run("--only", "step") == 0
    table = capsys.readouterr().out
    assert "- peak: 0.25 TFLOP/s" in table
    assert "| step | model FLOP utilization of 0.25 TFLOP/s |" in table


def test_no_product_is_faster_than_the_peak():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peak = matrix_peak("cpu", "fp32", time.process_time)
        x = torch.randn(64, 64)
        seconds = min(side_by_side({"product": lambda: x @ x}, 3, 1, "cpu", time.process_time)["product"])
    finally:
        torch.set_num_threads(before)
    assert 1e-4 < 2 * 64**3 / seconds / 1e12 < 2 * peak


def test_sections_beside_a_checkout(tmp_path):
    out = tmp_path / "bench.json"
    run("--only", "step,sampling,batch", "--peer", checkout(tmp_path / "official"), "--json", out)
    rows = {(row["section"], row["what"]): row for row in json.loads(out.read_text())["rows"]}
    throughput = rows["step", "throughput, Self-Flow / official class"]
    pairs = zip(throughput["times"]["official"], throughput["times"]["self_flow"], strict=True)
    assert throughput["value"] == pytest.approx(statistics.median(a / b for a, b in pairs))
    for case in ("no guidance", "guidance on all steps", "guidance in 0..0.7"):
        for side in ("ours", "ours, exact"):
            assert rows["sampling", f"{case}: throughput, {side} / official"]["value"] > 0
    assert rows["batch", "batch 2, official class, Self-Flow: peak memory"]["value"] > 0.05


def test_networks_that_disagree_are_not_timed(tmp_path):
    good = Peer(checkout(tmp_path / "good"))
    assert 0 <= check_losses(SETUP, good).value <= 1e-4
    assert max(row.value for row in sampling_rows(SETUP, good) if "difference" in row.what) <= 2e-4

    wrong_sign = Peer(checkout(tmp_path / "sign", model=STAND_IN_MODEL.replace("SIGN = 1", "SIGN = -1")))
    with pytest.raises(SelfFlowError, match=r"step: largest difference of the losses.*allowed 0\.0001"):
        check_losses(SETUP, wrong_sign)
    longer = STAND_IN_SAMPLING.replace("LAST = 0.04", "LAST = 0.05")
    with pytest.raises(SelfFlowError, match="sampling: no guidance: largest difference"):
        sampling_rows(SETUP, Peer(checkout(tmp_path / "step", sampling=longer)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("class SelfFlowDiT: ...", r"src/model\.py has no SelfFlowPerTokenDiT\. Did you mean: 'SelfFlowDiT'"),
        ("import timm_not_here", "needs the package timm_not_here, which is not installed"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "cannot be imported here: operator torchv"),
    ],
)
def test_checkouts_that_cannot_be_used(tmp_path, model, message):
    with pytest.raises(ConfigError, match=message) as error:
        run("--peer", checkout(tmp_path / "official", model=model))
    assert len(error.value.problems) == 1


def test_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(ConfigError, match=r"has no src.model\.py; expected a checkout"):
        run("--peer", tmp_path)


def test_all_wrong_options_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        run("--size", "XS", "--tokens", 5, "--trunk", "mmdit:625", "--rounds", 0, "--json", tmp_path / "no" / "b.json")
    starts = [problem.split(":")[0] for problem in error.value.problems]
    assert starts == ["--size", "--rounds", "--trunk", "--tokens", "--json"]
    assert "Did you mean: '625M'" in str(error.value)


def test_unknown_sections():
    with pytest.raises(ConfigError, match=r"'steps' is not one of .* Did you mean: 'step'"):
        run("--only", "steps")
    for section in ("trunk", "data"):
        with pytest.raises(ConfigError, match="need each other"):
            run("--only", section)


def test_data_of_a_configuration(tmp_path):
    """Rates of both numbers of workers and four stages for every modality; nothing is left behind in the data set."""
    run(
        *("--data", CONFIG, "--workers", 0, 1, "--seconds", 0.05, "--json", tmp_path / "b.json"),
        *("--set", "streams.image.batch=3"),
    )
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    found = {}
    for row in rows:
        found.setdefault(row["section"], []).append((row["what"], row["unit"]))
    assert set(found) == {"data image", "data video", "data audio"}
    stages = [(what, "ms") for what in data.STAGES.values()]
    for of_modality in found.values():
        assert of_modality == [*stages, ("in this process", "samples/s"), ("1 worker", "samples/s")]
    assert all(row["value"] > 0 for row in rows)


def test_data_of_a_stream_with_several_parts(tmp_path):
    """Both parts are loaded, one after the other, and their times count together."""
    assembly = Assembly(load_config(AUDIOVISUAL, ["streams.audiovisual.batch=2"]), tmp_path)
    rows = data.stage_rows("data", data.only(assembly.dataset, "audiovisual"), "audiovisual")
    assert [row.what for row in rows] == list(data.STAGES.values())
    assert all(min(row.times[stage]) > 0 for stage, row in zip(data.STAGES, rows, strict=True))
    video, audio = (part.adapter for part in assembly.dataset.streams["audiovisual"].parts.values())
    assert (video.modality, audio.modality) == ("video", "audio")  # no stopwatch is left behind


def test_the_stages_of_a_sample_are_told_apart():
    class Slow:
        def read(self, index):
            time.sleep(0.02)
            return index

    timed = data.Timed(Slow(), "read")
    assert timed.read(3) == 3
    assert 0.02 <= timed.seconds < 0.5


def test_sides_are_run_in_turn_and_paired_by_round():
    calls = []
    times = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, 1, "cpu")
    assert "".join(calls) == "ababab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    row = ratio_row("s", "w", {"a": [1.0, 8.0, 3.0], "b": [1.0, 2.0, 1.0]}, "a", "b")
    assert (row.value, row.low, row.high) == (3.0, 1.0, 4.0)


def test_peak_memory_is_that_of_the_process_alone():
    filler = torch.ones(100 * 2**20)  # 400 MiB
    here = peak_memory("cpu")
    assert here > filler.nbytes
    assert in_own_process(peak_memory, "cpu") < here - filler.nbytes / 2


def test_weights_leave_no_part_of_the_network_out():
    assert all(parameter.any() for parameter in build_sit(SETUP).parameters())


def test_flops_are_those_of_the_formula():
    """Two operations per multiply-add of every matrix product, 4 B T^2 D per attention; layers 1 and 3 of 4."""
    config = sit_config(SETUP)
    (width, depth, _), batch, length, channels = config.shape(), SETUP.batch, SETUP.tokens, config.channels
    rows, tokens = 2 * batch, 2 * batch * length
    start = tokens * channels * width + rows * (256 * width + width**2)
    block = rows * 6 * width**2 + tokens * 12 * width**2 + 4 * batch * length**2 * width
    end = rows * 2 * width**2 + tokens * width * 2 * channels
    projector = tokens * 4 * width**2
    student, teacher = start + depth * block + end + projector, start + 3 * block
    with sit_trainer(SETUP) as trainer:
        assert step_flops(trainer, *trunk_config("sit:tiny", SETUP, 0)[:2]) == 3 * student + teacher
        assert attention_flops(trainer, SETUP) == (3 * depth + 3) * 4 * batch * length**2 * width
