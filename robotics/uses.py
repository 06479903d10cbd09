"""What each use of one run is worth on demonstrations that it has not seen: policy, fast policy, world model, inverse
dynamics model and video planner (docs/levels.md). Each is a choice of what is given, sampled or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.errors import ConfigError
from core.keys import generator
from core.sampling.config import PartSampling
from modalities.base import Known, Record, StoredLatents
from modalities.data.loader import load_record
from modalities.generation import generate
from robotics.policy import RunPolicy


@dataclass(frozen=True)
class Example:
    """A window of a demonstration: media by the names of their parts, the instruction, and by the names of theirs which
    actions (K,) and frames (T,) are real."""

    media: Mapping[str, Tensor]
    instruction: str
    valid: Mapping[str, Tensor]


def examples(policy: RunPolicy, records: Sequence[Record]) -> list[Example]:
    """Raises ConfigError for stored latents, which are not compared with what is generated."""
    parts = policy.loaded.generator.parts[policy.stream]
    found = []
    timed = [policy.names[kind] for kind in ("action", "video") if kind in policy.names]
    for record in records:
        loaded = load_record(parts, record, partial(generator, "uses", record.key), augment=False)
        media = {name: entry for name, entry in loaded.items() if not isinstance(entry, StoredLatents)}
        if len(media) < len(loaded):
            raise ConfigError("--uses: the data set holds stored latents; name the one that they were made of")
        valid = {name: _real(record.part(name), len(media[name])) for name in timed}
        found.append(Example(media, record.captions[0] if record.captions else "", valid))
    return found


def _real(part: Record, length: int) -> Tensor:
    return torch.ones(length, dtype=torch.bool) if part.valid is None else torch.from_numpy(part.valid)


def measure_uses(policy: RunPolicy, windows: Sequence[Example], seed: int = 0) -> dict[str, Any]:
    """Errors of every use of the run on the same windows.

    Returns:
        windows: their number.
        policy, fast_policy, inverse_dynamics: `action_error`, mean absolute error of the real actions in units of the
        data, and `constant`, that of always predicting their mean.
        world_model, video_plan, joint_video: `video_error`, mean squared error of the real frames, in [-1, 1]; `still`,
        that of a video which stays at the image that is seen (None without one).
        world_model also: `shuffled`, the error where it is given the actions of another window, and `ratio`, the right
        error over that.
        Uses of a part that the run does not have are left out.

    Raises:
        ConfigError: fewer than two windows.
    """
    if len(windows) < 2:
        raise ConfigError(f"{len(windows)} windows; needed are 2, so that actions can be exchanged")
    action, video = policy.names["action"], policy.names.get("video")
    half = len(windows) // 2  # the next window would most often be of the same episode
    others = [*windows[half:], *windows[:half]]
    actions = torch.stack([window.media[action] for window in windows])  # (W, K, A)
    valid = torch.stack([window.valid[action] for window in windows])
    mean = actions[valid].mean(dim=0)

    def action_error(found: Tensor) -> float:
        return float((found - actions)[valid].abs().mean())

    report: dict[str, Any] = {"windows": len(windows)}
    joint = _sampled(policy, windows, {}, seed=seed)
    constant = action_error(mean.expand_as(actions))
    report["policy"] = {"action_error": action_error(joint[action]), "constant": constant}
    if video is None:
        return report
    videos = torch.stack([window.media[video] for window in windows])  # (W, T, 3, H, W)
    shown = torch.stack([window.valid[video] for window in windows])  # (W, T)

    def video_error(found: Tensor) -> float:
        return float((found - videos)[shown].square().mean())

    fast = _sampled(policy, windows, {}, {video: PartSampling(omit=True)}, seed)
    report["fast_policy"] = {"action_error": action_error(fast[action]), "constant": constant}
    inverse = _sampled(policy, windows, {video: windows}, seed=seed)
    report["inverse_dynamics"] = {"action_error": action_error(inverse[action]), "constant": constant}
    right, wrong = (video_error(_sampled(policy, windows, {action: of}, seed=seed)[video]) for of in (windows, others))
    seen = _seen(policy, windows, videos.shape[-2:])
    still = None if seen is None else video_error(seen)
    report["world_model"] = {"video_error": right, "shuffled": wrong, "ratio": right / wrong, "still": still}
    report["joint_video"] = {"video_error": video_error(joint[video]), "still": still}
    plan = _sampled(policy, windows, {}, {action: PartSampling(absent=True)}, seed)
    report["video_plan"] = {"video_error": video_error(plan[video]), "still": still}
    return report


def _sampled(
    policy: RunPolicy,
    windows: Sequence[Example],
    given: Mapping[str, Sequence[Example]],
    changes: Mapping[str, PartSampling] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Part -> what was generated of it, (W, ...). What is always given comes from the windows themselves."""
    model = policy.loaded.generator
    parts = model.parts[policy.stream]
    config = policy.sampling
    config = replace(config, parts={**config.parts, **(changes or {})})
    sources = {**{name: windows for name in policy.given}, **given}
    known = [
        {name: Known.whole(parts[name].adapter, of[place].media[name]) for name, of in sources.items()}
        for place in range(len(windows))
    ]
    made = list(generate(model, policy.stream, [window.instruction for window in windows], config, seed, known, 32))
    return {name: torch.stack([row[name] for row in made]) for name in made[0]}


def _seen(policy: RunPolicy, windows: Sequence[Example], size: torch.Size) -> Tensor | None:
    """(W, 1, 3, H, W): the image that is seen, at the size of the video; None without one."""
    if "image" not in policy.names:
        return None
    images = torch.stack([window.media[policy.names["image"]] for window in windows])
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)[:, None]


def uses_table(report: Mapping[str, Any]) -> str:
    """Markdown: a row for each use."""
    lines = ["| use | error | beside it |", "|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {error} | {beside} |" for name, error, beside in _rows(report)]
    return "\n".join(lines) + "\n"


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, entry in report.items():
        if not isinstance(entry, Mapping):
            continue
        kind = "action_error" if "action_error" in entry else "video_error"
        beside = ", ".join(f"{key} {value:.4f}" for key, value in entry.items() if key != kind and value is not None)
        yield name, f"{kind.replace('_', ' ')} {entry[kind]:.4f}", beside
