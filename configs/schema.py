"""The whole configuration: the dataclasses that components declare for themselves, composed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from core.alignment.terms import AlignmentConfig
from core.noising import NoisingConfig
from core.sampler import SamplerConfig
from core.schedule import TimeConfig
from core.training.trackers import LoggingConfig
from core.training.trainer import TrainingConfig
from core.trunk.ddt import DDTConfig
from core.trunk.mmdit import MMDiTSettings
from core.trunk.sit import SiTConfig
from modalities.audio import AudioConfig
from modalities.conditions import ConditionConfig
from modalities.data.sources import SourceConfig
from modalities.encoders import EncoderConfig
from modalities.encoders.build import FAMILIES
from modalities.evaluation.settings import EvaluationSettings
from modalities.image import ImageConfig
from modalities.video import VideoConfig


@dataclass
class StreamConfig:
    """What every modality of a run sets.

    Attributes:
        share: relative probability that a step trains on it (paper App. D: 0.57 / 0.30 / 0.13).
        batch: samples of one optimizer step on one device (38 / 8 / 16).
        loss_weight: factor of the whole loss of its steps.
        mask_ratio: R_M, in (0, 0.5] (0.25 / 0.1 / 0.5).
        data: where the records come from.
        heldout: records that are not trained on, for `selfflow evaluate`; None where there are none.
        encoders: name -> frozen network whose features of the clean media `alignment.external` aligns with.
        time: p(t).
        sampling: defaults of `selfflow generate`.
        evaluation: defaults of `selfflow evaluate`.
    """

    share: float = 1.0
    batch: int = 1
    loss_weight: float = 1.0
    mask_ratio: float = 0.25
    data: SourceConfig = field(default_factory=SourceConfig)
    heldout: SourceConfig | None = None
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    time: TimeConfig = field(default_factory=TimeConfig)
    sampling: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def problems(self) -> list[str]:
        found = [f"{n}: {getattr(self, n)} must be above 0" for n in ("share", "loss_weight") if getattr(self, n) <= 0]
        if self.batch < 1:
            found.append(f"batch: {self.batch} must be at least 1")
        if not 0 < self.mask_ratio <= 0.5:
            found.append(f"mask_ratio: {self.mask_ratio} must lie in (0, 0.5]")
        found += [f"encoders.{name}: the name must be a plain one" for name in self.encoders if not name.isidentifier()]
        return found + [f"encoders.{name}.{line}" for name, e in self.encoders.items() for line in e.problems()]


@dataclass
class ImageStream(StreamConfig):
    share: float = 0.57
    batch: int = 38
    mask_ratio: float = 0.25
    media: ImageConfig = field(default_factory=ImageConfig)


@dataclass
class VideoStream(StreamConfig):
    """
    Attributes:
        first_frame_share: share of training clips whose first frame is given as conditioning.
        first_frame_noise: its level is uniform in [0, first_frame_noise] (paper App. F: 0.2).
    """

    share: float = 0.30
    batch: int = 8
    mask_ratio: float = 0.1
    first_frame_share: float = 0.0
    first_frame_noise: float = 0.2
    media: VideoConfig = field(default_factory=VideoConfig)

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("first_frame_share", "first_frame_noise"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: {getattr(self, name)} must lie in [0, 1]")
        return found


@dataclass
class AudioStream(StreamConfig):
    share: float = 0.13
    batch: int = 16
    mask_ratio: float = 0.5
    media: AudioConfig = field(default_factory=AudioConfig)


@dataclass
class ModalitiesConfig:
    """The modalities of a run; those left out are not trained."""

    image: ImageStream | None = None
    video: VideoStream | None = None
    audio: AudioStream | None = None

    def streams(self) -> dict[str, StreamConfig]:
        """The modalities that are present, by name."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: stream for name, stream in named.items() if stream is not None}

    def problems(self) -> list[str]:
        return [] if self.streams() else ["nothing to train on: set at least one of image, video, audio"]


@dataclass
class TrunkConfig:
    """kind: mmdit (any mix of modalities), sit or ddt (images with class labels, SiT's and RAE's); the sections of the
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
    """

    method: str = "self_flow"
    seed: int = 0
    run: str = ""
    modalities: ModalitiesConfig = field(default_factory=ModalitiesConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    noising: NoisingConfig = field(default_factory=NoisingConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def problems(self) -> list[str]:
        found = []
        for name, stream in self.modalities.streams().items():
            found += [f"modalities.{name}.{line}" for line in self._stream_problems(name, stream)]
        if self.noising.teacher != "min" and self.alignment.ema_teacher is None:
            found.append(f"noising.teacher: {self.noising.teacher!r} is not read without alignment.ema_teacher")
        if self.alignment.ema_teacher is not None and self.training.ema.decay == 0:
            found.append(
                "training.ema.decay: 0 makes the teacher the student itself; alignment.ema_teacher needs an average"
            )
        return found + self._watching_problems()

    def _watching_problems(self) -> list[str]:
        """What previews and validation ask of the modalities."""
        streams = self.modalities.streams()
        found = [
            f"training.preview.prompts.{name}: the run has no such modality; it has {', '.join(streams)}"
            for name in self.training.preview.prompts
            if name not in streams
        ]
        if self.training.validate.every and all(stream.heldout is None for stream in streams.values()):
            found.append(
                "training.validate.every: nothing to validate on; name records that are not trained on, such as "
                f"modalities.{next(iter(streams), 'image')}.heldout={{kind: folder, path: FOLDER}}"
            )
        return found

    def _stream_problems(self, name: str, stream: StreamConfig) -> list[str]:
        """What does not fit between one modality and the rest."""
        found, accumulate = [], max(self.training.accumulate, 1)
        if stream.batch % accumulate:
            found.append(f"batch: {stream.batch} is not divisible by training.accumulate {accumulate}")
        elif self.alignment.dispersive is not None and stream.batch // accumulate < 2:
            found.append("batch: alignment.dispersive needs 2 or more samples in a microbatch (batch / accumulate)")
        if self.noising.kind == "dual" and stream.time.buckets:
            found.append(f"time.buckets: {stream.time.buckets} makes t and s agree; not with noising.kind dual, only 0")
        if self.noising.attention_separation and getattr(stream, "first_frame_share", 0) > 0:
            found.append("first_frame_share: a given frame would belong to no group; not with attention_separation")
        if self.alignment.external is not None and not stream.encoders:
            kind = next(kind for kind, family in FAMILIES.items() if name in family.modalities)
            found.append(f"encoders: empty; alignment.external needs one: {{{kind}: {{kind: {kind}, path: FOLDER}}}}")
        if stream.data.holds_latents and stream.encoders:
            found.append(
                f"encoders: {', '.join(stream.encoders)} look at media, and data of stored latents hold none; train on "
                "the media, or with a method without frozen encoders, such as self_flow or sra"
            )
        if self.alignment.external is None and stream.encoders:
            found.append(f"encoders: {', '.join(stream.encoders)} are not read without alignment.external")
        return found
