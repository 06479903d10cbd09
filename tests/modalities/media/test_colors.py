"""Every bit depth and color space comes out at full range on the background, or is refused."""

import struct

import numpy as np
import PIL
import pytest
from PIL import Image

from core.errors import DataError
from modalities.data.sources.selection import SUFFIXES
from modalities.media.images import read_image
from tests.modalities.making import image_bytes
from tests.modalities.media.image_files import LONG, SHORT, png, png_chunk, tiff

OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
BACKGROUND = (10, 20, 30)
WIDE = np.array([0, 257 * 100, 257 * 200, 65535], np.uint16)
LEVELS = [0, 100, 200, 255]
TWELVE = bytes([0x00, 0x08, 0x00, 0xC0, 0x0F, 0xFF])  # 0, 2048, 3072, 4095
RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def first_row(data: bytes) -> list[list[int]]:
    return read_image(data, "x", BACKGROUND)[0].tolist()


def gray(levels) -> list[list[int]]:
    return [[level] * 3 for level in levels]


@pytest.mark.parametrize(
    ("data", "levels"),
    [
        (tiff(4, 1, WIDE.astype("<u2").tobytes(), [16]), LEVELS),
        (tiff(4, 1, WIDE.astype(">u2").tobytes(), [16], order=">"), LEVELS),
        (tiff(4, 1, WIDE.astype("<u2").tobytes(), [16], photometric=0), [255, 155, 55, 0]),
        (tiff(4, 1, bytes(LEVELS), [8], photometric=0), [255, 155, 55, 0]),
        (tiff(4, 1, TWELVE, [12]), [0, 128, 191, 255]),
        (tiff(4, 1, bytes([0x05, 0xAF]), [4]), [0, 85, 170, 255]),
        (tiff(4, 1, bytes([0b00011011]), [2]), [0, 85, 170, 255]),
        (tiff(4, 1, bytes([0b01010000]), [1]), [0, 255, 0, 255]),
        (b"P5 4 1 65535 " + WIDE.astype(">u2").tobytes(), LEVELS),
        (b"P5 4 1 1023 " + struct.pack(">4H", 0, 341, 682, 1023), [0, 85, 170, 255]),
        (png(4, 16, 0, [WIDE.astype(">u2").tobytes()]), LEVELS),
        (png(4, 4, 0, [bytes([0x05, 0xAF])]), [0, 85, 170, 255]),
    ],
)
def test_gray_of_every_depth_has_its_full_range(data, levels):
    assert first_row(data) == gray(levels)


def test_gray_of_sixteen_bits_in_a_jpeg_2000():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    seen = read_image(image_bytes(ramp, "JPEG2000"), "x")
    assert np.abs(seen[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "kind", "dtype"), [(8, 2, "i1"), (16, 2, "<i2"), (32, 1, "<u4"), (32, 2, "<i4"), (32, 3, "<f4")]
)
def test_values_without_a_black_and_a_white_are_refused(bits, kind, dtype):
    data = tiff(4, 1, np.array([0, 1, 100, 127], dtype).tobytes(), [bits], sample_format=kind)
    with pytest.raises(DataError, match=r"^a\.tif: an image of signed, 32-bit or float values has no defined range"):
        read_image(data, "a.tif")


@pytest.mark.parametrize("bits", [10, 14, 64])
def test_a_depth_that_pillow_does_not_know_is_refused_for_that(bits):
    with pytest.raises(
        DataError, match=r"^a\.tif: cannot be decoded as an image: a TIFF file that is damaged or of an"
    ):
        read_image(tiff(4, 1, bytes(32), [bits]), "a.tif")


