"""Which size fits a record, and a bucket as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.base import Record
from modalities.data.buckets import Bucket, Measured, nearest_size
from modalities.data.order import Blocks, Order
from modalities.data.sources.account import Account
from modalities.image import ImageAdapter, ImageConfig
from modalities.media.images import image_extent, read_image
from modalities.media.video import video_extent
from tests.modalities.making import numbered, video_file

WIDE_AND_TALL = [(32, 32), (24, 40), (40, 24)]


@pytest.mark.parametrize(
    ("extent", "sizes", "fits"),
    [
        ((1000, 1000), WIDE_AND_TALL, 0),
        ((1080, 1920), WIDE_AND_TALL, 1),
        ((1920, 1080), WIDE_AND_TALL, 2),
        ((7, 12), WIDE_AND_TALL, 1),  # the shape counts first, also where it is enlarged
        ((3000, 4000), [(512, 512), (448, 576)], 1),  # 1.33 is nearer to 1.29 than to 1
        ((800, 800), [(256, 256), (512, 512), (1024, 1024)], 1),  # the largest that it fills
        ((100, 100), [(512, 512), (256, 256)], 1),  # none: the smallest
        ((600, 500), [(512, 512), (256, 256)], 1),  # 500 columns do not fill 512
        ((1000, 1000), [(256, 256), (1024, 1008), (512, 528)], 2),  # shapes within 5 percent count as one
        ((1000, 1000), [(256, 256), (512, 544)], 0),  # and 6 percent do not
        ((0, 0), WIDE_AND_TALL, -1),
    ],
)
def test_the_size_that_fits(extent, sizes, fits):
    assert nearest_size(np.array([extent]), sizes).tolist() == [fits]


class Pictures:
    """Records of images of some heights and widths; two blocks and a scattered range where asked for."""

    def __init__(self, extents: list[tuple[int, int]], blocks: Blocks | None = None):
        self.extents, self.own_blocks = extents, blocks

    def __len__(self) -> int:
        return len(self.extents)

    def read(self, index: int) -> Record:
        return Record(str(index), f"record {index}", np.zeros((*self.extents[index], 3), np.uint8))

    def blocks(self) -> Blocks | None:
        return self.own_blocks

    def labels(self) -> list[str]:
        return ["a", "b"]

    def account(self) -> Account:
        account = Account()
        account.leave("broken link|")
        return account

    def fingerprint(self) -> str:
        return "pictures"


def buckets(source: Pictures, least: int = 0, sizes=WIDE_AND_TALL) -> list[Bucket]:
    measured = Measured(source, "image", ImageAdapter(ImageConfig(size=[16, 16])))
    return [Bucket(measured, sizes, number, least) for number in range(len(sizes))]


def test_every_record_is_in_one_bucket_and_all_are_told():
    source = Pictures([(64, 64), (50, 80), (30, 30), (90, 50), (10, 10), (0, 5)])
    found = buckets(source, least=20)
    assert [bucket.indices.tolist() for bucket in found] == [[0, 2], [1], [3]]
    assert [bucket.enlarged for bucket in found] == [1, 0, 0]
    assert [bucket.read(0).key for bucket in found] == ["0", "1", "3"]
    assert [bucket.labels() for bucket in found] == [["a", "b"]] * 3
    assert found[0].account().left_out == {
        "broken link|": 1,
        "record| that cannot be read": 1,
        "record| below min_size": 1,
    }
    assert not found[1].account().left_out
    assert len({bucket.fingerprint() for bucket in (*found, *buckets(source, least=30))}) == 6


def test_blocks_keep_their_records():
    """Six blocks of five records; of each the order visits those of the bucket alone."""
    shapes = [(64, 64) if index % 3 else (50, 80) for index in range(30)]
    source = Pictures(shapes, Blocks(np.full(6, 5), window=2, scattered=((20, 30),)))
    square, wide, _ = buckets(source)
    rare, often = wide.blocks(), square.blocks()
    assert rare is not None
    assert often is not None
    assert rare.sizes.tolist() == [2, 2, 1, 2, 2, 1]  # multiples of 3 in each five of 0..29
    assert often.sizes.tolist() == [3, 3, 4, 3, 3, 4]
    assert rare.window == 2
    assert rare.scattered == ((7, 10),)  # 21, 24 and 27 are the last three of ten
    order = Order(wide, seed=0, modality="image")
    for epoch in range(2):
        assert sorted(order.at(epoch * 10 + place)[1] for place in range(10)) == list(range(10))


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_extent_is_that_of_the_upright_image(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(path, exif=exif)
    assert image_extent(path, "x") == image_extent(path.read_bytes(), "x") == read_image(path, "x").shape[:2]
    late = tmp_path / "late.png"
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(late, exif=exif)
    data = late.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    late.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])  # behind the pixels
    assert image_extent(late, "x") == image_extent(late.read_bytes(), "x") == read_image(late, "x").shape[:2]
    assert (image_extent(late, "x") == (20, 12)) == (turn > 4)


def test_the_extent_of_a_video(tmp_path: Path):
    path = video_file(tmp_path / "a.mp4", numbered(3, 48, 64))
    assert video_extent(path, "a") == (48, 64)
    assert video_extent(numbered(3, 8, 16), "array") == (8, 16)
