"""The whole configuration: the dataclasses that components declare for themselves, composed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from core.alignment.terms import AlignmentConfig
from core.errors import nearest
from core.noising import NoisingConfig
from core.sampling.sampler import SamplerConfig
from core.schedule import TimestepConfig
from core.training.sections import kinds, section
from core.training.trackers import LoggingConfig
from core.training.trainer import TrainingConfig
from core.trunk.ddt import DDTConfig
from core.trunk.mmdit import MMDiTSettings
from core.trunk.sit import SiTConfig
from modalities.conditioning.conditions import ConditionConfig
from modalities.data.sources.build import SOURCES
from modalities.data.sources.config import SourceConfig
from modalities.evaluation.settings import EvaluationSettings
from modalities.synthetic.config import SyntheticConfig
from modalities.table import media_settings
from modalities.targets import EncoderConfig
from modalities.targets.build import FAMILIES

# Rows of `condition_on` that are no names of parts.
NONE, FIRST_FRAME = "none", "first_frame"


@dataclass
class PartConfig:
    """One part of the samples of a stream.

    Attributes:
        modality: whose input and output layers its tokens use; "" is the name of the part.
        loss_weight: factor of its mean velocity error.
        std_floor: a channel of its latents counts as varying at least this much, as a share of all channels' root mean
            square, where statistics are measured. Higher for audio clips whose high frequencies are nearly silent.
        media: size and autoencoder; the settings of its modality.
    """

    modality: str = ""
    loss_weight: float = 1.0
    std_floor: float = 0.01
    media: Any = section(media_settings)  # noqa: RUF009 - makes a field

    def problems(self) -> list[str]:
        found = []
        if self.loss_weight <= 0:
            found.append(f"loss_weight: {self.loss_weight} must be above 0")
        if not 0 < self.std_floor <= 1:
            found.append(f"std_floor: {self.std_floor} must lie in (0, 1]")
        return found


@dataclass
class StreamConfig:
    """What a step trains on. Its samples have one part, described here, or several `parts`.

    Attributes:
        weight: relative probability that a step trains on it (paper App. D: 0.57 / 0.30 / 0.13).
        batch: samples of one optimizer step on one device (38 / 8 / 16).
        loss_weight: factor of the whole loss of its steps.
        mask_ratio: R_M, in (0, 0.5] (0.25 / 0.1 / 0.5).
        data: where the records come from.
        val: records that are not trained on, for `selfflow evaluate`; None where there are none.
        modality, std_floor, media: of the only part, as of PartConfig; modality "" is the name of the stream.
        parts: name -> part, in the order in which their tokens lie; empty for one part.
        positions_per_second: of the axis of time that all `parts` share; null is the token rate of the finest part.
        condition_on: what is given, and in which share of the samples: the name of a part, or first_frame (of a video),
            or several together, such as image+state. What is missing to 1 is `none`. Given tokens carry no loss.
        condition_noise: their noise level is uniform in [0, condition_noise] (paper App. F: 0.2).
        encoders: name -> frozen network whose features of the clean media `alignment.external` aligns with; of a stream
            of one part.
        timestep: p(t).
        sampling: defaults of `selfflow generate`.
        evaluation: defaults of `selfflow evaluate`.
    """

    weight: float = 1.0
    batch: int = 1
    loss_weight: float = 1.0
    mask_ratio: float = 0.25
    data: SourceConfig = field(default_factory=SyntheticConfig, metadata=kinds(SOURCES))
    val: SourceConfig | None = field(default=None, metadata=kinds(SOURCES))
    modality: str = ""
    std_floor: float = 0.01
    media: Any = section(media_settings)  # noqa: RUF009 - makes a field
    parts: dict[str, PartConfig] = field(default_factory=dict)
    positions_per_second: float | None = None
    condition_on: dict[str, float] = field(default_factory=dict)
    condition_noise: float = 0.2
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    timestep: TimestepConfig = field(default_factory=TimestepConfig)
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def problems(self) -> list[str]:
        found = [f"{n}: {getattr(self, n)} must be above 0" for n in ("weight", "loss_weight") if getattr(self, n) <= 0]
        if self.batch < 1:
            found.append(f"batch: {self.batch} must be at least 1")
        if not 0 < self.mask_ratio <= 0.5:
            found.append(f"mask_ratio: {self.mask_ratio} must lie in (0, 0.5]")
        found += [f"encoders.{name}: the name must be a plain one" for name in self.encoders if not name.isidentifier()]
        found += [f"encoders.{name}.{line}" for name, e in self.encoders.items() for line in e.problems()]
        return found + self._part_problems() + self._condition_problems()

    def named_parts(self, name: str) -> dict[str, PartConfig]:
        """The parts with their modalities spelled out; `name` is the stream's."""
        parts = self.parts or {self.modality or name: PartConfig(self.modality, 1.0, self.std_floor, self.media)}
        return {key: replace(part, modality=part.modality or key) for key, part in parts.items()}

    def _part_problems(self) -> list[str]:
        if not self.parts:
            if self.positions_per_second is not None:
                return ["positions_per_second: is read for several `parts` alone"]
            return [] if 0 < self.std_floor <= 1 else [f"std_floor: {self.std_floor} must lie in (0, 1]"]
        found = ["modality: belongs to each of the parts, parts.NAME.modality"] if self.modality else []
        if self.std_floor != StreamConfig.std_floor:
            found.append("std_floor: belongs to each of the parts, parts.NAME.std_floor")
        found += [f"parts.{name}: the name must be a plain one" for name in self.parts if not name.isidentifier()]
        found += [f"parts.{name}: has a meaning in condition_on" for name in self.parts if name in (NONE, FIRST_FRAME)]
        if self.encoders:
            found.append("encoders: look at the media of one part; not with several `parts`")
        if self.positions_per_second is not None and not self.positions_per_second > 0:
            found.append(f"positions_per_second: {self.positions_per_second} must be above 0")
        return found

    def _condition_problems(self) -> list[str]:
        found = []
        allowed = (NONE, FIRST_FRAME, *self.parts)
        for name, share in self.condition_on.items():
            for one in name.split("+"):
                if one not in allowed or (one == NONE and one != name):
                    which = "" if one == name else f"{one} "
                    hint = nearest(one, allowed)
                    found.append(f"condition_on.{name}: {which}is not one of {', '.join(allowed)}.{hint}")
            if not 0 <= share <= 1:
                found.append(f"condition_on.{name}: {share} must lie in [0, 1]")
        total = sum(self.condition_on.values())
        if total > 1 + 1e-6 or (NONE in self.condition_on and abs(total - 1) > 1e-6):
            found.append(f"condition_on: sums to {total:g}; must be 1, or less without {NONE}, which is the rest")
        if not 0 <= self.condition_noise <= 1:
            found.append(f"condition_noise: {self.condition_noise} must lie in [0, 1]")
        return found


