"""The whole configuration: the dataclasses that components declare for themselves, composed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from configs.methods import NOISING
from core.alignment.terms import AlignmentConfig
from core.errors import nearest
from core.kinds import kinds
from core.noising import NoisingConfig
from core.sampling.config import SOLVERS, SamplerConfig
from core.sampling.plan import part_name_problems
from core.schedule import TIMESTEPS, TimestepConfig
from core.training.sections import section
from core.training.trackers import LoggingConfig
from core.training.training_config import TrainingConfig
from core.trunk.ddt import DDTConfig
from core.trunk.flux2 import Flux2Settings
from core.trunk.mmdit import MMDiTSettings
from core.trunk.sit import SiTConfig
from core.trunk.wan import WanSettings
from modalities.conditioning.conditions import CONDITIONS, ConditionConfig
from modalities.data.sources.build import SOURCES
from modalities.data.sources.config import SourceConfig
from modalities.evaluation.settings import EvaluationSettings
from modalities.synthetic.config import SyntheticConfig
from modalities.table import media_settings
from modalities.targets import EncoderConfig
from modalities.targets.build import FAMILIES

# Rows of `modes` that name no part.
SHARED, INDEPENDENT, FIRST_FRAME = "shared", "independent", "first_frame"


@dataclass
class PartConfig:
    """One part of the samples of a stream.

    Attributes:
        modality: whose input and output layers its tokens use; "" is the name of the part.
        loss_weight: factor of its mean velocity error.
        std_floor: a channel of its latents counts as varying at least this much, as a share of all channels' root mean
            square, where statistics are measured. Higher for audio clips whose high frequencies are nearly silent.
        given: in every sample and whatever the mode: the frame that a robot sees now, its state.
        condition_noise: where it is given, its level is uniform in [0, condition_noise]; null is the stream's.
        timestep: p(t) where its levels are drawn alone, in other modes than shared; null is the stream's.
        media: size and autoencoder; the settings of its modality.
    """

    modality: str = ""
    loss_weight: float = 1.0
    std_floor: float = 0.01
    given: bool = False
    condition_noise: float | None = None
    timestep: TimestepConfig | None = field(default=None, metadata=kinds(TIMESTEPS, keeps=True))
    media: Any = section(media_settings)  # noqa: RUF009 - makes a field

    def problems(self) -> list[str]:
        found = []
        if self.loss_weight <= 0:
            found.append(f"loss_weight: {self.loss_weight} must be above 0")
        if not 0 < self.std_floor <= 1:
            found.append(f"std_floor: {self.std_floor} must lie in (0, 1]")
        if self.condition_noise is not None and not 0 <= self.condition_noise <= 1:
            found.append(f"condition_noise: {self.condition_noise} must lie in [0, 1]")
        return found


@dataclass
class StreamConfig:
    """What a step trains on. Its samples have one part, described here, or several `parts`.

    Attributes:
        weight: relative probability that a step trains on it (paper App. D: 0.57 / 0.30 / 0.13).
        batch: samples of one whole optimizer step, of all devices together.
        loss_weight: factor of the whole loss of its steps.
        mask_ratio: R_M, in (0, 0.5] (0.25 / 0.1 / 0.5).
        data: where the records come from.
        val: records that are not trained on, for `selfflow evaluate`; None where there are none.
        modality, std_floor, media: of the only part, as of PartConfig; modality "" is the name of the stream.
        parts: name -> part, in the order in which their tokens lie; empty for one part.
        positions_per_second: of the axis of time that all `parts` share; null is the token rate of the finest part.
        modes: in which shares of the samples parts are trained in which way; what is missing to 1 is `shared`.
            shared (one pair of timesteps and one mask for all parts: the paper's), independent (a pair and a mask of
            its own for each), A_leads_B (part B is noisier than A, as far as Beta(1.5, 1) says), X_given (part X is
            there with hardly any noise), X_absent (it is pure noise), first_frame (that of a video is given). What is
            given or absent carries no loss.
        condition_noise: the noise level of what is given is uniform in [0, condition_noise] (paper App. F: 0.2).
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
    modes: dict[str, float] = field(default_factory=lambda: {SHARED: 1.0})
    condition_noise: float = 0.2
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    timestep: TimestepConfig = field(default_factory=TimestepConfig, metadata=kinds(TIMESTEPS, keeps=True))
    sampling: SamplerConfig = field(default_factory=SamplerConfig, metadata=kinds(SOLVERS, "solver", keeps=True))
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def problems(self) -> list[str]:
        found = [f"{n}: {getattr(self, n)} must be above 0" for n in ("weight", "loss_weight") if getattr(self, n) <= 0]
        if self.batch < 1:
            found.append(f"batch: {self.batch} must be at least 1")
        if not 0 < self.mask_ratio <= 0.5:
            found.append(f"mask_ratio: {self.mask_ratio} must lie in (0, 0.5]")
        found += [f"encoders.{name}: the name must be a plain one" for name in self.encoders if not name.isidentifier()]
        found += [f"encoders.{name}.{line}" for name, e in self.encoders.items() for line in e.problems()]
        return found + self._part_problems() + self._mode_problems()

    def named_parts(self, name: str) -> dict[str, PartConfig]:
        """The parts with their modalities spelled out; `name` is the stream's."""
        parts = self.parts or {
            self.modality or name: PartConfig(self.modality, std_floor=self.std_floor, media=self.media)
        }
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
        if self.encoders:
            found.append("encoders: look at the media of one part; not with several `parts`")
        if self.positions_per_second is not None and not self.positions_per_second > 0:
            found.append(f"positions_per_second: {self.positions_per_second} must be above 0")
        return found

    def drawn_modes(self) -> dict[str, float]:
        """The modes but `shared`, which is the rest."""
        return {name: share for name, share in self.modes.items() if name != SHARED and share > 0}

    def _mode_problems(self) -> list[str]:
        found, allowed = [], [SHARED, FIRST_FRAME]
        if self.parts:
            pairs = [f"{a}_leads_{b}" for a in self.parts for b in self.parts if a != b]
            allowed += [INDEPENDENT, *(f"{x}_{how}" for x in self.parts for how in ("given", "absent")), *pairs]
        for name, share in self.modes.items():
            if name not in allowed:
                found.append(f"modes.{name}: is not one of {', '.join(allowed)}.{nearest(name, allowed)}")
            if not 0 <= share <= 1:
                found.append(f"modes.{name}: {share} must lie in [0, 1]")
        total = sum(self.modes.values())
        if total > 1 + 1e-6 or (SHARED in self.modes and abs(total - 1) > 1e-6):
            found.append(f"modes: sums to {total:g}; must be 1, or less without {SHARED}, which is the rest")
        if not 0 <= self.condition_noise <= 1:
            found.append(f"condition_noise: {self.condition_noise} must lie in [0, 1]")
        for name, part in self.parts.items():
            if part.timestep is not None and not set(self.drawn_modes()) - {FIRST_FRAME}:
                found.append(f"parts.{name}.timestep: is read in modes that draw its levels alone, not in {SHARED}")
        return found


