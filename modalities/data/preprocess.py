"""On-device preprocessing: latents, their normalization, and features of frozen encoders of media and text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autoencoders.base import LatentNormalization
from core.noising import NoiseSample
from core.training.loader import Microbatch, Raw
from core.types import TokenBatch
from modalities.conditioning import TextEncoder
from modalities.data.batches import RawBatch, RawPart
from modalities.streams import Part, Parts, make_segments
from modalities.targets import Encoder


class DevicePreprocess:
    """
    Args:
        parts: stream -> its parts.
        normalization: modality -> statistics of its latents.
        encoders: stream -> target name -> frozen encoder of its only part, on the device of the batches.
        text: reads captions without stored features, on the same device; None where there are none.
    """

    def __init__(
        self,
        parts: Mapping[str, Parts],
        normalization: Mapping[str, LatentNormalization],
        encoders: Mapping[str, Mapping[str, Encoder]],
        text: TextEncoder | None = None,
    ):
        self.parts, self.normalization, self.encoders, self.text = parts, normalization, encoders, text

    @torch.no_grad()
    def __call__(self, raw: Raw, targets: bool = True) -> Microbatch:
        """The batch, completed; without the features of the encoders unless `targets` are read."""
        assert isinstance(raw, RawBatch)  # of the loader that goes with it
        parts = self.parts[raw.stream]
        tokens = [self._tokens(parts[part.name], part) for part in raw.parts]  # (B, N, C) each
        batch = TokenBatch(
            make_segments(parts, tokens, raw.conditioning_mask, {part.name: part.valid for part in raw.parts}),
            raw.condition.complete(self.text),
            raw.keys,
        )
        drawn = NoiseSample(tuple(part.noise for part in raw.parts), raw.student, raw.teacher)
        encoders = self.encoders.get(raw.stream, {}) if targets else {}
        features = {name: encoder(raw.parts[0].media) for name, encoder in encoders.items()}
        return Microbatch(raw.stream, batch, drawn, raw.counts, raw.rejected, features, raw.counts_of_all)

    def _tokens(self, part: Part, raw: RawPart) -> Tensor:
        latents = raw.latents
        if latents is None:
            assert raw.media is not None  # where there are no latents
            latents = part.adapter.encode(raw.media, raw.posterior)
        return self.normalization[part.adapter.modality].normalize(latents.float())
