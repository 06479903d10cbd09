"""Streams of a configuration: their parts with positions, and what is given in their samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from configs.assembly.adapters import Adapters
from configs.schema import FIRST_FRAME, NONE, Config, StreamConfig
from core.conditioning import Conditioning
from core.errors import ConfigError
from modalities.base import Source
from modalities.streams import Parts, Stream, make_parts, whole_part


def build_parts(config: Config, adapters: Adapters) -> dict[str, Parts]:
    """stream -> its parts."""
    found = {}
    for stream, entry in config.streams.items():
        own = entry.named_parts(stream)
        weight = {name: part.loss_weight for name, part in own.items()}
        keep_media = dict.fromkeys(own, bool(entry.encoders))
        # Where a window ends behind its episode, its video is padding too.
        pads = {
            name: adapter.pads or (entry.data.holds_episodes and adapter.modality == "video")
            for name, adapter in adapters[stream].items()
        }
        found[stream] = make_parts(
            adapters[stream], entry.positions_per_second, weight=weight, keep_media=keep_media, pads=pads
        )
    return found


def build_streams(config: Config, parts: Mapping[str, Parts], sources: Mapping[str, Source]) -> dict[str, Stream]:
    """name -> data and noising of the stream."""
    return {
        name: Stream(
            sources[name],
            parts[name],
            entry.timestep,
            entry.mask_ratio,
            build_conditioning(name, entry, parts[name]),
            entry.data.caption_choice,
        )
        for name, entry in config.streams.items()
    }


def build_conditioning(stream: str, entry: StreamConfig, parts: Parts) -> Conditioning:
    """Which tokens are given in training, in how many samples and at which level."""
    table = {}
    for name, share in entry.condition_on.items():
        if name == NONE or share == 0:
            continue
        try:
            masks = [_first_frame(parts) if one == FIRST_FRAME else whole_part(parts, one) for one in name.split("+")]
            table[name] = (share, torch.stack(masks).any(dim=0))
        except ConfigError as error:
            raise ConfigError(f"streams.{stream}.{line}" for line in error.problems) from error
    try:
        return Conditioning(table, entry.condition_noise)
    except ConfigError as error:
        raise ConfigError(f"streams.{stream}.{line}" for line in error.problems) from error


def _first_frame(parts: Parts) -> torch.Tensor:
    """(L,) bool: the tokens of the first frame of every part that has frames."""
    found = []
    for part in parts.values():
        ask = getattr(part.adapter, "first_frame_mask", None)
        found.append(ask() if ask else torch.zeros(len(part.ids), dtype=torch.bool))
    conditioning_mask = torch.cat(found)
    if not conditioning_mask.any():
        raise ConfigError(f"condition_on.{FIRST_FRAME}: the stream has no video, but {', '.join(parts)}")
    return conditioning_mask
