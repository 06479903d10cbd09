"""Networks of the Frechet video distance. FVDs of different networks, lengths or frame rates do not compare.

- videomae: VideoMAEv2, the network of the content-debiased FVD (Ge et al. 2024, songweige/content-debiased-fvd), which
  the Self-Flow paper reports. `vit_g_hybrid_pt_1200e_ssv2_ft.pth` is that very network. A folder or hub id of any other
  VideoMAE model of the transformers package works too and is named as such.
- i3d: the I3D of the original FVD as TorchScript (universome/stylegan-v), 400 values before the softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import CheckpointError
from modalities.evaluation.networks.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Features,
    device_of,
    expect,
    freeze,
    no_weights,
    normalize,
    pick_frames,
    read_weights,
    to_levels,
)
from modalities.evaluation.networks.pretrained import from_pretrained, label, need_transformers

# ViT-g/14 of VideoMAEv2 (videomaev2_finetune.py: vit_giant_patch14_224).
GIANT = {
    "hidden_size": 1408,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "patch_size": 14,
    "image_size": 224,
    "num_frames": 16,
    "tubelet_size": 2,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_mean_pooling": True,
}
RENAMES = (
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "encoder.layer."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


class VideoMAE(nn.Module):
    """Videos (B, T, 3, H, W) -> the mean over all tokens of the last layer, behind `fc_norm` where the file has one.

    16 evenly spaced frames (all of them when T is 16), 8-bit levels, bilinear to 224 x 224 without antialiasing, as
    content-debiased-fvd. That code hands the giant network values in [0, 1] as they are, and so does this; models of
    the transformers package get the ImageNet mean and deviation that they were trained with.

    Raises:
        CheckpointError: no usable weights at `path`.
    """

    kind = "videomae"
    distance = "FVD (VideoMAE)"
    TAKES = (
        "the file vit_g_hybrid_pt_1200e_ssv2_ft.pth (hub: OpenGVLab/InternVideoMAE_models, folder mae-g; 4 GB), or a "
        "folder or hub id of a VideoMAE model of transformers, such as MCG-NJU/videomae-base-finetuned-kinetics"
    )

    def __init__(self, path: str):
        super().__init__()
        if Path(path).is_file():
            model, self.fc_norm = load_videomae_v2(path)
            self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            self.name = "VideoMAEv2 ViT-g (Something-Something v2)"
            self.distance = "FVD (VideoMAEv2)"
        else:
            model = from_pretrained(self.kind, "VideoMAEModel", path, self.TAKES)
            self.fc_norm = nn.Identity()
            self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
            self.name = f"VideoMAE ({label(path)})"
        self.model = model
        self.frames: int = model.config.num_frames
        self.side: int = model.config.image_size

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "video", self.name)
        levels = to_levels(pick_frames(media, self.frames).to(device_of(self)))
        frames = functional.interpolate(
            levels.flatten(0, 1), (self.side, self.side), mode="bilinear", align_corners=False
        ).unflatten(0, levels.shape[:2])  # (B, T, 3, side, side)
        hidden = self.model(pixel_values=normalize(frames, self.mean, self.std)).last_hidden_state
        return Features(self.fc_norm(hidden.mean(1)).float())


def load_videomae_v2(path: str, shape: dict | None = None) -> tuple[Any, nn.LayerNorm]:
    """The published VideoMAEv2 file as transformers' VideoMAEModel, and its last norm.

    Args:
        shape: VideoMAEConfig fields; `GIANT` unless given (tests use a small one).
    """
    transformers = need_transformers("videomae")
    state = read_weights("videomae", path, VideoMAE.TAKES)
    state = next((state[key] for key in ("model", "module") if key in state), state)
    renamed = {}
    for name, value in state.items():
        if name.startswith("head."):
            continue  # the classifier of 174 actions
        for old, new in RENAMES:
            name = name.replace(old, new)
        if name.endswith(".attn.qkv.weight"):
            for part, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv", f".attention.attention.{part}")] = weight
        else:
            renamed[name] = value

    config = transformers.VideoMAEConfig(**(shape or GIANT))
    with torch.device("meta"):
        model = transformers.VideoMAEModel(config)
    # transformers 5 keeps the biases of query and value in the linear layers, 4 beside them.
    inside = "encoder.layer.0.attention.attention.query.bias" in model.state_dict()
    for part in ("q", "v"):
        new = {"q": "attention.attention.query.bias", "v": "attention.attention.value.bias"}[part]
        new = new if inside else f"attention.attention.{part}_bias"
        renamed = {name.replace(f"attn.{part}_bias", new): value for name, value in renamed.items()}
    norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
    try:
        norm.load_state_dict({name: renamed.pop(f"fc_norm.{name}") for name in ("weight", "bias")})
        # `assign`: there is no second copy of 4 GB.
        model.load_state_dict(renamed, assign=True)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise no_weights("videomae", path, VideoMAE.TAKES, f"not these weights: {reason}") from error
    return freeze(model.float()), freeze(norm)


class I3D(nn.Module):
    """Videos (B, T, 3, H, W) -> 400 values before the softmax, of a TorchScript I3D that resizes and rescales itself.

    All frames are used; a video of fewer than 16 is stretched to 16 by showing frames more than once.
    """

    kind = "i3d"
    name = "I3D (Kinetics-400, TorchScript)"
    distance = "FVD (I3D)"
    FEWEST = 16
    TAKES = "the file i3d_torchscript.pt that universome/stylegan-v links to, 50 MB"

    def __init__(self, path: str):
        super().__init__()
        if not Path(path).is_file():
            raise no_weights(self.kind, path, self.TAKES, "there is no such file")
        try:
            self.model = freeze(torch.jit.load(path, map_location="cpu"))
        except RuntimeError as error:
            raise no_weights(self.kind, path, self.TAKES, "not a TorchScript file") from error
        self.path = path
        self.register_buffer("where", torch.zeros(()), persistent=False)  # a frozen script may show no weights

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "video", self.name)
        video = to_levels(pick_frames(media, max(self.FEWEST, media.shape[1])).to(device_of(self))).to(torch.uint8)
        try:
            logits = self.model(
                video.transpose(1, 2), rescale=True, resize=True, return_features=True
            )  # (B, 3, T, H, W)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path}: does not run as {self.TAKES}: it must take uint8 (B, 3, T, H, W) with rescale, "
                f"resize and return_features ({str(error).strip().splitlines()[-1]})"
            ) from error
        return Features(logits.float().flatten(1))
