"""Plans: a step of the shapes that training has, from one sample, and from nothing at all."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from configs.load import load_config
from core.errors import ConfigError
from core.types import map_tensors
from tests.tools.test_standins import ABSENT, several
from tests.tools.tiny import CONFIG
from tools.dry_run.plan import Plan, first_batch, make_plan, not_here

SIT = CONFIG.with_name("tiny_sit.yaml")


def shapes(microbatch) -> list:
    found: list[tuple] = []

    def note(tensor: Tensor) -> Tensor:
        found.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    for field in fields(microbatch):
        map_tensors(getattr(microbatch, field.name), note)
    return found


def parameters(plan: Plan) -> list[Tensor]:
    return list(plan.assembly.trunk.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_microbatch_of_one_repeated_sample_has_the_shapes_of_the_real_one(accumulate, tmp_path):
    dataset = make_plan(load_config(CONFIG, [f"training.accumulate={accumulate}"]), tmp_path).assembly.dataset
    seen = set()
    for item in range(0, 12 * accumulate, accumulate):
        real = dataset[item]
        planned = first_batch(dataset, real.stream)
        assert shapes(planned) == shapes(real)
        assert len(planned.keys) == len(planned.parts[0].noise) == len(real.keys)
        tokens = len(planned.keys) * planned.parts[0].noise.shape[1]
        given = 0 if planned.conditioning_mask is None else int(planned.conditioning_mask.sum())
        assert planned.counts[real.stream] == tokens - given
        assert (planned.conditioning_mask is None) == (real.stream != "video")
        seen.add(real.stream)
    assert seen == {"image", "video", "audio"}


@pytest.mark.parametrize("method", ["self_flow", "self_flow_as", "dispersive"])
def test_stand_ins_have_the_shapes_of_the_data(method, tmp_path):
    own = [f"method={method}", "streams.video.modes={first_frame: 0}"]
    with_data = make_plan(load_config(CONFIG, own), tmp_path)
    without = make_plan(load_config(CONFIG, [*own, *ABSENT]), tmp_path)
    assert (list(with_data.absent), list(without.absent)) == ([], ["image", "video", "audio"])
    assert [p.shape for p in parameters(without)] == [p.shape for p in parameters(with_data)]
    for name in ("image", "video", "audio"):
        real, stand_in = with_data.step(name), without.step(name)
        assert shapes(stand_in.microbatch) == shapes(real.microbatch)
        assert stand_in.microbatch.batch.segments[0].x0.is_meta
        assert stand_in.missing == real.missing == {}
        assert stand_in.frozen == {}


@pytest.mark.parametrize("data", ["latents", "webdataset"])
def test_a_stream_of_several_parts_has_a_segment_for_each(data, tmp_path):
    config = several(tmp_path, f"streams.clip.data={{kind: {data}, path: nowhere}}")
    plan = make_plan(config, tmp_path)
    batch = plan.step("clip").microbatch.batch
    found = [(segment.name, segment.modality, tuple(segment.x0.shape), segment.weight) for segment in batch.segments]
    assert found == [
        ("view", "video", (2, 8, 96), 1.0),
        ("left", "audio", (2, 25, 64), 1.0),
        ("right", "audio", (2, 25, 64), 0.5),
    ]
    assert all(segment.x0.is_meta and segment.ids.dtype == torch.float32 for segment in batch.segments)
    assert set(plan.assembly.normalization) == {"video", "audio"}


def test_classes_without_data_fill_the_table_of_the_trunk(tmp_path):
    plan = make_plan(load_config(SIT, [ABSENT[0]]), tmp_path)
    assert len(plan.assembly.labels) == len(make_plan(load_config(SIT, []), tmp_path).assembly.labels)


def test_the_text_encoder_is_never_read_and_stored_features_spare_its_work(tmp_path):
    encoder = "condition.encoder={kind: t5, path: nobody/nothing, max_tokens: 7, width: 24}"
    plan = make_plan(load_config(CONFIG, [encoder]), tmp_path)
    step = plan.step("image")
    context = step.microbatch.batch.context
    assert (tuple(context.tokens.shape), context.tokens.dtype) == ((4, 7, 24), torch.bfloat16)
    assert "nobody/nothing is not on this machine" in step.missing["text encoder"]
    assert "text encoder" not in step.frozen
    latents = "streams.image.data={kind: latents, path: nowhere}"
    step = make_plan(load_config(CONFIG, [encoder, latents]), tmp_path).step("image")
    assert tuple(step.microbatch.batch.context.tokens.shape) == (4, 7, 24)
    assert (step.missing, step.frozen) == ({}, {})


def test_an_encoder_whose_channels_are_known_need_not_be_there(tmp_path):
    own = ["method=repa", "streams.image.encoders.dinov2={kind: dinov2, path: facebook/dinov2-large}"]
    own += ["streams.video=null", "streams.audio=null"]
    plan = make_plan(load_config(CONFIG, own), tmp_path)
    step = plan.step("image")
    assert tuple(step.microbatch.targets["image_dinov2"].shape) == (4, 4, 1024)
    assert list(step.missing) == ["encoder dinov2"]
    own[1] = "streams.image.encoders.dinov2={kind: dinov2, path: nobody/nothing}"
    with pytest.raises(ConfigError, match="nobody/nothing"):
        make_plan(load_config(CONFIG, own), tmp_path)


def test_only_names_on_the_hub_without_a_copy_would_be_fetched(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "owner/name is not on this machine" in not_here("owner/name")
    (tmp_path / "models--owner--name").mkdir()
    assert [not_here(path) for path in ("owner/name", "a folder", "/nowhere/at/all", str(tmp_path), "")] == [""] * 5
