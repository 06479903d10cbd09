import re

import pytest
import torch
from torch import nn

from core.errors import CheckpointError, ConfigError, ShapeError
from core.keys import generator
from modalities.evaluation.networks.base import Features, Framewise, pick_frames, to_levels
from modalities.evaluation.networks.classifier import Classifier
from modalities.evaluation.networks.kinds import KINDS, NetworkConfig, build_network, kinds_for
from modalities.media.writing import to_bytes


class Mean(nn.Module):
    """An image network whose feature is the mean color."""

    name, kind, distance = "mean color", "mean", "distance of colors"

    def forward(self, media):
        return Features(media.mean((2, 3)), None, -media.mean((2, 3)))


def classifier(modality: str = "image", sample_rate: int | None = None) -> Classifier:
    network = Classifier(modality, ["a", "b"], "test data", sample_rate)
    network.net.reset(generator("networks"))
    return network.eval()


def test_features_join():
    parts = [Features(torch.full((2, 3), float(i)), torch.zeros(2, 1), None) for i in range(2)]
    joined = Features.join(parts)
    assert joined.pool[:, 0].tolist() == [0, 0, 1, 1]
    assert joined.spatial.shape == (4, 1)
    assert joined.logits is None


def test_levels_are_those_of_written_files():
    media = torch.linspace(-1.1, 1.1, 3 * 64).view(3, 8, 8)
    assert torch.equal(to_levels(media), torch.from_numpy(to_bytes(media)).permute(2, 0, 1).float())


@pytest.mark.parametrize(
    ("frames", "count", "wanted"), [(5, 3, [0, 2, 4]), (4, 4, [0, 1, 2, 3]), (2, 4, [0, 0, 1, 1]), (1, 2, [0, 0])]
)
def test_frames_are_picked_evenly(frames, count, wanted):
    assert pick_frames(torch.arange(frames)[None], count)[0].tolist() == wanted


def test_framewise_measures_every_frame():
    network = Framewise(Mean())
    videos = torch.rand(3, 15, 3, 4, 4, generator=generator("clips")) * 2 - 1  # more frames than one chunk
    features = network(videos)
    assert features.pool.shape == (45, 3)
    torch.testing.assert_close(features.pool[16], videos[1, 1].mean((1, 2)))
    torch.testing.assert_close(features.logits, -features.pool)
    assert (network.name, network.distance) == ("framewise mean color", "framewise distance of colors")
    with pytest.raises(ShapeError, match="expected video"):
        network(videos[0])


def test_kinds_for_a_modality():
    assert kinds_for("image") == ["inception", "dinov2", "clip", "efficientnet_lite0", "classifier"]
    assert kinds_for("video") == ["inception", "dinov2", "clip", "efficientnet_lite0", "videomae", "i3d", "classifier"]
    assert kinds_for("audio") == ["clap", "classifier"]


def test_problems():
    assert NetworkConfig().problems() == []
    assert NetworkConfig("inception", "a.pth").problems() == []
    assert "Did you mean: 'inception'?" in NetworkConfig("inceptoin").problems()[0]
    for kind in KINDS.keys() - {"classifier"}:
        (problem,) = NetworkConfig(kind).problems()
        assert problem.startswith(f"path: empty, kind {kind!r} takes ")
        assert "kind 'classifier'" in problem


@pytest.mark.parametrize(
    ("config", "modality", "message"),
    [
        (
            NetworkConfig("clap", "x"),
            "image",
            "'clap' measures audio, not image; for image there are inception, dinov2",
        ),
        (NetworkConfig("videomae", "x"), "audio", "for audio there are clap, classifier"),
        (NetworkConfig("clap", "x"), "audio", "sample_rate: None must be given"),
        (NetworkConfig("classifier"), "image", "train_classifier(...).save(path)"),
        (NetworkConfig("inception"), "image", "path: empty"),
    ],
)
def test_configurations_that_cannot_be_built(config, modality, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_network(config, modality)


@pytest.mark.parametrize("kind", ["inception", "i3d"])
def test_missing_weights_say_what_to_do(tmp_path, kind):
    with pytest.raises(CheckpointError, match="Without any weights, kind 'classifier'"):
        build_network(NetworkConfig(kind, str(tmp_path / "none")), "video")


def test_a_saved_classifier_is_built_from_a_relative_path(tmp_path):
    saved = classifier()
    saved.save(tmp_path / "net.safetensors")
    network = build_network(NetworkConfig("classifier", "net.safetensors"), "image", root=tmp_path)
    media = torch.rand(2, 3, 16, 16, generator=generator("media"))
    assert torch.equal(network(media).pool, saved(media).pool)


def test_a_classifier_of_something_else_is_refused(tmp_path):
    path = str(classifier("audio", 8000).save(tmp_path / "net.safetensors"))
    with pytest.raises(ConfigError, match="a classifier of audio at 8000 Hz, not of image"):
        build_network(NetworkConfig("classifier", path), "image")
    with pytest.raises(ConfigError, match="audio at 8000 Hz, not of audio at 4000 Hz"):
        build_network(NetworkConfig("classifier", path), "audio", sample_rate=4000)
    assert build_network(NetworkConfig("classifier", path), "audio", sample_rate=8000).classes == ["a", "b"]


def test_an_image_network_over_videos_is_framewise(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2-tiny")
    network = build_network(NetworkConfig("dinov2", "dinov2-tiny"), "video", root=tmp_path)
    assert network.name == "framewise DINOv2 (dinov2-tiny)"
    assert network.distance == "framewise FD-DINOv2"
    assert network(torch.zeros(2, 3, 3, 8, 8)).pool.shape == (6, 8)
