"""Trained runs: is one finished, what it generates with, and what `selfflow evaluate` measures of it."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor, nn

from configs.build import free_on_resume, given_tokens, stored_whitening
from configs.networks import build_adapters, build_text_encoder, build_trunk
from configs.schema import Config, StreamConfig
from core.errors import CheckpointError, ConfigError, choose
from core.evaluation.pair import PairPlan
from core.training.checkpoint import CheckpointStore
from core.training.config import refuse_changes, to_plain
from core.training.history import NO_CHANGE, Change, stored_config
from core.training.posthoc_ema import reconstruct
from core.trunk.projectors import ProjectorSpec
from modalities.base import ModalityAdapter
from modalities.conditions import Conditions
from modalities.data.sources import build_source
from modalities.evaluation.heldout import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator

# which weights -> part of a checkpoint
WEIGHTS = {"ema": "teacher", "student": "student"}


@dataclass(frozen=True)
class LoadedRun:
    """What a checkpoint of a run generates with; `step` is the checkpoint's, `root` what its data paths start from.

    `folder` is the run's, wherever it lies now; `weights` is a name of `WEIGHTS`; `ema_length` that of a post-hoc
    EMA in place of these, or None.
    """

    config: Config
    generator: Generator
    step: int
    root: Path
    folder: Path
    weights: str = "ema"
    ema_length: float | None = None


def load_run(
    path: Path,
    step: int | None = None,
    device: str = "auto",
    text_encoder: str | None = None,
    weights: str = "ema",
    ema_length: float | None = None,
) -> LoadedRun:
    """The EMA (the teacher) of a run's newest or given checkpoint, with everything stored beside it.

    Args:
        weights: ema, or student for the weights that the optimizer moves.
        text_encoder: folder or name of the run's frozen text encoder and its tokenizer, where that is not what the run
            was trained with.
        ema_length: the weights of a post-hoc EMA of this length (sigma_rel) up to its last snapshot at or before the
            checkpoint, in place of the teacher's.
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
    if ema_length is None:
        trunk.load_state_dict(store.load_weights(step, choose("weights", weights, WEIGHTS)))
    else:
        trunk.load_state_dict(posthoc_weights(path, ema_length, step))
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
    return LoadedRun(config, generator, step, Path(extra["root"]), Path(path), weights, ema_length)


def posthoc_weights(path: Path, length: float, step: int) -> dict[str, Tensor]:
    """Those of a post-hoc EMA, with a line on stderr about what they were made of."""
    weights, recipe = reconstruct(path, length, step)
    print(
        f"EMA of length {length:g} up to step {recipe.step}, from {len(recipe.factors)} stored averages; its profile "
        f"is met within {recipe.error:.1%}",
        file=sys.stderr,
    )
    if warning := recipe.warning():
        print(f"warning: {warning}", file=sys.stderr)
    return weights


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
    if loaded.config.alignment.ema_teacher is None:
        return None
    student = copy.deepcopy(loaded.generator.trunk)
    student.load_state_dict(CheckpointStore(loaded.folder / "checkpoints").load_weights(loaded.step, "student"))
    return pair_plan(loaded.config, student, loaded.generator.adapters[modality], modality)


def pair_plan(config: Config, student: nn.Module, adapter: ModalityAdapter, modality: str) -> PairPlan | None:
    """How a run aligns this student on a modality; None without alignment.ema_teacher."""
    if config.alignment.ema_teacher is None:
        return None
    stream, layers = config.modalities.streams()[modality], config.alignment.ema_teacher.layers(student.depth)
    given = given_tokens(stream, adapter)
    return PairPlan(student, *layers, config.noising, stream.time, stream.mask_ratio, **given)
