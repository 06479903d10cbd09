"""Trained runs: is one finished, what it generates with, and what `selfflow evaluate` measures of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from configs.build import free_on_resume, given_tokens, stored_whitening
from configs.networks import build_adapters, build_text_encoder, build_trunk
from configs.schema import Config, StreamConfig
from core.errors import CheckpointError, ConfigError
from core.evaluation.pair import PairPlan
from core.training.checkpoint import CheckpointStore
from core.training.config import refuse_changes, to_plain
from core.training.history import NO_CHANGE, Change, stored_config
from core.trunk.projectors import ProjectorSpec
from modalities.conditions import Conditions
from modalities.data.sources import build_source
from modalities.evaluation.heldout import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator


@dataclass(frozen=True)
class LoadedRun:
    """What a checkpoint of a run generates with; `step` is the checkpoint's, `root` what its data paths start from.

    `folder` is the run's, wherever it lies now.
    """

    config: Config
    generator: Generator
    step: int
    root: Path
    folder: Path


def load_run(path: Path, step: int | None = None, device: str = "auto", text_encoder: str | None = None) -> LoadedRun:
    """The teacher (EMA) of a run's newest or given checkpoint, with everything stored beside it.

    Args:
        text_encoder: folder or name of the run's frozen text encoder and its tokenizer, where that is not what the run
            was trained with.
    """
    store, step = checkpoint_store(path, step)
    extra = store.extra(step)
    config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), extra["config"]))
    config.training.device = device
    if text_encoder is not None:
        if config.condition.encoder is None:
            raise ConfigError(f"--text-encoder: {path} was trained without condition.encoder")
        place = Path(text_encoder).expanduser()
        config.condition.encoder.path = str(place.resolve()) if place.exists() else text_encoder
        config.condition.encoder.tokenizer = ""
    target = config.training.torch_device()
    adapters = build_adapters(config, Path(extra["root"]))
    projectors = {name: ProjectorSpec(*spec) for name, spec in extra["projectors"].items()}
    trunk = build_trunk(config, adapters, extra["labels"], projectors)
    trunk.load_state_dict(store.load_weights(step, "teacher"))
    trunk = trunk.to(target).eval().requires_grad_(False)
    for name, adapter in adapters.items():
        adapter.to(target)
        adapter.autoencoder.expect(extra.get("autoencoders", {}).get(name, ""))
    whitening = stored_whitening(extra, adapters)
    conditions = Conditions(config.condition, extra["labels"])
    text = build_text_encoder(config, Path(extra["root"]))
    if text is not None:
        text.to(target).expect(extra.get("text", ""))
    generator = Generator(trunk, adapters, whitening, conditions, target, text)
    return LoadedRun(config, generator, step, Path(extra["root"]), Path(path))


def checkpoint_store(path: Path, step: int | None) -> tuple[CheckpointStore, int]:
    """A run's checkpoints and the step to read: the given one, or the newest intact one."""
    store = CheckpointStore(path / "checkpoints")
    step = store.latest() if step is None else step
    if step is None:
        raise CheckpointError(f"{path} holds no intact checkpoint (looked in {store.root})")
    return store, step


def is_finished(config: Config, change: Change = NO_CHANGE) -> bool:
    """Whether the run has all of its steps. Raises ConfigError where its settings differ from the given ones, but for
    those of `change`."""
    path = Path(config.run)
    store = CheckpointStore(path / "checkpoints")
    if max(store.steps(), default=0) < config.training.steps or (store.latest() or 0) < config.training.steps:
        return False
    stored = stored_config(path)
    if stored is not None:
        refuse_changes(stored, to_plain(config), free_on_resume(config) | change.keys)
    return True


def evaluation_subject(loaded: LoadedRun, stream: StreamConfig, modality: str) -> Subject:
    """What `selfflow evaluate` measures of one modality; `stream` may differ from the run's in its data paths."""
    if stream.heldout is None:
        raise ConfigError(
            f"modalities.{modality}.heldout: not set; name records that were not trained on, such as "
            f"modalities.{modality}.heldout={{kind: folder, path: FOLDER}}"
        )
    heldout, training = (build_source(source, modality, loaded.root) for source in (stream.heldout, stream.data))
    classes, seed = training.labels(), stream.evaluation.seed
    readers = [
        Reader(loaded.generator, modality, source, classes, seed, config.caption_choice)
        for source, config in ((heldout, stream.heldout), (training, stream.data))
    ]
    rate = getattr(stream.media, "sample_rate", None)
    name = Path(stream.data.path).name or f"{stream.data.kind} {modality} data"
    return Subject(loaded.generator, modality, *readers, stream.sampling, rate, name)


def aligned_pair(loaded: LoadedRun, modality: str) -> PairPlan | None:
    """The student beside the EMA teacher, and how the run noises them; None without alignment.ema_teacher."""
    config, trunk = loaded.config, loaded.generator.trunk
    if config.alignment.ema_teacher is None:
        return None
    student = copy.deepcopy(trunk)
    student.load_state_dict(CheckpointStore(loaded.folder / "checkpoints").load_weights(loaded.step, "student"))
    stream, layers = config.modalities.streams()[modality], config.alignment.ema_teacher.layers(trunk.depth)
    given = given_tokens(stream, loaded.generator.adapters[modality])
    return PairPlan(student, *layers, config.noising, stream.time, stream.mask_ratio, **given)
