"""SIMPLER in a process of its own: started, asked, watched, and started again.

This module imports neither torch nor this project's core, so that any program can use it. The simulator's environment
needs nothing of ours either (see `robotics/simpler/worker.py`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from robotics.simpler.failures import explained
from robotics.simpler.worker import read_message, write_message

PYTHON = "SELFFLOW_SIMPLER_PYTHON"  # environment variable: the Python of SIMPLER's environment
WORKER = Path(__file__).with_name("worker.py")


class SimulatorError(Exception):
    """The simulator is missing, refused a request, or failed.

    `crashed` where its process is gone: what was asked is lost, and the next `start` makes a new one.
    """

    def __init__(self, message: str, crashed: bool = False):
        self.crashed = crashed
        super().__init__(message)


class Simulator:
    """A worker process, or none.

    Args:
        python: the interpreter of SIMPLER's environment; None reads the environment variable `PYTHON`.
        settings: environment variables that win over this process's, such as VK_ICD_FILENAMES.
        patience: seconds to wait for an answer. Building the first scene compiles shaders, a minute on a CPU.
        worker: the program; tests put others in its place.
    """

    def __init__(
        self,
        python: str | Path | None = None,
        settings: Mapping[str, str] | None = None,
        patience: float = 600.0,
        worker: Path = WORKER,
    ):
        chosen = python or os.environ.get(PYTHON)
        if not chosen:
            raise SimulatorError(
                f"SIMPLER runs in a Python environment of its own: set {PYTHON} to its python, or give --simpler-python"
            )
        self.python, self.settings, self.patience, self.worker = Path(chosen), dict(settings or {}), patience, worker
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; nothing where it runs.

        Raises:
            SimulatorError: there is no such interpreter.
        """
        if self.running:
            return
        self.close()
        # An empty DISPLAY: with a screen that the graphics driver does not serve, SAPIEN fails to make a device.
        # PYTHONPATH stays: SIMPLER may be used from where it was cloned.
        environment = {**os.environ, "DISPLAY": "", "PYTHONUNBUFFERED": "1", **self.settings}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                [str(self.python), str(self.worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                bufsize=0,
                start_new_session=True,  # ctrl-c is for the rollout, which closes the simulator itself
            )
        except OSError as error:
            raise SimulatorError(f"{self.python}: {error.strerror or error}; {PYTHON} names no Python") from error
        self.starts += 1

    def ask(self, do: str, **request: Any) -> Any:
        """Ask the running process and wait for its answer.

        Raises:
            SimulatorError: it refused (`crashed` False), died or did not answer in time (`crashed` True).
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise SimulatorError("the simulator is not running", crashed=True)
        try:
            write_message(cast(Any, process.stdin), {"do": do, **request})
            answer = read_message(cast(Any, _Patient(process.stdout, self.patience)))
        except TimeoutError:
            self.kill()
            raise SimulatorError(
                f"the simulator did not answer {do!r} within {self.patience:g} s, and was stopped{self._said()}",
                crashed=True,
            ) from None
        except (EOFError, BrokenPipeError, ValueError):
            self.kill()
            code = process.returncode
            raise SimulatorError(
                f"the simulator stopped during {do!r} ({_ending(code)}){self._said()}", crashed=True
            ) from None
        if "error" in answer:
            told = f"{answer['error']['kind']}: {answer['error']['message']}"
            known = explained(told) or explained(self.stderr())
            raise SimulatorError(f"the simulator refused {do!r}: {known or told}")
        return answer["answer"]

    def stderr(self) -> str:
        """The last of what the process printed."""
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 20_000))
        text = self._log.read().decode(errors="replace")
        self._log.seek(0, os.SEEK_END)
        return text

    def kill(self) -> None:
        """Stop the process at once; what it printed can still be read."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def close(self) -> None:
        """Let the process end by itself, or stop it; may be called twice."""
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
            self.kill()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _said(self) -> str:
        text = self.stderr()
        if known := explained(text):
            return f": {known}"
        lines = [line for line in text.splitlines() if line.strip()]
        return f"; the last it printed: {lines[-1].strip()}" if lines else ""


class _Patient:
    """Reads of a pipe that give up after some seconds without a byte."""

    def __init__(self, stream: Any, patience: float):
        self.stream, self.until = stream, time.monotonic() + patience

    def read(self, count: int) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self.stream, selectors.EVENT_READ)
            if not selector.select(max(0.0, self.until - time.monotonic())):
                raise TimeoutError
        return self.stream.read(count)


def _ending(code: int | None) -> str:
    if code is None:
        return "still running"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
