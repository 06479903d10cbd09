"""The tabletop: rules worked out by hand, experts, baselines, and episodes that depend on nothing before them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from robotics.baselines import Random, Repeat, Zero
from robotics.environment import Environment, Observation, Policy
from robotics.kinematic.environment import KinematicEnvironment
from robotics.kinematic.expert import Expert
from robotics.kinematic.scene import DRAWER, HEIGHTS, MAX_STEP, Body, Scene, advance
from robotics.kinematic.tasks import TASKS, Goal, draw_scene
from robotics.success import judge

BLIND = Observation(image=np.zeros((1, 1, 3), np.uint8), state=np.zeros(4, np.float32), instruction="")


def play(task: str, episode: int, policy: Policy | None = None, repeat: bool = False) -> dict[str, bool]:
    """An episode without its images, which have no influence; by the expert where no policy is given."""
    scene, goal = draw_scene(task, episode)
    expert = Expert(task, lambda: (scene, goal))
    chosen = policy or (Repeat(expert) if repeat else expert)
    chosen.reset("", episode)
    fulfilled = []
    for _ in range(TASKS[task].max_steps):
        advance(scene, chosen.select_action(BLIND))
        fulfilled.append(TASKS[task].succeeded(scene, goal))
    return judge(fulfilled)


def action(x: float = 0, y: float = 0, z: float = 0, openness: float = 1) -> np.ndarray:
    return np.array([x, y, z, 0, 0, 0, openness])


def table(*bodies: tuple[str, float, float], gripper: tuple[float, float, float] = (0, 0, 0.2)) -> Scene:
    placed = [(kind, np.array([x, y, HEIGHTS[kind]])) for kind, x, y in bodies]
    return Scene(np.array(gripper), 1.0, [Body(kind, spot, spot, closed=0.34) for kind, spot in placed])


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_by_every_rule(task):
    done = [play(task, episode) for episode in range(100)]
    assert sum(entry["last"] for entry in done) >= 95
    assert sum(entry["hold"] for entry in done) >= 95


@pytest.mark.parametrize("task", ["pick", "move_near", "open_drawer", "close_drawer"])
def test_policies_that_look_at_nothing_fail(task):
    for name, policy, repeat in (("zero", Zero(), False), ("random", Random(), False), ("repeat", None, True)):
        solved = sum(play(task, episode, policy, repeat)["last"] for episode in range(100))
        assert solved <= 2, name


def test_by_chance_a_reach_succeeds_a_little():
    """In reach of the object by luck: a baseline to report beside a policy's number."""
    assert sum(play("reach", episode, Random())["last"] for episode in range(300)) <= 15


def test_steps_are_cut_and_the_gripper_stays_over_the_table():
    scene = table(("can", 0.3, 0.3))
    advance(scene, action(x=5, y=-0.03, z=-1))
    assert scene.gripper == pytest.approx([0.10, -0.03, 0.10])
    for _ in range(10):
        advance(scene, action(x=1, z=-1))
    assert scene.gripper == pytest.approx([0.42, -0.03, 0.04])


def test_grasp_lift_and_drop():
    scene = table(("can", 0, 0.05), ("apple", 0, -0.25), gripper=(0, 0, 0.1))
    advance(scene, action(openness=0))
    assert scene.held == 0
    assert scene.openness == 0.3  # the fingers stop at the can: a policy can feel it
    advance(scene, action(z=0.1, openness=0))
    assert scene.bodies[0].position == pytest.approx([0, 0.05, 0.155])
    advance(scene, action(y=0.1))  # open fingers let it drop, also after they have moved
    assert scene.held is None
    assert scene.bodies[0].position == pytest.approx([0, 0.15, 0.055])


@pytest.mark.parametrize(
    ("gripper", "grasps"),
    [((0.09, 0, 0.1), True), ((0.08, 0.08, 0.1), False), ((0, 0, 0.15), True), ((0, 0, 0.16), False)],
)
def test_how_near_a_grasp_must_be(gripper, grasps):
    scene = table(("can", 0, 0), gripper=gripper)
    advance(scene, action(openness=0))
    assert (scene.held == 0) is grasps


