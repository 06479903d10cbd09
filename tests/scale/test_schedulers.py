"""The recipes for Slurm and SkyPilot, run as they stand on one process of a CPU, with the real torchrun.

Slurm's `srun` and `scontrol`, and what both schedulers put into the environment, are stubs: `srun` runs its command
here, and a request to stop is SIGTERM to it. No cluster was there to try them on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from core.training.checkpoint import CheckpointStore
from tests.reliability.kill_many import SMALL, STEPS
from tests.tools.tiny import CONFIG

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PATIENCE = 200.0
STUBS = {
    "torchrun": 'exec "$PYTHON" -m torch.distributed.run "$@"',
    "srun": 'echo $$ > "$STUBS/srun.pid"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" >> "$STUBS/scontrol.txt"; [ "$1" = show ] && echo localhost; exit 0',
}


@pytest.fixture
def environment(tmp_path, unused_port) -> dict[str, str]:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / name).chmod(0o755)
    found = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SKYPILOT"))}
    path = f"{stubs}{os.pathsep}{found['PATH']}"
    found |= {"PATH": path, "STUBS": str(stubs), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return found | {"CONFIG": str(CONFIG), "RUN": str(tmp_path / "run"), "PORT": str(unused_port)}


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(environment: dict[str, str], restarts: int, *overrides: str) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node[1]", "GPUS": "1"}
    slurm |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    return subprocess.Popen(
        ["bash", str(EXAMPLES / "slurm.sbatch"), *SMALL, *overrides], cwd=ROOT, env=environment | slurm
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_slurm_is_stopped_requeued_and_finishes_the_run(environment, tmp_path):
    run, asked = tmp_path / "run", tmp_path / "stubs" / "scontrol.txt"
    store = CheckpointStore(run / "checkpoints")
    first, deadline = job(environment, 0), time.monotonic() + PATIENCE
    while not store.steps():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((tmp_path / "stubs" / "srun.pid").read_text()), signal.SIGTERM)
    assert first.wait(PATIENCE) == 0
    stopped = json.loads((run / "run.json").read_text())
    assert (stopped["state"], stopped["end"]["reason"]) == ("stopped", "SIGTERM")
    assert asked.read_text().splitlines()[-1] == "requeue 42"
    assert store.latest() == stopped["end"]["step"] < STEPS
    asked.unlink()
    assert job(environment, 1).wait(PATIENCE) == 0
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert "requeue" not in asked.read_text()
    asked.unlink()
    (run / "run.json").write_text((run / "run.json").read_text().replace('"finished"', '"stopped"'))
    assert job(environment, 2, "training.device=nowhere").wait(PATIENCE) == 2
    assert "requeue" not in asked.read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_of_skypilot_trains(environment, tmp_path, unused_port):
    recipe = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    assert set(recipe["envs"]) == {"CONFIG", "RUN", "OVERRIDES"}
    sky = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1\n"}
    sky |= {"SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_TASK_ID": "sky-1"}
    sky |= {"OVERRIDES": " ".join(SMALL)}
    command = recipe["run"].replace("29500", str(unused_port))
    subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment | sky, check=True, timeout=PATIENCE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"
