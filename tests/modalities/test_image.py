import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from autoencoders.flux2 import Flux2Config
from autoencoders.kinds import KINDS
from autoencoders.sd_vae import SDVAEConfig
from autoencoders.transforms import MdctConfig
from core.errors import ConfigError, DataError, ShapeError
from core.keys import generator
from core.training.config import from_plain
from modalities.image import ImageAdapter, ImageConfig, fit_frames
from modalities.media.images import read_image
from modalities.streams import make_parts, make_segments
from tests.modalities.making import gradient, image_bytes, record


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_wanted_size_survives_bit_for_bit(tmp_path):
    adapter, pixels = ImageAdapter(ImageConfig(size=[16])), noise(16, 16)
    media = adapter.load(record(image_bytes(pixels)), generator("a"))
    assert media.shape == (3, 16, 16)
    assert media.dtype == torch.float32
    assert media.min() >= -1
    assert media.max() <= 1
    tokens = adapter.encode(media[None])
    assert tokens.shape == (1, 16, 48)
    assert adapter.channels == 48
    again = adapter.decode(tokens)[0]
    assert torch.equal(again, media)
    assert np.array_equal(read_image(adapter.write(again, tmp_path / "a"), "a"), pixels)


def test_positions_and_segment():
    adapter = ImageAdapter(ImageConfig(size=[8, 12]))
    assert adapter.grid() == (1, 2, 3)
    assert adapter.ids().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    (segment,) = make_segments(make_parts({"image": adapter}), [torch.zeros(2, 6, 48)])
    assert segment.modality == "image"


def test_the_center_crop_keeps_the_middle():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    media = ImageAdapter(ImageConfig(size=[32])).load(record(pixels), generator("a"))
    assert (media == 1).all()


def test_pad_keeps_the_whole_image():
    pixels = np.full((16, 64, 3), 255, np.uint8)
    adapter = ImageAdapter(ImageConfig(size=[32], crop="pad", background=[255, 0, 0]))
    media = adapter.load(record(pixels), generator("a"))
    torch.testing.assert_close(media[:, 12:20], torch.ones(3, 8, 32))  # 16 x 64 becomes 8 x 32
    torch.testing.assert_close(media[0], torch.ones(32, 32))
    assert (media[1:, :12] == -1).all()
    assert (media[1:, 20:] == -1).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    media = ImageAdapter(ImageConfig(size=[16])).load(record(stripes), generator("a"))
    assert media.abs().max() < 0.1  # plain sampling would give full black or white


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 3), (17, 16), (31, 33), (127, 16)])
@pytest.mark.parametrize("crop", ["center", "random", "pad"])
def test_every_shape_fits(height, width, crop):
    adapter = ImageAdapter(ImageConfig(size=[16, 20], crop=crop))
    media = adapter.load(record(noise(height, width)), generator("a"))
    assert media.shape == (3, 16, 20)
    assert media.isfinite().all()


def test_a_random_crop_is_a_function_of_its_generator():
    adapter = ImageAdapter(ImageConfig(size=[16], crop="random"))
    item = record(noise(16, 400))
    crops = [adapter.load(item, generator("sample", i)) for i in range(8)]
    assert torch.equal(crops[3], adapter.load(item, generator("sample", 3)))
    assert len({crop.sum().item() for crop in crops}) > 4
    starts = {tuple(crop[0, 0].tolist()) for crop in crops}
    row = (torch.tensor(item.media[0, :, 0]) / 127.5 - 1).tolist()
    assert starts <= {tuple(row[i : i + 16]) for i in range(385)}


def test_resizing_is_that_of_pil():
    for height, width, size in ((360, 640, [192, 341]), (100, 100, [256]), (70, 300, [16, 69])):
        rows, columns = np.mgrid[:height, :width]
        smooth = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
        for pixels in (smooth, noise(height, width)):
            media = ImageAdapter(ImageConfig(size=size, patch=1)).load(record(pixels), generator("a"))
            seen = ((media + 1) * 127.5).permute(1, 2, 0).numpy()
            wide, high = size[-1], size[0]
            expected = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BICUBIC))
            assert np.abs(seen - expected).max() < 2.01
            assert np.abs(seen - expected).mean() < 0.3
            exact = torch.nn.functional.interpolate(
                torch.tensor(pixels).permute(2, 0, 1)[None].double(), (high, wide), mode="bicubic", antialias=True
            )[0].clamp(0, 255)
            assert np.abs(seen - exact.permute(1, 2, 0).numpy()).mean() < 0.5


