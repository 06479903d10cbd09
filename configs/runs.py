"""Trained runs: what one generates with, and what `selfflow evaluate` measures of it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.assembly import Assembly
from configs.assembly.episodes import check_windows
from configs.assembly.latents import check_latents
from configs.assembly.streams import build_modes
from configs.buckets import Sources, of_size
from configs.released import is_released, load_released, read_released
from configs.schema import Config, StreamConfig
from core.errors import CheckpointError, ConfigError, choose
from core.evaluation.pair import PairPlan
from core.training.adapter import adapt
from core.training.checkpoint import CheckpointStore
from core.training.config import stored_instance
from core.training.posthoc_ema import reconstruct
from modalities.evaluation.records import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator, Trunk, generate

# which weights -> part of a checkpoint
WEIGHTS = {"ema": "teacher", "student": "student"}


@dataclass(frozen=True)
class LoadedRun:
    """What a checkpoint of a run generates with; `step` is the checkpoint's.

    `folder` is the run's, wherever it lies now; `weights` is a name of `WEIGHTS`; `ema_length` that of a post-hoc
    EMA in place of these, or None; `store` has the checkpoints, where they have been looked into; `again` loads the
    same in another process; `lora` says which file of adapters was merged into the weights, "" for none.
    """

    assembly: Assembly
    step: int
    folder: Path
    weights: str = "ema"
    ema_length: float | None = None
    store: CheckpointStore | None = None
    again: Callable[[], LoadedRun] | None = None
    lora: str = ""

    @property
    def config(self) -> Config:
        return self.assembly.config

    @property
    def root(self) -> Path:
        """What data paths start from."""
        return self.assembly.root

    @property
    def generator(self) -> Generator:
        return self.assembly.generator

    def generate(
        self,
        stream: str,
        prompts: Sequence[str],
        seed: int = 0,
        batch_size: int = 8,
        size: str | None = None,
        **settings: Any,
    ) -> list[dict[str, Tensor]]:
        """Media of every part by its name, for each prompt (a text, or a class name in runs with labels).

        Images are (3, H, W) and videos (T, 3, H, W) in [-1, 1], audio is (channels, samples).

        Args:
            size: HxW, one of the sizes of a stream that has several.
            settings: of the sampler, in place of the run's own, such as `steps` and `cfg_scale`.

        Raises ConfigError for an unknown stream, and for sampler settings out of range.
        """
        stream = of_size(self.config.streams, stream, size)
        sampling = self.config.streams[stream].sampling.changed(**settings)
        return list(generate(self.generator, stream, prompts, sampling, seed, batch_size=batch_size))


def load_run(
    path: Path | str,
    step: int | None = None,
    device: str = "auto",
    text_encoder: str | None = None,
    weights: str = "ema",
    ema_length: float | None = None,
) -> LoadedRun:
    """The EMA (the teacher) of a run's newest or given checkpoint, with everything stored beside it.

    Args:
        path: a run folder, or a folder of `selfflow export --kind run`, which has the weights of one step alone.
        weights: ema, or student for the weights that the optimizer moves.
        text_encoder: folder or name of the run's frozen text encoder and its tokenizer, where that is not what the run
            was trained with.
        ema_length: the weights of a post-hoc EMA of this length (sigma_rel) up to its last snapshot at or before the
            checkpoint, in place of the teacher's.
    """
    part, path = choose("weights", weights, WEIGHTS), Path(path)
    store, root = None, path
    if is_released(path):
        step, extra = released_step(path, step, weights, ema_length)
    else:
        store, step = checkpoint_store(path, step, (part,) if ema_length is None else ())
        extra = store.extra(step)
        root = Path(extra["root"])
    config: Config = stored_instance(Config, extra["config"])
    config.training.device = device
    if text_encoder is not None:
        encoder = config.condition.text_encoder()
        if encoder is None:
            raise ConfigError(f"--text-encoder: {path} was trained without condition.encoder")
        place = Path(text_encoder).expanduser()
        encoder.path = str(place.resolve()) if place.exists() else text_encoder
        encoder.tokenizer = ""
    assembly = Assembly(config, root, extra, config.training.torch_device())
    if config.training.adapter is not None:
        adapt(assembly.trunk, config.training.adapter, config.seed)
    if store is None:
        load_released(path, assembly.trunk)
    elif ema_length is None:
        assembly.trunk.load_state_dict(store.load_weights(step, part))
    else:
        assembly.trunk.load_state_dict(posthoc_weights(path, ema_length, step))
    assembly.trunk.to(assembly.device).eval().requires_grad_(False)
    again = partial(load_run, path, step, device, text_encoder, weights, ema_length)
    return LoadedRun(assembly, step, Path(path), weights, ema_length, store, again)


def released_step(path: Path, step: int | None, weights: str, ema_length: float | None) -> tuple[int, dict[str, Any]]:
    """(step, what is stored beside the tensors) of a run that was passed on. Raises CheckpointError for what it has
    not."""
    found = read_released(path)
    lacking = {f"step {step}": step not in (None, found.step), weights: weights != found.which}
    lacking[f"EMA of length {ema_length}"] = ema_length is not None
    if wanted := [name for name, lacks in lacking.items() if lacks]:
        raise CheckpointError(f"{path} holds the {found.which} weights of step {found.step} alone, not {wanted[0]}")
    return found.step, found.extra


def posthoc_weights(path: Path, length: float, step: int) -> dict[str, Tensor]:
    """The weights of a post-hoc EMA, with a line on stderr about what they were made of."""
    weights, recipe = reconstruct(path, length, step)
    print(
        f"EMA of length {length:g} up to step {recipe.step}, from {len(recipe.factors)} stored averages; its profile "
        f"is met within {recipe.error:.1%}",
        file=sys.stderr,
    )
    if warning := recipe.warning():
        print(f"warning: {warning}", file=sys.stderr)
    return weights


def checkpoint_store(path: Path, step: int | None, parts: Collection[str] | None = None) -> tuple[CheckpointStore, int]:
    """A run's checkpoints and the step to read: the given one, or the newest whose `parts` (or all) are intact."""
    store = CheckpointStore(path / "checkpoints")
    step = store.latest(parts) if step is None else step
    if step is None:
        raise CheckpointError(f"{path} holds no intact checkpoint (looked in {store.root})")
    return store, step


