"""Checkpoints: killed writers, full disks, damaged files, states that do not fit."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import CheckpointError
from core.training import manifest as manifests
from core.training.checkpoint import CheckpointStore, digest
from core.training.manifest import SCHEMA
from core.training.state import restore, training_state
from tests.reliability.kill_points import example_state, rewrite
from tests.thinned import slow, thinned

REPOSITORY = Path(__file__).parents[2]


def cut_short(store: str, mode: str, folder: Path) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.kill_points", store, mode, str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_save_killed_at_any_durable_call_leaves_the_old_or_the_new_state(tmp_path):
    *cut, whole = cut_short("store", "kill", tmp_path)
    assert all(row["killed"] for row in cut)
    assert [row for row in cut if not row["intact"]] == []
    published = [row["call"] for row in cut].index("os.rename .writing-step-00000030")
    assert [row["latest"] for row in cut] == [20] * (published + 1) + [30] * (len(cut) - published - 1)
    assert whole == {"point": len(cut) + 1, "call": "", "latest": 30, "intact": True, "killed": False, "status": 0}
    assert len(cut) >= 20  # the watch sees torch's files, ours, the renames and the removal of the oldest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("broken", [slow("prunes_first"), "writes_in_place"])
def test_the_kill_test_fails_on_broken_stores(broken, tmp_path):
    *cut, whole = cut_short(broken, "kill", tmp_path)
    assert not all(row["intact"] for row in cut)
    assert whole["status"] == 0
    assert whole["latest"] == 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_full_disk_at_any_durable_call_is_reported_and_leaves_nothing_half_written(tmp_path):
    rows = cut_short("store", "full", tmp_path)
    assert [row for row in rows if not row["intact"] or row["status"] != 0] == []


def test_every_file_and_folder_is_synced_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    synced, unsynced, fsync, rename = [], [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))

    def checked_rename(old, new):
        if Path(old).name.startswith(".writing-"):
            unsynced.extend(p for p in [Path(old), *Path(old).rglob("*")] if p.stat().st_ino not in synced)
            synced.clear()
        rename(old, new)

    monkeypatch.setattr(os, "rename", checked_rename)
    CheckpointStore(tmp_path).publish(1, example_state(1), {})
    assert unsynced == []
    assert synced == [tmp_path.stat().st_ino]


def empty_like(state):
    return {k: empty_like(v) for k, v in state.items()} if isinstance(state, dict) else torch.zeros_like(state)


def filled(root: Path, steps=(10, 20)) -> CheckpointStore:
    store = CheckpointStore(root)
    for step in steps:
        store.publish(step, example_state(step), {"note": step})
    return store


PARTS = ["student", "teacher", "optimizer"]
FILES = [*(f"tensors/{part}/{name}" for part in PARTS for name in ("__0_0.distcp", ".metadata"))]
FILES += ["state.json", "manifest.json"]


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x01
    path.write_bytes(data)


DAMAGES = {
    "flip first": lambda path: flip(path, 0.0),
    "flip middle": lambda path: flip(path, 0.5),
    "flip last": lambda path: flip(path, 1.0),
    "truncate": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "append": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize(("damage", "name"), thinned(product(DAMAGES, FILES), 5))
def test_damage_is_noticed_named_and_the_older_checkpoint_is_used(name, damage, tmp_path):
    filled(tmp_path)
    DAMAGES[damage](tmp_path / "step-00000020" / name)
    messages = []
    store = CheckpointStore(tmp_path, report=messages.append)
    assert store.latest() == 10
    assert len(messages) == 1
    assert "step-00000020" in messages[0]
    assert Path(name).name in messages[0]
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(20, empty_like(example_state(20)))
    into = empty_like(example_state(10))
    store.load(10, into)
    assert digest(into) == digest(example_state(10))


def test_every_single_byte_of_the_manifest_counts(tmp_path):
    filled(tmp_path, steps=(10,))
    manifest = tmp_path / "step-00000010" / "manifest.json"
    good = manifest.read_bytes()
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x01
        manifest.write_bytes(damaged)
        assert CheckpointStore(tmp_path).problem(10) is not None, position
    manifest.write_bytes(good)
    assert CheckpointStore(tmp_path).problem(10) is None


def test_extra_file_other_schema_and_renamed_folder_are_refused(tmp_path, monkeypatch):
    store = filled(tmp_path)
    (tmp_path / "step-00000020" / "stranger").write_text("")
    assert store.problem(20) == "stranger: not in the manifest"
    os.rename(tmp_path / "step-00000010", tmp_path / "step-00000030")
    assert store.problem(30) == "manifest.json: it belongs to step 10"
    manifest = tmp_path / "step-00000030" / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(good.replace(f'"schema": {SCHEMA}', '"schema": 1'))
    assert store.problem(30) == "manifest.json: its content is damaged"
    manifest.write_text(good)
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "SCHEMA", 1)
        rewrite(tmp_path / "step-00000030", 30)
    assert store.problem(30) == f"manifest.json: schema 1, this version reads {SCHEMA}"
    with pytest.raises(CheckpointError, match=r"step-00000030 was written by another version of this project \(manif"):
        CheckpointStore(tmp_path).latest()


def test_the_newest_intact_two_stay_and_damaged_ones_do_not_count(tmp_path):
    filled(tmp_path, steps=(10, 20, 30))
    assert CheckpointStore(tmp_path).steps() == [20, 30]
    flip(tmp_path / "step-00000030" / "state.json", 0.5)
    fresh = CheckpointStore(tmp_path, report=lambda line: None)
    fresh.publish(40, example_state(40), {})
    assert fresh.steps() == [20, 30, 40]  # 20 is the second intact one
    fresh.publish(50, example_state(50), {})
    assert fresh.steps() == [40, 50]


def test_milestones_stay_for_ever_beside_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, keep_every=20)
    for step in (0, 10, 20, 30, 40, 50, 60, 70):
        store.publish(step, example_state(step), {})
    assert store.steps() == [20, 40, 60, 70]  # 0 is no milestone: it is where a run starts
    plain = CheckpointStore(tmp_path, keep=2)  # without the setting, those that were published as milestones stay
    plain.publish(80, example_state(80), {})
    plain.publish(90, example_state(90), {})
    assert plain.steps() == [20, 40, 60, 80, 90]
    assert [step for step in plain.steps() if plain.problem(step)] == []


def test_forgetting_removes_later_checkpoints_only(tmp_path):
    store = filled(tmp_path)
    store.forget(10)
    assert store.steps() == [10]
    assert not list(tmp_path.glob(".*"))
    store.publish(20, example_state(20), {"note": 20})
    assert store.latest() == 20


def test_an_intact_checkpoint_is_never_overwritten_and_a_damaged_one_is_replaced(tmp_path):
    store = filled(tmp_path)
    with pytest.raises(CheckpointError, match="not overwritten"):
        store.publish(20, example_state(21), {})
    flip(tmp_path / "step-00000020" / "state.json", 0.5)
    store.publish(20, example_state(20), {"note": 20})
    assert store.steps() == [10, 20]
    assert not list(tmp_path.glob(".*"))
    assert CheckpointStore(tmp_path).latest() == 20


def test_reading_leaves_the_folder_of_a_writer_alone(tmp_path):
    filled(tmp_path)
    (tmp_path / ".writing-step-00000030").mkdir()
    reader = CheckpointStore(tmp_path)
    assert reader.latest() == 20
    assert reader.extra(20) == {"note": 20}
    assert (tmp_path / ".writing-step-00000030").is_dir()
    filled(tmp_path, steps=(30,))
    assert not (tmp_path / ".writing-step-00000030").exists()


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "absent")
    assert store.latest() is None
    assert not (tmp_path / "absent").exists()
    with pytest.raises(CheckpointError, match="there are: none"):
        store.load(3, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["student"].update({"a.weight": torch.zeros(5, 3, dtype=torch.float64)}),
            "weight: torch.float32 in",
        ),
        (lambda s: s["student"].update({"a.weight": torch.zeros(3, 5)}), r"a.weight: shape \(5, 3\) in"),
        (
            lambda s: s["teacher"].update({"a.wait": s["teacher"].pop("a.weight")}),
            "a.wait: not in.*Did you mean",
        ),
        (lambda s: s["optimizer"].clear(), "optimizer/a.weight/exp_avg: in the checkpoint, but not in the model"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_nothing_is_touched(change, message, tmp_path):
    store = filled(tmp_path)
    into = empty_like(example_state(20))
    change(into)
    before = digest(into)
    with pytest.raises(CheckpointError, match=message):
        store.load(20, into)
    assert digest(into) == before


def test_one_part_can_be_read_alone(tmp_path):
    store = filled(tmp_path)
    state = example_state(20)
    assert digest({"teacher": store.load_weights(20)}) == digest({"teacher": state["teacher"]})
    parts = {part: CheckpointStore(tmp_path).load_weights(20, part) for part in state}
    assert digest(parts) == digest(state)
    with pytest.raises(CheckpointError, match="it has student, teacher, optimizer"):
        store.load_weights(20, "ema")


def test_the_digest_sees_names_dtypes_shapes_and_single_bits():
    tensor = torch.arange(6.0)
    same = digest({"p": {"w": tensor}})
    others = [{"v": tensor}, {"w": tensor.reshape(2, 3)}, {"w": tensor.view(torch.int32)}, {"w": tensor + 1e-6}]
    assert len({same["p"], *(digest({"p": other})["p"] for other in others)}) == 5
    columns = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    assert digest({"p": {"w": columns}}) == digest({"p": {"w": columns.clone()}})
    assert digest({"p": {"b": tensor, "a": tensor}}) == digest({"p": {"a": tensor, "b": tensor}})


def build(width: int = 4):
    torch.manual_seed(width)
    student = nn.ModuleDict({"drawn": nn.Linear(3, width), "waiting": nn.Linear(3, width)})
    teacher = nn.ModuleDict({"drawn": nn.Linear(3, width), "waiting": nn.Linear(3, width)}).requires_grad_(False)
    return student, teacher, torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)


def step_of(student, teacher, optimizer, layer: str, seed: int) -> None:
    optimizer.zero_grad()
    student[layer](torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.1)


def test_a_restored_optimizer_goes_on_bit_for_bit_also_for_parameters_that_have_no_state_yet(tmp_path):
    whole = build()
    for seed in range(3):
        step_of(*whole, "drawn", seed)
    CheckpointStore(tmp_path).publish(3, training_state(*whole), {})

    resumed = build()
    for parameter in [*resumed[0].parameters(), *resumed[1].parameters()]:
        parameter.data.zero_()
    store = CheckpointStore(tmp_path)
    restore(store, store.latest(), *resumed)
    assert digest(training_state(*resumed)) == digest(training_state(*whole))
    assert sorted(training_state(*resumed)["optimizer"]) == ["drawn.bias", "drawn.weight"]
    for run in (whole, resumed):
        step_of(*run, "waiting", 8)
        step_of(*run, "drawn", 9)
    assert digest(training_state(*resumed)) == digest(training_state(*whole))


def test_restoring_into_another_model_names_the_keys(tmp_path):
    one = build()
    step_of(*one, "drawn", 0)
    store = CheckpointStore(tmp_path)
    store.publish(1, training_state(*one), {})
    with pytest.raises(CheckpointError, match=r"student/drawn.weight: shape \(4, 3\) in the checkpoint, \(5, 3\)"):
        restore(store, 1, *build(width=5))
    half = build()
    half[0].to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"student/drawn.bias: .*float32 in the checkpoint, .*bfloat16"):
        restore(store, 1, *half)
    with pytest.raises(CheckpointError, match="not one of the student's"):
        training_state(one[1], one[0], one[2])


def test_plain_values_are_refused_in_the_tensor_state(tmp_path):
    with pytest.raises(CheckpointError, match="student/step: int, only tensors"):
        CheckpointStore(tmp_path).publish(1, {"student": {"step": 3}}, {})
    assert CheckpointStore(tmp_path).latest() is None