def test_oblong_pixels_become_square():
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[10:20, 10:20] = 255  # twice as wide as high on the screen
    config = ImageConfig(size=[30, 80], patch=1)
    media = fit_frames([pixels], config, "x", generator("a"), aspect=2.0)[0]
    assert media.shape == (3, 30, 80)
    bright = (media[0] > 0).nonzero()
    assert (bright.amin(dim=0).tolist(), bright.amax(dim=0).tolist()) == ([10, 20], [19, 39])
    padded = fit_frames([pixels], ImageConfig(size=[40], crop="pad"), "x", generator("a"), aspect=2.0)[0]
    assert (padded[0] > 0.99).all(dim=1).sum() == 40 - 15  # 15 rows of image: 30 x 80 became 15 x 40


def test_images_are_mirrored_in_training_only_and_only_when_asked():
    item = record(noise(16, 16))
    plain, adapter = ImageAdapter(ImageConfig(size=[16])), ImageAdapter(ImageConfig(size=[16], flip=True))
    media = plain.load(item, generator("a"))
    assert torch.equal(adapter.load(item, generator("a")), media)
    seen = [adapter.augment(media, generator("sample", i)) for i in range(40)]
    mirrored = [torch.equal(one, media.flip(-1)) for one in seen]
    assert all(flipped or torch.equal(one, media) for flipped, one in zip(mirrored, seen, strict=True))
    assert 10 < sum(mirrored) < 30
    again = [torch.equal(adapter.augment(media, generator("sample", i)), media.flip(-1)) for i in range(40)]
    assert again == mirrored
    draw = generator("sample", 0)
    assert plain.augment(media, draw) is media
    assert torch.equal(torch.rand(1, generator=draw), torch.rand(1, generator=generator("sample", 0)))


def test_small_images_are_refused_only_when_asked():
    item = record(noise(12, 40))
    assert ImageAdapter(ImageConfig(size=[16])).load(item, generator("a")).shape == (3, 16, 16)
    with pytest.raises(DataError, match="folder/file: 12 x 40 pixels, the short side must have at least 16"):
        ImageAdapter(ImageConfig(size=[16], min_size=16)).load(item, generator("a"))


def test_transparency_takes_the_configured_background():
    adapter = ImageAdapter(ImageConfig(size=[4], background=[0, 0, 255]))
    media = adapter.load(record(image_bytes(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))), generator("a"))
    assert media.mean(dim=(1, 2)).tolist() == [-1, -1, 1]


def test_a_token_is_given_only_when_all_its_pixels_are_known():
    adapter = ImageAdapter(ImageConfig(size=[8, 12]))
    known = torch.ones(8, 12, dtype=torch.bool)
    known[3, 4] = False  # one pixel of the token in row 0, column 1
    known[4:, 8:] = False
    assert adapter.known_from_image_mask(known).tolist() == [True, False, True, True, True, False]
    with pytest.raises(ShapeError, match=r"mask: expected bool \(8, 12\)"):
        adapter.known_from_image_mask(known.T)


def test_given_tokens_keep_their_pixels_through_the_inverse():
    adapter = ImageAdapter(ImageConfig(size=[16]))
    media = adapter.load(record(noise(16, 16)), generator("a"))
    known = torch.zeros(16, 16, dtype=torch.bool)
    known[:, :10] = True
    conditioning_mask = adapter.known_from_image_mask(known)
    tokens = adapter.encode(media[None])
    filled = torch.where(
        conditioning_mask[None, :, None], tokens, torch.randn(tokens.shape, generator=generator("fill"))
    )
    painted = adapter.decode(filled)[0]
    assert torch.equal(painted[..., :8], media[..., :8])
    assert not torch.equal(painted[..., 8:], media[..., 8:])


def test_a_mask_file_is_cut_like_its_image():
    adapter = ImageAdapter(ImageConfig(size=[16], crop="random"))
    pixels = np.full((16, 200, 3), 255, np.uint8)
    pixels[:, 60:90] = 0
    media = adapter.load(record(pixels), generator("same"))
    known = adapter.load_mask(record(image_bytes(pixels)), generator("same"))
    assert known.dtype == torch.bool
    assert torch.equal(known, media[0] < 0)  # dark is known
    clear = adapter.load_mask(record(image_bytes(Image.new("RGBA", (16, 16), (0, 0, 0, 0)))), generator("a"))
    assert not clear.any()


def test_every_problem_of_a_config_is_named():
    config = ImageConfig(size=[18, 16], patch=4, crop="centre", background=[0, 0, 300], min_size=-1)
    problems = config.problems()
    assert problems[0] == "size: 18 is not a multiple of patch 4; nearest: 16 or 20"
    assert "Did you mean: 'center'?" in problems[1]
    assert [line.split(":")[0] for line in problems] == ["size", "crop", "background", "min_size"]
    with pytest.raises(ConfigError, match="size: 18"):
        ImageAdapter(config)
    assert ImageConfig(size=[3], patch=4).problems() == ["size: 3 is not a multiple of patch 4; nearest: 4"]
    assert ImageConfig(size=[]).problems()
    assert ImageConfig(patch=0).problems() == ["patch: 0 must be at least 1"]


