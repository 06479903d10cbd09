import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import CheckpointError, ConfigError, ShapeError
from core.keys import generator
from modalities.evaluation.networks.base import IMAGENET_MEAN, IMAGENET_STD, resize_bicubic
from modalities.evaluation.networks.pretrained import (
    CLIP_MEAN,
    CLIP_STD,
    Clap,
    Clip,
    DinoV2,
    clip_score,
    clip_similarity,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def noise_images(height: int, width: int, count: int = 2) -> torch.Tensor:
    """(B, 3, H, W) uint8 with structure of several sizes."""
    draw = generator("pictures", height, width)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(count, 3, height, width, generator=draw)
    return ((0.7 * smooth + 0.3 * noise) * 255).round().to(torch.uint8)


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Weights from their names, so that no test depends on the package's own initial values."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.3 / math.sqrt(max(1, value[0].numel())) if value.ndim > 1 else 0.1
            value.copy_(torch.randn(value.shape, generator=generator("fill", name)) * scale * 3)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return model.eval()


def pil(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> resized by PIL, uint8 (B, 3, *size)."""
    resized = [
        np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC))
        for one in pixels
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def inputs_of(network, media: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """What reaches the network's first convolution, in levels 0..255."""
    seen = {}
    hook = module.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    network(media)
    hook.remove()
    return seen["x"]


def as_levels(x: torch.Tensor, mean, std) -> torch.Tensor:
    return (x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]) * 255


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = transformers.CLIPConfig(
        text_config=tower | ends | {"vocab_size": 54, "max_position_embeddings": 12},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=6,
    )
    fill(transformers.CLIPModel(config)).save_pretrained(folder)
    return folder


def test_clip_features_are_the_models_on_images_prepared_by_pil(clip_folder):
    network, pixels = Clip(str(clip_folder)), noise_images(80, 121)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    media = pixels.float() / 127.5 - 1
    wanted = pil(pixels, (32, 48))[..., 8:40].float()  # short side 32, 121 * 32 / 80 = 48.4, the middle 32
    found = as_levels(
        inputs_of(network, media, network.model.vision_model.embeddings.patch_embedding), CLIP_MEAN, CLIP_STD
    )
    assert (found - wanted).abs().max() < 1.01
    x = (wanted / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=x).pooler_output
        theirs = model.visual_projection(pooled)
    ours = network(media).pool
    assert ours.shape == (2, 6)
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 0.1  # the tolerance tells images apart
    assert network.name == f"CLIP ({clip_folder.name})"
    assert not any(weight.requires_grad for weight in network.parameters())


def test_clip_texts(clip_folder):
    network = Clip(str(clip_folder))
    texts = network.texts(["ab", "a longer caption than the model can read"])
    assert texts.shape == (2, 6)
    torch.testing.assert_close(network.texts(["ab"])[0], texts[0])  # padding changes nothing
    cut = network.texts(["a longer capt", "a longer captain"])
    torch.testing.assert_close(cut[0], cut[1])  # 12 tokens with both ends: ten letters are read
    assert (texts[0] - texts[1]).abs().max() > 0.01


def test_the_clip_score_in_closed_form():
    images = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    texts = torch.tensor([[5.0, 0.0], [4.0, 3.0], [0.0, -1.0]])
    torch.testing.assert_close(clip_similarity(images, texts), torch.tensor([100.0, 96.0, -100.0]).double())
    assert clip_score(images, texts) == pytest.approx(32.0)  # the mean, with its negative term
    assert clip_score(images, -texts) == 0.0  # only the mean is clamped
    with pytest.raises(ShapeError, match="do not pair"):
        clip_score(images, texts[:2])


def test_the_clip_score_is_that_of_torchmetrics(clip_folder):
    multimodal = pytest.importorskip("torchmetrics.functional.multimodal", reason="torchmetrics is not installed")
    network, pixels, captions = Clip(str(clip_folder)), noise_images(40, 40, 4), ["a", "bcd", "red", "ship"]
    images, texts = network(pixels.float() / 127.5 - 1).pool, network.texts(captions)

    class Features:  # torchmetrics reads plain tensors and moves the model
        config = network.model.config

        def to(self, device):
            return self

        def get_image_features(self, x):
            return images

        def get_text_features(self, ids, mask):
            return texts

    def processor(text=None, images=None, return_tensors="pt", padding=True):
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        return network.tokenizer(text, return_tensors=return_tensors, padding=padding)

    theirs = multimodal.clip_score(list(pixels), captions, lambda: (Features(), processor))
    assert clip_score(images, texts) == pytest.approx(max(0.0, float(theirs)), abs=1e-3)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-dinov2")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=518, patch_size=14
    )
    fill(transformers.Dinov2Model(config)).save_pretrained(folder)
    return folder


