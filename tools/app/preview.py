"""Small pictures of unfinished media, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modalities.media.writing import to_bytes
from tools.report.media import spectrogram_of

SAMPLES, FRAMES, SIDE = 4, 4, 192


def pictures(media: Mapping[str, Tensor], modalities: Mapping[str, str]) -> tuple[str, ...]:
    """A picture of every part of the first samples: images beside each other, frames of videos as strips, audio as
    spectrograms. Parts of other modalities have none.

    Args:
        media: name of a part -> (B, *media).
        modalities: of the parts.
    """
    found = []
    for name, batch in media.items():
        for one in batch[:SAMPLES]:
            match modalities[name]:
                case "image":
                    found.append(_uri(to_bytes(one)))
                case "video":
                    places = torch.linspace(0, len(one) - 1, min(FRAMES, len(one))).round().long()
                    found.append(_uri(np.concatenate(list(to_bytes(one[places])), axis=1)))
                case "audio":
                    found.append(spectrogram_of(one.float().mean(0)))
    return tuple(filter(None, found))


def _uri(pixels: np.ndarray) -> str:
    """Of uint8 (H, W, 3)."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    if image.height > SIDE:
        image = image.resize((max(1, image.width * SIDE // image.height), SIDE))
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
