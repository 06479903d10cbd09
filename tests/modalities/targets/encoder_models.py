"""Small encoders of the real classes with random weights, saved as a published model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CONVS = {"conv_dim": [8, 8, 8], "conv_kernel": [10, 3, 2], "conv_stride": [5, 4, 4]}  # a frame every 80 samples


def _dinov2_config(**settings: Any):
    from transformers import Dinov2Config

    return Dinov2Config(
        **{**VIT, "mlp_ratio": 2, "image_size": 70, "patch_size": 14, "layerscale_value": 0.7, **settings}
    )


def make_dinov2():
    from transformers import Dinov2Model

    return Dinov2Model(_dinov2_config())


def make_dinov2_registers():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, image_size=70, patch_size=14, num_register_tokens=3)
    )


def make_depth_anything():
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=_dinov2_config(out_indices=[1, 2, 3], reshape_hidden_states=False),
            reassemble_hidden_size=VIT["hidden_size"],
            reassemble_factors=[2, 1, 0.5],
            neck_hidden_sizes=[8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=4,
        )
    )


def make_siglip():
    """A whole SigLIP, text tower included, as the SigLIP 2 models of fixed size are published."""
    from transformers import SiglipConfig, SiglipModel

    vision = {**VIT, "image_size": 64, "patch_size": 16}
    return SiglipModel(SiglipConfig(text_config={**VIT, "vocab_size": 50}, vision_config=vision))


def make_siglip2():
    from transformers import Siglip2Config, Siglip2Model

    vision = {**VIT, "num_patches": 16, "patch_size": 16}
    return Siglip2Model(Siglip2Config(text_config={**VIT, "vocab_size": 50}, vision_config=vision))


def make_vjepa2():
    from transformers import VJEPA2Config, VJEPA2Model

    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    size = {"crop_size": 64, "patch_size": 16, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2}
    vit = {key: VIT[key] for key in ("num_hidden_layers", "num_attention_heads")}
    return VJEPA2Model(VJEPA2Config(hidden_size=48, **vit, **size, **predictor))


def make_hubert(**settings: Any):
    from transformers import HubertConfig, HubertModel

    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3}
    return HubertModel(HubertConfig(**{**VIT, **CONVS, **positions, **settings}))


def save(model: Any, folder: Path, preprocessor: dict[str, Any] | None = None, **settings: Any) -> Path:
    """The model with weights large enough that every block matters; `settings` replace those of config.json."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.2 if value.ndim > 1 else 0.1
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (name.endswith("norm.weight")))
    model.eval().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def save_mert(folder: Path, **settings: Any) -> Path:
    """HuBERT's network under the names and settings of the published MERT-v1-95M."""
    own = {"model_type": "mert_model", "architectures": ["MERTModel"], "attention_relax": -1.0, "deepnorm": False}
    hub = {"auto_map": {"AutoModel": "modeling_MERT.MERTModel"}, "feature_extractor_cqt": False, "sample_rate": 24000}
    preprocessor = {"do_normalize": True, "feature_size": 1, "sampling_rate": 24000}
    return save(make_hubert(), folder, preprocessor, **{**own, **hub, **settings})


MAKERS = {
    "dinov2": make_dinov2,
    "dinov2 registers": make_dinov2_registers,
    "depth_anything": make_depth_anything,
    "siglip2 fixed": make_siglip,
    "siglip2 naflex": make_siglip2,
    "vjepa2": make_vjepa2,
}


def media(*shape: int, seed: int = 3) -> Tensor:
    """Uniform in [-1, 1], on the levels of 8-bit images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator) / 127.5 - 1
