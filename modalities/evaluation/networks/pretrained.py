"""Networks of the transformers package: CLIP (score), DINOv2 (FD-DINOv2), CLAP (FAD).

Images and audio are prepared here with torch, not by the package's processors: those need torchvision in part, and
differ between its versions. Weights come from a local folder (as `save_pretrained` writes it) or a hub id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import ShapeError
from core.optional import need
from modalities.evaluation.networks.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Features,
    device_of,
    expect,
    freeze,
    no_weights,
    normalize,
    resize_bicubic,
    to_levels,
)
from modalities.media.audio import resample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of openai/CLIP
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def need_transformers(kind: str) -> ModuleType:
    return need("transformers", f"feature network {kind}", "The networks inception, i3d and classifier work")


def from_pretrained(kind: str, name: str, path: str, takes: str) -> Any:
    """`transformers.<name>.from_pretrained(path)`; a model must find every one of its weights there.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: nothing usable at `path`.
    """
    transformers = need_transformers(kind)
    cls = getattr(transformers, name)
    model = issubclass(cls, transformers.PreTrainedModel)
    kwargs = {"output_loading_info": True, "dtype": torch.float32} if model else {}
    try:
        if model and (found := transformers.AutoConfig.from_pretrained(path).model_type) != cls.config_class.model_type:
            # transformers would load what fits (DINOv2 with registers without its registers) and only warn.
            raise ValueError(f"a model of type {found!r}, not {cls.config_class.model_type!r}")
        loaded = cls.from_pretrained(path, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = "no such folder, and not reachable as a hub id" if not Path(path).exists() else str(error)
        raise no_weights(kind, path, takes, reason.strip().splitlines()[0]) from error
    if not model:
        return loaded
    network, info = loaded
    # transformers would go on with random values for these.
    if missing := sorted(info["missing_keys"]):
        raise no_weights(kind, path, takes, f"{len(missing)} weights of {name} are missing, first {missing[0]}")
    return freeze(network)


def embedding(output) -> Tensor:
    """`get_*_features` gives a tensor in transformers 4, an object in 5."""
    return output if isinstance(output, Tensor) else output.pooler_output


def label(path: str) -> str:
    """How weights are named in results: a hub id, or the last part of a path."""
    return Path(path).name if Path(path).exists() else path


class Clip(nn.Module):
    """Images and texts in one space: `self(images).pool` and `self.texts(captions)`, both not normalized.

    Images: 8-bit levels, short side to the model's size (224 for most) by antialiased bicubic, center crop.
    """

    kind = "clip"
    distance = "FD-CLIP"
    TAKES = (
        "a folder or hub id of a CLIP model with its tokenizer (config.json, model.safetensors, vocab.json, "
        "merges.txt), such as openai/clip-vit-large-patch14, 1.7 GB"
    )

    def __init__(self, path: str):
        super().__init__()
        self.model: Any = from_pretrained(self.kind, "CLIPModel", path, self.TAKES)
        self.tokenizer: Any = from_pretrained(self.kind, "CLIPTokenizer", path, self.TAKES)
        self.side: int = self.model.config.vision_config.image_size
        self.length: int = self.model.config.text_config.max_position_embeddings
        self.name = f"CLIP ({label(path)})"

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "image", self.name)
        levels = to_levels(media.to(device_of(self)))
        height, width = levels.shape[-2:]
        short = min(height, width)
        size = int(self.side * height / short), int(self.side * width / short)
        top, left = ((length - self.side) // 2 for length in size)
        levels = resize_bicubic(levels, size)[..., top : top + self.side, left : left + self.side]
        return Features(embedding(self.model.get_image_features(normalize(levels, CLIP_MEAN, CLIP_STD))).float())

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """(B, D) float32. Longer captions are cut to the model's length (77 tokens for most)."""
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device_of(self))
        return embedding(self.model.get_text_features(tokens.input_ids, tokens.attention_mask)).float()


def clip_similarity(images: Tensor, texts: Tensor) -> Tensor:
    """100 cos(image, text) of every pair: (B, D), (B, D) -> (B,) float64."""
    if images.shape != texts.shape or images.ndim != 2:
        raise ShapeError(f"CLIP score: {tuple(images.shape)} image and {tuple(texts.shape)} text features do not pair")
    return 100 * functional.cosine_similarity(images.double(), texts.double().to(images.device), dim=1)


