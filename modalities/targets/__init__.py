"""Frozen external encoders of clean media, the targets of REPA. `build_encoder` is the way in."""

from modalities.targets.build import EncoderConfig, build_encoder
from modalities.targets.encoder import Encoder

__all__ = ["Encoder", "EncoderConfig", "build_encoder"]
