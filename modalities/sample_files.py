"""A sample as files: one where a format holds all of its parts, else one for each part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from modalities.media.writing import write_video
from modalities.streams import Parts


def write_sample(parts: Parts, media: Mapping[str, Tensor], path: Path) -> Path:
    """As `write_parts`; returns the first file, which is the only one of one part, and of a video with its audio."""
    return write_parts(parts, media, path)[0]


def write_parts(parts: Parts, media: Mapping[str, Tensor], path: Path) -> list[Path]:
    """Write one sample to `path`, whose suffix is added. Parts that there are no media of are left out.

    One part: the file of its adapter. A video and an audio clip: one MP4 with both. Others: `PATH-PART` for every part.

    Args:
        media: name of the part -> media as its adapter has them.
    """
    parts = {name: part for name, part in parts.items() if name in media}
    if len(parts) == 1:
        ((name, part),) = parts.items()
        return [part.adapter.write(media[name], path)]
    names = {part.adapter.modality: name for name, part in parts.items()}
    if len(parts) == 2 and set(names) == {"video", "audio"}:
        video, audio = (parts[names[modality]].adapter for modality in ("video", "audio"))
        waveform = media[names["audio"]]
        return [write_video(media[names["video"]], path, video.config.fps, waveform, audio.config.sample_rate)]
    return [part.adapter.write(media[name], path.with_name(f"{path.name}-{name}")) for name, part in parts.items()]
