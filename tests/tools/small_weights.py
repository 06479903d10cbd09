"""Weights of real classes, small and random, where tests through the command line need a folder of some."""

from __future__ import annotations

from pathlib import Path

from tests.autoencoders.rae_files import write_published
from tests.modalities.targets.encoder_models import MAKERS, save, save_mert

# modality -> name and kind of its encoder
ENCODERS = {"image": "dinov2", "video": "vjepa2", "audio": "mert"}


def save_encoders(folder: Path) -> dict[str, Path]:
    """modality -> folder of its encoder."""
    saved = {m: save(MAKERS[ENCODERS[m]](), folder / m) for m in ("image", "video")}
    return saved | {"audio": save_mert(folder / "audio")}


def save_rae(folder: Path) -> Path:
    """Of the published width and grid, which the kind insists on, with one layer on each side."""
    return write_published(folder, channels=768, heads=12, side=16, width=32, layers=1, inner=48, table=5)


def encoder_settings(folder: Path, *modalities: str) -> list[str]:
    """Overrides that give each of the modalities its encoder of `save_encoders`."""
    return [f"streams.{m}.encoders.{ENCODERS[m]}={{kind: {ENCODERS[m]}, path: '{folder / m}'}}" for m in modalities]