@dataclass
class TrunkConfig:
    """kind: mmdit (any mix of streams), sit or ddt (images with class labels, SiT's and RAE's); the sections of the
    others are unused."""

    kind: str = "mmdit"
    mmdit: MMDiTSettings = field(default_factory=MMDiTSettings)
    sit: SiTConfig = field(default_factory=SiTConfig)
    ddt: DDTConfig = field(default_factory=DDTConfig)

    def problems(self) -> list[str]:
        kinds = [entry.name for entry in fields(self) if entry.name != "kind"]
        return [] if self.kind in kinds else [f"kind: {self.kind!r} is not one of {', '.join(kinds)}"]


@dataclass
class Config:
    """One run.

    Attributes:
        method: row of the method table (configs/methods.py); every setting of the row can be overridden.
        seed: all randomness is a function of it.
        run: the run's folder.
        streams: name -> what a step may train on; the names are free.
    """

    method: str = "self_flow"
    seed: int = 0
    run: str = ""
    streams: dict[str, StreamConfig] = field(default_factory=dict)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    noising: NoisingConfig = field(default_factory=NoisingConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def problems(self) -> list[str]:
        found = [] if self.streams else ["streams: empty; name at least one, such as streams.image"]
        for name, stream in self.streams.items():
            if not name.isidentifier():
                found.append(f"streams.{name}: the name must be a plain one (letters, digits, underscore)")
            found += [f"streams.{name}.{line}" for line in self._stream_problems(name, stream)]
        found += self._shared_problems()
        if self.noising.teacher != "min" and self.alignment.ema_teacher is None:
            found.append(f"noising.teacher: {self.noising.teacher!r} is not read without alignment.ema_teacher")
        if self.alignment.ema_teacher is not None and self.training.ema.decay == 0:
            found.append(
                "training.ema.decay: 0 makes the teacher the student itself; alignment.ema_teacher needs an average"
            )
        if self.noising.timesteps == "per_part" and not any(stream.parts for stream in self.streams.values()):
            found.append("noising.timesteps: 'per_part' is read for streams of several parts alone, and there is none")
        return found + self._watching_problems()

    def parts(self) -> Iterator[tuple[str, str, PartConfig]]:
        """(stream, part, its settings) of all streams."""
        for stream, entry in self.streams.items():
            for name, part in entry.named_parts(stream).items():
                yield stream, name, part

    def _watching_problems(self) -> list[str]:
        """What previews and validation ask of the streams."""
        found = [
            f"training.preview.prompts.{name}: the run has no such stream; it has {', '.join(self.streams)}"
            for name in self.training.preview.prompts
            if name not in self.streams
        ]
        if self.training.validate.every and all(stream.val is None for stream in self.streams.values()):
            found.append(
                "training.validate.every: nothing to validate on; name records that are not trained on, such as "
                f"streams.{next(iter(self.streams), 'image')}.val={{kind: folder, path: FOLDER}}"
            )
        return found

    def _shared_problems(self) -> list[str]:
        """What parts of one modality, which share their layers and latent statistics, must agree in."""
        found, first = [], {}
        for stream, name, part in self.parts():
            if not part.media:
                continue  # of an unknown modality
            other, where = first.setdefault(part.modality, (part, f"{stream}.{name}"))
            if other.media.autoencoder != part.media.autoencoder:
                found.append(
                    f"streams.{stream}: its {part.modality} has the autoencoder {part.media.autoencoder.kind!r}, and "
                    f"{where} has {other.media.autoencoder.kind!r} or another of its settings; one modality has one"
                )
            if other.std_floor != part.std_floor:
                found.append(
                    f"streams.{stream}: std_floor {part.std_floor} of {part.modality} is {other.std_floor} in {where}"
                )
        return found

    def _stream_problems(self, name: str, stream: StreamConfig) -> list[str]:
        """What does not fit between one stream and the rest."""
        found, accumulate = [], max(self.training.accumulate, 1)
        if stream.batch % accumulate:
            found.append(f"batch: {stream.batch} is not divisible by training.accumulate {accumulate}")
        elif self.alignment.dispersive is not None and stream.batch // accumulate < 2:
            found.append("batch: alignment.dispersive needs 2 or more samples in a microbatch (batch / accumulate)")
        if self.noising.kind == "dual" and stream.timestep.buckets:
            found.append(
                f"timestep.buckets: {stream.timestep.buckets} makes t and s agree; not with noising.kind dual, only 0"
            )
        if self.noising.attention_separation and any(
            share > 0 for row, share in stream.condition_on.items() if row != NONE
        ):
            found.append("condition_on: given tokens would belong to no group; not with attention_separation")
        if self.alignment.external is not None and stream.parts:
            found.append("parts: alignment.external looks at the media of one part; not with several `parts`")
        elif self.alignment.external is not None and not stream.encoders:
            modality = next(iter(stream.named_parts(name).values())).modality
            kind = next((kind for kind, family in FAMILIES.items() if modality in family.modalities), "dinov2")
            found.append(f"encoders: empty; alignment.external needs one: {{{kind}: {{kind: {kind}, path: FOLDER}}}}")
        if stream.data.holds_latents and stream.encoders:
            found.append(
                f"encoders: {', '.join(stream.encoders)} look at media, and data of stored latents hold none; train on "
                "the media, or with a method without frozen encoders, such as self_flow or sra"
            )
        if self.alignment.external is None and stream.encoders:
            found.append(f"encoders: {', '.join(stream.encoders)} are not read without alignment.external")
        return found
