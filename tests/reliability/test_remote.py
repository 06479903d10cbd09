"""Checkpoints in an object store: fsspec's memory and file systems stand in for one. [26] is an acceptance test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from core.errors import ConfigError, NotWrittenError
from core.training.checkpoint import CheckpointStore
from core.training.distributed import World
from core.training.remote import RemoteStore, bring
from tests.reliability.kill_points import example_state, judge
from tests.scale.test_kill_points import DIGESTS, sharded
from tests.tools.tiny import published, result, train
from tests.worlds import run, values

SMALL = ("streams.video=null", "streams.audio=null", "training.steps=4", "training.save_every=2")


@pytest.fixture
def url(request) -> str:
    found = f"memory://{request.node.name}"
    yield found
    fsspec.filesystem("memory").store.clear()


def filled(root: Path, url: str, steps: tuple[int, ...], **named: Any) -> CheckpointStore:
    store = CheckpointStore(root, remote=RemoteStore(url), **named)
    for step in steps:
        store.publish(step, example_state(step), {"note": step})
    return store


def test_the_manifest_comes_last_by_one_put_and_nothing_is_renamed(url, tmp_path, monkeypatch):
    """[26] Fails where the manifest is written before the tensors."""
    calls: list[str] = []

    def note(name: str) -> None:
        plain = getattr(MemoryFileSystem, name)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            if not calls or calls[-1] != "pipe manifest.json":
                assert RemoteStore(url).steps() == []  # it does not count yet
            target = arguments[0] if name == "pipe_file" else arguments[1]
            calls.append(f"{'pipe' if name == 'pipe_file' else 'put'} {Path(target).name}")
            return plain(self, *arguments, **named)

        monkeypatch.setattr(MemoryFileSystem, name, call)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no rename here")

    for name in ("put_file", "pipe_file"):
        note(name)
    for name in ("mv", "mv_file", "move", "rename"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse, raising=False)
    filled(tmp_path, url, (10,))
    assert calls[-1] == "pipe manifest.json"
    assert sorted(calls[:-1]) == sorted(["put .metadata", "put __0_0.distcp"] * 3 + ["put state.json"])
    assert RemoteStore(url).steps() == [10]


def test_a_store_that_cannot_be_reached_is_one_line_and_the_next_save_works(url, tmp_path, monkeypatch):
    """Cut off before the manifest: what lies there does not count."""
    store = filled(tmp_path / "run" / "checkpoints", url, (10,))
    with monkeypatch.context() as patch:

        def gone(*_: Any, **__: Any) -> None:
            raise ConnectionError("503 Slow Down")

        patch.setattr(MemoryFileSystem, "pipe_file", gone)
        with pytest.raises(NotWrittenError, match="503 Slow Down"):
            store.publish(20, example_state(20), {"note": 20})
    assert RemoteStore(url).steps() == [10]
    assert bring(url, tmp_path / "other", None) == 10
    store.publish(30, example_state(30), {"note": 30})
    assert RemoteStore(url).steps() == [10, 30]


def test_what_is_brought_is_verified_and_an_older_one_is_taken(url, tmp_path, capsys):
    filled(tmp_path / "run" / "checkpoints", url, (10, 20, 30), keep=3)
    files = fsspec.filesystem("memory")
    place = next(path for path in files.find(url) if "step-00000030" in path and path.endswith(".distcp"))
    files.pipe_file(place, files.cat_file(place)[:-1] + b"x")
    files.rm_file(next(path for path in files.find(url) if "step-00000020" in path and path.endswith("state.json")))
    assert bring(url, tmp_path / "other", None) == 10
    shown = capsys.readouterr().err
    assert "step-00000030 is damaged and skipped: tensors/" in shown
    assert "step-00000020 is damaged and skipped: state.json: missing" in shown
    assert judge(CheckpointStore(tmp_path / "other" / "checkpoints"), DIGESTS) == (10, True)
    assert bring(url, tmp_path / "other", 10) is None
    assert not list((tmp_path / "other" / "checkpoints").glob(".*"))


def test_old_ones_are_removed_and_milestones_stay(url, tmp_path):
    filled(tmp_path, url, (10, 20, 30, 40, 50), keep=2, keep_every=20)
    assert RemoteStore(url).steps() == [20, 40, 50]
    left = {path.split("step-")[1][:8] for path in fsspec.filesystem("memory").find(url) if "step-" in path}
    assert left == {"00000020", "00000040", "00000050"}


def test_of_several_processes_each_copies_its_own_files(tmp_path):
    remote = f"file://{tmp_path / 'store'}"

    def action(world: World) -> None:
        store = CheckpointStore(tmp_path / "run" / "checkpoints", world=world, remote=RemoteStore(remote))
        store.publish(10, sharded(example_state(10)), {"note": 10})

    values(run(2, action))
    assert bring(remote, tmp_path / "other", None) == 10
    store = CheckpointStore(tmp_path / "other" / "checkpoints")
    assert judge(store, DIGESTS) == (10, True)


@pytest.mark.slow
def test_a_run_goes_on_without_its_folder_to_the_same_bits(tmp_path):
    store = f"training.checkpoint_store=file://{tmp_path / 'store'}"
    assert train(tmp_path / "whole", *SMALL) == 0
    assert train(tmp_path / "first", *SMALL, store, "training.steps=2") == 0
    shutil.rmtree(tmp_path / "first")
    assert train(tmp_path / "second", *SMALL, store) == 0
    assert published(tmp_path / "second") == [2, 4]
    assert result(tmp_path / "second") == result(tmp_path / "whole")


def test_a_url_that_nothing_can_read_is_refused():
    with pytest.raises(ConfigError, match=r"training.checkpoint_store: nowhere://bucket"):
        RemoteStore("nowhere://bucket/run")