def test_fingers_that_are_closed_already_get_around_nothing():
    scene = table(("can", 0.1, 0), gripper=(-0.05, 0, 0.055))
    advance(scene, action(openness=0))
    advance(scene, action(x=0.1, openness=0))
    assert scene.held is None
    advance(scene, action(openness=1))
    advance(scene, action(openness=0))
    assert scene.held == 0


def test_of_two_objects_the_nearer_one_is_grasped():
    scene = table(("can", 0.08, 0), ("apple", -0.05, 0), gripper=(0, 0, 0.05))
    advance(scene, action(openness=0))
    assert scene.held == 1


def test_a_drawer_slides_along_x_and_takes_the_gripper_with_it():
    scene = table((DRAWER, 0.34, 0.1), gripper=(0.34, 0.1, 0.12))
    advance(scene, action(openness=0))
    advance(scene, action(x=-0.1, y=0.1, z=0.1, openness=0))
    assert scene.bodies[0].extension == pytest.approx(0.1)
    assert scene.gripper == pytest.approx([0.24, 0.1, 0.12])
    for _ in range(3):
        advance(scene, action(x=-0.1, openness=0))
    assert scene.bodies[0].extension == pytest.approx(0.25)
    advance(scene, action(x=-0.1))  # let go
    assert scene.bodies[0].extension == pytest.approx(0.25)


def test_pick_counts_the_named_object_while_it_is_held_up():
    succeeded, goal = TASKS["pick"].succeeded, Goal(0)
    scene = table(("can", 0, 0), ("apple", 0.3, 0))
    scene.bodies[0].position = np.array([0, 0, HEIGHTS["can"] + 0.021])
    assert not succeeded(scene, goal)
    scene.held = 0
    assert succeeded(scene, goal)
    scene.bodies[0].position[2] -= 0.002
    assert not succeeded(scene, goal)
    scene.held, scene.bodies[1].position = 1, np.array([0.3, 0, 0.3])
    assert not succeeded(scene, goal)


def test_move_near_follows_simplers_conditions():
    succeeded, goal = TASKS["move_near"].succeeded, Goal(0, 1)

    def moved(x: float, y: float, z: float = HEIGHTS["can"]) -> Scene:
        scene = table(("can", -0.3, 0), ("apple", 0.2, 0), ("sponge", 0.2, 0.3))
        scene.bodies[0].position = np.array([x, y, z])
        return scene

    assert succeeded(moved(0, 0), goal)
    assert not succeeded(moved(-0.05, 0), goal)  # 25 cm away
    assert not succeeded(moved(0.2, 0.17), goal)  # nearer to the sponge
    assert not succeeded(moved(0, 0, 0.2), goal)  # still in the air
    scene = moved(0, 0)
    scene.bodies[1].position = np.array([0.2, -0.1, HEIGHTS["apple"]])
    assert succeeded(scene, goal)  # the target was pushed, but less
    scene.bodies[0].start = np.array([0.02, 0, 0])
    assert not succeeded(scene, goal)  # the source hardly moved


def test_an_episode_is_the_same_after_others_and_alone():
    def frames(environment: KinematicEnvironment, episode: int) -> str:
        observation, digest, ended = environment.reset(episode), hashlib.md5(), False
        policy = environment.expert()
        while not ended:
            digest.update(observation["image"].tobytes() + observation["state"].tobytes())
            observation, _, _, ended, _ = environment.step(policy.select_action(observation))
        return digest.hexdigest()

    used = KinematicEnvironment("move_near", size=32)
    for episode in range(4):
        frames(used, episode)
    used.reset(9)
    used.step(action())  # and one that was left in the middle
    assert frames(used, 5) == frames(KinematicEnvironment("move_near", size=32), 5)
    assert frames(used, 6) != frames(used, 5)


def test_an_observation_and_a_step():
    environment: Environment = KinematicEnvironment("pick")
    observation = environment.reset(3)
    assert observation["image"].shape == (64, 64, 3)
    assert observation["image"].dtype == np.uint8
    assert observation["state"].shape == (len(environment.state_names),)
    assert observation["instruction"].split()[0] == "pick"
    for number in range(environment.max_steps):
        step = environment.step(action())
        assert step.ended is (number == environment.max_steps - 1)
        assert (step.success, step.reward) == (False, 0.0)
    assert step.info["holding"] is None
    with pytest.raises(ConfigError, match="call reset first"):
        environment.step(action())


