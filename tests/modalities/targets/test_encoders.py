import copy
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError, ConfigError, ShapeError
from modalities.targets import EncoderConfig, build_encoder
from tests.modalities.targets.encoder_models import MAKERS, make_dinov2, media, save, save_mert

pytest.importorskip("transformers", reason="transformers is not installed")

IMAGE = {"modality": "image", "media_size": (32, 48), "grid": (1, 3, 5)}
VIDEO = {"modality": "video", "media_size": (9, 32, 48), "grid": (3, 3, 5), "time_stride": 4}
AUDIO = {"modality": "audio", "media_size": (4000,), "grid": (64, 1, 1), "time_stride": 64, "sample_rate": 4000}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    paths = {name: str(save(make(), root / name.replace(" ", "_"))) for name, make in MAKERS.items()}
    return {**paths, "mert": str(save_mert(root / "mert"))}


def config(name: str, folders, **settings) -> EncoderConfig:
    return EncoderConfig(name.split()[0], folders[name], **settings)


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_encodes_images_and_video_frozen(name, folders):
    for case, videos in ((IMAGE, media(2, 3, 32, 48)), (VIDEO, media(2, 9, 3, 32, 48))):
        encoder = build_encoder(config(name, folders), **case)
        features = encoder.train()(videos.requires_grad_())
        tokens = case["grid"][0] * 15
        assert features.shape == (2, tokens, encoder.channels)
        assert features.dtype == torch.float32
        assert not features.requires_grad
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert features.std() > 0.1
        again = copy.deepcopy(encoder)(videos)
        assert torch.equal(again, features)
        alone = encoder(videos[1:])
        torch.testing.assert_close(alone, features[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("case", ["image", "video"])
def test_a_patch_shows_up_in_the_token_at_its_place(name, case, folders):
    """The token that changes most is the one whose pixels change: rows, columns and time are not mixed up."""
    case, plain = (IMAGE, torch.zeros(1, 3, 32, 48)) if case == "image" else (VIDEO, torch.zeros(1, 9, 3, 32, 48))
    case = {**case, "grid": (case["grid"][0], 2, 3)}
    encoder = build_encoder(config(name, folders, layer=1), **case)
    base = encoder(plain)
    frames = {0: 0, 1: 3, 2: 6} if case["modality"] == "video" else {0: 0}  # step -> a frame in it
    for step, frame in frames.items():
        for row in range(2):
            for column in range(3):
                planted = plain.clone()
                where = planted[0, frame] if case["modality"] == "video" else planted[0]
                where[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = media(3, 16, 16)
                change = (encoder(planted) - base).norm(dim=-1)[0]
                assert int(change.argmax()) == step * 6 + row * 3 + column


def test_mert_encodes_audio_frozen(folders):
    encoder = build_encoder(config("mert", folders), **AUDIO)
    features = encoder.train()(media(2, 2, 4000))
    assert features.shape == (2, 64, 24)
    assert features.dtype == torch.float32
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_output_is_float32_under_autocast_and_for_half_precision_weights(folders, tmp_path):
    encoder = build_encoder(config("dinov2", folders), **IMAGE)
    images = media(2, 3, 32, 48)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2  # the network, and it alone, has run in half precision
    half = save(make_dinov2(), tmp_path / "half", torch_dtype="bfloat16", dtype="bfloat16")
    tensors = {name: value.bfloat16() for name, value in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    read = build_encoder(EncoderConfig("dinov2", str(half)), **IMAGE)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}


def test_blocks_behind_the_layer_are_dropped(folders):
    for name in (*MAKERS, "mert"):
        case = AUDIO if name == "mert" else IMAGE
        count = [
            sum(p.numel() for p in build_encoder(config(name, folders, layer=layer), **case).parameters())
            for layer in (1, 2, 3, None)
        ]
        assert count[1] - count[0] == count[2] - count[1] > 0
        assert count[2] == count[3]
        with pytest.raises(ConfigError, match=r"encoder.layer: 4, but the encoder has 3 blocks; allowed: 1..3"):
            build_encoder(config(name, folders, layer=4), **case)


def test_refuse_to_interpolate(folders):
    doubled = {**VIDEO, "media_size": (8, 32, 48), "grid": (8, 3, 5), "time_stride": 1}
    build_encoder(config("dinov2", folders, resample="refuse"), **doubled)
    build_encoder(config("vjepa2", folders, resample="refuse"), **VIDEO)
    build_encoder(config("vjepa2", folders), **doubled)
    with pytest.raises(ConfigError, match="5 time steps of the vjepa2 encoder do not coincide with the 8"):
        build_encoder(config("vjepa2", folders, resample="refuse"), **doubled)
    with pytest.raises(ConfigError, match="set it to features"):
        build_encoder(config("mert", folders, resample="refuse"), **AUDIO)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dinov3"}, r"kind: 'dinov3' is not one of dinov2, siglip2.* Did you mean: 'dinov2'\?"),
        (
            {"kind": "depth_anything_3"},
            "kind: .* Depth Anything 3 has no class in transformers; kind depth_anything reads V1",
        ),
        ({"kind": "da3-large"}, "kind: .* Depth Anything 3 has no class"),
        ({"path": ""}, "path: must be a folder .* such as facebook/dinov2-base"),
        ({"kind": "mert", "path": ""}, "path: .* such as m-a-p/MERT-v1-95M"),
        ({"layer": 0}, "layer: 0 must be at least 1"),
        ({"resample": "feature"}, r"resample: 'feature' is not one of features, refuse. Did you mean: 'features'"),
    ],
)
def test_wrong_settings(settings, message):
    wrong = EncoderConfig(**{"path": "somewhere", **settings})
    assert len(wrong.problems()) == 1
    with pytest.raises(ConfigError, match=rf"^encoder\.{message}"):
        build_encoder(wrong, **IMAGE)
    assert EncoderConfig(path="somewhere").problems() == []


def test_modality_and_kind_must_fit(folders):
    with pytest.raises(ConfigError, match="'mert' does not encode image; allowed: dinov2, siglip2, vjepa2, depth_any"):
        build_encoder(config("mert", folders), **IMAGE)
    with pytest.raises(ConfigError, match="'dinov2' does not encode audio; allowed: mert"):
        build_encoder(config("dinov2", folders), **AUDIO)
    with pytest.raises(ConfigError, match="there is no encoder of action"):
        build_encoder(config("dinov2", folders), **{**IMAGE, "modality": "action"})


def test_shapes_must_fit(folders):
    for case in (
        {**IMAGE, "grid": (2, 3, 5)},
        {**IMAGE, "media_size": (3, 32, 48)},
        {**VIDEO, "grid": (3, 0, 5)},
        {**AUDIO, "grid": (64, 2, 1)},
        {**AUDIO, "sample_rate": None},
        {**VIDEO, "time_stride": 2},
    ):
        with pytest.raises(ShapeError, match=r"^encoder: "):
            build_encoder(config("mert" if case["modality"] == "audio" else "dinov2", folders), **case)
    encoder = build_encoder(config("dinov2", folders), **IMAGE)
    with pytest.raises(ShapeError, match=r"expected media of shape \(any, 3, 32, 48\), got \(2, 3, 48, 32\)"):
        encoder(media(2, 3, 48, 32))


def test_a_folder_without_a_model(tmp_path):
    for path in (str(tmp_path), str(tmp_path / "nowhere"), "typing-error"):
        with pytest.raises(ConfigError) as caught:
            build_encoder(EncoderConfig("siglip2", path), **IMAGE)
        message = str(caught.value)
        assert path in message
        assert "a folder with config.json, model.safetensors and preprocessor_config.json" in message
        assert "google/siglip2-base-patch16-256" in message
        assert "Every alignment but the external one works without it" in message


def test_a_hub_name_without_network(monkeypatch):
    def unreachable(path, name):
        raise OSError(f"We couldn't connect to the hub for {path}\nmore")

    monkeypatch.setattr("transformers.utils.cached_file", unreachable)
    with pytest.raises(
        ConfigError, match="'facebook/dinov2-base' cannot be read: We couldn't connect to the hub for f"
    ):
        build_encoder(EncoderConfig("dinov2", "facebook/dinov2-base"), **IMAGE)


def test_weights_that_are_not_there(folders, tmp_path):
    folder = save(make_dinov2(), tmp_path / "a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot be read: .*Kind 'dinov2' needs a folder with config.json, model"):
        build_encoder(EncoderConfig("dinov2", str(folder)), **IMAGE)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        build_encoder(EncoderConfig("dinov2", str(folder)), **IMAGE)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ConfigError, match=r"needs the package transformers, .*: pip install -e '\.\[models\]'\. Every alignment"
    ):
        build_encoder(EncoderConfig("dinov2", "a/b"), **IMAGE)