@dataclass
class TrunkConfig:
    """kind: mmdit (any mix of streams), sit or ddt (images with class labels, SiT's and RAE's), flux2 or wan (the
    published transformers of FLUX.2 and Wan 2.2); the sections of the others are unused."""

    kind: str = "mmdit"
    mmdit: MMDiTSettings = field(default_factory=MMDiTSettings)
    sit: SiTConfig = field(default_factory=SiTConfig)
    ddt: DDTConfig = field(default_factory=DDTConfig)
    flux2: Flux2Settings = field(default_factory=Flux2Settings)
    wan: WanSettings = field(default_factory=WanSettings)

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
    noising: NoisingConfig = field(default_factory=NoisingConfig, metadata=NOISING)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig, metadata=kinds(CONDITIONS, keeps=True))
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
        if 0 < stream.batch < accumulate:
            found.append(f"batch: {stream.batch} is less than training.accumulate {accumulate}, its microbatches")
        elif self.alignment.dispersive is not None and stream.batch // accumulate < 2:
            found.append("batch: alignment.dispersive needs 2 or more samples in a microbatch (batch / accumulate)")
        found += [f"sampling.{line}" for line in part_name_problems(stream.sampling, list(stream.named_parts(name)))]
        own = {f"parts.{part}.timestep": entry.timestep for part, entry in stream.parts.items()}
        for place, timestep in {"timestep": stream.timestep, **own}.items():
            if self.noising.kind == "dual" and timestep is not None and timestep.buckets:
                found.append(
                    f"{place}.buckets: {timestep.buckets} makes t and s agree; not with noising.kind dual, only 0"
                )
        given = [part for part, entry in stream.parts.items() if entry.given]
        if self.noising.separates() and (stream.drawn_modes() or given):
            found.append(
                f"modes: tokens of {', '.join([*stream.drawn_modes(), *given])} would belong to no group; only shared "
                "with attention_separation"
            )
        if self.noising.kind == "diffusion_forcing":
            found += [
                f"modes.{mode}: not with noising.kind diffusion_forcing, where no part has a level as a whole"
                for mode in stream.drawn_modes()
                if "_leads_" in mode
            ]
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
        sized = [part for part, own in stream.named_parts(name).items() if getattr(own.media, "sizes", None)]
        if len(sized) > 1:
            found.append(f"parts: {' and '.join(sized)} both have several sizes; one part may")
        if sized and stream.encoders:
            found.append(f"encoders: {', '.join(stream.encoders)} are built for one size; not with media.sizes")
        if sized and stream.data.holds_episodes:
            found.append("media.sizes: robot data have one size, that of the camera; leave it out")
        if self.alignment.external is None and stream.encoders:
            found.append(f"encoders: {', '.join(stream.encoders)} are not read without alignment.external")
        return found
