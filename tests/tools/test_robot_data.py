"""Robot data from their files to a run: statistics, masks of padding, two robots in one run, latents, bad settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("crc32c", reason="TFRecords need crc32c (extra `robots`)")

from configs.assembly import Assembly
from configs.build import build_trainer
from configs.load import load_config
from configs.runs import load_run
from core.training.records import read_lines
from modalities.actions.statistics import read_statistics
from modalities.base import Known
from modalities.generation import generate
from modalities.sample_files import write_parts
from tests.field_reads import unread_fields
from tests.modalities.episodes.making import RLDS_KEYS, counting, example, write_lerobot_2, write_rlds
from tests.tools.tiny import result, train
from tools.cli import main

LENGTHS = [6, 9, 4]
CONFIG = """
method: self_flow
seed: 0
streams:
  arm:
    weight: 0.5
    batch: 4
    mask_ratio: 0.5
    data: {{kind: rlds, path: rlds, cache: cache, frames: 5, actions: 3, {keys}}}
    parts:
      image: {{given: true, media: {{size: [8], patch: 4}}}}
      state: {{modality: state_arm, given: true, media: {{width: 2, statistics: arm.json}}}}
      video: {{media: {{size: [8], frames: 5, fps: 3, patch: 4, patch_frames: 2}}}}
      action: {{modality: action_arm, media: {{width: 3, actions: 3, rate: 3, keep: [2], statistics: arm.json}}}}
    sampling: {{steps: 2}}
  hand:
    weight: 0.5
    batch: 4
    data: {{kind: lerobot, path: lerobot, frames: 5, actions: 3}}
    parts:
      image: {{given: true, media: {{size: [8], patch: 4}}}}
      video: {{media: {{size: [8], frames: 5, fps: 30, patch: 4, patch_frames: 2}}}}
      action: {{modality: action_hand, media: {{width: 3, actions: 3, rate: 30, statistics: hand.json}}}}
    sampling: {{steps: 2}}
condition: {{text: {{vocabulary: 64, max_words: 4, rows_per_word: 4}}}}
trunk: {{mmdit: {{size: tiny, width: 128, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}}}}
training: {{steps: 4, save_every: 4, device: cpu, ema: {{decay: 0.1}}}}
"""


def stats(place: Path, stream: str, *overrides: str) -> int:
    out = str(place / f"{stream}.json")
    return main(["stats", str(place / "config.yaml"), "--stream", stream, "--out", out, *overrides])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two robots and their statistics. Of the first one, episode 3 has a single step and episode 4 an action of NaN."""
    folder = tmp_path_factory.mktemp("robots")
    bad = counting(4, 5)
    bad[4, 1] = np.nan
    rows = [example(e, steps) for e, steps in enumerate([*LENGTHS, 1])] + [example(4, 5, bad)]
    write_rlds(folder / "rlds", [rows])
    write_lerobot_2(folder / "lerobot", LENGTHS)
    keys = json.dumps(RLDS_KEYS)[1:-1]
    (folder / "config.yaml").write_text(CONFIG.format(keys=keys))
    assert stats(folder, "arm") == stats(folder, "hand") == 0
    both = json.loads((folder / "arm.json").read_text())
    (folder / "state.json").write_text(json.dumps({"action": both["state"]}))
    return folder


def assembly(place: Path, *overrides: str) -> Assembly:
    return Assembly(load_config(place / "config.yaml", list(overrides)), place)


def refused(place: Path, capsys, *overrides: str) -> str:
    """The message with which training refuses settings."""
    capsys.readouterr()
    assert train(place / "never", *overrides, config=place / "config.yaml") == 2
    return capsys.readouterr().err


