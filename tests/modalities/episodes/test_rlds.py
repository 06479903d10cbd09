"""RLDS shards, written byte by byte: what is read of them, and what a damaged byte costs."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("crc32c", reason="TFRecords need crc32c (extra `robots`)")
pytest.importorskip("google.protobuf", reason="TFRecords need protobuf (extra `robots`)")

from core.errors import ConfigError, DataError
from modalities.episodes.base import Fields
from modalities.episodes.features import read_info
from modalities.episodes.rlds import RldsSet
from modalities.episodes.tfrecord import HEADER, crc32c, masked, read_record
from tests.modalities.episodes.making import counting, example, framed, number_in, write_rlds

FIELDS = Fields("observation/image", ("action/world", "action/gripper"), ("observation/state",), "language_instruction")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rlds(tmp_path / "set", [[example(0, 5), example(1, 2)], [example(2, 4, text="  put \n it ")]])


def opened(folder: Path, fields: Fields = FIELDS, **more) -> RldsSet:
    return RldsSet(folder, fields, 3.0, cache=folder.parent / "cache", **more)


def test_checksums_are_crc32c_turned_and_shifted():
    assert crc32c()(b"123456789") == 0xE3069283  # the check value of CRC-32C, RFC 3720
    assert crc32c()(b"123456789") != zlib.crc32(b"123456789")
    assert masked(0) == 0xA282EAD8
    assert masked(1) == 0xA284EAD8  # 1 turned right by 15 bits is 0x20000


def test_episodes_are_read_with_their_numbers_images_and_texts(folder):
    found = opened(folder)
    assert found.steps.tolist() == [5, 2, 4]
    episode = found.read(2)
    np.testing.assert_array_equal(episode.actions, counting(2, 4))
    assert episode.states is not None
    assert episode.states[3].tolist() == [3, 9]
    assert episode.instruction == "put it"
    assert [number_in(frame) for frame in episode.frames([0, 3, 3, 1])] == [200, 203, 203, 201]
    assert found.key(2) == "numbers-train.tfrecord-00001-of-00002:0"
    assert episode.key == found.key(2)
    assert "observation/state: number float32 2" in "\n".join(found.describe())


def test_the_index_is_built_once(folder, monkeypatch):
    first = opened(folder)
    monkeypatch.setattr(RldsSet, "_build", lambda *_: pytest.fail("built again"))
    again = opened(folder)
    assert again.fingerprint() == first.fingerprint()
    assert again.steps.tolist() == first.steps.tolist()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_costs_one_episode_and_is_told_with_file_and_byte(folder):
    shard = sorted(folder.glob("*.tfrecord*"))[0]
    second = len(framed(example(0, 5)))
    flip(shard, 40)
    with pytest.raises(DataError, match=rf"{shard.name} at byte 0: damaged: the checksum of the record's \d+ bytes"):
        read_record(shard, 0)
    found = opened(folder)
    assert found.steps.tolist() == [2, 4]
    assert found.read(0).origin == f"{shard} episode 1"
    (line,) = found.account().lines()
    assert line.startswith("left out: 1 damaged record, such as ")
    assert f"{shard.name} at byte 0" in line

    flip(shard, second + 3)  # of the length of the second: the rest of the shard is lost
    found = opened(folder)
    assert found.steps.tolist() == [4]
    assert any(
        f"{shard.name} at byte {second}: damaged: the checksum of the record's length" in e for e in found._damaged
    )


def test_a_shard_that_was_cut_short_is_told(folder):
    shard = sorted(folder.glob("*.tfrecord*"))[0]
    shard.write_bytes(shard.read_bytes()[:-20])
    found = opened(folder)
    assert found.steps.tolist() == [5, 4]
    assert "cut short: the record should have" in found._damaged[0]
    shard.write_bytes(shard.read_bytes()[: len(framed(example(0, 5)))])  # between two records, where no checksum lies
    assert opened(folder)._damaged == (f"{shard}: ends after 1 of 2 records",)


def test_damage_after_the_index_was_built_is_found_when_the_episode_is_read(folder):
    found = opened(folder)
    shard = sorted(folder.glob("*.tfrecord*"))[1]
    flip(shard, HEADER.size + 50)
    with pytest.raises(DataError, match=f"{shard.name} at byte 0: damaged"):
        found.read(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields("image", FIELDS.actions), "image_key: 'image' is not in .* it has observation/image"),
        (Fields(FIELDS.image, ("action/wrld",)), "action_keys: 'action/wrld' .* Did you mean: 'action/world'"),
        (Fields(FIELDS.image, ()), "action_keys: empty"),
        (Fields(FIELDS.image, FIELDS.actions, ("state",)), "state_keys: 'state' is not in"),
        (Fields(FIELDS.image, FIELDS.actions, (), "text"), "instruction_key: 'text' is not in"),
    ],
)
def test_fields_that_are_not_there_are_refused_by_name(folder, fields, message):
    with pytest.raises(ConfigError, match=message):
        opened(folder, fields)


def test_folders_and_splits_that_are_not_there(folder, tmp_path):
    with pytest.raises(ConfigError, match="an RLDS data set is the folder of its version"):
        read_info(tmp_path)
    with pytest.raises(ConfigError, match=r"subset: 'val' is not in .* it has train"):
        opened(folder, subset="val")
    sorted(folder.glob("*.tfrecord*"))[1].unlink()
    with pytest.raises(DataError, match=r"1 of 2 shards are missing, such as numbers-train.tfrecord-00001-of-00002"):
        opened(folder)


def test_a_record_of_other_numbers_than_the_features_say(tmp_path):
    folder = write_rlds(tmp_path / "set", [[example(0, 5, counting(0, 5, width=4))]])
    with pytest.raises(DataError, match=r"action/gripper has 10 numbers, expected 5 steps of 1"):
        opened(folder).read(0)


def test_tensorflow_is_not_imported(folder):
    program = (
        "import sys; from pathlib import Path; from tests.modalities.episodes.test_rlds import opened; "
        f"opened(Path({str(folder)!r})).read(0).frames([0]); "
        "sys.exit(any(name.partition('.')[0].startswith('tensorflow') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
