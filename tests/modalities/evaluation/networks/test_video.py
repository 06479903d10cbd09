import re

import pytest
import torch

from core.errors import CheckpointError
from core.keys import generator
from modalities.evaluation.networks.video import GIANT, I3D, VideoMAE

WIDTH, DEPTH, INNER = 48, 2, 96


def videos(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Two videos as uint8 levels."""
    draw = generator("clip")
    return torch.randint(0, 256, (2, frames, 3, height, width), generator=draw, dtype=torch.uint8)


def published_file(path) -> dict[str, torch.Tensor]:
    """A small file with the names of vit_g_hybrid_pt_1200e_ssv2_ft.pth, each weight drawn from its name."""
    shapes = {"patch_embed.proj.weight": (WIDTH, 3, 2, 14, 14), "patch_embed.proj.bias": (WIDTH,)}
    for block in range(DEPTH):
        inside = {
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "attn.q_bias": (WIDTH,),
            "attn.v_bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (INNER, WIDTH),
            "mlp.fc1.bias": (INNER,),
            "mlp.fc2.weight": (WIDTH, INNER),
            "mlp.fc2.bias": (WIDTH,),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in inside.items()}
    shapes |= {"fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,), "head.weight": (174, WIDTH), "head.bias": (174,)}
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator("videomae", name)) * 0.1
        state[name] = value + 1 if "norm" in name and name.endswith("weight") else value
    torch.save({"module": state}, path)
    return state


@pytest.fixture
def small_giant(monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": INNER}
    for name, value in small.items():
        monkeypatch.setitem(GIANT, name, value)


def test_golden_features_of_content_debiased_fvd(tmp_path, small_giant):
    """Of that repository's VisionTransformer.forward_features with these weights, every eighth value; the two
    implementations differ by 3.6e-7 (torch 2.13, transformers 5.23 and 4.57)."""
    published_file(tmp_path / "mae.pth")
    network = VideoMAE(str(tmp_path / "mae.pth"))
    found = network(videos(16).float() / 127.5 - 1).pool
    assert found.shape == (2, WIDTH)
    golden = [
        [0.44202858, -1.10519207, -0.78788286, -0.62852836, 0.27021709, 0.43019405],
        [0.45814610, -1.10383916, -0.78438956, -0.64059484, 0.27898929, 0.41316611],
    ]
    torch.testing.assert_close(found[:, ::8], torch.tensor(golden), atol=2e-5, rtol=0)
    assert network.distance == "FVD (VideoMAEv2)"
    assert not any(weight.requires_grad for weight in network.parameters())


def test_frames_are_picked_evenly(tmp_path, small_giant):
    published_file(tmp_path / "mae.pth")
    network, long = VideoMAE(str(tmp_path / "mae.pth")), videos(31).float() / 127.5 - 1
    assert torch.equal(network(long).pool, network(long[:, ::2]).pool)
    short = network(long[:, :9]).pool
    assert short.shape == (2, WIDTH)
    assert torch.isfinite(short).all()


@pytest.mark.parametrize("name", ["blocks.1.attn.q_bias", "fc_norm.weight", "patch_embed.proj.bias"])
def test_a_file_without_one_of_its_weights_is_refused(tmp_path, small_giant, name):
    state = published_file(tmp_path / "mae.pth")
    del state[name]
    torch.save({"module": state}, tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match="not these weights"):
        VideoMAE(str(tmp_path / "mae.pth"))


def test_a_foreign_file_is_refused(tmp_path, small_giant):
    (tmp_path / "mae.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"vit_g_hybrid_pt_1200e_ssv2_ft\.pth"):
        VideoMAE(str(tmp_path / "mae.pth"))


def test_a_videomae_of_transformers(tmp_path, small_giant):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    shape = {**GIANT, "image_size": 28, "num_frames": 4, "num_labels": 3}
    folder = tmp_path / "videomae-tiny"
    model = VideoMAEForVideoClassification(VideoMAEConfig(**shape)).eval()
    model.save_pretrained(folder)
    network = VideoMAE(str(folder))
    assert network.name == "VideoMAE (videomae-tiny)"
    pixels = videos(4, 28, 28)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        theirs = model.videomae(pixel_values=x)[0].mean(1)
    torch.testing.assert_close(network(pixels.float() / 127.5 - 1).pool, theirs, atol=1e-5, rtol=1e-5)


class Stub(torch.nn.Module):
    """Called as StyleGAN-V calls its detector: uint8 (B, 3, T, H, W)."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert x.dtype == torch.uint8
        assert rescale and resize and return_features  # noqa: PT018, TorchScript
        return self.scale * x.float().mean(dim=(3, 4)).flatten(1)  # (B, 3 T)


def test_i3d_gets_8_bit_videos_with_channels_first(tmp_path):
    torch.jit.script(Stub()).save(str(tmp_path / "i3d.pt"))
    network, pixels = I3D(str(tmp_path / "i3d.pt")), videos(20)
    found = network(pixels.float() / 127.5 - 1).pool
    wanted = 2 * pixels.float().mean(dim=(3, 4)).transpose(1, 2).flatten(1)
    torch.testing.assert_close(found, wanted)
    assert network(pixels[:, :5].float() / 127.5 - 1).pool.shape == (2, 3 * 16)  # short videos are stretched
    assert not any(weight.requires_grad for weight in network.parameters())


def test_other_scripts_and_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape("i3d_torchscript.pt that universome/stylegan-v")):
        I3D(str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        I3D(str(tmp_path / "text.pt"))
    torch.jit.script(torch.nn.Linear(3, 3)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(CheckpointError, match="does not run as"):
        I3D(str(tmp_path / "linear.pt"))(torch.zeros(1, 16, 3, 8, 8))
