"""What the page shows of requests and of the output folder, as HTML. All text of people and files is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from tools.app.studio import Job
from tools.report.media import TYPES, spectrogram

SHOWN = 48  # samples of the gallery, newest first
OVER = 6  # requests that are over, below those that are not
STATES = {"waiting": "waiting", "running": "running", "done": "done", "failed": "failed", "stopped": "stopped"}


def message(text: str) -> str:
    """Of what is wrong with a request, one line for each problem; "" takes it away."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
    return f'<div class="sf-error" role="alert">{lines}</div>' if lines else ""


def jobs_view(jobs: Sequence[Job]) -> str:
    """The running request with its preview, then the waiting ones, then the last of those that are over."""
    running = [job for job in jobs if job.state == "running"]
    waiting = [job for job in jobs if job.state == "waiting"]
    over = [job for job in jobs if job.is_over][::-1][:OVER]
    if not jobs:
        return '<p class="sf-soft">Nothing was asked for yet.</p>'
    rows = [_job(job, "") for job in running]
    rows += [_job(job, f"{place} before it" if place else "next") for place, job in enumerate(waiting, len(running))]
    rows += [_job(job, "") for job in over]
    return f'<ol class="sf-jobs" aria-label="Requests">{"".join(rows)}</ol>'


def _job(job: Job, place: str) -> str:
    prompt = ", ".join(job.request.prompts) or "without a prompt"
    state = f"{STATES[job.state]}, {place}" if place else STATES[job.state]
    if job.state == "done":
        state = "done, 1 sample" if len(job.files) == 1 else f"done, {len(job.files)} samples"
    if job.seconds:
        state += f" in {job.seconds:.1f} s" if job.is_over else f", {job.seconds:.0f} s"
    parts = [
        f'<div><b>{job.number}. {escape(job.request.stream)}</b> <span class="sf-state">{escape(state)}</span></div>',
        f"<div>{escape(prompt)}</div>",
    ]
    if job.state == "running":
        parts.append(
            f'<progress max="{max(1, job.total)}" value="{job.steps}" aria-label="progress"></progress>'
            f'<div class="sf-soft">step {job.steps} of {job.total}</div>'
        )
        images = "".join(f'<img src="{uri}" alt="preview">' for uri in job.preview)
        if images:
            parts.append(f'<div class="sf-preview">{images}</div>')
    parts += [f'<div class="sf-note">{escape(note)}</div>' for note in job.notes]
    parts.append(f"<details><summary>command</summary><pre>{escape(job.command)}</pre></details>")
    return f'<li class="sf-{job.state}">{"".join(parts)}</li>'


def folder_version(out: Path, streams: Sequence[str]) -> str:
    """Changes when files come into the folders of the streams, or go."""
    times = []
    for stream in streams:
        try:
            times.append((out / stream).stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return ",".join(map(str, times))


def gallery(out: Path, streams: Sequence[str], stream: str = "") -> str:
    """The newest samples in the folders of the streams, or of one of them, with the settings that made each."""
    found: list[tuple[float, Path]] = []
    for name in [stream] if stream else streams:
        for note in (out / name).glob("[0-9]*.json"):
            try:
                found.append((note.stat().st_mtime, note))
            except OSError:  # taken away just now
                continue
    found.sort(key=lambda row: (row[0], row[1].name), reverse=True)
    cards = [card for _, note in found[:SHOWN] if (card := _card(note))]
    if not cards:
        return '<p class="sf-soft">Nothing here yet.</p>'
    more = f'<p class="sf-soft">The newest {SHOWN} of {len(found)}; all are in {escape(str(out))}.</p>'
    return f'<div class="sf-gallery">{"".join(cards)}</div>{more if len(found) > SHOWN else ""}'


def _card(note: Path) -> str:
    """One sample; "" for one that is not written yet."""
    try:
        about = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    # PATH.json with PATH.SUFFIX, or PATH-PART.SUFFIX for each part.
    own = [path for path in sorted(note.parent.glob(f"{_literal(note.stem)}*")) if path.suffix in TYPES]
    files = [path for path in own if path.stem == note.stem or path.stem[len(note.stem)] == "-"]
    if not files:
        return ""
    shown = "".join(map(_media, files))
    links = " ".join(f'<a href="{_address(path)}" download="{escape(path.name)}">{_what(path)}</a>' for path in files)
    sampler = about.get("sampler", {})
    rows = {
        "negative": about.get("negative"),
        "seed": f"{about.get('seed')}, sample {about.get('index')}",
        "checkpoint": f"step {about.get('step')}, {about.get('weights')}",
        **{name.replace("_", " "): value for name, value in sampler.items() if name != "parts"},
        "given": ", ".join(about.get("files", {})) or None,
    }
    table = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    )
    title = str(about.get("prompt") or "without a prompt")
    return (
        f'<figure class="sf-card">{shown}<figcaption>{escape(title)}'
        f'<span class="sf-soft">{escape(note.parent.name)} {escape(note.stem[:4])} · seed {about.get("seed")}</span>'
        f'<span class="sf-links">Download: {links} '
        f'<a href="{_address(note)}" download="{escape(note.name)}">settings</a>'
        f"</span></figcaption><details><summary>how it was made</summary><table>{table}</table></details></figure>"
    )


def _media(path: Path) -> str:
    match TYPES[path.suffix].partition("/")[0]:
        case "image":
            return f'<img src="{_address(path)}" alt="{escape(path.name)}" loading="lazy">'
        case "video":
            return f'<video src="{_address(path)}" controls loop playsinline preload="auto"></video>'
        case _:
            picture = _spectrogram(path, path.stat().st_mtime_ns)
            shown = f'<img class="sf-spectrogram" src="{picture}" alt="spectrogram">' if picture else ""
            return f'{shown}<audio src="{_address(path)}" controls preload="metadata"></audio>'


@lru_cache(4 * SHOWN)
def _spectrogram(path: Path, _written: int) -> str:
    return spectrogram(path)


def _what(path: Path) -> str:
    return {"image": "image", "video": "video"}.get(TYPES[path.suffix].partition("/")[0], "audio")


def _address(path: Path) -> str:
    """Where the page finds a file; gradio serves those in the output folder, and no others."""
    return f"gradio_api/file={quote(str(path))}"


def _literal(text: str) -> str:
    """For a pattern of glob."""
    return text.replace("[", "[[]")
