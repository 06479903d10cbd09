"""Which kinds of autoencoder a modality has, and an autoencoder from its configuration."""

from __future__ import annotations

from typing import Any

from autoencoders.base import Autoencoder, Size
from autoencoders.config import AutoencoderConfig, not_one_of
from autoencoders.flux2 import Flux2Config
from autoencoders.patches import Patched
from autoencoders.pretrained import PretrainedConfig
from autoencoders.rae import RAEConfig
from autoencoders.sd_vae import SDVAEConfig
from autoencoders.songbloom import SongBloomConfig
from autoencoders.transforms import MdctConfig, PixelsConfig, SpaceTimePixelsConfig, VectorsConfig, WeightFreeConfig
from autoencoders.wan22 import Wan22Config
from core.errors import ShapeError

# modality -> kind -> its configuration; the first is the default.
KINDS: dict[str, dict[str, type[AutoencoderConfig]]] = {
    "image": {"pixels": PixelsConfig, "sd_vae": SDVAEConfig, "flux2": Flux2Config, "rae": RAEConfig},
    "video": {"space_time_pixels": SpaceTimePixelsConfig, "wan22": Wan22Config},
    "audio": {"mdct": MdctConfig, "songbloom": SongBloomConfig},
    "action": {"vectors": VectorsConfig},
    "state": {"vectors": VectorsConfig},
}


def autoencoder_problems(config: AutoencoderConfig, modality: str) -> list[str]:
    """What is wrong with the section `autoencoder` of a modality."""
    found = not_one_of("kind", config.kind, tuple(KINDS[modality])) or config.problems()
    return [f"autoencoder.{line}" for line in found]


def media_problems(media: Any, modality: str) -> list[str]:
    """What is wrong with the section `autoencoder` in a section `media`, and with the settings beside it that an
    autoencoder reads."""
    config, found = media.autoencoder, autoencoder_problems(media.autoencoder, modality)
    if config.kind not in KINDS[modality]:
        return found
    others = dict.fromkeys(name for kind in KINDS[modality].values() for name in kind.reads if name not in config.reads)
    unread = [
        f"{name}: not read by autoencoder.kind {config.kind!r}; leave it out"
        for name in others
        if getattr(media, name) is not None
    ]
    return found + unread + config.media_problems(media)


def misfit(media: Any, size: Size) -> str:
    """Why media of a size do not fit the autoencoder with weights of a section `media`; "" where they do."""
    config, patch = media.autoencoder, getattr(media, "patch", None)
    if isinstance(config, PretrainedConfig) and (patch is None or patch >= 1):
        try:
            build(media, size).grid(size)
        except ShapeError as error:
            return str(error)
    return ""


def build(media: Any, size: Size) -> Autoencoder:
    """The autoencoder of a section `media`, for media of a size; no weights are read yet."""
    config = media.autoencoder
    if isinstance(config, WeightFreeConfig):
        return config.build(media)
    return build_pretrained(config, size, getattr(media, "patch", None))


def build_pretrained(config: PretrainedConfig, size: Size, patch: int | None = None) -> Autoencoder:
    """An autoencoder with weights, none of which are read yet.

    Args:
        size: of the media.
        patch: side of the square of cells that becomes one token; None: as the kind usually has it.
    """
    inner = config.build()
    side = inner.patch if patch is None else patch
    return inner if side == 1 else Patched(inner, side, size)
