"""selfflow stats: statistics of a robot data set, by which actions and states are normalized in training and after."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.assembly.sources import open_sources
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError, DataError, nearest
from core.progress import ProgressBar
from modalities.actions.statistics import FIELDS, Statistics, measure, write_statistics
from modalities.episodes.source import EpisodesSource, episode_sources

EXAMPLES = """examples:
  selfflow stats configs/mine.yaml --out statistics.json
  selfflow stats configs/mine.yaml --out g1.json --stream g1        of one robot among several
  selfflow stats configs/mine.yaml --out statistics.json streams.robot.data.path=/data/fractal20220817_data/0.1.0

Reads streams.NAME.data (kind: rlds or lerobot), every action and state of every episode that training may see, without
an image, and writes q01, q99, mean, std, min and max of each number. To train with them, name the file in the media of
the actions and of the states: `media: {width: 7, statistics: statistics.json}`.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "stats",
        help="measure the statistics of a robot data set",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--stream", metavar="NAME", help="of the configuration, where several hold robot data")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    name, sources = robot_data(config, options.config.parent, options.stream)
    found, left_out = measured(sources, name)
    about = {
        "episodes": sum(len(source.taken) for source in sources),
        "stream": name,
        "fields": [", ".join((*source.episodes.fields.actions, *source.episodes.fields.states)) for source in sources],
        "data": [source.fingerprint() for source in sources],
        "left_out": left_out,
    }
    write_statistics(options.out, found, about)
    for kind, statistics in found.items():
        print("\n".join(table(kind, statistics)))
    if left_out:
        print(f"left out  {left_out:,} steps or episodes that cannot be used")
    print(f"written   {options.out}")
    return 0


def robot_data(config: Config, root: Path, stream: str | None) -> tuple[str, list[EpisodesSource]]:
    """The stream whose data are robot data, and these. Raises ConfigError where there is none, or more than one."""
    if stream is not None and stream not in config.streams:
        hint = nearest(stream, config.streams)
        raise ConfigError(f"--stream: the configuration has no {stream}; it has {', '.join(config.streams)}.{hint}")
    names = [name for name, entry in config.streams.items() if entry.data.holds_episodes]
    names = [stream] if stream is not None else names
    if not names:
        raise ConfigError("no stream holds robot data (data.kind: rlds or lerobot)")
    if len(names) > 1:
        raise ConfigError(f"--stream: {', '.join(names)} hold robot data; each has a file of its own, name one")
    (name,) = names
    source = open_sources(replace(config, streams={name: config.streams[name]}), root)[name]
    if not (found := episode_sources(source)):
        raise ConfigError(f"--stream: {name} holds no robot data, but records of kind {config.streams[name].data.kind}")
    return name, found


def measured(sources: list[EpisodesSource], name: str) -> tuple[dict[str, Statistics], int]:
    """Statistics of the actions, and of the states where there are any, and how many steps or episodes are left out.

    Raises DataError where nothing is left.
    """
    rows: dict[str, list[np.ndarray]] = {"action": [], "state": []}
    left_out, first = 0, ""
    total = sum(len(source.taken) for source in sources)
    with ProgressBar(total=total, unit="episode", desc=name, file=sys.stderr) as bar:
        for source in sources:
            for number in source.taken.tolist():
                bar.update(1)
                try:
                    episode = source.episode(number, images=False)
                except DataError as error:
                    left_out, first = left_out + 1, first or str(error)
                    continue
                real = np.isfinite(episode.actions).all(axis=1)
                if episode.states is not None:
                    real &= np.isfinite(episode.states).all(axis=1)
                    rows["state"].append(episode.states[real])
                rows["action"].append(episode.actions[real])
                left_out += int((~real).sum())
    if not sum(map(len, rows["action"])):
        raise DataError(f"{name}: not one of {total} episodes can be used; the first: {first}")
    widths = {kind: {each.shape[1] for each in parts} for kind, parts in rows.items() if parts}
    for kind, seen in widths.items():
        if len(seen) > 1:
            raise ConfigError(
                f"{name}: its {kind}s have {', '.join(map(str, sorted(seen)))} numbers; one robot has one"
            )
    return {kind: measure(parts) for kind, parts in rows.items() if parts}, left_out


def table(kind: str, statistics: Statistics) -> list[str]:
    """A row for each number of a vector."""
    lines = [f"{kind:9} {statistics.count:,} vectors of {statistics.width} numbers, digest {statistics.digest}"]
    lines.append("  " + " ".join(f"{name:>10}" for name in ("number", *FIELDS)))
    for place in range(statistics.width):
        cells = (f"{statistics.values[name][place]:10.4g}" for name in FIELDS)
        lines.append("  " + " ".join([f"{place:10d}", *cells]))
    return lines
