"""What a microbatch gets on the training device: latents of autoencoders with weights, features of frozen
encoders of media and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from autoencoders.base import Whitening
from core.training.feed import Microbatch
from modalities.base import ModalityAdapter
from modalities.encoders import Encoder
from modalities.text import TextEncoder


class DevicePrepare:
    """
    Args:
        adapters, whitening: by modality.
        encoders: modality -> target name -> frozen encoder, on the device of the microbatches.
        text: completes the contexts, on the same device; None where they are complete.
    """

    def __init__(
        self,
        adapters: Mapping[str, ModalityAdapter],
        whitening: Mapping[str, Whitening],
        encoders: Mapping[str, Mapping[str, Encoder]],
        text: TextEncoder | None = None,
    ):
        self.adapters, self.whitening, self.encoders, self.text = adapters, whitening, encoders, text

    @torch.no_grad()
    def __call__(self, microbatch: Microbatch, targets: bool = True) -> Microbatch:
        """The microbatch, completed; without the features of the encoders unless `targets` are read."""
        modality, media = microbatch.modality, microbatch.media
        if media is not None and self.adapters[modality].has_weights:
            tokens = self.adapters[modality].encode(media, microbatch.posterior)  # (B, N, C)
            (segment,) = microbatch.batch.segments
            segment = replace(segment, x0=self.whitening[modality].whiten(tokens.float()))
            microbatch = replace(microbatch, batch=replace(microbatch.batch, segments=(segment,)))
        if self.text is not None:
            context = self.text.complete(microbatch.batch.context, microbatch.texts)
            microbatch = replace(microbatch, batch=replace(microbatch.batch, context=context), texts=())
        encoders = self.encoders.get(modality, {}) if targets else {}
        features = {name: encoder(media) for name, encoder in encoders.items()}
        return replace(microbatch, media=None, posterior=None, targets=features)
