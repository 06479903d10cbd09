"""What a resumed run whose settings were changed takes from its checkpoint, and what of its past still counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from configs.buckets import by_size, step_shares
from configs.schema import Config
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.config import differences, stored_instance, to_plain
from core.training.history import Change, Past, clamped, entries_for, past, read_run, stored_config
from core.training.mixing import MixPiece
from core.training.state import Anew
from core.trunk.projectors import TEACHER, ProjectorSpec
from modalities.base import Source

KIND = "training.optimizer.kind"


def find_anew(extra: dict, config: Config, projectors: dict[str, ProjectorSpec]) -> Anew:
    """What differs between a checkpoint and the settings of now; `extra` is the plain data of the checkpoint.

    Told from the checkpoint and not from what was asked for: a run that is killed before its next checkpoint meets the
    same one again.
    """
    known = extra.get("projectors", {})
    wanted = {name: [spec.kind, spec.out] for name, spec in projectors.items()}
    names = [name for name in dict.fromkeys([*known, *wanted]) if known.get(name) != wanted.get(name)]
    parts = tuple("projector" if name == TEACHER else f"projectors.{name}" for name in names)
    changed = {key for key, _, _ in differences(extra.get("config", {}), to_plain(config))}
    return Anew(parts, KIND in changed)


def describe_anew(anew: Anew, trunk: nn.Module) -> list[str]:
    """A line for each part that starts from scratch or is left behind."""
    names = list(trunk.state_dict())
    lines = []
    for part in anew.parts:
        here = any(name.startswith(f"{part}.") for name in names)
        lines.append(f"{part}: {'starts from its initial weights' if here else 'is no longer needed and left behind'}")
    return lines + (["the optimizer is of another kind: its state starts anew"] if anew.optimizer else [])


def check_fit(store: CheckpointStore, step: int, trunk: nn.Module, anew: Anew) -> None:
    """Raise ConfigError, before anything is written, where the weights of a checkpoint do not fit the network."""
    stored = {
        key.removeprefix("student/"): tuple(item.size)
        for key, item in store.stored(step, ("student",)).items()
        if not anew.leaves(key)
    }
    own = {name: tuple(value.shape) for name, value in trunk.state_dict().items() if not anew.leaves(f"student/{name}")}
    wrong = [name for name in dict.fromkeys([*stored, *own]) if stored.get(name) != own.get(name)]
    if wrong:
        shown = [
            f"  {name}: {stored.get(name, 'not there')} in the checkpoint, {own.get(name, 'not there')} here"
            for name in wrong[:6]
        ]
        more = [f"  and {len(wrong) - 6} more"] if len(wrong) > 6 else []
        raise ConfigError(
            "\n".join([f"the weights of {store.folder(step)} do not fit the changed settings:", *shown, *more])
        )


def earlier_mixes(
    run: Path, config: Config, change: Change, step: int, sources: Mapping[str, Source]
) -> list[MixPiece]:
    """Shares and batches that a run had before it resumes after `step` steps with `config`, oldest first."""
    stored = stored_config(run)
    if stored is None:
        return []
    plain = to_plain(config)
    entries = clamped(read_run(run).get("changes", []), step)
    entries += entries_for(stored, plain, change, step, "", [])
    return pieces_of(past(plain, entries), sources)


def pieces_of(periods: Iterable[Past], sources: Mapping[str, Source]) -> list[MixPiece]:
    """Shares and batches of earlier settings; `sources` are the records of the streams, which stay the same."""
    pieces = []
    for held in periods:
        streams = {name: entry for name, entry in held.config["streams"].items() if entry is not None}
        if streams.keys() == sources.keys():
            weights = {name: entry["weight"] for name, entry in streams.items()}
            batches = {name: entry["batch"] for name, entry in streams.items()}
        else:
            config = by_size(stored_instance(Config, held.config))
            weights = step_shares(config, sources)
            batches = {name: entry.batch for name, entry in config.streams.items()}
        pieces.append(MixPiece(held.until, held.config["seed"], weights, batches))
    return pieces
