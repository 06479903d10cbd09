"""Stop requests and the guard against values that are not finite."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.errors import NotFiniteError
from core.training.guards import StopRequest, check_finite, write_bad_step
from core.training.records import RunFolder, read_lines
from tests.thinned import thinned

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_flag_and_the_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capfd.readouterr().err


def test_all_processes_decide_together():
    asked = []

    def another_was_asked(answer: bool) -> bool:
        asked.append(answer)
        return True

    with StopRequest(another_was_asked) as stop:
        assert stop.requested
    assert asked == [False]


def run_program(body: str) -> subprocess.CompletedProcess:
    program = f"import os, signal, time\nfrom core.training.guards import StopRequest\n{body}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("first", "second"), thinned([("SIGINT", "SIGTERM"), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT")], 3)
)
def test_the_second_signal_ends_the_process_at_once_by_that_signal(first, second):
    done = run_program(f"""
with StopRequest() as stop:
    os.kill(os.getpid(), signal.{first})
    print("flag", stop.requested, flush=True)
    os.kill(os.getpid(), signal.{second})
    time.sleep(30)
    print("still here")
""")
    assert done.stdout == "flag True\n"
    assert done.returncode == -getattr(signal, second)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_workers_end_by_sigterm_and_leave_sigint_to_the_parent():
    done = run_program("""
with StopRequest() as stop:
    ended = []
    for number in (signal.SIGTERM, signal.SIGINT):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(7)
        ended.append(os.waitpid(child, 0)[1])
    print(os.WTERMSIG(ended[0]), os.WEXITSTATUS(ended[1]), stop.requested)
""")
    assert done.stdout == f"{int(signal.SIGTERM)} 7 False\n", done.stderr


def test_outside_the_main_thread_it_does_nothing_and_says_so(capsys):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
    assert "not in the main thread" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_values_that_are_not_finite_are_found_in_any_term(name, bad):
    values = {"stream": "image", "loss": 1.0, "grad_norm": 2.0}
    assert check_finite(values)
    assert not check_finite(values | {name: bad})
    assert not check_finite(values, agree=lambda mine: True)  # another process saw one


def test_the_evidence_of_a_bad_step(tmp_path):
    folder = RunFolder.open(tmp_path, {}, {}, set())
    folder.write_metrics({"step": 4, "loss": 1.0})
    with pytest.raises(NotFiniteError, match=r"step 5 \(audio\): grad_norm is nan\. The weights were not touched"):
        write_bad_step(folder, 4, "audio", ("a", "b"), {"loss": 0.1, "grad_norm": float("nan")})
    assert json.loads((tmp_path / "bad_step.json").read_text()) == {
        "step": 4,
        "stream": "audio",
        "keys": ["a", "b"],
        "values": {"loss": "0.1", "grad_norm": "nan"},
    }
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 4, "loss": 1.0}]