def test_sixteen_bits_for_each_color():
    values = WIDE[[0, 1, 3]]
    assert first_row(png(1, 16, 2, [values.astype(">u2").tobytes()])) == [[0, 100, 255]]
    assert first_row(tiff(1, 1, values.astype("<u2").tobytes(), [16] * 3, 2)) == [[0, 100, 255]]
    clear = np.array([*values, 65535, *values, 0])
    assert first_row(png(2, 16, 6, [clear.astype(">u2").tobytes()])) == [[0, 100, 255], [*BACKGROUND]]
    assert first_row(png(2, 16, 4, [struct.pack(">4H", 65535, 65535, 65535, 0)])) == [[255] * 3, [*BACKGROUND]]
    assert first_row(b"P6 1 1 65535 " + values.astype(">u2").tobytes()) == [[0, 100, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_gray(bits):
    top = 2**bits - 1
    levels = [0, top, top // 2, top]
    row = (
        np.array(levels, ">u2").tobytes()
        if bits == 16
        else np.packbits([[level >> bit & 1 for bit in reversed(range(bits))] for level in levels]).tobytes()
    )
    seen = first_row(png(4, bits, 0, [row], png_chunk(b"tRNS", struct.pack(">H", top))))
    shown = round(top // 2 * 255 / top)
    assert seen == [[0] * 3, [*BACKGROUND], [shown] * 3, [*BACKGROUND]]


def test_the_transparent_color_of_an_image_in_color():
    row = bytes([1, 2, 3, 1, 2, 4])
    assert first_row(png(2, 8, 2, [row], png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))) == [[*BACKGROUND], [1, 2, 4]]
    wide = np.array([257, 257, 257, 257, 257, 258, 256, 257, 257, 65535, 0, 0], ">u2")
    seen = first_row(png(4, 16, 2, [wide.tobytes()], png_chunk(b"tRNS", struct.pack(">3H", 257, 257, 257))))
    assert seen == [[*BACKGROUND], [1, 1, 1], [1, 1, 1], RED]  # the others differ by one level of 65536


def test_palettes_with_transparent_entries():
    colors, alpha = png_chunk(b"PLTE", bytes(RED + GREEN + BLUE)), png_chunk(b"tRNS", bytes([255, 0]))
    assert first_row(png(3, 2, 3, [bytes([0b00011000])], colors, alpha)) == [RED, [*BACKGROUND], BLUE]
    gif = Image.new("P", (2, 1))
    gif.putpalette(RED + GREEN)
    gif.putdata([0, 1])
    assert first_row(image_bytes(gif, "GIF", transparency=1)) == [RED, [*BACKGROUND]]
    both = tiff(2, 1, bytes([0, 255, 1, 0]), [8, 8], 3, [2], more=[color_map(65535)])
    assert first_row(both) == [RED, [*BACKGROUND]]


def color_map(top: int):
    """Red and green."""
    return 320, SHORT, [top, *[0] * 255, 0, top, *[0] * 254, *[0] * 256]


@pytest.mark.parametrize("top", [255, 65535])
def test_a_palette_of_8_bits_where_tiff_wants_16(top):
    assert first_row(tiff(2, 1, bytes([0, 1]), [8], 3, more=[color_map(top)])) == [RED, GREEN]


@pytest.mark.skipif(OLD_PILLOW, reason="Pillow before 13 refuses gray with such alpha")
def test_alpha_that_is_multiplied_in_already():
    gray_alpha = bytes([50, 128, 0, 0])
    color = bytes([50, 100, 128, 128, 0, 0, 0, 0])
    half = [5, 10, 15]  # of the background
    for data, wanted in (
        (tiff(2, 1, gray_alpha, [8, 8], 1, [1]), [50, 50, 50]),
        (tiff(2, 1, gray_alpha, [8, 8], 1, [2]), [25, 25, 25]),
        (tiff(2, 1, color, [8] * 4, 2, [1]), [50, 100, 128]),
        (tiff(2, 1, color, [8] * 4, 2, [2]), [25, 50, 64]),
    ):
        seen, clear = first_row(data)
        assert np.abs(np.array(seen) - np.add(wanted, half)).max() <= 1
        assert clear == [*BACKGROUND]
    assert first_row(tiff(2, 1, color, [8] * 4, 2, [0]))[0] == [50, 100, 128]  # a fourth sample without a meaning


def test_other_color_spaces():
    assert first_row(tiff(2, 1, bytes([0, 0, 0, 0, 255, 0, 0, 0]), [8] * 4, 5)) == [[255] * 3, [0, 255, 255]]
    lab = first_row(tiff(2, 1, bytes([0x88, 0x50, 0x43, 255, 0, 0]), [8] * 3, 8))
    assert np.abs(np.array(lab) - [RED, [255] * 3]).max() <= 12  # 8 bits of a and b are coarse


@pytest.mark.skipif(OLD_PILLOW, reason="Pillow before 13 refuses plain YCbCr")
def test_luma_and_chroma_in_a_tiff():
    luma = tiff(2, 1, bytes([76, 85, 255, 255, 128, 128]), [8] * 3, 6, more=[(530, SHORT, [1, 1])])
    assert np.abs(np.array(first_row(luma)) - [RED, [255] * 3]).max() <= 2


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "WEBP", "PNG", "TIFF"])
def test_half_transparent_images_of_other_formats(kind):
    suffix = {"AVIF": ".avif", "JPEG2000": ".jp2"}.get(kind, ".png")
    if suffix not in SUFFIXES["image"]:
        pytest.skip(f"this Pillow has no {kind}")
    data = image_bytes(Image.new("RGBA", (8, 8), (200, 100, 50, 128)), kind)
    assert np.abs(read_image(data, "x", BACKGROUND).astype(int) - [105, 60, 40]).max() <= 2


def test_a_long_strip_of_a_tiff_that_claims_more_than_memory():
    data = tiff(4, 1, bytes(4), [8]).replace(
        struct.pack("<HHII", 256, LONG, 1, 4), struct.pack("<HHII", 256, LONG, 1, 2**31)
    )
    with pytest.raises(DataError, match=r"^a\.tif: "):
        read_image(data, "a.tif")
