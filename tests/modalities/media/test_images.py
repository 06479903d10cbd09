import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from core.errors import DataError
from modalities.media.images import read_image
from tests.modalities.making import audio_bytes, gradient, image_bytes, tone


def test_png_and_lossless_webp_are_exact_and_jpeg_is_close(tmp_path):
    pixels = gradient()
    assert np.array_equal(read_image(image_bytes(pixels), "x"), pixels)
    assert np.array_equal(read_image(image_bytes(pixels, "WEBP", lossless=True), "x"), pixels)
    jpeg = read_image(image_bytes(pixels, "JPEG", quality=95), "x").astype(int)
    assert 0 < np.abs(jpeg - pixels).mean() < 3
    path = tmp_path / "wrong_suffix.jpg"  # judged by content
    path.write_bytes(image_bytes(pixels))
    assert np.array_equal(read_image(path, "x"), pixels)


def test_alpha_is_composited_on_the_background():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (0, 0, 0, 51)  # one fifth opaque
    seen = read_image(image_bytes(pixels), "x", background=(255, 100, 0))
    assert seen[0, 0].tolist() == [10, 20, 30]
    assert seen[0, 1].tolist() == [204, 80, 0]
    assert seen[1, 1].tolist() == [255, 100, 0]


def test_transparent_palettes_and_gray_with_alpha():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    seen = read_image(image_bytes(palette, transparency=1), "x", background=(0, 0, 200))
    assert seen.tolist() == [[[255, 0, 0], [0, 0, 200]]]
    gray = Image.new("LA", (1, 1), (90, 0))
    assert read_image(image_bytes(gray), "x", background=(1, 2, 3)).tolist() == [[[1, 2, 3]]]


def test_sixteen_bit_gray_keeps_its_range():
    levels = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert read_image(image_bytes(levels), "x")[..., 0].tolist() == [[0, 100, 255]]
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert read_image(image_bytes(bilevel), "x").tolist() == [[[255] * 3, [0] * 3]]


def test_exif_orientation_turns_the_image_upright():
    pixels = gradient(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    seen = read_image(image_bytes(pixels, "PNG", exif=exif), "x")
    assert np.array_equal(seen, np.rot90(pixels, k=-1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_images_name_origin_and_reason(kind):
    data = image_bytes(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    for cut in (len(data) // 2, 30, 5):
        with pytest.raises(DataError, match=r"folder/a\.png: cannot be decoded as an image: .+"):
            read_image(data[:cut], "folder/a.png")


def test_what_is_not_an_image(tmp_path):
    wav = audio_bytes(tone(0.1, 8000), 8000)
    with pytest.raises(DataError, match=r"a.png: cannot be decoded as an image: not one of PNG, JPEG"):
        read_image(wav, "a.png")
    with pytest.raises(DataError, match=r"a.png: the file is empty \(0 bytes\)"):
        read_image(b"", "a.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be read: No such file"):
        read_image(tmp_path / "a.png", "a.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\), got float64"):
        read_image(np.zeros((4, 4, 3)), "array")


def test_an_image_cut_short_is_never_filled_up(monkeypatch):
    """PIL can be told to fill a cut JPEG with gray; by default it is not, and nothing here tells it to."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = image_bytes(gradient(200, 300), "JPEG")
    for cut in (len(data) - 1, len(data) * 9 // 10, len(data) // 2):
        with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded as an image: .*truncated"):
            read_image(data[:cut].removesuffix(b"\xff"), "a.jpg")


def test_a_small_file_that_unpacks_to_a_huge_image_is_refused():
    bomb = bytearray(image_bytes(Image.new("1", (8, 8))))
    struct.pack_into(">2I", bomb, 16, 20_000, 20_000)  # IHDR: width, height
    struct.pack_into(">I", bomb, 29, zlib.crc32(bomb[12:29]))
    with pytest.raises(DataError, match=r"a\.png: .*400000000 pixels.* exceeds limit"):
        read_image(bytes(bomb), "a.png")


def test_print_colors_become_red_green_and_blue():
    pixels = gradient()
    seen = read_image(image_bytes(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95), "x").astype(int)
    assert np.abs(seen - pixels).mean() < 3


def test_of_an_animation_the_first_image_is_taken():
    first, second = Image.fromarray(gradient()), Image.fromarray(255 - gradient())
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("TIFF", {})):
        data = image_bytes(first, kind, save_all=True, append_images=[second], **options)
        seen = read_image(data, "x").astype(int)
        assert np.abs(seen - gradient()).mean() < (3 if kind == "GIF" else 1e-9)


def test_a_color_profile_is_left_alone():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(read_image(image_bytes(gradient(), icc_profile=profile), "x"), gradient())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_one_pixel_thin(size):
    assert np.array_equal(read_image(image_bytes(gradient(*size)), "x"), gradient(*size))


@pytest.mark.parametrize(
    ("kind", "refused"), [("PNG", 0.9), ("JPEG", 0.2), ("WEBP", 0.2), ("GIF", 0.2), ("BMP", 0.0), ("TIFF", 0.0)]
)
def test_flipped_bytes_never_raise_anything_else(kind, refused):
    """Refused, or decoded to other pixels: only PNG has checksums, so at least `refused` of 40 damaged files are."""
    good = image_bytes(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), kind)
    count = 0
    for seed in range(40):
        rng, data = np.random.default_rng(seed), bytearray(good)
        for place in rng.integers(0, [len(data), 100][seed % 2], 1 + seed % 3):
            data[place] ^= int(rng.integers(1, 256))
        try:
            assert read_image(bytes(data), "x").dtype == np.uint8
        except DataError:
            count += 1
    assert count >= 40 * refused
