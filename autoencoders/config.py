"""The section `autoencoder` of a modality's settings: which autoencoder it uses, and where its weights are.

Each kind is a dataclass of its own, beside its autoencoder; autoencoders/kinds.py has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from core.errors import nearest

PRECISIONS = ("fp32", "bf16")
POSTERIORS = ("mean", "sample")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What every kind has. Kinds without weights have nothing else; for the others see `PretrainedConfig`.

    Attributes:
        kind: a name in kinds.KINDS.
        reads: settings of the section `media` that no other kind of the modality reads, with their values where they
            are left out.
    """

    kind: str = ""
    reads: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def problems(self) -> list[str]:
        return []

    def media_problems(self, media: Any) -> list[str]:
        """What is wrong with the settings of `media` that the autoencoder reads, or that it limits."""
        return []

    def own_settings(self, media: Any) -> dict[str, Any]:
        """The values of `reads` in a section `media`."""
        given = {name: getattr(media, name) for name in self.reads}
        return {name: self.reads[name] if value is None else value for name, value in given.items()}


def not_one_of(name: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    """An error line for a value that is not allowed; [] for one that is."""
    if value in allowed:
        return []
    return [f"{name}: {value!r} is not one of {', '.join(allowed)}.{nearest(value, allowed)}"]
