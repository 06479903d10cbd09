"""The section `autoencoder` of a modality's settings: which autoencoder it uses, and where its weights are.

Each kind is a dataclass of its own, beside its autoencoder; autoencoders/kinds.py has the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import nearest

PRECISIONS = ("fp32", "bf16")
POSTERIORS = ("mean", "sample")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What every kind has. Kinds without weights have nothing else; for the others see `PretrainedConfig`.

    Attributes:
        kind: a name in kinds.KINDS.
    """

    kind: str = ""

    def problems(self) -> list[str]:
        return []


def not_one_of(name: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    """A line for a setting that is none of the allowed words."""
    if value in allowed:
        return []
    return [f"{name}: {value!r} is not one of {', '.join(allowed)}.{nearest(value, allowed)}"]
