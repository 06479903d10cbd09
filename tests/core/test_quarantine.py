"""Bad records are written once, counted, and stop the run when there are too many."""

from __future__ import annotations

import json

import pytest

from core.errors import DataError
from core.training.loader import Rejected
from core.training.quarantine import Quarantine


def bad(number: int, stream: str = "image") -> Rejected:
    return Rejected(stream, f"key-{number}", f"folder/{number}.png", "cannot be decoded", number, number + 1)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_written_once_with_file_key_and_reason(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, limit=10)
    quarantine.add([])
    assert not path.exists()
    quarantine.add([bad(1), bad(2), bad(1)])
    quarantine.add([bad(2), bad(1, "video")])
    assert len(quarantine) == 3
    assert [(entry["stream"], entry["key"]) for entry in lines(path)] == [
        *(("image", "key-1"), ("image", "key-2"), ("video", "key-1"))
    ]
    assert lines(path)[0] == {
        "stream": "image",
        "key": "key-1",
        "origin": "folder/1.png",
        "reason": "cannot be decoded",
        "position": 1,
        "replaced_by": 2,
    }


def test_a_restart_remembers_and_a_half_written_line_is_written_anew(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, limit=10).add([bad(1), bad(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])  # killed in the middle of the second line
    again = Quarantine(path, limit=10)
    assert len(again) == 1
    again.add([bad(1), bad(2)])
    assert path.read_bytes() == whole
    assert len(Quarantine(path, limit=10)) == 2


def test_above_the_limit_the_run_stops_with_a_list_and_stays_stopped(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, limit=2)
    quarantine.add([bad(1), bad(2)])
    with pytest.raises(DataError) as caught:
        quarantine.add([bad(3)])
    message = str(caught.value)
    assert message.startswith("3 records could not be used, more than data_limit 2.")
    assert "folder/3.png: cannot be decoded" in message
    assert str(path) in message
    assert len(lines(path)) == 3
    with pytest.raises(DataError, match="3 records"):
        Quarantine(path, limit=2).add([])  # a restart changes nothing
    Quarantine(path, limit=3).add([])  # but a higher limit does
