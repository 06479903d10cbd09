"""The method table: what `method=NAME` stands for. A setting written in the YAML or on the command line wins.

Sources, formulas and what differs from the released code of each: docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from core.alignment.terms import AlignmentConfig, build_alignment
from core.errors import ConfigError, choose
from core.kinds import kinds
from core.noising import NOISINGS, NoisingConfig
from core.objective import Objective
from core.training.config import validated
from core.training.sections import Place
from core.training.settings import merge
from core.trunk.projectors import TEACHER, ProjectorSpec

NOISING = kinds(NOISINGS, ("kind", "teacher"), keeps=True)  # metadata of the section

# SRA trains on ImageNet in batches of 256: 5004 steps an epoch.
_SRA_EPOCH = 5004

METHODS: dict[str, dict] = {
    # Eq. 1-2: one time per sample, nothing aligned, no teacher pass.
    "flow_matching": {
        "noising": {"kind": "homogeneous"},
    },
    # arXiv 2410.06940: a frozen encoder's features of the clean media. The encoders are the modalities' own settings.
    "repa": {
        "noising": {"kind": "homogeneous"},
        "alignment": {"external": {"weight": 0.5, "similarity": "cosine", "projector": "repa"}},
    },
    # arXiv 2505.02831: the EMA teacher at t - 0.2 u; smooth-L1 and the weight schedule of the published numbers at
    # 256 x 256. The authors now advise a cosine of weight 0.5 (README, note 1): alignment.ema_teacher={weight: 0.5,
    # similarity: cosine, constant_steps: 0, decay_10x_steps: 0}.
    "sra": {
        "noising": {"kind": "homogeneous", "teacher": "earlier", "teacher_gap": 0.2},
        "alignment": {
            "ema_teacher": {
                "weight": 0.2,
                "similarity": "smooth_l1",
                "constant_steps": 149 * _SRA_EPOCH,
                "decay_10x_steps": 1000 * _SRA_EPOCH,
            }
        },
    },
    # arXiv 2510.12581: one of the student's own deeper layers, detached; no projector, no teacher pass.
    "layersync": {
        "noising": {"kind": "homogeneous"},
        "alignment": {"layer_sync": {"weight": 0.2, "similarity": "cosine"}},
    },
    # arXiv 2506.09027: features of different samples are pushed apart, nothing is aligned. As in the released code.
    "dispersive": {
        "noising": {"kind": "homogeneous"},
        "alignment": {"dispersive": {"weight": 0.25, "variant": "infonce_l2"}},
    },
    # Eq. 4-7: two times per sample, Bernoulli mask, EMA teacher at min(t, s), gamma 0.8, layers 0.3 D and 0.7 D.
    "self_flow": {
        "noising": {"kind": "dual", "mask": "bernoulli", "teacher": "min"},
        "alignment": {"ema_teacher": {"weight": 0.8, "similarity": "cosine"}},
    },
    # arXiv 2607.02508: groups of exact size that do not see each other, each with its own earlier teacher. The cosine
    # is per token; what the released code computes is similarity=cosine_over_tokens.
    "self_flow_as": {
        "noising": {
            "kind": "dual",
            "mask": "exact",
            "attention_separation": True,
            "teacher": "earlier",
            "teacher_gap": 0.2,
        },
        "alignment": {"ema_teacher": {"weight": 0.5, "similarity": "cosine"}},
    },
}


def method_settings(user: dict) -> dict:
    """The settings under the user's own ones, for the method that the user names (self_flow by default)."""
    return choose("method", user.get("method", "self_flow"), METHODS)


@dataclass(frozen=True)
class Method:
    """A row of the table as settings, for training loops of your own.

    Attributes:
        noising: how `draw` chooses the noise levels of student and teacher.
        alignment: which features are compared with which.
    """

    noising: NoisingConfig
    alignment: AlignmentConfig

    def projectors(self, targets: Mapping[str, int] = MappingProxyType({})) -> dict[str, ProjectorSpec]:
        """The heads that a trunk needs for this method. `targets`: channels of the features of each frozen encoder."""
        return projector_specs(self.alignment, targets)

    def objective(self, depth: int) -> Objective:
        """The loss, for a trunk of `depth` blocks. Raises ConfigError for layers that the trunk does not have."""
        if found := self.alignment.depth_problems(depth):
            raise ConfigError(f"alignment.{line}" for line in found)
        return Objective(build_alignment(self.alignment, depth))


def method(name: str, **overrides: dict) -> Method:
    """A row of the method table; `overrides` of `noising` and `alignment` as nested dicts win over it.

    Raises ConfigError for unknown names and settings that do not fit together.
    """
    row = choose("method", name, METHODS)
    if unknown := [key for key in overrides if key not in ("noising", "alignment")]:
        raise ConfigError(f"method: {unknown[0]!r} is not one of noising, alignment")
    config: _Row = validated(_Row, merge(row, overrides, Place(_Row)))
    return Method(config.noising, config.alignment)


@dataclass
class _Row:
    """What a row of the table sets, as sections of a configuration."""

    noising: NoisingConfig = field(default_factory=NoisingConfig, metadata=NOISING)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)


def projector_specs(alignment: AlignmentConfig, targets: Mapping[str, int]) -> dict[str, ProjectorSpec]:
    """By name: the EMA teacher's, and one for each frozen encoder, of so many channels."""
    specs = {}
    if alignment.ema_teacher is not None:
        specs[TEACHER] = ProjectorSpec(alignment.ema_teacher.projector)
    if alignment.external is not None:
        specs |= {name: ProjectorSpec(alignment.external.projector, channels) for name, channels in targets.items()}
    return specs


def method_alignment(name: str) -> AlignmentConfig:
    """The alignment section of a row by itself."""
    return method(name).alignment
