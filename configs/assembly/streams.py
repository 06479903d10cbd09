"""Streams of a configuration: their parts with positions, and what is given in their samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from configs.assembly.adapters import Adapters
from configs.schema import FIRST_FRAME, INDEPENDENT, Config, StreamConfig
from core.errors import ConfigError
from core.modes import Mode, Modes
from modalities.base import Source
from modalities.streams import Parts, Stream, given_tokens, make_parts, whole_part


def build_parts(config: Config, adapters: Adapters) -> dict[str, Parts]:
    """stream -> its parts."""
    found = {}
    for stream, entry in config.streams.items():
        own = entry.named_parts(stream)
        weight = {name: part.loss_weight for name, part in own.items()}
        keep_media = dict.fromkeys(own, bool(entry.encoders))
        # Where a window ends after its episode, its video is padding too.
        pads = {
            name: adapter.pads or (entry.data.holds_episodes and adapter.modality == "video")
            for name, adapter in adapters[stream].items()
        }
        given = {name: part.given for name, part in own.items()}
        found[stream] = make_parts(
            adapters[stream], entry.positions_per_second, weight=weight, keep_media=keep_media, pads=pads, given=given
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
            build_modes(name, entry, parts[name]),
            entry.data.caption_choice,
        )
        for name, entry in config.streams.items()
    }


def build_modes(stream: str, entry: StreamConfig, parts: Parts) -> Modes:
    """How the samples of a stream are trained, in which shares, and at which levels parts are given."""
    own, given = entry.named_parts(stream), given_tokens(parts)
    noise = [entry.condition_noise if part.condition_noise is None else part.condition_noise for part in own.values()]
    try:
        table = {name: (share, _mode(name, parts, given)) for name, share in entry.drawn_modes().items()}
        rest = Mode(given, own_timestep=False)
        return Modes(table, rest, tuple(noise), tuple(part.timestep for part in own.values()))
    except ConfigError as error:
        raise ConfigError(f"streams.{stream}.{line}" for line in error.problems) from error


def _mode(name: str, parts: Parts, given: torch.Tensor | None) -> Mode:
    """A row of `modes`; `given` (L,) bool are the tokens that are given in every sample."""
    places, plain = list(parts), Mode(given)
    rows = {INDEPENDENT: lambda: replace(plain, independent=True)}
    rows[FIRST_FRAME] = lambda: _with_given(plain, _first_frame(parts))
    for x, part in enumerate(places):
        rows[f"{part}_given"] = lambda part=part: _with_given(plain, whole_part(parts, part))
        rows[f"{part}_absent"] = lambda part=part: _with_absent(plain, whole_part(parts, part))
        for y, other in enumerate(places):
            rows[f"{part}_leads_{other}"] = lambda x=x, y=y: replace(plain, leads=(x, y))
    return rows[name]()


def _with_given(mode: Mode, tokens: torch.Tensor) -> Mode:
    return replace(mode, given=tokens if mode.given is None else mode.given | tokens)


def _with_absent(mode: Mode, tokens: torch.Tensor) -> Mode:
    return replace(mode, absent=tokens, given=None if mode.given is None else mode.given & ~tokens)


def _first_frame(parts: Parts) -> torch.Tensor:
    """(L,) bool: the tokens of the first frame of every part that has frames."""
    found = []
    for part in parts.values():
        ask = getattr(part.adapter, "first_frame_mask", None)
        found.append(ask() if ask else torch.zeros(len(part.ids), dtype=torch.bool))
    conditioning_mask = torch.cat(found)
    if not conditioning_mask.any():
        raise ConfigError(f"modes.{FIRST_FRAME}: the stream has no video, but {', '.join(parts)}")
    return conditioning_mask
