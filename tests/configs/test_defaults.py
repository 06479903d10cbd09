"""A held-out source takes from `data` what it does not set, and a run without conditions needs no captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoencoders.transforms import PixelsConfig
from configs.load import load_config
from core.errors import ConfigError
from core.training.config import to_yaml
from modalities.data.sources.config import SourceConfig
from modalities.data.sources.folder import FolderConfig
from modalities.data.sources.parquet import ParquetConfig
from modalities.data.sources.webdataset import WebdatasetConfig
from modalities.synthetic.config import SyntheticConfig

IMAGE = "streams: {{image: {{data: {data}, val: {val}}}}}\n"


def val(tmp_path: Path, data: str, held: str, *overrides: str) -> SourceConfig:
    (tmp_path / "run.yaml").write_text(IMAGE.format(data=data, val=held))
    return load_config(tmp_path / "run.yaml", list(overrides)).streams["image"].val


def test_captions_fields_and_filters_are_taken_and_the_place_is_not(tmp_path):
    data = (
        "{kind: parquet, path: train, captions: label, label_field: kind, media_field: jpg, where: {style: noto}, "
        "caption_default: x, caption_choice: first, split: train, holdout: 0.1, repeat: 3}"
    )
    found = val(tmp_path, data, "{kind: parquet, path: test}")
    wanted = ParquetConfig(
        path="test",
        captions="label",
        label_field="kind",
        media_field="jpg",
        where={"style": "noto"},
        caption_default="x",
        caption_choice="first",
    )
    assert found == wanted
    assert val(tmp_path, data, "{path: test}") == wanted  # the kind, too


def test_what_is_set_stays_and_another_kind_takes_only_what_it_reads(tmp_path):
    data = "{kind: parquet, path: a, captions: label, label_field: kind, media_field: jpg, shuffle_blocks: 3}"
    taken = FolderConfig(path="b", captions="label", label_field="kind")
    assert val(tmp_path, data, "{kind: folder, path: b}") == taken
    found = val(tmp_path, data, "{kind: webdataset, path: b, label_field: class}")
    assert found == WebdatasetConfig(path="b", captions="label", label_field="class", shuffle_blocks=3)
    found = val(tmp_path, data, "{kind: folder, path: b, caption_fields: [text]}")
    assert (found.captions, found.caption_fields) == ("given", ["text"])  # how captions are found is one setting
    found = val(tmp_path, "{kind: folder, path: a, caption: a cat}", "{path: b, captions: label}")
    assert (found.captions, found.caption) == ("label", "")


def test_a_split_without_a_path_is_the_other_side(tmp_path):
    data = "{kind: folder, path: photos, split: train, holdout: 0.1, holdout_key: person, captions: none}"
    found = val(tmp_path, data, "{split: test}")
    assert found == FolderConfig(path="photos", split="test", holdout=0.1, holdout_key="person", captions="none")


def test_synthetic_data_are_drawn_alike_but_others(tmp_path):
    found = val(tmp_path, "{size: 8, seed: 4, count: 50}", "{seed: 1, count: 9}")
    assert found == SyntheticConfig(size=8, seed=1, count=9)


def test_of_a_concat_what_all_parts_agree_on_and_by_name(tmp_path):
    parts = "{a: {kind: folder, path: a, captions: label}, b: {kind: folder, path: b, captions: label, where: {x: y}}}"
    data = f"{{kind: concat, parts: {parts}, caption_choice: middle}}"
    assert val(tmp_path, data, "{path: c}") == FolderConfig(path="c", captions="label", caption_choice="middle")
    found = val(tmp_path, data, "{kind: concat, parts: {b: {path: d}, other: {path: e}}}")
    assert found.parts == {
        "b": FolderConfig(path="d", captions="label", where={"x": "y"}),
        "other": FolderConfig(path="e", captions="label"),
    }
    found = val(tmp_path, "{kind: folder, path: a, captions: label}", "{kind: concat, parts: {b: {path: d}}}")
    assert found.parts == {"b": FolderConfig(path="d", captions="label")}


def test_overrides_count_and_a_resolved_file_reads_back_equal(tmp_path):
    (tmp_path / "run.yaml").write_text("streams: {image: {data: {kind: folder, path: a, captions: label}}}\n")
    override = "streams.image.val={kind: folder, path: b}"
    config = load_config(tmp_path / "run.yaml", [override])
    assert config.streams["image"].val.captions == "label"
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "resolved.yaml", []) == config
    (tmp_path / "resolved.yaml").write_text(to_yaml(load_config(tmp_path / "run.yaml", [])))
    assert load_config(tmp_path / "resolved.yaml", [override]).streams["image"].val.captions == "label"


def test_texts_that_look_like_numbers_are_taken_as_texts_and_errors_point_at_their_line(tmp_path):
    assert val(tmp_path, "{kind: folder, path: a, caption: 007}", "{path: b}").caption == "007"
    (tmp_path / "run.yaml").write_text(
        "streams:\n  image:\n    data: {kind: folder, path: a,\n      captions: labels}\n    val: {path: b}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", [])
    assert [line.split(": ")[:2] for line in caught.value.problems] == [
        ["run.yaml:4", "streams.image.data.captions"],
        ["run.yaml:4", "streams.image.val.captions"],
    ]


@pytest.mark.parametrize("wrong", ["3", "[a]", "{kind: [a]}", "{parts: 3}", "{kind: concat, parts: {a: 3}}"])
def test_wrong_sections_are_refused_as_ever(tmp_path, wrong):
    for data, held in ((wrong, "{path: b}"), ("{kind: folder, path: a}", wrong)):
        with pytest.raises(ConfigError, match=r"streams.image\.(data|val)"):
            val(tmp_path, data, held, "condition.kind=none")


def test_another_kind_on_the_command_line_begins_its_section_anew(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "streams: {image: {data: {kind: parquet, path: a, media_field: jpg}, media: {size: [32], autoencoder: "
        "{kind: sd_vae, path: weights, precision: bf16}}}}\n"
    )
    image = load_config(
        tmp_path / "run.yaml",
        ["streams.image.data.path=b", "streams.image.data.kind=folder", "streams.image.media.autoencoder.kind=pixels"],
    ).streams["image"]
    assert image.data == FolderConfig(path="b")
    assert (image.media.size, image.media.autoencoder) == ([32], PixelsConfig())
    with pytest.raises(ConfigError, match=r"image.data.path: empty, kind 'folder' needs one"):
        load_config(tmp_path / "run.yaml", ["streams.image.data.kind=folder"])


def test_without_conditions_no_source_needs_captions(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "condition: {kind: none}\nstreams: {image: {data: {kind: concat, parts: {a: {kind: folder, path: a}, "
        "b: {kind: folder, path: b, captions: label}, c: {}}}, val: {kind: parquet, path: c}}}\n"
    )
    image = load_config(tmp_path / "run.yaml", []).streams["image"]
    assert [image.data.parts[name].captions for name in ("a", "b")] == ["none", "label"]
    assert image.data.parts["c"] == SyntheticConfig()
    assert image.val.captions == "none"