def test_statistics_are_those_of_all_steps_that_can_be_used(place, capsys):
    assert stats(place, "arm") == 0
    told = capsys.readouterr().out
    actions = np.concatenate([counting(e, steps) for e, steps in enumerate(LENGTHS)] + [counting(4, 4)])
    found = read_statistics(place / "arm.json", "action")
    assert found.count == len(actions) == 23
    np.testing.assert_allclose(found.values["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.values["std"], actions.std(axis=0), rtol=1e-6)
    assert f"action    23 vectors of 3 numbers, digest {found.digest}" in told
    assert "left out  1 steps or episodes" in told
    assert main(["stats", str(place / "config.yaml"), "--out", str(place / "x.json")]) == 2
    assert "--stream: arm, hand hold robot data; each has a file of its own" in capsys.readouterr().err


def test_masks_reach_the_segments_and_the_counts(place):
    found = assembly(place)
    dataset, normalization = found.dataset, found.normalization
    lengths = dict(
        zip((f"numbers-train.tfrecord-00000-of-00001:{e}" for e in (0, 1, 2, 4)), [*LENGTHS, 5], strict=True)
    )
    raw = dataset.collate("arm", [dataset.sample("arm", position, []) for position in range(12)], ())
    batch = found.preprocess(raw).batch
    image, state, video, action = batch.segments
    left = [lengths[key.rpartition("@")[0]] - int(key.rpartition("@")[2]) for key in batch.keys]  # steps from the start
    assert action.valid is not None
    assert video.valid is not None
    assert action.valid.sum(dim=1).tolist() == [min(3, steps) for steps in left]
    # 5 frames are 3 latent steps of 4 tokens: the first alone, then two pairs, of which one real frame is enough
    frames = [min(5, steps - 1) for steps in left]
    assert video.valid.sum(dim=1).tolist() == [4 * (1 + frames // 2) for frames in frames]
    assert min(left) < 3 < max(left)  # both cases were there
    assert raw.counts == {
        "image": 0,
        "state": 0,
        "video": float(video.valid.sum()),
        "action": float(action.valid.sum()),
    }
    assert image.valid is None
    # values: action k of the window is that of its step, normalized, and the third number as it is
    starts = torch.tensor([int(key.rpartition("@")[2]) for key in batch.keys])
    physical = normalization["action_arm"].denormalize(action.x0)
    low, high = normalization["action_arm"].low, normalization["action_arm"].high
    assert low is not None
    assert high is not None
    wanted = (starts + 1).clamp(float(low[0]), float(high[0]))  # of the second action of a window, clipped
    assert torch.allclose(physical[:, 1, 0], wanted.float(), atol=1e-5)
    assert (action.x0[..., 2] == 0.5).all()
    assert torch.allclose(normalization["state_arm"].denormalize(state.x0)[:, 0, 0], starts.float(), atol=0.2)


def test_what_lies_in_the_padding_changes_no_bit(place):
    """Of the loss and of its gradient: perturbed actions, frames and noise where a window has ended."""
    found = assembly(place)
    dataset, student = found.dataset, found.trunk
    rows = [dataset.sample("arm", position, []) for position in range(12)]

    def gradients(spoil: bool) -> list[torch.Tensor]:
        micro = found.preprocess(dataset.collate("arm", rows, ()))
        if spoil:
            for segment, noise in zip(micro.batch.segments, micro.drawn.noise, strict=True):
                if segment.valid is not None:
                    segment.x0[~segment.valid] = 1e3
                    noise[~segment.valid] = -1e3
        student.zero_grad()
        terms = found.objective(student, student, micro.batch, micro.drawn, micro.counts)
        total = sum(term.weight * term.mean() for term in terms.values())
        assert isinstance(total, torch.Tensor)
        total.backward()
        return [total.detach(), *(p.grad.clone() for p in student.parameters() if p.grad is not None)]

    for clean, spoilt in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(clean, spoilt)


def test_two_robots_train_generate_and_keep_their_statistics(place, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, config=place / "config.yaml") == 0
    loaded = load_run(run)
    assert {"action_arm", "action_hand", "state_arm"} <= set(loaded.generator.trunk.media_in)
    stored = loaded.generator.normalization["action_arm"]
    assert stored.digest == read_statistics(place / "arm.json", "action").digest
    assert stored.high is not None

    lines = read_lines(run / "metrics.jsonl")
    for stream in ("arm", "hand"):
        (last, *_) = [line for line in lines if line["stream"] == stream]
        assert last["flow/action"] > 0
        assert last["flow/video"] > 0
        assert "flow/image" not in last  # given

    from PIL import Image

    Image.new("RGB", (96, 8)).save(tmp_path / "f.png")
    (tmp_path / "s.json").write_text("[[3, 9]]")
    given = ["--image", str(tmp_path / "f.png"), "--state", str(tmp_path / "s.json")]
    # The file of statistics is not needed any more: they lie in the checkpoint.
    (place / "arm.json").rename(place / "gone.json")
    try:
        out = tmp_path / "out"
        assert main(["generate", "arm", "--run", str(run), "--prompt", "go", *given, "--out", str(out)]) == 0
        assert train(run, "training.steps=6", config=place / "config.yaml") == 0
    finally:
        (place / "gone.json").rename(place / "arm.json")
    found = json.loads((out / "0000-go-action.json").read_text())
    assert np.array(found["actions"]).shape == (3, 3)
    assert json.loads((out / "0000-go-state.json").read_text())["states"] == [[3, 9]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("streams.arm.parts.action.media.statistics=''", "streams.arm.parts.action.media.statistics: empty"),
        (
            "streams.arm.parts.action.media.statistics=no.json",
            "streams.arm.parts.action.media.statistics: no.json cannot",
        ),
        (
            "streams.arm.parts.action.media.statistics=state.json",
            "is of 2 numbers, and media.width is 3: those of another",
        ),
        ("streams.arm.parts.action.media.actions=4", "media.actions: 4, and streams.arm.data.actions is 3"),
        ("streams.arm.parts.action.media.rate=10", "media.rate: 10 actions a second, and streams.arm.data has 3"),
        ("streams.arm.parts.video.media.frames=3", "media.frames: 3, and streams.arm.data.frames is 5"),
        ("streams.arm.parts.video.media.fps=8", "media.fps: 8, and streams.arm.data has 3 (3 steps a second, stride 1"),
        ("streams.arm.parts.image.media.flip=true", "flip: true would mirror the image and not what the robot does"),
        ("streams.arm.parts.image.media.crop=random", "crop: 'random' would cut an image and its video at different"),
        ("streams.arm.data.fps=null", "fps: null, and numbers is no data set whose rate is known"),
        ("streams.arm.data.gripper=relative", "gripper_dims: empty, and gripper is 'relative'"),
        ("streams.arm.data.no_instruction=drop", "no_instruction: 'drop' is not one of skip, null."),
        ("streams.arm.data.action_keys=[action/wrld]", "action_keys: 'action/wrld' is not in the steps of"),
        ("streams.hand.data.path=nowhere", "a LeRobot data set has meta/, data/ and videos/"),
    ],
)
def test_settings_that_cannot_work_are_told_by_name(place, capsys, override, message):
    assert message in refused(place, capsys, override)


@pytest.mark.slow
def test_statistics_that_were_changed_under_a_run(place, tmp_path, capsys):
    run, config = tmp_path / "run", place / "config.yaml"
    assert train(run, "streams.hand=null", "training.steps=1", config=config) == 0
    before = (place / "arm.json").read_text()
    try:
        other = json.loads(before)
        other["action"]["q99"][0] += 1
        (place / "arm.json").write_text(json.dumps(other))
        capsys.readouterr()
        assert train(run, "streams.hand=null", "training.steps=2", config=config) == 2
        told = capsys.readouterr().err
        assert "streams.arm.parts.action.media.statistics: " in told
        assert "is not the file that the run was trained with" in told
    finally:
        (place / "arm.json").write_text(before)
    assert train(run, "streams.hand=null", "training.steps=2", config=config) == 0


@pytest.mark.parametrize("kind", ["lerobot", "latents"])
def test_a_dry_run_without_the_data(place, capsys, kind):
    data = [f"streams.{name}.data={{kind: {kind}, path: nowhere}}" for name in ("arm", "hand")]
    data += [f"streams.{name}.data={{frames: 5, actions: 3}}" for name in ("arm", "hand") if kind == "lerobot"]
    assert main(["train", str(place / "config.yaml"), "--dry-run", *data]) == 0
    told = capsys.readouterr().out
    assert told.count("not there: ") == 2
    assert "3 x 1 x 1 (t, h, w) of 3 channels" in told


def test_every_setting_of_robot_data_is_read(place, tmp_path):
    gripper = [f"streams.{name}.data={{gripper: relative, gripper_dims: [2]}}" for name in ("arm", "hand")]
    config = load_config(place / "config.yaml", [f"run={tmp_path / 'run'}", "training.steps=2", *gripper])

    def use(config) -> None:
        build_trainer(config, place).fit()
        loaded = load_run(tmp_path / "run")
        for name, stream in loaded.config.streams.items():
            parts = loaded.generator.parts[name]
            known = {
                part: Known.whole(parts[part].adapter, torch.zeros(1, 2) if part == "state" else torch.zeros(3, 8, 8))
                for part, own in parts.items()
                if own.given
            }
            (media,) = generate(loaded.generator, name, ["go"], stream.sampling, 0, known)
            write_parts(parts, media, tmp_path / name)

    unread = unread_fields(config, use)
    own = {leaf for leaf in unread if re.search(r"\.data\.|\.parts\.(action|state)\.", leaf)}
    assert {leaf for leaf in own if not re.search(r"\.(data\.kind|autoencoder\.\w+)$", leaf)} == set()


def test_inspect_shows_a_set_by_its_own_names(place, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    assert main(["inspect", str(place / "rlds"), "--number", "5"]) == 0
    told = capsys.readouterr().out
    for line in (
        "data set  numbers (RLDS), train (1 shards)",
        "  action/world: number float32 2",
        "episodes  5, 25 steps, steps a second unknown (set fps); 5.0 steps in the mean, 1 to 9",
        "image_key observation/image, action_keys action/world, action/gripper",
        "left out: 1 episodes of fewer than 2 steps",
        ":4: 5 steps, 3 numbers an action, instruction 'pick it up', 1 actions with NaN or infinite values",
    ):
        assert line in told
    assert main(["inspect", str(place / "lerobot")]) == 0
    told = capsys.readouterr().out
    assert "episodes  3, 19 steps, 30 fps; 6.3 steps in the mean, 4 to 9" in told
    assert "episode_000001: 9 steps, 3 numbers an action, instruction 'count'" in told


def test_an_action_of_another_width_is_told_once(place, capsys):
    told = refused(place, capsys, "streams.arm.data.action_keys=[action/world]")
    assert "error: media.width: 3, and the action of " in told
    assert "has 2 numbers" in told
    assert len(told.strip().splitlines()) == 1


def test_latents_of_robot_data_train_as_the_media_do(place, tmp_path, capsys):
    pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
    command = ["encode", str(place / "config.yaml"), "--stream", "arm", "--workers", "0", "--chunk", "8"]
    assert main([*command, "--out", str(tmp_path / "latents"), "--dtype", "float32"]) == 0
    told = capsys.readouterr().out
    assert "arm: 18 samples of 20 records, 2 could not be used" in told
    alone = ["streams.hand=null", "training.steps=3"]
    latents = f"streams.arm.data={{kind: latents, path: {tmp_path / 'latents' / 'arm'}}}"
    runs = [tmp_path / "media", tmp_path / "latent"]
    assert train(runs[0], *alone, config=place / "config.yaml") == 0
    assert train(runs[1], *alone, latents, config=place / "config.yaml") == 0
    found = assembly(place, *alone, latents)
    stored, media = found.dataset, assembly(place, *alone).dataset
    samples = {sample.key: sample for sample in (media.sample("arm", position, []) for position in range(20))}
    for position in range(18):
        sample = stored.sample("arm", position, [])
        for one, other in zip(sample.parts, samples[sample.key].parts, strict=True):
            assert (one.valid is None) == (other.valid is None)
            assert one.valid is None or torch.equal(one.valid, other.valid)
        actions = sample.parts[-1].latents
        assert actions is not None
        assert torch.equal(actions, samples[sample.key].parts[-1].media)  # physical
    assert found.normalization["action_arm"].digest
    first, second = (result(run) for run in runs)
    assert first["step"] == second["step"] == 3