def test_episodes_differ_and_are_never_solved_at_the_start():
    for task, entry in TASKS.items():
        if task == "explore":  # asks for nothing
            continue
        places = set()
        for episode in range(50):
            scene, goal = draw_scene(task, episode)
            places.add(tuple(scene.bodies[0].position))
            assert not entry.succeeded(scene, goal)
        assert len(places) == 50


def test_the_image_shows_height_openness_and_every_object():
    environment = KinematicEnvironment("move_near", size=32)
    colors = {"apple": (205, 35, 40), "can": (40, 85, 200), "sponge": (240, 205, 50)}
    shown = set()
    for episode in (2, 1, 0):
        observation = environment.reset(episode)
        start, words = observation["image"].astype(int), observation["instruction"].split()
        for name, color in colors.items():
            near = np.abs(start - np.array(color)).sum(axis=-1) < 60
            assert near.sum() >= 4 if name in words else near.sum() == 0, (episode, name)
        shown |= colors.keys() & set(words)
    assert shown == colors.keys()
    lifted = environment.step(action(z=0.1)).observation["image"].astype(int)
    assert (np.abs(lifted - start).sum(axis=-1) > 30).sum() >= 6
    closed = environment.step(action(openness=0)).observation["image"].astype(int)
    assert (np.abs(closed - lifted).sum(axis=-1) > 30).sum() >= 4


def test_the_state_with_objects_has_the_way_from_the_gripper_to_each():
    environment = KinematicEnvironment("move_near", size=16, state="objects")
    plain = KinematicEnvironment("move_near", size=16)
    for episode in range(3):
        seen = environment.reset(episode)
        assert np.array_equal(seen["state"][:4], plain.reset(episode)["state"])
        known = dict(zip(environment.state_names, seen["state"].tolist(), strict=True))
        scene, goal = draw_scene("move_near", episode)
        for body in scene.bodies:
            found = [known[f"{body.kind}.{axis}"] for axis in "xyz"]
            np.testing.assert_allclose(found, body.position - scene.gripper, atol=1e-6)
        absent = {"apple", "can", "sponge", "drawer"} - {body.kind for body in scene.bodies}
        assert len(absent) == 2
        assert all(known[f"{kind}.{axis}"] == 0 for kind in absent for axis in "xyz")
        source = [known[f"{scene.bodies[goal.source].kind}.{axis}"] for axis in "xy"]
        wish = environment.expert().select_action(seen)[:2]
        np.testing.assert_allclose(wish, np.clip(source, -0.1, 0.1), atol=0.02)
    with pytest.raises(ConfigError, match=r"state of the kinematic environment.*'objcts'"):
        KinematicEnvironment("pick", state="objcts")


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"'pik' is not one of reach, pick.*Did you mean: 'pick'"):
        KinematicEnvironment("pik")
    with pytest.raises(ConfigError, match="4 pixels; allowed are 16 to 512"):
        KinematicEnvironment("pick", size=4)
    environment = KinematicEnvironment("pick", size=16)
    with pytest.raises(ConfigError, match="episode -1"):
        environment.reset(-1)
    environment.reset(0)
    with pytest.raises(DataError, match=r"shape \(6,\); this environment takes \(7,\): x, y, z"):
        environment.step(np.zeros(6))
    with pytest.raises(DataError, match="not finite: y nan, gripper inf"):
        environment.step(np.array([0, np.nan, 0, 0, 0, 0, np.inf]))


def test_exploration_goes_anywhere_and_is_a_function_of_the_scene():
    steps = []
    for episode in range(60):
        environment = KinematicEnvironment("explore", 16)
        environment.reset(episode)
        action = environment.expert().select_action(environment.reset(episode))
        assert np.array_equal(action, environment.expert().select_action(environment.reset(episode)))
        steps.append(action)
    moves, openness = np.stack(steps)[:, :3], np.stack(steps)[:, 6]
    np.testing.assert_allclose(moves.std(axis=0), MAX_STEP / np.sqrt(3), rtol=0.25)  # uniform in +-MAX_STEP
    assert np.abs(moves).max() <= MAX_STEP
    assert 0.5 < openness.mean() < 0.9
