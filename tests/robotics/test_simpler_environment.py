"""SIMPLER as an environment, over a program that stands in for the simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core.errors import AccidentError, ConfigError, DataError
from robotics.baselines import Random
from robotics.simpler.client import Simulator
from robotics.simpler.environment import SimplerEnvironment
from tools.cli import main

FAKE = Path(__file__).with_name("fake_simpler.py")
STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture
def environment():
    made = []

    def make(task: str = "close_top_drawer", failure: str = "", settings: dict[str, str] | None = None, **options):
        simulator = Simulator(sys.executable, {"FAKE_SIMPLER": failure, **(settings or {})}, 60.0, FAKE)
        try:
            made.append(SimplerEnvironment(task, python=simulator, **options))
        except Exception:
            simulator.close()
            raise
        return made[-1]

    yield make
    for entry in made:
        entry.close()


def test_what_an_episode_shows(environment):
    simpler = environment()
    seen = simpler.reset(3)
    assert (simpler.name, simpler.fps, simpler.max_steps, simpler.episodes) == ("simpler", 3.0, 113, 36)
    assert seen["image"].shape == (512, 640, 3)
    assert seen["image"].dtype == np.uint8
    assert seen["instruction"] == "close top drawer"
    assert seen["state"].shape == (len(simpler.state_names),)
    step = simpler.step(STILL)
    assert (step.success, step.ended, step.reward) == (False, False, 0.0)
    assert step.info["pose"] == "b0"
    assert step.info["robot"] == "recolor_cabinet_visual_matching_1"


def test_an_episode_runs_to_its_limit_whatever_succeeds(environment):
    simpler = environment()
    expert = simpler.expert()
    assert expert is not None
    seen = simpler.reset(3)
    expert.reset(seen["instruction"])
    fulfilled = []
    for _ in range(113):
        step = simpler.step(expert.select_action(seen))
        seen = step.observation
        fulfilled.append(step.success)
    assert step.ended
    assert step.success
    assert 10 < fulfilled.index(True) < 60
    with pytest.raises(DataError, match="the episode has ended"):
        simpler.step(STILL)
    seen = simpler.reset(3)
    assert not simpler.step(STILL).success


@pytest.mark.parametrize("rotation", ["rpy", "axis_angle"])
@pytest.mark.parametrize("number", [0, 3, 2])  # three yaws of the base
def test_an_action_moves_and_turns_the_tool_in_the_axes_of_the_base(environment, rotation, number):
    simpler = environment(rotation=rotation)
    simpler.reset(number)
    before = {name: pose.copy() for name, pose in simpler.poses.items()}
    simpler.step(np.array([0.1, 0.02, -0.05, 0.4, 0.3, -0.2, 1.0]))
    after = simpler.poses["tool"]
    base = Rotation.from_quat(np.roll(before["base"][3:], -1))
    np.testing.assert_allclose(after[:3] - before["tool"][:3], base.apply([0.1, 0.02, -0.05]), atol=1e-9)
    meant = (
        Rotation.from_euler("xyz", [0.4, 0.3, -0.2]) if rotation == "rpy" else Rotation.from_rotvec([0.4, 0.3, -0.2])
    )
    turned = Rotation.from_quat(np.roll(after[3:], -1)) * Rotation.from_quat(np.roll(before["tool"][3:], -1)).inv()
    expected = base * meant * base.inv()
    assert (turned * expected.inv()).magnitude() < 1e-6


# Openness as RT-1's relative gripper [0, 0, 1, 0, 0, -1, 0] becomes absolute (1 closes, -1 opens, before it open), and
# the commands that SIMPLER must then get, by hand. Nothing is said at the first step; a change is repeated.
OPENNESS = [1, 1, 0, 0, 0, 1, 1, *[1] * 13]
COMMANDS = {
    ("cogact", 3): [0, 0, 1, 1, 1, -1, -1, -1, *[0] * 12],
    ("cogact", 15): [0, 0, *[1] * 15, -1, -1, -1],  # the opening waits until the closing is done
    ("cogact", 10): [0, 0, *[1] * 10, *[-1] * 8],
    ("octo", 3): [0, 0, 1, 1, 1, -1, -1, -1, *[0] * 12],
    ("octo", 15): [0, 0, *[1] * 15, 0, 0, 0],  # the opening came while it was closing, and is lost
    ("pi", 3): [-1, -1, -1, 1, 1, 1, *[-1] * 14],  # says -1 from the start, in threes
}


@pytest.mark.parametrize(("rule", "repeats"), COMMANDS)
def test_the_gripper_gets_what_the_table_says(environment, rule, repeats):
    simpler = environment(gripper=rule, gripper_repeat=repeats)
    simpler.reset(0)
    sent = [simpler.step(np.array([0, 0, 0, 0, 0, 0, openness])).info["command"] for openness in OPENNESS]
    assert sent == COMMANDS[rule, repeats]


def test_the_gripper_forgets_the_episode_before(environment):
    simpler = environment()
    simpler.reset(0)
    for openness in (1, 0):
        simpler.step(np.array([0, 0, 0, 0, 0, 0, openness]))
    simpler.reset(1)
    assert simpler.step(np.array([0, 0, 0, 0, 0, 0, 0])).info["command"] == 0


def test_the_instruction_of_the_apple_changes_after_a_hundred_steps(environment):
    simpler = environment("place_apple")
    seen = [simpler.reset(13)["instruction"]]
    for _ in range(102):
        seen.append(simpler.step(STILL).observation["instruction"])
    assert seen[:101] == ["open top drawer"] * 101
    assert seen[101:] == ["place apple into top drawer"] * 2


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6), r"an action of shape \(6,\)"),
        (np.full(7, np.nan), "an action that is not finite: x nan"),
    ],
)
def test_bad_actions(environment, action, message):
    simpler = environment()
    simpler.reset(0)
    with pytest.raises(DataError, match=message):
        simpler.step(action)


def test_unknown_names_and_episodes(environment):
    for options, message in (
        ({"task": "close_draver"}, "Did you mean: 'close_drawer'"),
        ({"variant": "visual"}, "variant: 'visual' is not one of visual_matching"),
        ({"rotation": "euler"}, "rotation: 'euler' is not one of rpy, axis_angle"),
        ({"gripper": "sticky"}, "gripper: 'sticky' is not one of octo, cogact, pi"),
        ({"task": "close_drawer", "variant": "camera_variants"}, "SIMPLER has no camera_variants of close_drawer"),
    ):
        with pytest.raises(ConfigError, match=message):
            environment(**options)
    with pytest.raises(ConfigError, match="episode 36: close_top_drawer, visual_matching has 0 to 35"):
        environment().reset(36)


def test_a_removed_file_is_refused_before_the_first_episode(environment):
    with pytest.raises(DataError, match=r"1 files of its scenes are missing:\n  assets/open_drawer_b0\n"):
        environment(settings={"FAKE_REMOVED": "open_drawer_b0"})


def test_a_simulator_that_cannot_draw_is_refused_before_the_first_episode(environment):
    with pytest.raises(ConfigError, match="no usable Vulkan driver"):
        environment(failure="no renderer")
    with pytest.raises(ConfigError, match="has no SIMPLER"):
        environment(failure="no simpler")


def test_after_a_crash_the_same_episode_can_be_run_again(environment, tmp_path):
    simpler = environment(failure="dies", settings={"FAKE_DIED": str(tmp_path / "died")})
    random = Random()

    def play() -> list[bytes]:
        seen = simpler.reset(4)
        random.reset(seen["instruction"], 7)
        frames = []
        for _ in range(8):
            frames.append(seen["image"].tobytes() + seen["state"].tobytes())
            seen = simpler.step(random.select_action(seen)).observation
        return frames

    with pytest.raises(
        AccidentError, match=r"stopped during 'step'.*; episode 4 is lost, those before it are not"
    ) as lost:
        play()
    assert lost.value.exit_code == 75
    again = play()
    for other in (0, 1, 2, 3):
        simpler.reset(other)
        simpler.step(STILL)
    assert play() == again


def test_a_rollout_keeps_its_episodes_through_a_crash_and_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("robotics.simpler.client.Simulator.__init__.__defaults__", (None, None, 600.0, FAKE))
    for name, value in (("SIMPLER", "dies"), ("DIED", str(tmp_path / "died")), ("DIES_IN", "2"), ("STEPS", "5")):
        monkeypatch.setenv(f"FAKE_{name}", value)
    out = tmp_path / "out"
    command = ["rollout", "--env", "simpler", "--task", "close_top_drawer", "--policy", "zero", "--episodes", "3"]
    command += ["--videos", "0", "--out", str(out), f"python={sys.executable}", "raster=true"]
    assert main(command) == AccidentError.exit_code
    assert "killed by SIGABRT" in capsys.readouterr().err
    kept = (out / "episodes.jsonl").read_text()
    assert [json.loads(line)["episode_ix"] for line in kept.splitlines() if "episode_ix" in line] == [0]
    assert main(command) == 0
    after = (out / "episodes.jsonl").read_text()
    assert after.startswith(kept)
    assert [json.loads(line)["episode_ix"] for line in after.splitlines() if "episode_ix" in line] == [0, 1, 2]
    protocol = json.loads((out / "eval_info.json").read_text())["selfflow"]["protocol"]
    assert (protocol["renderer"], protocol["comparable"]) == ("raster", False)


def test_the_protocol_says_what_a_number_means(environment):
    drawers = environment().protocol
    assert (drawers["renderer"], drawers["comparable"], drawers["rotation"], drawers["gripper"]) == (
        "ray tracing",
        True,
        "rpy",
        "cogact",
    )
    assert "published" not in drawers  # only of all three drawers
    flat = environment("close_drawer", raster=True).protocol
    assert (flat["renderer"], flat["comparable"]) == ("raster", False)
    assert "published" not in flat
    can = environment("pick_coke_can", variant="variant_aggregation", raster=True).protocol
    assert (can["renderer"], can["comparable"], can["grid"]) == ("raster", True, 675)
    assert can["published"] == {"task": "pick_coke_can", "variant": "variant_aggregation"}


def test_the_check_names_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr("robotics.simpler.client.WORKER", FAKE)
    monkeypatch.setattr("robotics.simpler.client.Simulator.__init__.__defaults__", (None, None, 600.0, FAKE))
    monkeypatch.setenv("FAKE_SIMPLER", "numpy 2")
    monkeypatch.setenv("FAKE_REMOVED", "open_drawer_b0")
    assert main(["simpler", "check", "--python", sys.executable]) == 2
    said = capsys.readouterr().out
    assert "numpy: 2.1.3, wanted <2: pip install 'numpy<2'" in said
    assert "  close_drawer         visual_matching       108 episodes  1 files are missing" in said
    assert "  pick_coke_can        visual_matching       300 episodes  complete" in said
    assert "  missing: assets/open_drawer_b0" in said
    assert "renderer: works" in said
    monkeypatch.setenv("FAKE_SIMPLER", "")
    monkeypatch.setenv("FAKE_REMOVED", "")
    assert main(["simpler", "check", "--python", sys.executable]) == 0
    monkeypatch.setenv("FAKE_SIMPLER", "no simpler")
    assert main(["simpler", "check", "--python", sys.executable]) == 2
    assert "mani_skill2_real2sim: cannot be imported" in capsys.readouterr().out


def test_the_check_without_a_simulator_says_how_to_name_it(monkeypatch, capsys):
    monkeypatch.delenv("SELFFLOW_SIMPLER_PYTHON", raising=False)
    assert main(["simpler", "check"]) == 2
    assert "set SELFFLOW_SIMPLER_PYTHON to its python" in capsys.readouterr().err
