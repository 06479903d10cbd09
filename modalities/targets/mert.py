"""MERT: an encoder of music, 75 feature frames a second of audio at 24 kHz."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import CheckpointError, ConfigError
from modalities.targets.encoder import Parts, Request, keep_blocks
from modalities.targets.timing import even_spans
from modalities.targets.weights import Folder, load_network

RATE = 24_000
ZEROS = 24  # zero crossings of the sinc on each side
BETA = 9.0  # of the Kaiser window: about 90 dB of stop band
ROLLOFF = 0.95  # of the lower Nyquist frequency that is kept
LARGEST_FILTER = 2**24  # coefficients


class Waveform(nn.Module):
    """(B, channels, S) at one rate -> mono (B, S') at another, of mean 0 and variance 1 if `normalize`.

    Resampling is a windowed sinc, one filter for each of the `new / gcd` phases, as a strided convolution.
    """

    filters: Tensor | None

    def __init__(self, old: int, new: int, normalize: bool):
        super().__init__()
        self.normalize = normalize
        common = math.gcd(old, new)
        self.old, self.new = old // common, new // common
        self.register_buffer("filters", None if old == new else sinc_filters(self.old, self.new), persistent=False)

    def length(self, samples: int) -> int:
        """S' of an audio clip of S samples."""
        return math.ceil(samples * self.new / self.old)

    def forward(self, media: Tensor) -> Tensor:
        x = media.mean(dim=1)  # (B, S)
        if self.filters is not None:
            reach = (self.filters.shape[-1] - self.old) // 2
            padded = functional.pad(x[:, None], (reach, reach + self.old))
            phases = functional.conv1d(padded, self.filters, stride=self.old)  # (B, new, blocks)
            x = phases.transpose(1, 2).flatten(1)[:, : self.length(x.shape[1])]
        if self.normalize:  # Wav2Vec2FeatureExtractor's formula
            x = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, correction=0, keepdim=True) + 1e-7).sqrt()
        return x


def sinc_filters(old: int, new: int) -> Tensor:
    """(new, 1, taps) float32: the filter of each output phase, for coprime rates; every filter has sum 1.

    Output q new + k lies at input q old + k old / new, so all phases k see the same window of inputs, which begins at
    q old - reach: q is the step of a convolution with stride old.

    Raises:
        ConfigError: the rates have so little in common that the filters would not fit in memory.
    """
    cutoff = ROLLOFF * min(1.0, new / old)
    reach = math.ceil(ZEROS / cutoff)
    taps = 2 * reach + old
    if new * taps > LARGEST_FILTER:
        raise ConfigError(
            f"encoder: rates in the ratio {old} : {new} need a filter of {new * taps} coefficients; choose a "
            f"sample_rate that shares a larger divisor with {RATE}, such as 16000, 24000, 44100 or 48000"
        )
    phase = torch.arange(new, dtype=torch.float64)[:, None] * old / new
    distance = torch.arange(taps, dtype=torch.float64)[None] - reach - phase  # input samples
    inside = (1 - (distance * cutoff / ZEROS).square()).clamp_min(0)
    window = torch.special.i0(BETA * inside.sqrt()) * (inside > 0)
    filters = torch.sinc(cutoff * distance) * window
    return (filters / filters.sum(dim=1, keepdim=True)).float()[:, None]


class Hubert(nn.Module):
    """Waveform (B, S') -> (B, frames, D), the last hidden state."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor) -> Tensor:
        return self.model(waveform).last_hidden_state


def mert(folder: Folder, request: Request, example: str) -> Parts:
    """MERT-v1-95M: its network is HuBERT's, so it is loaded into HubertModel, without running code from the hub.

    The audio is mixed to mono, resampled to 24 kHz and normalized as its feature extractor says. The paper does not
    say which layer it aligns with; the default is the last.

    Raises:
        ConfigError: a variant that is more than HuBERT (constant-Q features, DeepNorm), or audio too short for one
            feature frame.
        CheckpointError: the feature extractor wants something else than a mono waveform.
    """
    for name in ("feature_extractor_cqt", "deepnorm"):
        if folder.settings.get(name):
            raise ConfigError(
                f"encoder.path: {folder.path!r} has {name}: true, which HubertModel cannot compute; allowed: models "
                f"without it, such as {example}"
            )
    from transformers import HubertConfig

    own = {
        key: value for key, value in folder.settings.items() if key not in ("model_type", "architectures", "auto_map")
    }
    model: Any = load_network("mert", folder, "HubertModel", example, config=HubertConfig.from_dict(own))
    if folder.preprocessor.get("feature_size", 1) != 1:
        raise CheckpointError(f"{folder.path}: feature_size {folder.preprocessor['feature_size']} is not 1 (mono)")
    model.encoder.layers = keep_blocks(model.encoder.layers, request.layer)
    rate = folder.preprocessor.get("sampling_rate") or folder.settings.get("sample_rate") or RATE
    prepare = Waveform(request.rate or rate, rate, folder.preprocessor.get("do_normalize", True))

    width, hop = 1, 1  # samples that one frame sees, and samples between frames
    for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
        width, hop = width + (kernel - 1) * hop, hop * stride
    frames = (prepare.length(request.length) - width) // hop + 1
    if frames < 1:
        raise ConfigError(
            f"encoder.kind: 'mert' needs at least {width / rate:.4f} s of audio for a feature frame, the media has "
            f"{request.length / (request.rate or rate):.4f} s"
        )
    # A frame sees `width` samples; it stands for the `hop` samples in their middle.
    spans = (even_spans(frames, hop) + (width - hop) / 2) * (prepare.old / prepare.new)
    return Parts(prepare, Hubert(model), model.config.hidden_size, spans)
