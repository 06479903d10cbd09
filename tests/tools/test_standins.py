"""Stand-ins for data that are not there: each can be loaded, and only what is not there gets one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from configs.assembly import Assembly
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError, DataError
from modalities.base import Source, StoredLatents
from modalities.data.sources.build import ConcatConfig
from modalities.data.sources.webdataset import WebdatasetConfig
from modalities.synthetic.config import SyntheticConfig
from tests.modalities.making import image_bytes
from tests.tools.tiny import CONFIG
from tools.dry_run.standins import is_there, open_data, record

ABSENT = [f"streams.{name}.data={{kind: webdataset, path: nowhere/{name}}}" for name in ("image", "video", "audio")]

# A stream of two parts of other names than their modalities, and one of a modality that it shares.
SEVERAL = """
    clip:
      batch: 2
      data: {kind: webdataset, path: nowhere}
      parts:
        view: {modality: video, media: {size: [8, 8], frames: 3, patch: 4, patch_frames: 2, min_size: 12}}
        left: {modality: audio, media: {seconds: 0.375, hop: 64}}
        right: {modality: audio, media: {seconds: 0.375, hop: 64}, loss_weight: 0.5}
"""


def several(folder: Path, *overrides: str) -> Config:
    """The tiny configuration with `SEVERAL` as its only stream."""
    plain = yaml.safe_load(CONFIG.read_text()) | {"streams": yaml.safe_load(SEVERAL)}
    (folder / "several.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return load_config(folder / "several.yaml", list(overrides))


def opened(config: Config, root: Path) -> tuple[dict[str, Source], dict[str, list[str]]]:
    """(sources, absent)."""
    assembly = Assembly(config, root)
    absent = open_data(assembly)
    return assembly.sources, absent


@pytest.mark.parametrize(
    "own",
    [
        ["streams.image.media.min_size=20"],
        ["streams.image.media={size: [8, 12], patch: 4, crop: random}"],
        ["streams.audio.media={sample_rate: 8000, seconds: 0.25, channels: 2, hop: 50}"],
        ["streams.video.media={size: [12, 8], frames: 5, fps: 23.976, patch: 4, patch_frames: 2, min_size: 16}"],
    ],
)
def test_every_adapter_loads_its_stand_in(own, tmp_path):
    config = load_config(CONFIG, own)
    for name, adapters in Assembly(config, tmp_path).adapters.items():
        stand_in = record(config, name, adapters, ["a class"])
        (adapter,) = adapters.values()
        media = adapter.load(stand_in.part(name), torch.Generator())
        tokens = adapter.encode(media[None])
        assert tokens.shape == (1, adapter.ids().shape[0], adapter.channels)
        assert tokens.std() > 0
        assert (stand_in.captions, stand_in.label) == (("",), "a class")


def test_stored_latents_come_with_text_features_where_a_frozen_encoder_is_named(tmp_path):
    latents = "streams.image.data={kind: latents, path: nowhere}"
    encoder = "condition.encoder={kind: t5, path: nowhere, max_tokens: 7, width: 24}"
    for own, text in (([latents], ()), ([latents, encoder], ((7, 24),))):
        config = load_config(CONFIG, own)
        stand_in = record(config, "image", Assembly(config, tmp_path).adapters["image"], labels=[])
        assert isinstance(stand_in.media, StoredLatents)
        assert stand_in.media.mean.shape == (4, 48)
        assert stand_in.media.deviation is None  # pixels are not drawn from a posterior
        assert tuple(tuple(features.shape) for features in stand_in.text) == text


@pytest.mark.parametrize("latents", [False, True])
def test_every_part_of_a_stream_is_in_its_stand_in(latents, tmp_path):
    data = "streams.clip.data={kind: latents, path: nowhere}"
    config = several(tmp_path, *[data] * latents)
    sources, absent = opened(config, tmp_path)
    assert list(absent) == ["clip"]
    stand_in = sources["clip"].read(0)
    assert list(stand_in.parts) == ["view", "left", "right"]
    for name, adapter in Assembly(config, tmp_path).adapters["clip"].items():
        own = stand_in.part(name)
        shape = (adapter.ids().shape[0], adapter.channels)
        if latents:
            assert own.media.mean.shape == shape
        else:
            assert adapter.encode(adapter.load(own, torch.Generator())[None]).shape == (1, *shape)


def test_only_what_is_not_there_gets_a_stand_in(tmp_path):
    config = load_config(CONFIG, ABSENT[1:])
    sources, absent = opened(config, tmp_path)
    assert list(sources) == ["image", "video", "audio"]
    assert list(absent) == ["video", "audio"]
    assert len(sources["image"]) == 60
    assert len(sources["video"]) == 1
    reason, hint = absent["video"]
    assert "nowhere/video does not exist" in reason
    assert "set streams.video.data.path=PATH" in hint


def test_data_that_are_there_but_unfit_are_refused_with_those_that_are_not(tmp_path):
    (tmp_path / "empty").mkdir()
    config = load_config(CONFIG, ["streams.image.data={kind: folder, path: empty}", ABSENT[1]])
    with pytest.raises(ConfigError, match=r"(?s)streams\.image\.data: .*empty.*streams\.video\.data: .*exist"):
        opened(config, tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(b"not a tar")
    config = load_config(CONFIG, ["streams.image.data={kind: webdataset, path: shards}"])
    with pytest.raises(DataError, match=r"a\.tar"):
        opened(config, tmp_path)


def test_what_counts_as_there(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.tar").write_bytes(b"")
    there = {
        "shards": True,
        "a.tar": True,
        "nowhere": False,
        "shards/*.tar": True,  # the folder is: then the pattern is to be looked at
        "nowhere/*/[ab].tar": False,
        str(tmp_path / "shards"): True,
        "s3://bucket/folder": False,
    }
    assert {path: is_there(WebdatasetConfig(path=path), tmp_path) for path in there} == there
    both = {name: WebdatasetConfig(path=name) for name in ("shards", "nowhere")}
    assert not is_there(ConcatConfig(parts=both), tmp_path)
    assert is_there(ConcatConfig(parts={"shards": both["shards"]}), tmp_path)
    assert is_there(SyntheticConfig(), tmp_path)  # drawn in code


def test_classes_are_those_of_the_data_that_are_there_or_as_many_as_the_trunk_has(tmp_path):
    sit = CONFIG.with_name("tiny_sit.yaml")
    config = load_config(sit, [ABSENT[0]])
    sources, _ = opened(config, tmp_path)
    assert len(sources["image"].labels()) == config.trunk.sit.num_classes - 1
    own = ["condition.kind=label", "streams.video=null", "streams.audio=null"]
    config = load_config(CONFIG, [*own, ABSENT[0]])
    with pytest.raises(ConfigError, match="nowhere/image does not exist"):  # nothing else knows how many
        opened(config, tmp_path)
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "1.png").write_bytes(image_bytes(np.zeros((8, 8, 3), np.uint8)))
    own = ["condition.kind=label", "streams.audio=null", ABSENT[1]]
    config = load_config(CONFIG, [*own, "streams.image.data={kind: folder, path: set, captions: label}"])
    sources, absent = opened(config, tmp_path)
    assert sources["video"].labels() == ["cat", "dog"]
    assert list(absent) == ["video"]
