"""Videos with their audio, from configs/audiovisual.yaml to files: trained, generated with any part given, scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
from configs.load import load_config
from configs.runs import load_run
from core.errors import ConfigError
from core.training.records import read_lines
from modalities.media.audio import probe_audio, read_audio
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from modalities.media.writing import write_video
from modalities.sample_files import write_parts, write_sample
from modalities.streams import make_parts
from modalities.synthetic import audiovisual_check as check
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.synthetic.audiovisual_score import MODES, VAL_SEED, contact_sheet, read_file, score, shares, val
from tests.modalities.data.containers import KINDS, stored
from tests.modalities.making import audio_bytes, image_bytes, tone
from tests.tools.tiny import train
from tools import audiovisual
from tools.cli import main

CONFIG = Path(configs.__file__).parent / "audiovisual.yaml"
SMALL = ("training.workers=0", "training.optimizer.cooldown=0", "trunk.mmdit.single_blocks=2", "training.device=cpu")
STREAM, FRAMES = "audiovisual", 9


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three steps of the published configuration, with a trunk of two blocks; to be read only."""
    folder = tmp_path_factory.mktemp("audiovisual") / "run"
    assert train(folder, "training.steps=3", "streams.audiovisual.sampling.steps=2", *SMALL, config=CONFIG) == 0
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """An MP4 with audio of the held-out records."""
    _, _, video, audio = AudiovisualSource(seed=VAL_SEED).draw(3)
    media = torch.tensor(video).permute(0, 3, 1, 2) / 127.5 - 1
    return write_video(media, tmp_path_factory.mktemp("clip") / "clip", 8, torch.tensor(audio.T), 4000)


def generate(run: Path, out: Path, *options: str) -> int:
    return main(["generate", STREAM, "--run", str(run), "--out", str(out), "--prompt", "a red circle", *options])


def frames_of(path: Path) -> np.ndarray:
    index = index_video(path, "")
    return np.stack(read_frames(path, "", index, np.arange(FRAMES))).astype(int)


def audio_of(path: Path) -> np.ndarray:
    return read_audio(path, "", 0, 54_000)[:, 0]


def test_the_configuration_is_the_one_of_the_study():
    config = load_config(CONFIG, [])
    stream = config.streams[STREAM]
    assert list(stream.parts) == ["video", "audio"]
    assert stream.modes == {"video_given": 0.2, "audio_given": 0.2}
    assert (stream.batch, stream.mask_ratio, stream.timestep.shift) == (8, 0.5, 3.0)
    assert stream.parts["audio"].std_floor == 0.25


def test_both_parts_come_in_one_file(run, tmp_path, capsys):
    assert generate(run, tmp_path, "--number", "2", "--batch-size", "1") == 0
    assert "2 files in" in capsys.readouterr().out
    names = [f"000{i}-a-red-circle" for i in range(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}{s}" for n in names for s in (".json", ".mp4")]
    path = tmp_path / f"{names[0]}.mp4"
    assert frames_of(path).shape == (FRAMES, 256, 256, 3)
    assert probe_audio(path, "").rate == 48_000
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["stream"] == STREAM
    assert about["parts"] == {name: {"modality": name, "was": "made"} for name in ("video", "audio")}
    assert generate(run, tmp_path / "two", "--number", "2", "--batch-size", "2") == 0
    for name in names:
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / "two" / f"{name}.mp4").read_bytes()


def test_the_folder_is_that_of_the_stream_and_nothing_is_overwritten(run):
    for number in range(2):
        assert main(["generate", STREAM, "--run", str(run), "--prompt", "a blue cross"]) == 0
        assert (run / "generated" / STREAM / f"000{number}-a-blue-cross.mp4").exists()


def test_a_given_video_gets_audio(run, pair, tmp_path):
    assert generate(run, tmp_path, "--video", str(pair)) == 0
    (path,) = tmp_path.glob("*.mp4")
    assert np.abs(frames_of(path) - frames_of(pair)).mean() < 3  # what the codec costs, twice
    assert np.abs(audio_of(path) - audio_of(pair)).mean() > 0.02
    about = json.loads(path.with_suffix(".json").read_text())
    assert {name: part["was"] for name, part in about["parts"].items()} == {"video": "given", "audio": "made"}
    assert about["files"] == {"video": str(pair)}


