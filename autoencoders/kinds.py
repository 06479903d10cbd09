"""Which kinds of autoencoder a modality has, and an autoencoder from its configuration."""

from __future__ import annotations

from autoencoders.base import Autoencoder, Size
from autoencoders.config import AutoencoderConfig, not_one_of
from autoencoders.flux2 import Flux2Config
from autoencoders.patches import Patched
from autoencoders.pretrained import PretrainedConfig
from autoencoders.rae import RAEConfig
from autoencoders.sd_vae import SDVAEConfig
from autoencoders.songbloom import SongBloomConfig
from autoencoders.transforms import MdctConfig, PixelsConfig, SpaceTimePixelsConfig, VectorsConfig
from autoencoders.wan22 import Wan22Config

# modality -> kind -> its configuration; the first is the default. Those without weights are built by the modality, from
# its own settings.
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


def build_pretrained(config: PretrainedConfig, size: Size, patch: int | None = None) -> Autoencoder:
    """An autoencoder with weights, none of which are read yet.

    Args:
        size: of the media.
        patch: side of the square of cells that becomes one token; None: as the kind usually has it.
    """
    inner = config.build()
    side = inner.patch if patch is None else patch
    return inner if side == 1 else Patched(inner, side, size)
