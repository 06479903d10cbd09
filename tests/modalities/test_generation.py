"""Generation: the same bytes in batches of any size, and known parts that come back exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.runs import LoadedRun, load_run
from core.errors import NotFiniteError
from core.sampling.sampler import SamplerConfig
from modalities.conditioning.conditions import ConditionConfig
from modalities.generation import Known, generate, guidance_problem

PROMPTS = ["a red circle", "a blue square moving left", "notes C E G", "a cat"] * 2
PLAIN = SamplerConfig(steps=3)


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run)


def made(loaded: LoadedRun, modality: str, config: SamplerConfig = PLAIN, known=None, **more) -> torch.Tensor:
    """`known` of the only part, one for all or a list with one for each prompt."""
    arguments = {"prompts": PROMPTS, "seed": 0, "batch_size": 8} | more
    if known is not None:
        known = [{modality: one} for one in known] if isinstance(known, list) else {modality: known}
    samples = generate(loaded.generator, modality, config=config, known=known, **arguments)
    return torch.stack([sample[modality] for sample in samples])


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, solver="sde", cfg_scale=2.0), replace(PLAIN, solver="heun")])
def test_a_batch_of_any_size_gives_the_same_bits(loaded, modality, config):
    eight = made(loaded, modality, config)
    assert eight.isfinite().all()
    for size in (1, 3):
        assert torch.equal(made(loaded, modality, config, batch_size=size), eight)


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_seeds_and_prompts_and_places_matter(loaded, modality):
    first = made(loaded, modality)
    assert not torch.equal(made(loaded, modality, seed=1)[0], first[0])
    same = made(loaded, modality, prompts=["a cat"] * 2)
    assert not torch.equal(same[0], same[1])  # another place, another noise
    other = made(loaded, modality, prompts=["notes D"] * 2)
    assert not torch.equal(other[0], same[0])
    assert torch.equal(made(loaded, modality, prompts=PROMPTS[:3]), first[:3])  # a shorter list changes nothing


def test_guidance_acts_inside_its_interval_only(loaded):
    guided = replace(PLAIN, cfg_scale=3.0)
    assert not torch.equal(made(loaded, "image", guided), made(loaded, "image"))
    outside = replace(guided, cfg_interval=[0.1, 0.2])  # no step starts there: 1, 2/3, 1/3
    assert torch.equal(made(loaded, "image", outside), made(loaded, "image"))
    inside = replace(guided, cfg_interval=[0.5, 0.8])
    assert not torch.equal(made(loaded, "image", inside), made(loaded, "image"))


def test_progress_counts_every_step_of_every_sample(loaded):
    ticks = []
    made(loaded, "image", batch_size=3, progress=ticks.append)
    assert ticks == [3] * 3 + [3] * 3 + [2] * 3


def test_a_sample_that_is_not_finite_is_an_error(loaded):
    trunk = copy.deepcopy(loaded.generator.trunk)
    with torch.no_grad():
        trunk.media_out["image"].weight[0, 0] = float("nan")
    broken = replace(loaded.generator, trunk=trunk)
    with pytest.raises(NotFiniteError, match=r"sample image/0: \d+ of its 192 numbers are NaN or infinite"):
        list(generate(broken, "image", PROMPTS, PLAIN, 0))


def test_what_gives_guidance_nothing_to_work_with():
    guided = replace(PLAIN, cfg_scale=2.0)
    assert guidance_problem(ConditionConfig(), guided) is None
    assert guidance_problem(ConditionConfig(cfg_dropout=0.0), PLAIN) is None
    assert "condition.cfg_dropout: 0" in guidance_problem(ConditionConfig(cfg_dropout=0.0), guided)
    assert guidance_problem(ConditionConfig(kind="none"), PLAIN) is None
    assert "condition.kind: none" in guidance_problem(ConditionConfig(kind="none"), guided)


def image(adapter) -> torch.Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_known_pixels_come_back_exactly_and_the_others_depend_on_them(loaded):
    adapter = loaded.generator.parts["image"]["image"].adapter
    media = image(adapter)
    kept = torch.zeros(8, 8, dtype=torch.bool)
    kept[:, :6] = True  # the right tokens are known in part only
    known = Known(media, adapter.known_from_image_mask(kept), kept)
    assert known.conditioning_mask.tolist() == [True, False, True, False]
    result = made(loaded, "image", known=known)
    assert torch.equal(result[:, :, :, :6], media[None, :, :, :6].expand(8, -1, -1, -1))
    assert not torch.equal(result[0][:, :, 6:], media[:, :, 6:])
    other = made(loaded, "image", known=replace(known, media=-media))
    assert not torch.equal(other[0][:, :, 6:], result[0][:, :, 6:])
    for size in (1, 3):
        assert torch.equal(made(loaded, "image", known=known, batch_size=size), result)


def test_what_is_known_may_differ_between_samples(loaded):
    """Each is as it would be if its own were known in all of them."""
    adapter = loaded.generator.parts["image"]["image"].adapter
    kept = torch.zeros(8, 8, dtype=torch.bool)
    kept[:, :4] = True
    one = Known(image(adapter), adapter.known_from_image_mask(kept), kept)
    other = replace(one, media=-one.media)
    first, second = made(loaded, "image", known=one), made(loaded, "image", known=other)
    for size in (8, 3):
        mixed = made(loaded, "image", known=[one, other] * 4, batch_size=size)
        assert torch.equal(mixed[::2], first[::2])
        assert torch.equal(mixed[1::2], second[1::2])


def test_a_given_first_frame_comes_back_exactly(loaded):
    adapter = loaded.generator.parts["video"]["video"].adapter
    media = image(adapter)[None].repeat(3, 1, 1, 1)
    first = torch.arange(3) == 0
    known = Known(media, adapter.first_frame_mask(), first[:, None, None, None])
    result = made(loaded, "video", known=known)  # (8, 3, 3, 8, 8)
    assert torch.equal(result[:, 0], media[:1].expand(8, -1, -1, -1))
    assert not torch.equal(result[0, 1], media[0])
    assert not torch.equal(made(loaded, "video", known=replace(known, media=-media))[0, 2], result[0, 2])


@pytest.mark.parametrize("samples", [0, 63, 64, 400, 1199, 1200])
def test_the_beginning_of_audio_comes_back_exactly(loaded, samples):
    adapter = loaded.generator.parts["audio"]["audio"].adapter
    media = torch.rand(1, 1200, generator=torch.Generator().manual_seed(2)) - 0.5
    media[:, samples:] = 0
    known = Known(media, adapter.prefix_mask(samples), adapter.kept_prefix(samples))
    kept = int(known.kept.sum())
    assert kept == (1200 if samples == 1200 else max(0, (samples // 64 - 1) * 64))
    result = made(loaded, "audio", known=known)
    assert torch.equal(result[:, :, :kept], media[None, :, :kept].expand(8, -1, -1))
    if kept < 1200:
        assert not torch.equal(result[0, :, kept:], media[:, kept:])
    # What is put in place exactly is what the given tokens say anyway: there is no seam.
    free = made(loaded, "audio", known=replace(known, kept=torch.zeros(1200, dtype=torch.bool)))
    torch.testing.assert_close(free[:, :, :kept], result[:, :, :kept], rtol=0, atol=1e-4)
