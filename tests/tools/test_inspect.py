"""selfflow inspect: runs, finished or hardly begun, checkpoints and data."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.modalities.making import audio_bytes, gradient, image_bytes, numbered, tone, video_file
from tests.tools.tiny import STEPS, result, train
from tools.cli import main


def inspect(capsys, path: Path, *options: str) -> str:
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


def test_a_finished_run(tiny_run, capsys):
    shown = inspect(capsys, tiny_run)
    for expected in (
        "method    self_flow, seed 3",
        "trunk     mmdit, 682,384 parameters",
        f"steps     {STEPS} of {STEPS} published",
        "checkpoint 3: intact",
        f"checkpoint {STEPS}: intact",
        "bad data  0 records",
    ):
        assert expected in shown
    last = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert f"{last['stream']:9} step {STEPS}: lr 0.003, loss {last['loss']:.4g}" in shown


def test_digests_are_those_of_the_weights(tiny_run, capsys):
    shown = inspect(capsys, tiny_run, "--digest").splitlines()
    parts = result(tiny_run)
    assert shown == [f"step {STEPS}", *(f"{part} {parts[part]}" for part in ("student", "teacher", "optimizer"))]
    assert inspect(capsys, tiny_run, "--digest", "--step", "3").splitlines()[0] == "step 3"
    assert main(["inspect", str(tiny_run), "--digest", "--step", "4"]) == 2
    assert "there are: 3, 6" in capsys.readouterr().err


def test_damage_and_bad_records_are_shown(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    (tmp_path / "run" / "quarantine.jsonl").write_text('{"stream": "image", "key": "a"}\n{"stre')
    shown = inspect(capsys, tmp_path / "run")
    assert "checkpoint 6: DAMAGED, state.json" in shown
    assert f"steps     3 of {STEPS} published" in shown
    assert "bad data  1 records, listed in" in shown


def test_a_run_without_a_checkpoint_says_so(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed in the middle of a line
    shown = inspect(capsys, tmp_path / "run")
    assert "no checkpoint yet" in shown
    assert "image     step" in shown
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "no checkpoint yet" in inspect(capsys, tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run"), "--digest"]) == 2
    assert "holds no intact checkpoint" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no run folder (it has no config.yaml); for data add --data" in capsys.readouterr().err


@pytest.mark.parametrize("captions", [True, False])
def test_data_with_and_without_captions(captions, tmp_path, capsys):
    folder = tmp_path / "grey"
    folder.mkdir()
    for index, pixels in enumerate(numbered(4, 20, 30)):
        (folder / f"{index}.png").write_bytes(image_bytes(pixels))
        if captions:
            (folder / f"{index}.txt").write_text(f"level {index}")
    (folder / "1.png").write_bytes(b"")
    shown = inspect(capsys, tmp_path, "--data", "image", "--number", "3")
    assert "4 image records, 1 labels" in shown
    caption = "level 2" if captions else "(no caption)"
    assert f"grey/2.png: (3, 16, 16), label grey, captions ['{caption}']" in shown
    assert "cannot be used: " in shown
    assert "1.png" in shown
    assert "3.png" not in shown


def test_videos_and_audio(tmp_path, capsys):
    video_file(tmp_path / "clip.mp4", numbered(30))
    (tmp_path / "tone.wav").write_bytes(audio_bytes(tone(1.5, 8000), 8000))
    assert "clip.mp4: (9, 3, 16, 16)" in inspect(capsys, tmp_path, "--data", "video")
    assert "tone.wav: (1, 4000)" in inspect(capsys, tmp_path, "--data", "audio")
    assert main(["inspect", str(tmp_path / "nowhere"), "--data", "audio"]) == 2
    assert "does not exist" in capsys.readouterr().err


def mixed(root: Path) -> Path:
    """A folder of a little of everything that people have."""
    files = {
        "cats/1.png": image_bytes(gradient(8, 8)),
        "cats/1.txt": b"a cat",
        "cats/2.JPG": image_bytes(gradient(8, 8), "JPEG"),
        "cats/2.TXT": b"another cat",
        "cats/3.heic": b"\0\0\0\x18ftypheic",
        "cats/4.xyz": b"?",
        "cats/9.txt": b"no image of this name",
        "cats/._1.png": b"\0\5\26\7",
        "cats/Thumbs.db": b"x",
        "@eaDir/1.png": b"thumbnail",
        "dogs/5.gif": image_bytes(Image.new("RGB", (8, 8)), "GIF"),
        "dogs/tone.wav": audio_bytes(tone(0.6, 8000), 8000),
        "metadata.jsonl": b'{"file_name": "dogs/5.gif", "caption": "a dog"}\n{"file_name": "dogs/6.gif"}\n',
        "shard.tar": b"",
        "table.parquet": b"",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "dogs" / "up").symlink_to("..")
    (root / "lost.png").symlink_to("nowhere.png")
    return root


def test_what_is_left_out_of_a_mixed_folder_is_counted_and_named(tmp_path, capsys):
    lines = inspect(capsys, mixed(tmp_path / "set"), "--data", "image").splitlines()
    assert lines[0] == f"{tmp_path / 'set'}: 3 image records, 2 labels"
    for expected in (
        "  left out: 2 hidden or system files, such as cats/._1.png",
        "  left out: 1 hidden or system folder, such as @eaDir",
        "  left out: 1 .xyz (unknown), such as cats/4.xyz",
        "  left out: 1 .txt (no image of that name), such as cats/9.txt",
        "  left out: 1 .wav (audio), such as dogs/tone.wav",
        "  left out: 1 .tar (read by `kind: webdataset`), such as shard.tar",
        "  left out: 1 .parquet (read by `kind: parquet`), such as table.parquet",
        "  left out: 1 broken link, such as lost.png",
        "  left out: 1 linked folder read already or leading in a circle, such as dogs/up/",
        "  left out: 1 line of metadata.jsonl without a record, such as dogs/6.gif",
    ):
        assert expected in lines
    assert any(line.startswith("  left out: 1 .heic (no decoder here: ") for line in lines) or find_spec("pillow_heif")
    assert any("cats/2.JPG: (3, 16, 16), label cats, captions ['another cat']" in line for line in lines)
    assert any("dogs/5.gif: (3, 16, 16), label dogs, captions ['a dog']" in line for line in lines)


def test_a_folder_of_tables_or_tars_is_read_as_such(tmp_path, capsys):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "tables").mkdir()
    table = pa.table({"image": [image_bytes(numbered(1, 8, 8)[0])] * 2, "caption": ["x", "y"]})
    pq.write_table(table, tmp_path / "tables" / "b.parquet")
    (tmp_path / "tables" / "a.parquet").write_bytes(b"PAR1PAR1")
    (tmp_path / "tables" / "._b.parquet").write_bytes(b"\0\5\26\7")
    shown = inspect(capsys, tmp_path / "tables", "--data", "image")
    assert "3 image records, 0 labels" in shown
    assert "left out: 1 damaged file, such as a.parquet" in shown
    assert "left out: 1 hidden or system file, such as ._b.parquet" in shown
    assert "0: cannot be used: " in shown

    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for name, data in {"1.png": table["image"][0].as_py(), "1.txt": b"one", "1.ocr.txt": b"STOP"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    shown = inspect(capsys, tmp_path / "tars", "--data", "image")
    assert "a/1: (3, 16, 16), label None, captions ['one']" in shown
    assert "left out: 1 .ocr.txt (not KEY.txt), such as 1.ocr.txt" in shown


def test_a_compressed_tar_is_refused_with_a_reason_and_shards_are_read(tmp_path, capsys):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    assert main(["inspect", str(tmp_path / "a.tar.gz"), "--data", "image"]) == 2
    assert "compressed with gzip" in capsys.readouterr().err
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
    with streaming.MDSWriter(out=str(tmp_path / "mds"), columns={"image": "bytes", "caption": "str"}) as writer:
        writer.write({"image": image_bytes(gradient(8, 8)), "caption": "x"})
    assert "1 image records, 0 labels" in inspect(capsys, tmp_path / "mds", "--data", "image")


def test_training_and_the_dry_run_say_what_is_left_out(tmp_path, capsys):
    data = f"streams.image.data={{kind: folder, path: {mixed(tmp_path / 'set')}}}"
    expected = "left out: 2 hidden or system files, "
    assert train(tmp_path / "run", data, "--dry-run") == 0
    assert f"            {expected}" in capsys.readouterr().out
    assert train(tmp_path / "run", data, "training.steps=1") == 0
    said = capsys.readouterr().err
    assert f"image: {expected}" in said
    assert "video: " not in said
    notes = json.loads((tmp_path / "run" / "data.json").read_text())
    assert notes["image"]["records"] == 3
    assert "left out: 1 broken link, such as lost.png" in notes["image"]["notes"]
    assert notes["video"]["notes"] == []
    assert "image     left out: 1 broken link, such as lost.png" in inspect(capsys, tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text("{damaged")
    assert "left out" not in inspect(capsys, tmp_path / "run")
