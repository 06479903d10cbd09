"""Sections of a report for rollouts and studies, from what those commands wrote."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DataError
from tools.report.media import Item, embed


@dataclass(frozen=True)
class Rollouts:
    """One folder of `selfflow rollout`: `facts` by name, success by rule in percent with Wilson's interval, episodes
    as (number, instruction, steps, success), videos with what they show."""

    path: Path
    facts: list[tuple[str, str]]
    success: list[tuple[str, str]]
    episodes: list[tuple[str, str, str, str]]
    videos: list[Item]


@dataclass(frozen=True)
class StudyLook:
    """One folder of `selfflow compare`: metric -> rows of (arm, seeds, value, difference, verdict); its figures."""

    path: Path
    title: str
    facts: list[tuple[str, str]]
    metrics: dict[str, list[tuple[str, str, str, str, str]]]
    figures: list[Item]
    warnings: list[str]


@contextmanager
def readable(path: Path) -> Generator[None, None, None]:
    """Raises DataError where the results of a folder have another shape than this version writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: its results have another shape than this version writes ({error!r})") from error


def rollouts(path: Path, found: dict[str, Any], budget: int) -> Rollouts:
    """Raises DataError as `readable`."""
    with readable(path):
        return _rollouts(path, found, budget)


def _rollouts(path: Path, found: dict[str, Any], budget: int) -> Rollouts:
    own = _dict(found.get("selfflow"))
    settings = _dict(own.get("settings"))
    episodes = [entry for entry in found.get("per_episode") or [] if isinstance(entry, dict)]
    facts = [(name, str(settings[name])) for name in ("environment", "task", "policy", "seed") if name in settings]
    facts.append(("episodes", str(len(episodes))))
    success = []
    for rule, entry in _dict(own.get("success")).items():
        low, high = (100 * bound for bound in entry["wilson_95"])
        success.append((f"{rule}{' (headline)' * (rule == own.get('headline'))}", _percent(entry["rate"], low, high)))
    if not success:  # of another program, with the same file
        success = [("success", f"{float(_dict(found.get('aggregated')).get('pc_success', 0)):.1f} %")]
    rows = [
        (
            str(entry.get("episode_ix", "")),
            str(entry.get("instruction", "")),
            str(entry.get("steps", "")),
            "yes" if entry.get("success") else "no",
        )
        for entry in episodes
    ]
    told = {Path(str(entry.get("video", ""))).name: entry for entry in episodes if entry.get("video")}
    videos, used = [], 0
    for file in sorted((path / "videos").glob("*.mp4"))[:24]:
        entry = told.get(file.name, {})
        outcome = ("success" if entry["success"] else "failure") if "success" in entry else ""
        item = embed(file, ": ".join(part for part in (str(entry.get("instruction", "")), outcome) if part))
        if item and used + item.size <= budget:
            videos.append(item)
            used += item.size
    return Rollouts(path, facts, success, rows, videos)


def _percent(rate: float, low: float, high: float) -> str:
    return f"{100 * rate:.1f} % [{low:.1f}, {high:.1f}]"


def study(path: Path, found: dict[str, Any], budget: int) -> StudyLook:
    """Raises DataError as `readable`."""
    with readable(path):
        return _study(path, found, budget)


def _study(path: Path, found: dict[str, Any], budget: int) -> StudyLook:
    metrics: dict[str, list[tuple[str, str, str, str, str]]] = {}
    for metric, by_arm in _dict(found.get("summary")).items():
        metrics[metric] = [
            (
                arm,
                str(entry["value"]["count"]),
                _estimate(entry["value"]),
                _estimate(entry["difference"]) if entry.get("difference") else "",
                str(entry.get("verdict", "")),
            )
            for arm, entry in by_arm.items()
        ]
    figures, used = [], 0
    for file in sorted(path.glob("*.png")):
        item = embed(file, file.stem)
        if item and used + item.size <= budget:
            figures.append(item)
            used += item.size
    facts = [("steps", str(found.get("steps", ""))), ("seeds", _all(found.get("seeds") or []))]
    facts += [(str(name), str(text).strip("`")) for name, text in _dict(found.get("about")).items()]
    warnings = [str(line) for line in found.get("warnings") or []]
    return StudyLook(path, str(found.get("title") or path.name), facts, metrics, figures, warnings)


def _estimate(value: dict[str, Any]) -> str:
    half = value.get("half")
    return f"{value['mean']:.4g}" + (f" ± {half:.2g}" if half is not None else "")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _all(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
