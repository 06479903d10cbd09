"""Requests to a run, made one after the other by a thread of its own; pages come and go, the work goes on."""

from __future__ import annotations

import argparse
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from configs.runs import LoadedRun
from core.errors import ConfigError, SelfFlowError, described
from modalities.generation import sampler_steps
from tools.app.preview import pictures
from tools.app.request import Request, arguments, command, in_words_of_the_page, parsed
from tools.generate.generate import make, prepare, request_warnings

MOST_WAITING = 16
KEPT = 20  # requests that are over and still shown
MOST_STEPS = 1_000
PREVIEW_SECONDS = 0.5  # between two previews, and at most a fifth of the time goes into them


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        seconds: that a request may take, from its first step.
        samples: of a request.
        megabytes: of a file that is given.
    """

    seconds: float = 900.0
    samples: int = 64
    megabytes: float = 50.0

    def problems(self) -> list[str]:
        rows = {"--time-limit": self.seconds, "--most-samples": self.samples, "--most-megabytes": self.megabytes}
        return [f"{name}: {value:g} must be above 0" for name, value in rows.items() if not value > 0]


@dataclass(frozen=True)
class Job:
    """A request as it stands.

    Attributes:
        state: waiting, running, done, failed or stopped.
        command: that makes the same without the page.
        steps, total: of the sampler, over all samples.
        preview: data URIs of images of what it will most likely become.
        notes: what a person should know: why it failed, what was cut off.
        seconds: since its first step, or that it took.
    """

    number: int
    request: Request
    command: str
    state: str = "waiting"
    steps: int = 0
    total: int = 0
    preview: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    files: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")


class Stop(Exception):
    """Ends a request between two steps; says why."""


class Studio:
    """
    Args:
        out: output folder, absolute; OUT/STREAM takes the files.
    """

    def __init__(self, loaded: LoadedRun, out: Path, limits: Limits = Limits()):
        self.loaded, self.out, self.limits = loaded, out, limits
        self._jobs: dict[int, Job] = {}
        self._options: dict[int, argparse.Namespace] = {}
        self._stopped: set[int] = set()
        self._news = threading.Condition()
        self._next = 1
        threading.Thread(target=self._work, name="generate", daemon=True).start()

    def submit(self, request: Request) -> Job:
        """Check a request and put it into the queue.

        Raises ConfigError or DataError for one that cannot be made, in the words of the page.
        """
        try:
            typed = arguments(request, self.loaded, str(self.out / request.stream))
            if request.samples() > self.limits.samples:
                raise ConfigError(
                    f"--number: makes {request.samples()} samples with this many prompts, at most "
                    f"{self.limits.samples} at once"
                )
            options = parsed(typed)
            if options.number < 1:
                raise ConfigError("--number: must be at least 1")
            wanted = prepare(options, self.loaded)
            if wanted.settings.steps > MOST_STEPS:
                raise ConfigError(f"--steps: {wanted.settings.steps} must be at most {MOST_STEPS:,} here")
        except ConfigError as error:
            raise ConfigError(map(in_words_of_the_page, error.problems)) from error
        total = len(wanted.prompts) * sampler_steps(self.loaded.generator.parts[request.stream], wanted.settings)
        with self._news:
            if sum(job.state == "waiting" for job in self._jobs.values()) >= MOST_WAITING:
                raise ConfigError(f"{MOST_WAITING} requests are waiting already; try again when some are done")
            job = Job(self._next, request, command(typed), total=total)
            self._next += 1
            self._jobs[job.number], self._options[job.number] = job, options
            for old in [other.number for other in self._jobs.values() if other.is_over][:-KEPT]:
                del self._jobs[old]
            self._news.notify_all()
        return job

    def jobs(self) -> list[Job]:
        """All of them, oldest first; those that were over long ago are forgotten."""
        with self._news:
            return list(self._jobs.values())

    def stop(self, number: int) -> None:
        """Take a request out of the queue, or end it after its next step; one that is over stays as it is."""
        with self._news:
            job = self._jobs.get(number)
            if job is not None and job.state == "waiting":
                self._change(number, state="stopped", notes=("stopped before it began",))
            elif job is not None and job.state == "running":
                self._stopped.add(number)

    def wait(self, number: int, seconds: float) -> Job:
        """The request once it is over, or after so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._jobs[number].is_over, seconds)
            return self._jobs[number]

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: any(job.state == "waiting" for job in self._jobs.values()))
                job = next(job for job in self._jobs.values() if job.state == "waiting")
                self._change(job.number, state="running")
            started = time.monotonic()
            try:
                change = self._made(job, started)
            except Stop as stop:
                change = {"state": "stopped", "notes": (str(stop),)}
            except SelfFlowError as error:
                change = {"state": "failed", "notes": (in_words_of_the_page(str(error)),)}
            except Exception as error:  # noqa: BLE001 - the next request must find a worker
                traceback.print_exc(file=sys.stderr)
                change = {"state": "failed", "notes": (f"a bug of selfflow: {described(error)}",)}
            with self._news:
                self._change(job.number, preview=(), seconds=time.monotonic() - started, **change)
                self._stopped.discard(job.number)
                del self._options[job.number]

    def _made(self, job: Job, started: float) -> dict[str, object]:
        options, out = self._options[job.number], self.out / job.request.stream
        wanted = prepare(options, self.loaded)
        watch = _Watch(self, job.number, started)
        files = make(options, self.loaded, wanted, out, watch.progress, watch.look)
        notes = request_warnings(options, self.loaded, wanted)
        return {"state": "done", "files": tuple(files), "notes": tuple(map(in_words_of_the_page, notes))}

    def _change(self, number: int, **changes: object) -> None:
        with self._news:  # a Condition's lock may be taken twice by one thread
            self._jobs[number] = replace(self._jobs[number], **changes)
            self._news.notify_all()


class _Watch:
    """Follows the sampler for one request: counts its steps, makes previews now and then, and ends it."""

    def __init__(self, studio: Studio, number: int, started: float):
        self.studio, self.number, self.started = studio, number, started
        self.steps = 0
        self.next_look = 0.0

    def progress(self, samples: int) -> None:
        self.steps += samples
        seconds = time.monotonic() - self.started
        self.studio._change(self.number, steps=self.steps, seconds=seconds)
        if self.number in self.studio._stopped:
            raise Stop("stopped; what was finished is there")
        if seconds > self.studio.limits.seconds:
            raise Stop(f"took longer than {self.studio.limits.seconds:g} s (--time-limit); what was finished is there")

    def look(self, expected: Callable[[], dict[str, Tensor]]) -> None:
        begun = time.monotonic()
        if begun < self.next_look:
            return
        parts = self.studio.loaded.generator.parts[self.studio._jobs[self.number].request.stream]
        kinds = {name: part.adapter.modality for name, part in parts.items()}
        self.studio._change(self.number, preview=pictures(expected(), kinds))
        now = time.monotonic()
        self.next_look = now + max(PREVIEW_SECONDS, 4 * (now - begun))