@pytest.mark.parametrize("kind", ["mp4", "wav"])
def test_given_audio_gets_a_video(kind, run, pair, tmp_path):
    """The audio of an MP4, or a file of audio alone."""
    given, wave = pair, audio_of(pair)
    if kind == "wav":
        given, wave = tmp_path / "given.wav", tone(FRAMES / 8, 48_000)
        given.write_bytes(audio_bytes(wave, 48_000))
    assert generate(run, tmp_path / "out", "--audio", str(given)) == 0
    (path,) = (tmp_path / "out").glob("*.mp4")
    error = np.abs(audio_of(path) - wave)[2000:-2000]
    assert error.mean() < 0.1 * np.abs(wave).mean()  # what 4 kHz and the codec cost
    assert np.abs(frames_of(path) - frames_of(pair)).mean() > 3
    about = json.loads(path.with_suffix(".json").read_text())
    assert {name: part["was"] for name, part in about["parts"].items()} == {"video": "made", "audio": "given"}


def test_options_of_one_modality_apply_to_its_part(run, pair, tmp_path, capsys):
    frame = np.full((16, 16, 3), (200, 60, 40), dtype=np.uint8)
    (tmp_path / "frame.png").write_bytes(image_bytes(frame))
    (tmp_path / "start.wav").write_bytes(audio_bytes(tone(0.5, 4000), 4000))
    options = ("--first-frame", str(tmp_path / "frame.png"), "--continue", str(tmp_path / "start.wav"))
    assert generate(run, tmp_path / "out", *options) == 0
    (path,) = (tmp_path / "out").glob("*.mp4")
    assert np.abs(frames_of(path)[0] - frame[0, 0]).max() <= 16
    assert np.abs(frames_of(path)[1] - frame[0, 0]).mean() > 16
    assert np.abs(audio_of(path) - tone(FRAMES / 8, 48_000))[1000:20_000].max() < 0.05
    about = json.loads(path.with_suffix(".json").read_text())
    assert {part["was"] for part in about["parts"].values()} == {"kept in part"}
    assert generate(run, tmp_path / "both", "--first-frame", options[1], "--audio", str(pair)) == 0
    capsys.readouterr()
    for wrong, expected in (
        (("--video", str(pair), "--audio", str(pair)), "--video, --audio: give all of a sample"),
        (("--image", "x.png"), f"--image: goes with streams that have image; {STREAM} has video, audio"),
        (("--audio", options[1]), "has no audio track"),
        (("--video", str(tmp_path / "start.wav")), "has no video stream"),
    ):
        assert generate(run, tmp_path / "wrong", *wrong) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_parts_that_no_format_holds_together_are_files_of_their_own(run, tmp_path):
    adapters = {f"{name}_{i}": part.adapter for name, part in parts_of(run).items() for i in (1, 2)}
    del adapters["video_2"]
    media = {name: torch.zeros(9, 3, 16, 16) if name == "video_1" else torch.zeros(1, 4500) for name in adapters}
    written = write_parts(make_parts(adapters), media, tmp_path / "0001-a")
    assert [path.name for path in written] == ["0001-a-video_1.mp4", "0001-a-audio_1.wav", "0001-a-audio_2.wav"]
    assert all(path.exists() for path in written)


def parts_of(run: Path):
    return load_run(run, device="cpu").generator.parts[STREAM]


