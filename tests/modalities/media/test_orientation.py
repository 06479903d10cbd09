import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from modalities.media.images import read_image
from modalities.media.orientation import exif_orientation
from tests.modalities.making import gradient, image_bytes
from tests.modalities.media.image_files import ASCII, LONG, ORIENTATION, RATIONAL, SHORT, png_chunk, tags, tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
RIGHT = (ORIENTATION, SHORT, [6])  # the camera was turned: shown rotated by 90 degrees clockwise
TURNED = np.rot90(PIXELS, k=-1)
GPS, GPS_PLACE = 0x8825, 8 + 2 + 2 * 12 + 4
# One tag beside the orientation that is not of its usual type, and what lies behind the directory.
ODD = {
    "subfile type as bytes": ((254, 1, [7]), b""),
    "maker as a fraction": ((271, RATIONAL, struct.pack("<2I", 1, 3)), b""),
    "resolution as text": ((282, ASCII, b"72\0"), b""),
    "a double where bytes belong": ((347, 12, struct.pack("<d", -1.5)), b""),
    "a fraction over zero": ((282, RATIONAL, bytes(8)), b""),
    "a place without a fix": (
        (GPS, LONG, [GPS_PLACE]),
        struct.pack("<HHHII", 1, 7, RATIONAL, 3, GPS_PLACE + 18) + bytes(4) + bytes(24),
    ),
    "a place of another type": (
        (GPS, LONG, [GPS_PLACE]),
        struct.pack("<HHHII", 1, 1, RATIONAL, 1, GPS_PLACE + 18) + bytes(4) + struct.pack("<2I", 1, 3),
    ),
    "a directory outside the block": ((0x8769, LONG, [10**6]), b""),
    "a directory that is its own": ((0x8769, LONG, [8]), b""),
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_all_turns_are_those_of_pillow(kind, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    data = image_bytes(PIXELS, kind, exif=exif.tobytes(), **options)
    plain = Image.fromarray(read_image(image_bytes(PIXELS, kind, **options), "x"))
    plain.getexif()[ORIENTATION] = turn
    assert np.array_equal(read_image(data, "x"), np.asarray(ImageOps.exif_transpose(plain)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tag_of_an_odd_type_changes_nothing(name, kind, order):
    entry, behind = ODD[name]
    exif = tags([RIGHT, entry], order) + behind
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = read_image(image_bytes(PIXELS, kind, exif=b"Exif\0\0" + exif, **options), "x")
    plain = read_image(image_bytes(PIXELS, kind, **options), "x")
    assert np.array_equal(seen, np.rot90(plain, k=-1))


@pytest.mark.parametrize("name", ODD)
def test_a_tag_of_an_odd_type_in_a_tiff(name):
    seen = read_image(tiff(16, 8, PIXELS.tobytes(), [8] * 3, 2, more=[RIGHT, ODD[name][0]]), "x")
    assert np.array_equal(seen, TURNED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_costs_the_image(kind):
    exif = bytearray(tags([RIGHT, (271, ASCII, b"Maker of it\0"), (0x8769, LONG, [40]), (GPS, LONG, [60])]) + bytes(80))
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = exif.copy()
        for place in rng.integers(8, len(exif), 4):
            broken[place] = rng.integers(256)
        seen = read_image(image_bytes(PIXELS, kind, exif=b"Exif\0\0" + bytes(broken)), "x")
        assert sorted(seen.shape[:2]) == [8, 16]


@pytest.mark.parametrize(
    ("exif", "turn"),
    [
        (tags([RIGHT]), 6),
        (tags([RIGHT], ">"), 6),
        (b"Exif\0\0" * 2 + tags([RIGHT]), 6),
        (tags([(ORIENTATION, LONG, [8])]), 8),
        (tags([(ORIENTATION, ASCII, b"6\0")]), None),
        (tags([(ORIENTATION, SHORT, [6, 6])]), None),
        (tags([(271, ASCII, b"x\0")]), None),
        (tags([RIGHT])[:15], None),
        (b"", None),
        (b"II*\0\xff\xff\xff\xff", None),
        (b"not EXIF at all", None),
    ],
)
def test_the_tag_in_a_block_of_exif(exif, turn):
    assert exif_orientation(exif) == turn


@pytest.mark.parametrize("value", [0, 9, 300])
def test_a_turn_that_does_not_exist_is_none(value):
    data = image_bytes(PIXELS, exif=tags([(ORIENTATION, SHORT, [value])]))
    assert np.array_equal(read_image(data, "x"), PIXELS)


XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png_with(chunk: bytes) -> bytes:
    data = image_bytes(PIXELS)
    return data[:33] + chunk + data[33:]


def test_what_other_programs_write_of_it_into_a_png():
    """XMP, which counts where EXIF says nothing, and ImageMagick's text."""
    assert np.array_equal(
        read_image(png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())), "x"), TURNED
    )
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP.encode())
    assert np.array_equal(read_image(png_with(png_chunk(b"iTXt", packed)), "x"), TURNED)
    digits = (b"Exif\0\0" + tags([RIGHT])).hex()
    profile = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n      40\n{digits}\n".encode())
    assert np.array_equal(read_image(png_with(png_chunk(b"zTXt", profile)), "x"), TURNED)
    nonsense = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      40\nno digits")
    assert np.array_equal(read_image(png_with(png_chunk(b"zTXt", nonsense)), "x"), PIXELS)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 2**20))),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3 * 2**20))),
        png_chunk(b"tEXt", b"Comment\0" + b"x" * 2**20) * 70,  # in all more than 64 MB
        png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 * 2**20))),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(3 * 2**20))),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 * 2**20))),
        png_chunk(b"zTXt", b"Comment\0\0damaged"),
        png_chunk(b"zTXt", b"Comment\0\0x")[:-1] + b"?",  # a wrong checksum
    ],
)
def test_long_or_damaged_texts_in_a_png_are_passed_over(chunk):
    assert np.array_equal(read_image(png_with(chunk), "x"), PIXELS)


def test_damage_elsewhere_in_a_png_with_texts_is_still_noticed():
    data = bytearray(png_with(png_chunk(b"tEXt", b"Comment\0text")))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(Exception, match=r"^a\.png: cannot be decoded as an image"):
        read_image(bytes(data), "a.png")


def test_the_first_image_of_a_stereo_photo():
    first, second = Image.fromarray(gradient()), Image.fromarray(255 - gradient())
    data = image_bytes(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(read_image(data, "x"), read_image(image_bytes(first, "JPEG"), "x"))
