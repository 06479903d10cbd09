"""Data that are not there: one message for all modalities, that says what is needed and where."""

from __future__ import annotations

import re

import pytest

from configs.assembly.sources import needed, open_sources
from configs.load import load_config
from core.errors import ConfigError
from modalities.data.sources.folder import FolderConfig
from modalities.synthetic.config import SyntheticConfig
from tests.modalities.making import image_bytes, numbered

FILE = """
streams:
  image: {data: {kind: folder, path: pictures, captions: none}}
  video: {data: {kind: webdataset, path: clips, caption_fields: [short, long]}}
  audio: {data: {kind: parquet, path: sounds.parquet, media_field: sound}}
"""


def test_all_missing_data_are_named_at_once_with_what_is_needed(tmp_path):
    (tmp_path / "run.yaml").write_text(FILE)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(image_bytes(numbered(1)[0]))
    with pytest.raises(ConfigError) as raised:
        open_sources(load_config(tmp_path / "run.yaml", []), tmp_path)
    video, video_needs, audio, audio_needs = raised.value.problems  # the images are there
    assert re.match(r"streams.video\.data: path: .*clips does not exist", video)
    assert re.match(r"streams.audio\.data: path: .*sounds\.parquet does not exist", audio)
    assert re.search(r"\.tar files in which each record is NAME \(\.mp4 .* with captions in short or long", video_needs)
    assert "the column 'sound'" in audio_needs
    assert audio_needs.endswith("set streams.audio.data.path=PATH")


def test_what_is_there_is_opened(tmp_path):
    (tmp_path / "run.yaml").write_text("streams: {image: {data: {count: 7}}, audio: {data: {count: 5}}}")
    sources = open_sources(load_config(tmp_path / "run.yaml", []), tmp_path)
    assert {name: len(source) for name, source in sources.items()} == {"image": 7, "audio": 5}


@pytest.mark.parametrize(
    ("settings", "captions"),
    [({"captions": "none"}, False), ({"caption": "a cat"}, False), ({"captions": "label"}, False), ({}, True)],
)
def test_captions_are_asked_for_where_they_are_read(settings, captions):
    text = needed(FolderConfig(path="x", **settings), "image", "streams.image.data")
    assert ("captions in caption or captions" in text) == captions
    assert needed(SyntheticConfig(), "image", "streams.image.data") == ""