def clip_score(images: Tensor, texts: Tensor) -> float:
    """The CLIP score as torchmetrics defines it: the mean of 100 cos over all pairs, not below 0.

    The original CLIPScore (Hessel et al. 2021) is 2.5 max(cos, 0) per pair; the two are the same scale up to 40 only
    where no cosine is negative.
    """
    return max(float(clip_similarity(images, texts).mean()), 0.0)


class DinoV2(nn.Module):
    """Images -> the class token after the last norm: FD-DINOv2 (Stein et al. 2023, layer6ai-labs/dgm-eval).

    Images: 8-bit levels, antialiased bicubic to 224 x 224 whatever their shape, ImageNet mean and deviation, as
    dgm-eval by default. transformers interpolates position embeddings to 16 x 16 patches by the exact size, the
    original code by a scale with an offset of 0.1: published numbers are met closely, not to the last digit.
    Published numbers use ViT-L/14 without registers; the name in the results says which weights these are.
    """

    kind = "dinov2"
    distance = "FD-DINOv2"
    SIDE = 224
    TAKES = (
        "a folder or hub id of a DINOv2 model (config.json, model.safetensors), such as facebook/dinov2-large, 1.2 GB"
    )

    def __init__(self, path: str):
        super().__init__()
        self.model: Any = from_pretrained(self.kind, "Dinov2Model", path, self.TAKES)
        self.name = f"DINOv2 ({label(path)})"

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "image", self.name)
        levels = resize_bicubic(to_levels(media.to(device_of(self))), (self.SIDE, self.SIDE))
        output = self.model(pixel_values=normalize(levels, IMAGENET_MEAN, IMAGENET_STD))
        return Features(output.last_hidden_state[:, 0].float())


class Clap(nn.Module):
    """Audio clips -> unit vectors of a CLAP model (Wu et al. 2023), for FAD.

    The paper's CLAP-M and CLAP-A are laion/larger_clap_music and the LAION audio weights. Its plain "CLAP" is
    Microsoft's model (Elizalde et al.), which transformers cannot load. FADs of different weights do not compare.

    Audio is mixed to mono, 16-bit levels, resampled to the model's rate (48 kHz), the middle 10 s of longer audio (the
    package would draw a random part), a shorter one repeated as the model's own preparation does.

    Args:
        sample_rate: of the audio clips, Hz.
    """

    kind = "clap"
    distance = "FAD"
    TAKES = (
        "a folder or hub id of a CLAP model (config.json, model.safetensors, preprocessor_config.json), such as "
        "laion/larger_clap_music or laion/clap-htsat-unfused, 0.6 to 0.8 GB"
    )

    def __init__(self, path: str, sample_rate: int):
        super().__init__()
        self.model: Any = from_pretrained(self.kind, "ClapModel", path, self.TAKES)
        self.extractor: Any = from_pretrained(self.kind, "ClapFeatureExtractor", path, self.TAKES)
        self.sample_rate = sample_rate
        self.name = f"CLAP ({label(path)})"

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "audio", self.name)
        mono = media.mean(dim=1).float().cpu()
        mono = (mono.clamp(-1, 1) * 32767).round() / 32767  # (B, S) as a 16-bit file holds it
        rate = self.extractor.sampling_rate
        mels = []
        for audio in mono.numpy():
            audio = resample(audio[:, None], self.sample_rate, rate)[:, 0]
            length = self.extractor.nb_max_samples
            start = max(0, len(audio) - length) // 2
            heard = audio[start : start + length].astype(np.float64)
            mels.append(self.extractor(heard, sampling_rate=rate, return_tensors="pt").input_features)
        mel = torch.cat(mels).to(device_of(self), torch.float32)  # (B, 1, frames, bands), 4 channels for fused weights
        # Nothing is longer than the model hears; the package would mark one audio clip at random for fused weights.
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        output = embedding(self.model.get_audio_features(mel, is_longer=longer))
        return Features(functional.normalize(output.float(), dim=-1))