def test_dinov2_features_are_the_class_token_on_images_squashed_by_pil(dino_folder):
    network, pixels = DinoV2(str(dino_folder)), noise_images(150, 300)
    media = pixels.float() / 127.5 - 1
    found = inputs_of(network, media, network.model.embeddings.patch_embeddings.projection)
    assert found.shape == (2, 3, 224, 224)
    wanted = pil(pixels, (224, 224)).float()
    assert (as_levels(found, IMAGENET_MEAN, IMAGENET_STD) - wanted).abs().max() < 1.01
    model = transformers.Dinov2Model.from_pretrained(dino_folder).eval()
    x = (wanted / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        theirs = model(pixel_values=x).pooler_output  # transformers' own name for that token
    ours = network(media).pool
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 0.1


@pytest.mark.parametrize(("size", "equal"), [((48, 48), 0.99), ((224, 224), 0.99), ((96, 72), 1), ((17, 90), 0.7)])
def test_bicubic_is_pils(size, equal):
    pixels = noise_images(96, 72)
    difference = (resize_bicubic(pixels.float(), size) - pil(pixels, size).float()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= equal


RATE, SECONDS = 8000, 1


def clap_folder(folder, fused: bool):
    fusion = {"enable_fusion": True, "enable_patch_fusion": True, "fusion_type": "aff_2d", "aff_block_r": 1}
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    sizes = {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4}
    widths = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2]}
    audio = sizes | widths | {"num_hidden_layers": 2, "projection_dim": 12} | (fusion if fused else {})
    config = transformers.ClapConfig(text_config=text | {"projection_dim": 12}, audio_config=audio, projection_dim=12)
    fill(transformers.ClapModel(config)).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=40,
        max_length_s=SECONDS,
        fft_window_size=256,
        frequency_max=RATE // 2,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return folder


def waveforms(count: int, samples: int, channels: int = 2) -> torch.Tensor:
    pitch = torch.arange(1, count + 1)[:, None, None] * 0.11
    hum = torch.sin(pitch * torch.arange(samples)) * 0.3
    return hum + 0.05 * torch.randn(count, channels, samples, generator=generator("sounds", samples))


@pytest.mark.parametrize("fused", [False, True])
def test_clap_features(tmp_path, fused):
    folder = str(clap_folder(tmp_path, fused))
    network, media = Clap(folder, RATE), waveforms(3, RATE)
    found = network(media).pool
    assert found.shape == (3, 12)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(network(media[1:2]).pool[0], found[1])  # no sample is treated apart from its batch

    model = transformers.ClapModel.from_pretrained(folder).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    mono = (media.mean(dim=1) * 32767).round() / 32767
    conditioning_mask = extractor([one.numpy() for one in mono], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        hidden = model.audio_model(
            conditioning_mask.input_features.float(), is_longer=torch.zeros(3, 1, dtype=torch.bool)
        )
        theirs = model.audio_projection(hidden.pooler_output)
    torch.testing.assert_close(found, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_clap_hears_the_middle_of_long_audio_always_the_same(tmp_path):
    network, media = Clap(str(clap_folder(tmp_path, False)), RATE), waveforms(1, 3 * RATE)
    assert torch.equal(network(media).pool, network(media).pool)
    assert torch.equal(network(media).pool, network(media[..., RATE : 2 * RATE]).pool)


def test_clap_resamples(tmp_path):
    pytest.importorskip("soxr", reason="soxr is not installed (extra `media`)")
    folder = str(clap_folder(tmp_path, False))
    slow = torch.sin(2 * torch.pi * 220 * torch.arange(RATE // 2) / (RATE // 2))[None, None] * 0.5
    fast = torch.sin(2 * torch.pi * 220 * torch.arange(RATE) / RATE)[None, None] * 0.5
    other = torch.sin(2 * torch.pi * 900 * torch.arange(RATE) / RATE)[None, None] * 0.5
    wanted = Clap(folder, RATE)(fast).pool
    near = (Clap(folder, RATE // 2)(slow).pool - wanted).norm()
    far = (Clap(folder, RATE)(other).pool - wanted).norm()
    assert near < 0.2 * far


def test_missing_weights_name_what_to_put_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for build, example in ((Clip, "openai/clip-vit-large-patch14"), (DinoV2, "facebook/dinov2-large")):
        with pytest.raises(CheckpointError) as caught:
            build(str(tmp_path / "nowhere"))
        for part in ("nowhere", "no such folder", example, "kind 'classifier'"):
            assert part in str(caught.value)


def test_random_values_in_place_of_missing_weights_are_refused(dino_folder, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dino_folder)
    state = model.state_dict()
    del state["layernorm.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 weights of Dinov2Model are missing, first layernorm\.weight"):
        DinoV2(str(tmp_path))


def test_another_model_is_refused(dino_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"feature network clip.*a model of type 'dinov2', not 'clip'"):
        Clip(str(dino_folder))
    # Registers would be dropped with a warning, and all features be wrong.
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a model of type 'dinov2_with_registers', not 'dinov2'"):
        DinoV2(str(tmp_path))


def test_without_transformers_the_message_says_so(monkeypatch, dino_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"dinov2 needs the package transformers, .*\. The networks inception"):
        DinoV2(str(dino_folder))