def test_the_config_is_a_structured_config():
    merged = OmegaConf.merge(OmegaConf.structured(ImageConfig), OmegaConf.create({"size": [32], "crop": "pad"}))
    assert OmegaConf.to_object(merged) == ImageConfig(size=[32], crop="pad")


def test_pixels_need_no_weights():
    adapter = ImageAdapter(ImageConfig()).to("cpu")
    assert adapter.load_weights() is None
    assert (adapter.has_weights, adapter.posterior_noise, adapter.normalization) == (False, False, None)
    with pytest.raises(ShapeError, match="Pixels predicts no distribution"):
        adapter.encode(torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 48))


@pytest.mark.parametrize(
    ("kind", "settings", "grid", "channels"),
    [
        ("sd_vae", {}, (1, 16, 16), 16),
        ("sd_vae", {"patch": 1}, (1, 32, 32), 4),
        ("flux2", {}, (1, 16, 16), 128),
        ("flux2", {"patch": 2}, (1, 8, 8), 512),
        ("rae", {}, (1, 16, 16), 768),
    ],
)
def test_tokens_of_an_autoencoder_are_known_without_its_weights(kind, settings, grid, channels):
    adapter = ImageAdapter(ImageConfig(size=[256], autoencoder=KINDS["image"][kind](path="nowhere"), **settings))
    assert adapter.has_weights
    assert (adapter.grid(), adapter.channels) == (grid, channels)
    assert adapter.ids().shape == (grid[1] * grid[2], 3)
    known = torch.ones(256, 256, dtype=torch.bool)
    known[-1, -1] = False
    assert adapter.known_from_image_mask(known).logical_not().nonzero().tolist() == [[grid[1] * grid[2] - 1]]


def test_an_image_goes_through_an_autoencoder_to_a_file(tmp_path):
    small = pytest.importorskip("tests.autoencoders.small")
    config = SDVAEConfig(path=str(small.save("sd_vae", tmp_path / "weights")))
    adapter = ImageAdapter(ImageConfig(size=[32, 48], autoencoder=config)).to("cpu")
    media = adapter.load(record(image_bytes(noise(50, 60))), generator("a"))
    tokens = adapter.encode(media[None], torch.zeros(1, 6, 16))
    assert torch.equal(tokens, adapter.encode(media[None]))
    torch.testing.assert_close(adapter.normalization.normalize(tokens), tokens * 0.18215)
    decoded = adapter.decode(tokens)
    assert decoded.shape == (1, 3, 32, 48)
    assert read_image(adapter.write(decoded[0], tmp_path / "a"), "a").shape == (32, 48, 3)


def test_problems_of_an_autoencoder_are_named():
    def problems(size: int, kind: str = "sd_vae", patch: int | None = None) -> list[str]:
        return ImageConfig(size=[size], autoencoder=KINDS["image"][kind](path="nowhere"), patch=patch).problems()

    assert problems(250) == ["size: height: 250 is not a multiple of 16; the nearest legal sizes: 240 or 256"]
    assert problems(248, patch=1) == []
    assert problems(128, "rae") == ["size: 128 x 128: rae was trained for images of one size; legal: 256 x 256"]
    assert problems(256, patch=0) == ["patch: 0 must be at least 1"]
    assert ImageConfig(autoencoder=MdctConfig()).problems() == [
        "autoencoder.kind: 'mdct' is not one of pixels, sd_vae, flux2, rae."
    ]


def test_the_section_of_the_autoencoder_is_a_structured_config():
    config = from_plain(ImageConfig, {"autoencoder": {"kind": "flux2", "path": "x"}})
    assert config == ImageConfig(autoencoder=Flux2Config(path="x"))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), AttributeError("y"), MemoryError("z"), OverflowError("w")])
@pytest.mark.parametrize("place", ["modalities.media.images.Image.open", "modalities.image.fit_frames"])
def test_whatever_goes_wrong_with_an_image_costs_that_record(error, place, monkeypatch):
    def broken(*_args, **_options):
        raise error

    data = image_bytes(gradient())
    monkeypatch.setattr(place, broken)
    with pytest.raises(
        DataError, match=rf"^folder/file: cannot be decoded as an image: {type(error).__name__}: {error}"
    ):
        ImageAdapter(ImageConfig()).load(record(data), generator("a"))
