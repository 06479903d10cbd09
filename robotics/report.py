"""From the records of a rollout to eval_info.json, to a table, and to the comparison of two."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import metadata, resources
from typing import Any

import yaml

from core.errors import ConfigError
from core.training.records import commit
from robotics.statistics import FEW, mcnemar, wilson
from robotics.success import HEADLINE, HOLD_STEPS, RULES

PACKAGES = ("selfflow", "torch", "numpy")


def summarize(records: Sequence[dict[str, Any]], settings: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any]:
    """The content of eval_info.json: LeRobot's fields, and what they leave out under `selfflow`.

    `success` and `pc_success` (percent) go by the headline rule; LeRobot's own evaluation counts any success.

    Args:
        records: by the number of the episode, in this order.
        settings, protocol: of the rollout and of its environment.
    """
    count, seconds = len(records), sum(record["seconds"] for record in records)
    episodes = [{**record, "success": record["success"][HEADLINE], "rules": record["success"]} for record in records]
    return {
        "per_episode": episodes,
        "aggregated": {
            "avg_sum_reward": statistics.fmean(record["sum_reward"] for record in records),
            "avg_max_reward": statistics.fmean(record["max_reward"] for record in records),
            "pc_success": 100 * sum(episode["success"] for episode in episodes) / count,
            "eval_s": seconds,
            "eval_ep_s": seconds / count,
        },
        "video_paths": [f"videos/{record['video']}" for record in records if "video" in record],
        "selfflow": {
            "settings": settings,
            "protocol": protocol,
            "headline": HEADLINE,
            "hold_steps": HOLD_STEPS,
            "episodes": count,
            "few_episodes": count < FEW,
            "success": {rule: _rate([record["success"][rule] for record in records]) for rule in RULES},
            "steps_to_success": _mean([record["first_success"] for record in records]),
            "policy_s": statistics.fmean(record["policy_s"] for record in records),
            "versions": {name: _version(name) for name in PACKAGES},
            "commit": commit(),
        },
    }


def _rate(values: Sequence[bool]) -> dict[str, Any]:
    successes = sum(values)
    return {
        "successes": successes,
        "episodes": len(values),
        "rate": successes / len(values),
        "wilson_95": list(wilson(successes, len(values))),
    }


def _mean(values: Sequence[int | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two results, paired by episode: over those that both have, for every rule.

    Raises:
        ConfigError: of other environments, tasks or variants, or without a common episode.
    """
    for ours, theirs in zip(_episodes_of(first), _episodes_of(second), strict=True):
        if ours != theirs:
            raise ConfigError(f"rollouts of {ours} and of {theirs} cannot be compared by episode")
    ours, theirs = ({entry["episode_ix"]: entry["rules"] for entry in of["per_episode"]} for of in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ConfigError("these rollouts have no episode in common")
    rules = {
        rule: mcnemar([ours[number][rule] for number in common], [theirs[number][rule] for number in common])._asdict()
        for rule in RULES
    }
    policies = [result["selfflow"]["settings"]["policy"] for result in (first, second)]
    return {"policies": policies, "episodes": len(common), "rules": rules}


def _episodes_of(result: dict[str, Any]) -> tuple[str, str, str]:
    """What the number of an episode means in a result. Options that policies may differ in are left out."""
    ours = result["selfflow"]
    variant = ours["protocol"].get("variant")
    settings = ours["settings"]
    return f"environment {settings['environment']}", f"task {settings['task']}", f"variant {variant}"


def table(results: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]] = ()) -> str:
    """Markdown: a row for each result, paired comparisons, and published numbers where the protocol names some."""
    lines = [
        "| policy | environment | task | variant | n | success, last step | any step | last second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    few = False
    for result in results:
        ours = result["selfflow"]
        settings, count = ours["settings"], ours["episodes"]
        few = few or ours["few_episodes"]
        cells = [
            settings["policy"],
            settings["environment"],
            settings["task"],
            str(ours["protocol"].get("variant", "")),
            f"{count}{' †' if ours['few_episodes'] else ''}",
            *(_cell(ours["success"][rule]) for rule in RULES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Percent, with Wilson's 95 % interval. The headline is the last step, as in SIMPLER."]
    if few:
        lines.append(f"† fewer than {FEW} episodes: the interval is too wide to rank policies.")
    for entry in compared:
        lines += ["", _paired(entry)]
    for result in results[:1]:
        lines += published_rows(result["selfflow"]["protocol"].get("published"))
    return "\n".join(lines) + "\n"


def _cell(rate: dict[str, Any]) -> str:
    low, high = rate["wilson_95"]
    return f"{100 * rate['rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _paired(entry: dict[str, Any]) -> str:
    pair = entry["rules"][HEADLINE]
    one, other = entry["policies"]
    return (
        f"Paired over {entry['episodes']} episodes: only {one} succeeds in {pair['first_only']}, only {other} in"
        f" {pair['second_only']}, both in {pair['both']}, neither in {pair['neither']}; McNemar's exact p"
        f" {pair['p']:.3g}."
    )


def published_rows(of: dict[str, str] | None) -> list[str]:
    """Markdown lines with what others report for a task and variant, each with its protocol; none without one."""
    if of is None:
        return []
    stored = yaml.safe_load(resources.files("robotics").joinpath("published.yaml").read_text())
    rows = [
        f"| {model['name']} | {model['values'][of['variant']][of['task']]:.1f} | {model['protocol']} |"
        for model in stored["models"]
        if of["task"] in model["values"].get(of["variant"], {})
    ]
    if not rows:
        return []
    title = f"Published for {of['task']}, {of['variant'].replace('_', ' ')} (percent):"
    return ["", title, "", "| model | success | source and protocol |", "|---|---|---|", *rows]
