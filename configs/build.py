"""From a configuration to a trainer, for a new or a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from autoencoders.base import LatentNormalization
from configs.assembly import Assembly
from configs.assembly import normalization as normalization
from configs.assembly.trunk import empty_text, set_empty_text
from configs.init_from import (
    Initial,
    WeightSource,
    check_meaning,
    is_resumed,
    kept_normalization,
    read_source,
    start_from,
)
from configs.monitoring import build_hooks
from configs.resume import check_fit, describe_anew, earlier_mixes, find_anew
from configs.schema import Config
from configs.warnings import warnings
from core.errors import ConfigError
from core.training.adapter import adapt
from core.training.checkpoint import CheckpointStore
from core.training.compiled import choose_compiled, missing_compiler
from core.training.config import refuse_changes, to_plain
from core.training.distributed import ALONE, World
from core.training.history import NO_CHANGE, Change, stored_config
from core.training.onlooker import Onlooker
from core.training.records import RunFolder
from core.training.remote import RemoteStore
from core.training.say import say
from core.training.state import NOTHING_ANEW
from core.training.trainer import Trainer
from core.trunk.foreign.lora_read import read_adapter, start_adapter
from modalities.data.loader import StepLoader
from modalities.data.sources.build import ConcatConfig
from modalities.data.sources.config import SourceConfig
from modalities.generation import Trunk

# Settings that may change when a run is resumed without --change: they do not touch a number of what was trained.
FREE_ON_RESUME = {
    "run",
    "logging",
    "training.save_every",
    "training.async_save",
    "training.checkpoint_store",
    "training.keep",
    "training.keep_every",
    "training.accumulate",  # how a step is shared changes no number, but see check_shares
    "training.replicas",
    "training.recompute",
    "training.preview",
    "training.validate",
    "training.device",
    "training.workers",
    "training.data_limit",
    "training.stop_within",
    "training.compare_ranks_every",
    "training.watchdog",
    "training.skip_steps",  # of steps to come, see configs/changes.py
}


def free_on_resume(config: Config) -> set[str]:
    """The dotted keys (or prefixes) that may change; a run whose learning rates do not depend on its length may also be
    made longer."""
    free = set(FREE_ON_RESUME)
    for name, stream in config.streams.items():
        free |= {f"streams.{name}.{part}" for part in ("val", "sampling", "evaluation")}
        free |= set(places(stream.data, f"streams.{name}.data"))
    return free | (set() if config.training.optimizer.reads_length() else {"training.steps"})


def places(data: SourceConfig, key: str) -> Iterator[str]:
    """Keys of where data lie, which may move: their fingerprint, of names, sizes and order, is compared."""
    yield from (f"{key}.{part}" for part in ("path", "cache", "cache_limit"))
    for name, part in data.parts.items() if isinstance(data, ConcatConfig) else ():
        yield from places(part, f"{key}.parts.{name}")


def is_finished(config: Config, change: Change = NO_CHANGE, store: CheckpointStore | None = None) -> bool:
    """Whether the run has all of its steps. Raises ConfigError where its settings differ from the given ones, but for
    those of `change`. `store` is as of `build_trainer`."""
    path = Path(config.run)
    store = store or CheckpointStore(path / "checkpoints")
    if max(store.steps(), default=0) < config.training.steps or (store.latest() or 0) < config.training.steps:
        return False
    stored = stored_config(path)
    if stored is not None:
        refuse_changes(stored, to_plain(config), free_on_resume(config) | change.keys)
    return True


def build_trainer(
    config: Config,
    root: Path | None = None,
    change: Change = NO_CHANGE,
    initial: Initial | None = None,
    store: CheckpointStore | None = None,
    advice: str = "",
    world: World = ALONE,
) -> Trainer:
    """Everything `selfflow train` needs, for a new run or to resume the one in `config.run`.

    Args:
        change: what differs from the settings of the run that is resumed, see configs/changes.py.
        initial: weights that a new run starts from.
        store: the run's checkpoints, where they have been looked into already, so that nothing is verified twice.
        advice: what the run says last where it ends by itself, see `Trainer`.
        world: the processes of the run, all of which call it.
    """
    run = Path(config.run)
    store = store or CheckpointStore(run / "checkpoints")
    store.keep, store.keep_every = config.training.keep, config.training.keep_every
    store.remote = RemoteStore(config.training.checkpoint_store) if config.training.checkpoint_store else None
    step = store.latest()
    stored = None if step is None else store.extra(step)
    source = None if is_resumed(run, initial, step) or initial is None else read_source(initial.path)
    assembly = Assembly(config, root or Path.cwd(), device=config.training.torch_device(), world=world)
    fingerprints = {name: source.fingerprint() for name, source in assembly.sources.items()}
    identity = (run, to_plain(config), fingerprints, free_on_resume(config), change)
    RunFolder.check(*identity)
    if stored is not None:
        check_labels(run, stored["labels"], assembly.labels)
        check_shares(stored, config, world, change)
    if source is not None and initial is not None:
        check_meaning(source, initial, config, assembly.labels)
    if world.size > 1 and config.training.optimizer.kind == "adamw8bit":
        raise ConfigError("training.optimizer.kind: 'adamw8bit' is for one device; adamw and muon train on several")
    world.first_before_others(assembly.load_autoencoders)
    if stored is not None:
        assembly.normalization = normalization.stored(stored, assembly.adapters)
        normalization.check_files(config, assembly.adapters, assembly.normalization)
    else:  # measured once: other machines might round differently
        assembly.normalization = world.on_first(
            lambda: assembly.normalization if source is None else normalization_from(source, assembly)
        )
    world.first_before_others(lambda: assembly.encoders)
    # Weights that are drawn need be whole nowhere; those that are read are read whole.
    empty = world.size > 1 and source is None and config.training.adapter is None
    if empty:
        assembly.leave_empty()
    origin, anew = None, NOTHING_ANEW
    if source is not None and initial is not None:
        origin = start_from(source, initial, assembly.trunk)
    if config.training.adapter is not None:
        if world.size > 1 and config.training.adapter.base != "fp32":
            raise ConfigError(
                "training.adapter.base: 'bf16' is for one process; a sharded block has weights of one type, fp32"
            )
        adapt(assembly.trunk, config.training.adapter, config.seed)
        if step is None and config.training.adapter.start:
            start = assembly.root / Path(config.training.adapter.start).expanduser()
            start_adapter(assembly.trunk, read_adapter(assembly.trunk, start), config.training.adapter.scale, start)
    if stored is not None and step is not None:
        anew = find_anew(stored, config, assembly.projectors)
        assembly.earlier = earlier_mixes(run, config, change, step, assembly.sources)
        check_fit(store, step, assembly.trunk, anew)
        for line in describe_anew(anew, assembly.trunk):
            say(line)
    world.first_before_others(assembly.load_text_encoder)
    features = empty_text(assembly.trunk, assembly.text, config.condition.dropped()) if step is None else None
    if not empty:
        set_empty_text(assembly.trunk, features)

    def begin(trunk: nn.Module) -> None:
        cast(Trunk, trunk).reset(config.seed)
        set_empty_text(cast(Trunk, trunk), features)

    choice = choose_compiled(
        config.training.compile,
        config.training.steps,
        len(assembly.config.streams),
        assembly.device.type,
        world.size,
        were_compiled(stored) if step and stored is not None else None,
        missing_compiler(assembly.device.type),
    )
    hooks = build_hooks(assembly)
    loader = StepLoader(assembly.dataset, config.training.workers, pin=assembly.device.type == "cuda")
    # The first thing that is written: everything else fits.
    folder = open_folder(world, run, lambda: RunFolder.open(*identity[:-1], replace(change, step=step or 0), origin))
    if choice.why:
        say(f"compile: {'on' if choice.compiled else 'off'}, {choice.why}")
        folder.note_compiled(step or 0, choice.compiled, choice.why)
    return Trainer(
        config.training,
        assembly.trunk,
        assembly.objective,
        loader,
        folder,
        {name: entry.loss_weight for name, entry in assembly.config.streams.items()},
        assembly.to_store() | {"compiled": choice.compiled},
        assembly.preprocess,
        warnings(config),
        hooks,
        anew=anew,
        initialized=source is not None,
        store=store,
        advice=advice,
        start=begin if empty else None,
        world=world,
        compiled=choice.compiled,
    )


def were_compiled(stored: Mapping[str, Any]) -> bool:
    """Whether the steps before a checkpoint were; versions before `auto` did what the settings say."""
    return stored.get("compiled", stored["config"]["training"].get("compile") in (True, "on"))


def open_folder(world: World, run: Path, action: Callable[[], RunFolder]) -> RunFolder | Onlooker:
    """Rank 0 has the folder; whether it could open it reaches all."""
    opened: list[RunFolder] = []
    world.on_first(lambda: opened.append(action()))
    return opened[0] if opened else Onlooker(run)


def normalization_from(source: WeightSource, assembly: Assembly) -> dict[str, LatentNormalization]:
    """Statistics of a new run that starts from other weights: published with the autoencoder, of a file that the
    configuration names, or those that the weights are used to, or measured."""
    config, published = assembly.config, normalization.published(assembly.config, assembly.adapters)
    files = normalization.of_files(assembly.adapters)
    kept = kept_normalization(source, config)
    kept = {name: values for name, values in kept.items() if name not in published | files}
    found = normalization.measured(config, assembly.streams, kept)
    for name in found:
        how = "published with its autoencoder" if name in published else "measured on the data"
        how = "those of its file" if name in files else how
        say(f"latent statistics of {name}: {f'those of {source.name}' if name in kept else how}")
    return found


def check_shares(stored: Mapping[str, Any], config: Config, world: World, change: Change) -> None:
    """Refuse to cut the steps of a run into other shares where a term depends on them. Raises ConfigError."""
    now = config.training.accumulate * world.size
    known = stored.get("shares", stored["config"]["training"]["accumulate"])
    if config.alignment.dispersive is not None and now != known and "training.accumulate" not in change.keys:
        raise ConfigError(
            f"training.accumulate: {config.training.accumulate} on {world.size} devices cuts a step into {now} shares, "
            f"and the run had {known}; alignment.dispersive compares the samples of a share with each other. Use "
            f"accumulate x devices = {known}, or --change training.accumulate={config.training.accumulate}"
        )


def check_labels(run: Path, known: list[str], labels: list[str]) -> None:
    """Refuse to resume a run whose label table has other rows than the data. Raises ConfigError."""
    if len(known) != len(labels):
        raise ConfigError(f"{run} was trained with {len(known)} classes, and these data have {len(labels)}")
    if known != labels:
        first = next(place for place, pair in enumerate(zip(known, labels, strict=True)) if len(set(pair)) > 1)
        raise ConfigError(
            f"{run}: its class {first} is {known[first]!r}, and that of these data is {labels[first]!r}; the label "
            "table would be mixed up"
        )