def test_a_folder_of_another_family(folders, tmp_path):
    with pytest.raises(
        ConfigError, match=r"holds a model of type 'vjepa2'; kind 'dinov2' reads .* Set encoder.kind: vj"
    ):
        build_encoder(EncoderConfig("dinov2", folders["vjepa2"]), **IMAGE)
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "da3-large"}))
    with pytest.raises(ConfigError, match=r"type None; kind 'depth_anything' reads .* Depth Anything 3 has no class"):
        build_encoder(EncoderConfig("depth_anything", str(tmp_path)), **IMAGE)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused(damage, tmp_path):
    folder = save(make_dinov2(), tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    if damage == "missing":
        del tensors["encoder.layer.1.mlp.fc1.bias"]
    elif damage == "unexpected":
        tensors["encoder.layer.1.extra"] = torch.zeros(2)
    else:
        tensors["encoder.layer.1.mlp.fc1.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="these weights do not fit a Dinov2Model: ") as caught:
        build_encoder(EncoderConfig("dinov2", str(folder)), **IMAGE)
    expected = {
        "missing": "missing keys: encoder.layer.1.mlp.fc1.bias",
        "unexpected": "unexpected keys: encoder.layer.1",
    }
    assert expected.get(damage, "") in str(caught.value)


def test_flops_are_counted(folders):
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for layer in (1, 2):
        encoder = build_encoder(config("dinov2", folders, layer=layer), **IMAGE)
        with FlopCounterMode(display=False) as counter:
            encoder(media(2, 3, 32, 48))
        counts.append(counter.get_total_flops())
    tokens, width = 2 * 16, 24
    linear = 2 * tokens * (4 * width * width + 2 * width * 2 * width)
    attention = 2 * 2 * 2 * 16 * 16 * width
    # torch does not count its fused attention on every device.
    assert counts[1] - counts[0] in (linear, linear + attention)