def test_the_score_is_that_of_the_written_files(run, tmp_path):
    """Real records, written and read back, are right in everything; chance is what shuffled pairs are."""
    parts = parts_of(run)
    captions, media = val(parts, {"video": "video", "audio": "audio"}, 24)
    reads = [read_file(write_sample(parts, row, tmp_path / f"{i}"), FRAMES) for i, row in enumerate(media)]
    found = shares(captions, reads)
    assert {name: row["right"] for name, row in found.items()} == dict.fromkeys(found, 1.0)
    assert set(found) == {"color", "shape", "timbre", "track"}
    assert found["track"]["chance"] < 0.3
    training, other = AudiovisualSource(count=24), AudiovisualSource(seed=VAL_SEED, count=24)
    drawn = {source.draw(i)[2].tobytes() for source in (training, other) for i in range(24)}
    assert len(drawn) == 48
    # Another audio beside each image is noticed.
    swapped = [
        read_file(write_sample(parts, {**row, "audio": media[i - 5]["audio"]}, tmp_path / f"s{i}"), FRAMES)
        for i, row in enumerate(media)
    ]
    assert shares(captions, swapped)["track"]["right"] < 0.5


def test_a_run_is_scored_in_three_modes(run, tmp_path, capsys):
    assert audiovisual.main([str(run), "--number", "4", "--steps", "1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    about = json.loads((tmp_path / "scores.json").read_text())
    assert list(about["scores"]) == list(MODES)
    assert about["step"] == 3
    for mode, rows in about["scores"].items():
        assert f"{mode}: color " in told
        assert len(list((tmp_path / mode.replace(" ", "-")).glob("*.mp4"))) == 4
        assert all(0 <= row["right"] <= 1 and 0 <= row["chance"] <= 1 for row in rows.values())
        with Image.open(tmp_path / f"{mode.replace(' ', '-')}.png") as sheet:
            assert sheet.size[0] > FRAMES * 64
    # What is given is read back as it is, whatever three steps have learned.
    assert about["scores"]["audio of a video"]["color"]["right"] == 1
    assert about["scores"]["audio of a video"]["shape"]["right"] == 1
    assert about["scores"]["video of an audio clip"]["timbre"]["right"] == 1
    assert audiovisual.main([str(tmp_path / "nowhere")]) == 2
    loaded = load_run(run, device="cpu")
    with pytest.raises(ConfigError, match="number: 1; at least 2"):
        score(loaded.generator, STREAM, loaded.config.streams[STREAM].sampling, tmp_path, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """The same videos as MP4s; the first has no audio track."""
    source, folder = AudiovisualSource(count=20), tmp_path_factory.mktemp("files")
    found = []
    for index in range(20):
        caption, _, video, audio = source.draw(index)
        media = torch.tensor(video).permute(0, 3, 1, 2) / 127.5 - 1
        track = (torch.tensor(audio.T), 4000) if index else ()
        found.append(write_video(media, folder / f"{index:02d}", 8, *track))
        found[-1].with_suffix(".txt").write_text(caption)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_files_with_audio(kind, files, tmp_path):
    run, data = tmp_path / "run", stored(kind, files, tmp_path / kind)
    source = f"streams.{STREAM}.data={{kind: {kind}, path: {data.path}}}"
    assert train(run, "training.steps=3", "streams.audiovisual.batch=8", source, *SMALL, config=CONFIG) == 0
    losses = read_lines(run / "metrics.jsonl")[-1]
    assert np.isfinite([losses[f"flow/{part}"] for part in ("video", "audio")]).all()
    assert "no audio track" in "".join(path.read_text() for path in run.glob("*.jsonl"))
    assert generate(run, tmp_path / "out", "--steps", "2") == 0
    (path,) = (tmp_path / "out").glob("*.mp4")
    assert check.read_video(frames_of(path).astype(np.uint8))[0].shape == (FRAMES,)


def test_a_contact_sheet_shows_the_audio_below_the_frames(run, tmp_path):
    parts = parts_of(run)
    captions, media = val(parts, {"video": "video", "audio": "audio"}, 2)
    reads = [read_file(write_sample(parts, row, tmp_path / f"{i}"), FRAMES) for i, row in enumerate(media)]
    pixels = read_image(contact_sheet(reads, captions, tmp_path / "sheet"), "")
    dark = (pixels < 40).all(axis=2)
    bars = [np.flatnonzero(dark[14 + 64 + 6 : 14 + 64 + 30, 4 + k * 68 + 32]).mean() for k in range(FRAMES)]
    assert np.corrcoef(bars, -reads[0].heard)[0, 1] > 0.95
