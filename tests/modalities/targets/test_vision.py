"""Features against the transformers library's own models and image processors, and REPA's recipe written out."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from core.errors import CheckpointError, ConfigError
from modalities.targets import EncoderConfig, build_encoder
from modalities.targets.vision import HALF, IMAGENET, Images
from tests.modalities.targets.encoder_models import (
    MAKERS,
    make_depth_anything,
    make_dinov2,
    make_dinov2_registers,
    make_siglip2,
    make_vjepa2,
    media,
    save,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

MEAN, STD = torch.tensor(IMAGENET[0]).view(3, 1, 1), torch.tensor(IMAGENET[1]).view(3, 1, 1)


def smooth_pixels(height: int, width: int) -> torch.Tensor:
    """uint8 (3, H, W) without sharp edges, which 8-bit resizing and float resizing treat alike."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    waves = torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(3 * y)])
    return (127.5 + 110 * waves).round().to(torch.uint8)


def as_media(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def processor(name: str, **settings):
    """An image processor that needs no torchvision, in transformers 4 and 5."""
    return (getattr(transformers, f"{name}Pil", None) or getattr(transformers, name))(**settings)


def encode(kind: str, folder, image: torch.Tensor, grid: tuple[int, int], **settings) -> torch.Tensor:
    encoder = build_encoder(EncoderConfig(kind, str(folder), **settings), "image", image.shape[-2:], (1, *grid))
    return encoder(image)


@pytest.mark.parametrize(("make", "prefix"), [(make_dinov2, 1), (make_dinov2_registers, 4)])
def test_dinov2_is_repas_recipe(make, prefix, tmp_path):
    """256 pixels -> 4 x 4 patches, position embeddings 5 x 5 -> 4 x 4, as sihyun-yu/REPA's train.py and utils.py do."""
    model = make()
    folder = save(model, tmp_path)
    pixels = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    found = encode("dinov2", folder, as_media(pixels), (4, 4))

    table = model.embeddings.position_embeddings.data
    square = table[:, 1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(square, (4, 4), mode="bicubic", antialias=True)
    model.embeddings.position_embeddings.data = torch.cat([table[:, :1], square.flatten(2).transpose(1, 2)], dim=1)
    x = functional.interpolate((pixels / 255.0 - MEAN) / STD, 56, mode="bicubic")
    with torch.no_grad():
        expected = model(x).last_hidden_state[:, prefix:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_dinov2_at_its_own_size_sees_what_its_image_processor_makes(tmp_path):
    model = make_dinov2()
    pixels = torch.randint(256, (1, 3, 70, 70), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    found = encode("dinov2", save(model, tmp_path), as_media(pixels), (5, 5))
    prepare = processor(
        "BitImageProcessor", do_resize=False, do_center_crop=False, image_mean=IMAGENET[0], image_std=IMAGENET[1]
    )
    seen = prepare(pixels[0].numpy(), return_tensors="pt", input_data_format="channels_first").pixel_values
    with torch.no_grad():
        expected = model(seen).last_hidden_state[:, 1:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_depth_anything_is_the_last_feature_map_of_its_backbone(tmp_path):
    model = make_depth_anything()
    pixels = smooth_pixels(50, 90)
    found = encode("depth_anything", save(model, tmp_path), as_media(pixels)[None], (5, 9))
    prepare = processor(
        "DPTImageProcessor",
        size={"height": 70, "width": 126},
        resample=3,
        image_mean=IMAGENET[0],
        image_std=IMAGENET[1],
    )
    seen = prepare(pixels.numpy(), return_tensors="pt", input_data_format="channels_first").pixel_values
    assert seen.shape == (1, 3, 70, 126)
    with torch.no_grad():
        expected = model.backbone(seen).feature_maps[-1][:, 1:]
    assert (found - expected).abs().max() < 0.05  # the processor rounds to 8 bit after resizing
    assert (found - expected).square().mean() < 1e-4 * expected.var()


def test_siglip2_naflex_sees_what_its_image_processor_makes(tmp_path):
    model = make_siglip2()
    pixels = smooth_pixels(96, 160)
    found = encode("siglip2", save(model, tmp_path), as_media(pixels)[None].repeat(2, 1, 1, 1), (3, 5))
    prepare = processor("Siglip2ImageProcessor", patch_size=16, max_num_patches=15)
    inputs = prepare(pixels.numpy(), return_tensors="pt", input_data_format="channels_first")
    assert inputs["spatial_shapes"].tolist() == [[3, 5]]
    with torch.no_grad():
        tower = model.vision_model
        expected = tower(inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"])[0]
    for row in found:
        assert (row - expected[0]).abs().max() < 0.05
        assert (row - expected[0]).square().mean() < 1e-4 * expected.var()


def test_siglip_of_fixed_size_sees_what_its_image_processor_makes(tmp_path):
    model = MAKERS["siglip2 fixed"]()
    pixels = smooth_pixels(96, 160)
    folder = save(model, tmp_path)
    found = encode("siglip2", folder, as_media(pixels)[None], (4, 4))
    prepare = processor("SiglipImageProcessor", size={"height": 64, "width": 64}, resample=2)
    seen = prepare(pixels.numpy(), return_tensors="pt", input_data_format="channels_first").pixel_values
    with torch.no_grad():
        expected = model.vision_model(seen)[0]
    assert (found - expected).abs().max() < 0.05
    assert (found - expected).square().mean() < 1e-4 * expected.var()
    with torch.no_grad():
        image = functional.interpolate(as_media(pixels)[None], (48, 80), mode="bilinear", antialias=True)
        other = model.vision_model(image, interpolate_pos_encoding=True)[0]
    torch.testing.assert_close(encode("siglip2", folder, as_media(pixels)[None], (3, 5)), other, atol=2e-5, rtol=1e-4)


def test_vjepa2_sees_frames_as_pil_resizes_them(tmp_path):
    model = make_vjepa2()
    frames = torch.stack([smooth_pixels(96, 128).roll(9 * i, dims=2) for i in range(4)])
    config = EncoderConfig("vjepa2", str(save(model, tmp_path)))
    found = build_encoder(config, "video", (4, 96, 128), (2, 4, 4), 2)(as_media(frames)[None])
    resized = [Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((64, 64), Image.BILINEAR) for frame in frames]
    x = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        expected = model.get_vision_features(x[None])
    assert (found - expected).abs().max() < 0.1
    assert (found - expected).square().mean() < 1e-4 * expected.var()


def test_vjepa2_positions_are_those_of_the_trunks_grid(tmp_path):
    """A model whose config says 80 pixels computes positions of 5 x 5 by itself."""
    model = make_vjepa2()
    folder = save(model, tmp_path)
    wide = transformers.VJEPA2Model(transformers.VJEPA2Config(**{**model.config.to_dict(), "crop_size": 80})).eval()
    wide.load_state_dict(model.state_dict())
    video = media(1, 4, 3, 80, 80)
    found = build_encoder(EncoderConfig("vjepa2", str(folder)), "video", (4, 80, 80), (2, 5, 5), 2)(video)
    with torch.no_grad():
        expected = wide.get_vision_features(((video + 1) / 2 - MEAN) / STD)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_vjepa2_begins_its_tubelets_with_the_trunks_steps(tmp_path):
    model = make_vjepa2()
    config = EncoderConfig("vjepa2", str(save(model, tmp_path)))
    video = media(1, 5, 3, 64, 64)
    x = ((video + 1) / 2 - MEAN) / STD
    with torch.no_grad():
        filled = model.get_vision_features(torch.cat([x[:, :1], x], dim=1))  # tubelets 00 12 34
    found = build_encoder(config, "video", (5, 64, 64), (3, 4, 4), 2)(video)
    torch.testing.assert_close(found, filled, atol=2e-5, rtol=1e-4)
    tubelets = filled.unflatten(1, (3, 16))
    found = build_encoder(config, "video", (5, 64, 64), (2, 4, 4), 4)(video)
    expected = torch.stack([tubelets[:, 0], tubelets[:, 1:].mean(dim=1)], dim=1).flatten(1, 2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "vjepa2"])
def test_a_latent_frame_gets_the_mean_of_its_frames(name, tmp_path):
    folder = save(MAKERS[name](), tmp_path)
    config, video = EncoderConfig(name.split()[0], str(folder)), media(2, 9, 3, 32, 48)
    single = torch.stack([encode(config.kind, folder, video[:, i], (2, 3)) for i in range(9)], dim=1)  # (B, T, hw, D)
    alone = build_encoder(config, "video", (9, 32, 48), (3, 2, 3), 4)(video)
    expected = torch.stack([single[:, 0], single[:, 1:5].mean(1), single[:, 5:].mean(1)], dim=1)
    torch.testing.assert_close(alone, expected.flatten(1, 2), atol=2e-5, rtol=1e-4)
    even = build_encoder(config, "video", (9, 32, 48), (3, 2, 3), 3)(video)
    torch.testing.assert_close(even, single.unflatten(1, (3, 3)).mean(2).flatten(1, 2), atol=2e-5, rtol=1e-4)
    each = build_encoder(config, "video", (9, 32, 48), (9, 2, 3))(video)
    torch.testing.assert_close(each, single.flatten(1, 2), atol=2e-5, rtol=1e-4)


def test_a_layer_is_its_output_after_the_final_norm(tmp_path):
    model = make_dinov2()
    found = encode("dinov2", save(model, tmp_path), media(1, 3, 70, 70), (5, 5), layer=2)
    with torch.no_grad():
        hidden = model((media(1, 3, 70, 70) / 2 + 0.5 - MEAN) / STD, output_hidden_states=True).hidden_states[2]
        expected = model.layernorm(hidden)[:, 1:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_the_preprocessors_own_statistics_are_used(tmp_path):
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2}
    model = make_dinov2()
    folder = save(model, tmp_path, own)
    images = media(1, 3, 64, 64)
    mean, std = (torch.tensor(own[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    x = functional.interpolate(((images + 1) / 2 - mean) / std, 70, mode="bilinear")
    with torch.no_grad():
        expected = model(x).last_hidden_state[:, 1:]
    torch.testing.assert_close(encode("dinov2", folder, images, (5, 5)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"resample": 1}, {"image_mean": [0.5]}, {"image_std": [0.5, 0.0, 0.5]}, {"image_mean": [[1, 2, 3]]}]
)
def test_wrong_preprocessors(wrong, tmp_path):
    folder = save(make_dinov2(), tmp_path, wrong)
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: "):
        encode("dinov2", folder, media(1, 3, 64, 64), (5, 5))


def test_a_strong_reduction_is_antialiased():
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    prepare = Images((14, 14), {}, HALF, "bicubic", antialias=False)
    assert prepare(stripes).abs().max() < 0.1
    plain = Images((56, 56), {}, HALF, "bicubic", antialias=False)
    assert torch.equal(plain(stripes), functional.interpolate(stripes, (56, 56), mode="bicubic"))
    assert torch.equal(Images((64, 64), {}, HALF, "bicubic")(stripes), stripes)


def test_depth_anything_with_another_backbone(tmp_path):
    folder = save(make_depth_anything(), tmp_path, backbone_config={"model_type": "swin"})
    with pytest.raises(ConfigError, match="has a 'swin' backbone; allowed: dinov2"):
        encode("depth_anything", folder, media(1, 3, 64, 64), (5, 5))