def evaluation_subject(assembly: Assembly, name: str, stream: StreamConfig) -> Subject:
    """What `selfflow evaluate` measures of one stream; `stream` may differ from the run's in its data paths."""
    if stream.val is None:
        raise ConfigError(
            f"streams.{name}.val: not set; name records that were not trained on, such as "
            f"streams.{name}.val={{kind: folder, path: FOLDER}}"
        )
    opening = Sources(assembly.root)
    val, training = opening.open(name, stream, "val"), opening.open(name, stream)
    check_latents(assembly.config, {name: val}, assembly.adapters, assembly.root, "val")
    check_windows(assembly.config, {name: val}, assembly.adapters, "val")
    classes, seed = training.labels(), stream.evaluation.seed
    held_out, trained = (
        Reader(assembly.generator, name, source, classes, seed, config.caption_choice)
        for source, config in ((val, stream.val), (training, stream.data))
    )
    data = stream.data.name or f"{stream.data.kind} {name} data"
    return Subject(assembly.generator, name, held_out, trained, stream.sampling, data)


def aligned_pair(loaded: LoadedRun, name: str) -> PairPlan | None:
    """The student beside the EMA teacher, and how the run noises them; None where there is no such pair."""
    if loaded.config.alignment.ema_teacher is None or is_released(loaded.folder):
        return None  # of a run that was passed on there is no student
    student = copy.deepcopy(loaded.generator.trunk)
    store = loaded.store or CheckpointStore(loaded.folder / "checkpoints")
    student.load_state_dict(store.load_weights(loaded.step, "student"))
    return pair_plan(loaded.assembly, student, name)


def pair_plan(assembly: Assembly, student: Trunk, name: str) -> PairPlan | None:
    """How a run aligns this student on a stream; None without alignment.ema_teacher."""
    config = assembly.config
    if config.alignment.ema_teacher is None:
        return None
    stream = config.streams[name]
    layer, teacher_layer = config.alignment.ema_teacher.layers(student.depth)
    modes = build_modes(name, stream, assembly.parts[name])
    return PairPlan(student, layer, teacher_layer, config.noising, stream.timestep, stream.mask_ratio, modes)
