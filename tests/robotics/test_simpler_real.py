"""The real SIMPLER, where SELFFLOW_SIMPLER_PYTHON names its Python: the protocol through our server, and its experts.

    SELFFLOW_SIMPLER_PYTHON=simpler/bin/python pytest -m "slow and simpler" tests/robotics/test_simpler_real.py

Without ray tracing, since it may run on a CPU: about 5 minutes on two quiet cores.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("msgpack", reason="msgpack is not installed (extra `robots`)")
pytest.importorskip("websockets", reason="websockets is not installed (extra `robots`)")

from core.errors import DataError
from robotics.baselines import Random
from robotics.client import RemotePolicy
from robotics.rollout import run_episode
from robotics.simpler.client import PYTHON, Simulator
from robotics.simpler.environment import SimplerEnvironment
from robotics.simpler.pins import violated
from tests.robotics.serving import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.simpler,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not os.environ.get(PYTHON), reason=f"{PYTHON} does not name a Python with SIMPLER"),
]
FRAMES = 20
RECORDED = json.loads((Path(__file__).parent / "simpler_resets.json").read_text())


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    made = Simulator()
    made.start()
    yield made
    made.close()


def frames(environment: SimplerEnvironment, episode: int) -> str:
    """md5 of the first images of an episode under a random policy."""
    policy = Random()
    seen = environment.reset(episode)
    policy.reset(seen["instruction"], seed=episode)
    digest = hashlib.md5()
    for _ in range(FRAMES):
        digest.update(seen["image"].tobytes())
        seen = environment.step(policy.select_action(seen)).observation
    return digest.hexdigest()


def test_the_pins_hold(simulator):
    assert violated(simulator.ask("versions")) == {}


@pytest.mark.parametrize("name", RECORDED)
def test_a_reset_is_as_it_was_recorded(simulator, name):
    """Poses and joints on any machine. The image, too, on the same driver: its md5 is told, not asked for."""
    recorded = RECORDED[name]
    task, number = recorded["episode"].split()
    environment = SimplerEnvironment(task, raster=True, python=simulator)
    seen = environment.reset(int(number))
    np.testing.assert_allclose(environment.poses["base"], recorded["base_pose"], atol=1e-5)
    np.testing.assert_allclose(environment.poses["tool"], recorded["tcp_pose"], atol=1e-4)
    state = environment.privileged()
    assert state["joints"] == pytest.approx(recorded["joints"], abs=1e-5)
    for thing, pose in recorded["objects"].items():
        np.testing.assert_allclose(state["objects"][thing], pose, atol=1e-3)
    assert seen["instruction"] == recorded["instructions"][0]
    print(name, hashlib.md5(seen["image"].tobytes()).hexdigest(), "recorded", recorded["md5"])


@pytest.mark.parametrize(("task", "episode"), [("close_top_drawer", 3), ("place_apple", 13)])
def test_the_expert_succeeds_through_the_server_and_chance_does_not(simulator, task, episode):
    environment = SimplerEnvironment(task, raster=True, python=simulator)
    for make, expected in ((environment.expert, True), (Random, False)):
        with serving(make) as (url, _):
            policy = RemotePolicy(url, execute=1)
            record, _ = run_episode(environment, policy, episode, seed=0)
            policy.close()
        assert record["success"]["last"] == expected
        assert record["steps"] == environment.max_steps


@pytest.mark.parametrize("task", ["close_top_drawer", "place_apple"])
def test_an_episode_is_a_function_of_its_number(simulator, task):
    environment = SimplerEnvironment(task, raster=True, python=simulator)
    for episode in (0, 1, 2, 3):
        seen = environment.reset(episode)
        environment.step(np.zeros(7))
        assert seen["instruction"]
    after = frames(environment, 5)
    other = SimplerEnvironment(task, raster=True)
    try:
        assert frames(other, 5) == after
    finally:
        other.close()


def test_a_removed_file_is_named(simulator, tmp_path):
    assets = Path(simulator.ask("versions")["assets"])
    copy = tmp_path / "data"
    copy.mkdir()
    for entry in assets.iterdir():
        if entry.name != "real_inpainting":
            (copy / entry.name).symlink_to(entry)
    (copy / "real_inpainting").mkdir()
    for entry in (assets / "real_inpainting").glob("*.png"):
        if entry.name != "open_drawer_b1.png":
            (copy / "real_inpainting" / entry.name).symlink_to(entry)
    other = Simulator(settings={"MS2_REAL2SIM_ASSET_DIR": str(copy)})
    with pytest.raises(DataError, match=r"1 files of its scenes are missing:\n  .*open_drawer_b1\.png"):
        SimplerEnvironment("close_top_drawer", raster=True, python=other)
    other.close()
