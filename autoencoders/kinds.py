"""Which kinds of autoencoder a modality has, and an autoencoder from its configuration."""

from __future__ import annotations

from autoencoders.base import Autoencoder, Size
from autoencoders.config import POSTERIORS, PRECISIONS, AutoencoderConfig
from autoencoders.flux2 import FLUX2
from autoencoders.patches import Patched
from autoencoders.pretrained import Kind, Pretrained
from autoencoders.rae import RAE
from autoencoders.sd_vae import SD_VAE
from autoencoders.songbloom import SONGBLOOM
from autoencoders.wan22 import WAN22
from core.errors import nearest

# modality -> kind -> what it is; None: no weights, built by the modality from its own settings.
KINDS: dict[str, dict[str, Kind | None]] = {
    "image": {"pixels": None, "sd_vae": SD_VAE, "flux2": FLUX2, "rae": RAE},
    "video": {"space_time_pixels": None, "wan22": WAN22},
    "audio": {"mdct": None, "songbloom": SONGBLOOM},
}


def pretrained_kind(config: AutoencoderConfig, modality: str) -> Kind | None:
    """The kind with weights that a config names; None for one without, or for a name that does not exist."""
    return KINDS[modality].get(config.kind)


def autoencoder_problems(config: AutoencoderConfig, modality: str) -> list[str]:
    """What is wrong with the section `autoencoder` of a modality."""
    if config.kind not in KINDS[modality]:
        allowed = ", ".join(KINDS[modality])
        return [f"autoencoder.kind: {config.kind!r} is not one of {allowed}.{nearest(config.kind, KINDS[modality])}"]
    kind, found = KINDS[modality][config.kind], []
    reads = {
        "path": kind is not None,
        "precision": kind is not None,
        "posterior": bool(kind and kind.posterior),
        "tile": bool(kind and kind.overlap),
    }
    for name, read in reads.items():
        if not read and getattr(config, name) is not None:
            found.append(
                f"autoencoder.{name}: {getattr(config, name)!r} is not read by kind {config.kind!r}; leave it out"
            )
    if kind is not None and not config.path:
        found.append(f"autoencoder.path: kind {config.kind!r} has weights: set their folder or their name on the hub")
    for name, allowed in (("precision", PRECISIONS), ("posterior", POSTERIORS)):
        value = getattr(config, name)
        if reads[name] and value is not None and value not in allowed:
            found.append(f"autoencoder.{name}: {value!r} is not one of {', '.join(allowed)}.{nearest(value, allowed)}")
    if kind is not None and kind.overlap and config.tile is not None:
        found += _tile_problems(kind, kind.overlap, config.tile)
    return found


def _tile_problems(kind: Kind, overlap: int, tile: object) -> list[str]:
    axis = kind.cut_axes[0]
    unit, stride = "samples" if axis == 0 else "pixels", kind.spec.stride[axis]
    lowest = 2 * overlap * stride
    if isinstance(tile, int) and not isinstance(tile, bool) and tile >= lowest and tile % stride == 0:
        return []
    near = ""
    if isinstance(tile, int) and tile > lowest:
        near = f"; the nearest: {tile // stride * stride} or {(tile // stride + 1) * stride}"
    return [f"autoencoder.tile: {tile!r} is not a multiple of {stride} {unit} from {lowest} up{near}"]


def build_pretrained(kind: Kind, config: AutoencoderConfig, size: Size, patch: int | None = None) -> Autoencoder:
    """An autoencoder with weights, none of which are read yet.

    Args:
        size: of the media.
        patch: side of the square of cells that becomes one token; None: as the kind usually has it.
    """
    inner, side = Pretrained(kind, config), kind.patch if patch is None else patch
    return inner if side == 1 else Patched(inner, side, size)
