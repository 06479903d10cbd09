"""Streams with several sizes: what becomes of them, and every refusal, by name."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.assembly import Assembly
from configs.buckets import by_size
from configs.load import load_config
from configs.resume import pieces_of
from core.errors import ConfigError
from core.flow import shift_number
from core.keys import generator
from core.noising import NoisingConfig, draw_levels
from core.sampling.config import SamplerConfig
from core.schedule import TimestepConfig
from core.shift import flux2_shift, flux_shift
from core.training.config import to_plain
from core.training.history import Past
from tests.configs.test_streams import problems, read

SIZES = "[[16, 16], [8, 16], [16, 8]]"
TEXT = (
    "streams:\n"
    "  image: {batch: 6, data: {kind: folder, path: pictures, caption: grey}, "
    "media: {size: [16], sizes: SIZES, patch: 4}}\n"
).replace("SIZES", SIZES)


def pictures(folder: Path, counts: dict[tuple[int, int], int]) -> None:
    """PNG files of grey, so many of each height and width."""
    (folder / "pictures").mkdir()
    for (height, width), count in counts.items():
        for index in range(count):
            pixels = np.full((height, width, 3), 10 * index, np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"{height}x{width}-{index}.png")


COUNTS = {(20, 20): 12, (10, 20): 24, (40, 20): 6}


def test_one_stream_for_each_size_with_no_more_tokens(tmp_path):
    config = read(tmp_path, TEXT)
    found = by_size(config).streams
    assert {name: (entry.media.size, entry.batch) for name, entry in found.items()} == {
        "image_16x16": ([16, 16], 6),
        "image_8x16": ([8, 16], 12),
        "image_16x8": ([16, 8], 12),
    }
    assert by_size(by_size(config)).streams == found
    plain = read(tmp_path, TEXT.replace(f"sizes: {SIZES}, ", ""))
    assert by_size(plain) is plain


def test_every_record_is_drawn_equally_often(tmp_path):
    """42 records: of steps of 6, 12 and 12 samples, 2, 2 and 1/2 go through them once."""
    pictures(tmp_path, COUNTS)
    dataset = Assembly(read(tmp_path, TEXT), tmp_path).dataset
    steps = 3000
    drawn = Counter(dataset.mix.stream(step) for step in range(steps))
    shares = {"image_16x16": 2 / 4.5, "image_8x16": 2 / 4.5, "image_16x8": 0.5 / 4.5}
    for name, share in shares.items():
        assert abs(drawn[name] / steps - share) < 4 * math.sqrt(share * (1 - share) / steps)
    sizes = {"image_16x16": (16, 16), "image_8x16": (8, 16), "image_16x8": (16, 8)}
    for step in range(8):
        batch = dataset[step]
        height, width = sizes[batch.stream]
        latents = batch.parts[0].latents
        assert latents is not None
        assert latents.shape == (dataset.mix.global_batch[batch.stream], height * width // 16, 48)
        assert all(key.startswith({16: "20x20", 8: "10x20"}[height]) or width == 8 for key in batch.keys)


def test_an_epoch_of_a_size_holds_each_of_its_records_once(tmp_path):
    pictures(tmp_path, COUNTS)
    dataset = Assembly(read(tmp_path, TEXT), tmp_path).dataset
    keys = [dataset.sample("image_8x16", position, []).key for position in range(48)]
    assert len(set(keys[:24])) == len(set(keys[24:])) == 24


def test_shares_of_processes_and_microbatches_are_those_of_one(tmp_path):
    pictures(tmp_path, COUNTS)
    config = read(tmp_path, TEXT, "training.accumulate=2")
    whole = Assembly(replace(config, training=replace(config.training, accumulate=1)), tmp_path).dataset
    cut = Assembly(config, tmp_path).dataset
    ranks = [Assembly(config, tmp_path).dataset for _ in range(3)]
    for rank, dataset in enumerate(ranks):
        dataset.rank, dataset.world = rank, 3
    for step in range(4):
        together = whole[step]
        assert [key for micro in range(2) for key in cut[2 * step + micro].keys] == list(together.keys)
        shared = [ranks[rank][2 * step + micro] for micro in range(2) for rank in range(3)]
        assert [key for batch in shared for key in batch.keys] == list(together.keys)
        counts = sum(shared[3 * micro].counts["image"] for micro in range(2))
        assert counts == together.counts["image"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "[[16, 16], [8, 18]]",
            "streams.image.media.sizes: [8, 18]: 18 is not a multiple of patch 4; nearest: 16 or 20",
        ),
        ("[[16, 16], [8, 16], [8, 16]]", "streams.image.media.sizes: [8, 16] is there twice"),
        ("[[16], [16, 16]]", "streams.image.media.sizes: [16, 16] is there twice"),
        (
            "[[8, 16], [16, 8]]",
            "streams.image.media.size: [16] is not one of the sizes [8, 16], [16, 8]; it is the one that `batch` is of",
        ),
    ],
)
def test_refused_sizes(tmp_path, override, line):
    assert problems(tmp_path, TEXT, f"streams.image.media.sizes={override}") == [line]


def test_a_size_without_records_is_refused_with_the_counts(tmp_path):
    pictures(tmp_path, {(20, 20): 3, (10, 20): 2})
    with pytest.raises(ConfigError) as caught:
        Assembly(read(tmp_path, TEXT), tmp_path).sources  # noqa: B018
    assert caught.value.problems[0] == (
        "streams.image.data: no record fits 16 x 8 best; leave it out of media.sizes (records by size: "
        "16 x 16 3, 8 x 16 2, 16 x 8 0)"
    )


def test_the_shift_by_tokens():
    """SD3: twice the side is twice the shift. FLUX: mu 0.5 at 256 tokens and 1.15 at 4096, as its code has it."""
    sd3 = TimestepConfig(kind="logit_normal", shift=3.0, shift_rule="sd3", shift_tokens=1024)
    assert [sd3.at(tokens).shift for tokens in (256, 1024, 4096)] == [1.5, 3.0, 6.0]
    assert [round(math.log(flux_shift(tokens)), 9) for tokens in (256, 1024, 4096)] == [0.5, 0.63, 1.15]
    # BFL's compute_empirical_mu, as noted in the field: 4 and 50 steps, and one line above 4300 tokens.
    table = {(256, 4): 1.97, (256, 50): 1.62, (1024, 4): 2.03, (1024, 50): 1.70, (4096, 4): 2.29, (4096, 50): 2.02}
    assert {key: round(math.log(flux2_shift(*key)), 2) for key in table} == table
    assert math.log(flux2_shift(5000, 4)) == pytest.approx(0.00016927 * 5000 + 0.45666666)


def test_levels_and_steps_follow_the_tokens():
    """The same draw, shifted by each sample's own tokens."""
    plain = TimestepConfig(kind="uniform")
    ruled = replace(plain, shift=2.0, shift_rule="sd3", shift_tokens=16)
    for tokens, shift in ((16, 2.0), (64, 4.0)):
        own, base = (
            draw_levels(NoisingConfig(kind="homogeneous"), config, 0.25, [tokens], generator("levels"))[0].values
            for config in (ruled, plain)
        )
        assert own.item() == pytest.approx(shift_number(base.item(), shift), abs=1e-6)
    sampler = SamplerConfig(steps=4, shift=2.0, shift_rule="sd3", shift_tokens=16)
    assert sampler.at(64).timesteps() == SamplerConfig(steps=4, shift=4.0).timesteps()
    assert TimestepConfig(shift=2.0, shift_rule="flux").problems() == [
        "shift: 2.0 is not read with shift_rule 'flux', which says it itself; leave it at 1"
    ]
    assert sampler.at(16).timesteps() == SamplerConfig(steps=4, shift=2.0).timesteps()


def test_a_quoted_configuration_reads_its_sizes(tmp_path):
    path = tmp_path / "run.yaml"
    read(tmp_path, TEXT)
    assert load_config(path, []).streams["image"].media.sizes == [[16, 16], [8, 16], [16, 8]]


def test_earlier_shares_are_those_of_earlier_settings(tmp_path):
    """A run whose batch was changed after 5 steps: what its sizes had consumed by then is what they had then."""
    pictures(tmp_path, COUNTS)
    before, now = read(tmp_path, TEXT), read(tmp_path, TEXT, "streams.image.batch=12")
    assembly, old = Assembly(now, tmp_path), Assembly(before, tmp_path).dataset.mix
    assembly.earlier = pieces_of([Past(5, to_plain(before))], assembly.sources)
    mix = assembly.dataset.mix
    assert [mix.stream(step) for step in range(5)] == [old.stream(step) for step in range(5)]
    assert [mix.first_position(step) for step in range(5)] == [old.first_position(step) for step in range(5)]
    consumed = sum(old.global_batch[old.stream(step)] for step in range(5) if old.stream(step) == mix.stream(5))
    assert mix.first_position(5) == consumed
    assert mix.global_batch["image_16x16"] == 12
