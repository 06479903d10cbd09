"""selfflow train --dry-run: what it says, that it needs nothing and writes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import configs
from tests.tools.test_standins import ABSENT
from tests.tools.tiny import CONFIG, train
from tools.cli import main

SIT = CONFIG.with_name("tiny_sit.yaml")
AUDIOVISUAL = Path(configs.__file__).with_name("audiovisual.yaml")


def shown(capsys, *overrides: str, config: Path = CONFIG) -> list[str]:
    """Lines of a dry run."""
    assert main(["train", str(config), "--dry-run", *overrides]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("config", [CONFIG, SIT])
def test_dry_run_says_what_would_happen_and_writes_nothing(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(Path("run"), "--dry-run", config=config) == 0
    shown = capsys.readouterr().out
    if config == CONFIG:
        assert "method self_flow, seed 3, 6 steps\n" in shown
        assert "1 x 2 x 2 (t, h, w) of 48 channels: 4 a sample, 16 a step of 4 samples" in shown
        assert "2 x 2 x 2 (t, h, w) of 96 channels: 8 a sample, 16 a step of 2 samples" in shown
        assert "20 x 1 x 1 (t, h, w) of 64 channels" in shown
        assert "parameters 682,384" in shown
        assert "condition 6 tokens a sample" in shown
        assert "drawn in 40% of the steps" in shown
    assert "mask ratio 0.25" in shown
    assert list(tmp_path.iterdir()) == []


def test_dry_run_counts_twice_the_work_for_twice_the_batch_and_less_without_a_teacher(capsys):
    def gigaflops(*overrides: str) -> float:
        assert main(["train", str(SIT), "--dry-run", *overrides]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "GFLOP" in line]
        return float(line.split("about ")[1].split()[0])

    large = ("trunk.sit.width=256", "streams.image.batch=16")
    one = gigaflops(*large)
    assert gigaflops(*large, "streams.image.batch=32") == pytest.approx(2 * one, rel=0.05)
    assert gigaflops(*large, "training.accumulate=2") == pytest.approx(one, rel=0.1)
    assert 0.6 * one < gigaflops(*large, "method=flow_matching") < 0.95 * one


def test_dry_run_of_the_paper_size_needs_no_memory_for_it(capsys):
    own = [f"trunk.mmdit.{name}=null" for name in ("width", "heads", "double_blocks", "single_blocks")]
    own += ["streams.video=null", "streams.audio=null"]
    assert main(["train", str(CONFIG), "--dry-run", "trunk.mmdit.size=625M", "trunk.mmdit.mlp_ratio=4", *own]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters"))
    assert 6.0e8 < int(total.split()[1].replace(",", "")) < 6.6e8


def test_dry_run_does_without_the_weights_of_an_autoencoder_and_says_that_they_are_missing(tmp_path, capsys):
    pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")
    media = "streams.image.media={size: [32], patch: null, autoencoder: {kind: sd_vae, path: nowhere}}"
    assert main(["train", str(CONFIG), "--dry-run", media]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert any("1 x 2 x 2 (t, h, w) of 16 channels" in line for line in shown)
    (missing,) = [line for line in shown if "autoencoder.path: 'nowhere'" in line]
    assert missing.startswith("  not there autoencoder (its published size is counted): ")
    assert sum("  compute   about" in line for line in shown) == 3
    assert sum("autoencoder " in line for line in shown if "compute" in line) == 1
    assert main(["train", str(CONFIG), f"run={tmp_path / 'run'}", media]) == 2  # training itself needs them
    assert "autoencoder.path: 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_part_of_a_stream_is_listed_with_its_tokens_channels_and_positions(capsys):
    own = ["streams.audiovisual.batch=2", "training.device=cpu"]
    lines = shown(capsys, *own, config=AUDIOVISUAL)
    first = lines.index("audiovisual")
    assert "  tokens    117 a sample, 234 a step of 2 samples, of 2 parts" in lines
    assert lines[first + 3 : first + 5] == [
        "            video: 5 x 4 x 4 (t, h, w) of 96 channels, 80 tokens at t 2 to 32 (6 apart), h 0 to 3, w 0 to 3; "
        "loss weight 1",
        "            audio: 37 x 1 x 1 (t, h, w) of 125 channels, 37 tokens at t 0 to 36 (1 apart); loss weight 1",
    ]
    assert "  modes     video given in 20%, audio given in 20% of the samples, shared in the others" in lines
    assert "            what is given has noise levels up to 0.05" in lines
    assert any(line.startswith("  activations audiovisual ") for line in lines)
    assert sum(" GFLOP a step" in line for line in lines) == 1
    own += ["streams.audiovisual.modes={independent: 0.9, video_given: 0, audio_given: 0.1}"]
    own += ["streams.audiovisual.positions_per_second=8", "streams.audiovisual.parts.audio.timestep={shift: 2}"]
    own += ["streams.audiovisual.parts.audio.loss_weight=0.5"]
    lines = shown(capsys, *own, config=AUDIOVISUAL)
    assert "  modes     audio given in 10%, independent in 90% of the samples" in lines
    assert "            audio alone: uniform, shift 2" in lines
    assert any("37 tokens at t 0 to 9 (0.25 apart); loss weight 0.5" in line for line in lines)


def test_several_parts_without_data_count_the_same(capsys):
    def facts(*overrides: str) -> list[str]:
        # What a batch holds depends a little on its draws, whose keys differ: with this seed both have the same.
        found = shown(capsys, "training.device=cpu", "seed=1", *overrides, config=AUDIOVISUAL)
        place = next(index for index, line in enumerate(found) if line.startswith("  tokens"))
        return [line for line in found[place:] if not line.startswith(("  captions", "warning: streams."))]

    assert facts("streams.audiovisual.data={kind: folder, path: nowhere}") == facts()


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("kind: uniform, high: 0.999", "uniform in [0, 0.999]; mask"),
        ("kind: logit_normal, shift: 2, buckets: 1000", "logit_normal(mean 0, std 1), shift 2, 1000 values; mask"),
        (
            "kind: plateau_logit_normal, high_noise_prob: 0.02",
            "plateau_logit_normal(mean 0, std 1), 2% in [0.95, 1]; ",
        ),
    ],
)
def test_dry_run_says_how_times_are_drawn(time, words, capsys):
    assert main(["train", str(SIT), "--dry-run", "method=flow_matching", f"streams.image.timestep={{{time}}}"]) == 0
    assert f"  timesteps {words}" in capsys.readouterr().out


def test_without_data_it_says_so_and_counts_the_same(capsys):
    def facts(lines: list[str]) -> list[str]:
        """Without the lines about the data and their captions."""
        dropped = ("          ", "  captions", "warning: streams.")
        return [re.sub(r"^  (records|data) .*", "", line) for line in lines if not line.startswith(dropped)]

    there, absent = shown(capsys), shown(capsys, *ABSENT)
    assert facts(absent) == facts(there)
    assert sum(line.startswith("  data      not there: path: ") for line in absent) == 3
    assert sum(line.startswith("            webdataset reads ") for line in absent) == 3
    assert sum(line.startswith("            drawn in ") for line in absent) == 3


def test_memory_is_that_of_the_largest_microbatch_on_one_and_many_devices(capsys):
    lines = shown(capsys, "streams.video.batch=64")
    table = {line[:30].strip(): line[30:].split("iB") for line in lines if "replicated" in line or ", sharded" in line}
    state = 20 * 682_384 / 2**20  # MiB
    assert [float(cell.split()[0]) for cell in table["state, replicated"][:3]] == pytest.approx([state] * 3, abs=0.01)
    sharded = [float(cell.split()[0]) for cell in table["state, sharded"][:3]]
    assert sharded == pytest.approx([state, state / 8, state / 64], abs=0.01)
    (line,) = [line for line in lines if line.startswith("  activations ")]
    kept = {name: float(size) for name, size in re.findall(r"(image|video|audio) ([\d.]+) MiB", line)}
    assert max(kept, key=kept.__getitem__) == "video"
    assert "the largest counts (video, 64 samples, fp32)" in line
    whole = [float(cell.split()[0]) for cell in table["with activations, sharded"][:3]]
    assert whole == pytest.approx([size + kept["video"] for size in sharded], abs=0.03)
    assert any("8 and 64 devices are arithmetic, each with this batch as its share" in line for line in lines)
    halved = shown(capsys, "streams.video.batch=64", "training.accumulate=2")
    (line,) = [line for line in halved if line.startswith("  activations ")]
    assert float(re.search(r"video ([\d.]+)", line)[1]) == pytest.approx(kept["video"] / 2, rel=0.1)


def test_the_mean_step_weighs_modalities_by_their_shares(capsys):
    lines = shown(capsys, "streams.image.batch=64", "streams.audio.batch=64")
    (mean,) = [float(line.split()[2]) for line in lines if line.startswith("mean step ")]
    each = [float(line.split("about ")[1].split()[0]) for line in lines if line.startswith("  compute")]
    assert mean == pytest.approx(0.4 * each[0] + 0.3 * each[1] + 0.3 * each[2], abs=0.002)
    parts = [re.findall(r"(student|teacher) ([\d.]+)", line) for line in lines if line.startswith("  compute")]
    for whole, found in zip(each, parts, strict=True):
        assert sum(float(count) for _, count in found) == pytest.approx(whole, abs=0.002)


def test_a_frozen_text_encoder_is_counted_from_its_config_without_weights(tmp_path, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.modalities.conditioning.small import make_network

    make_network("t5", whole=False).config.save_pretrained(tmp_path)
    lines = shown(capsys, f"condition.encoder={{kind: t5, path: {tmp_path}, max_tokens: 9, width: 16}}")
    assert sum("text encoder at most " in line for line in lines) == 3
    assert sum(line == "  condition 9 tokens of 16 channels a sample" for line in lines) == 3
    assert not any(line.startswith("  not there") for line in lines)


def test_what_is_there_and_does_not_fit_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    data = f"streams.image.data={{kind: folder, path: {tmp_path / 'empty'}}}"
    assert main(["train", str(CONFIG), "--dry-run", data]) == 2
    assert "streams.image.data: " in capsys.readouterr().err
