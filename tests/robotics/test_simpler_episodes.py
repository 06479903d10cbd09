"""SIMPLER's grids against the numbers of its scripts and papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from robotics.simpler.episodes import POSES, TASKS, VARIANTS, episodes, facing

# Episodes by task and variant, counted by hand in SIMPLER's scripts: 4 robots x 3 orientations x 25 places, and so on.
COUNTS = {
    "pick_coke_can": (300, 675, 150),
    "move_near": (240, 480, 120),
    "open_drawer": (108, 189, 0),
    "close_drawer": (108, 189, 0),
    "place_apple": (108, 189, 0),
    "open_top_drawer": (36, 63, 0),
    "open_middle_drawer": (36, 63, 0),
    "open_bottom_drawer": (36, 63, 0),
    "close_top_drawer": (36, 63, 0),
    "close_middle_drawer": (36, 63, 0),
    "close_bottom_drawer": (36, 63, 0),
}


def test_the_grids_have_the_counts_of_the_protocol():
    assert {task: tuple(len(episodes(task, variant)) for variant in VARIANTS) for task in TASKS} == COUNTS


def test_camera_variants_make_the_larger_counts_that_some_papers_give():
    assert (
        len(episodes("pick_coke_can", "variant_aggregation")) + len(episodes("pick_coke_can", "camera_variants")) == 825
    )
    assert len(episodes("move_near", "variant_aggregation")) + len(episodes("move_near", "camera_variants")) == 600
    assert 2 * len(episodes("close_drawer", "variant_aggregation")) == 378


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_episode_is_there_twice_and_cells_are_equally_large(task, variant):
    grid = episodes(task, variant)
    assert len(set(grid)) == len(grid)
    cells: dict[tuple[str, ...], int] = {}
    for episode in grid:
        fine = ("place", "layout", "pose")
        cell = tuple(f"{name}={value}" for name, value in episode.labels.items() if name not in fine)
        cells[cell] = cells.get(cell, 0) + 1
    assert len(set(cells.values())) <= 1


@pytest.mark.parametrize(
    ("task", "variant", "number", "environment", "settings", "overlay", "robot", "placed"),
    [
        (
            "pick_coke_can",
            "visual_matching",
            0,
            "GraspSingleOpenedCokeCanInScene-v0",
            {"scene_name": "google_pick_coke_can_1_v4", "lr_switch": True},
            "google_coke_can_real_eval_1",
            (0.35, 0.20, 0.0),
            {"init_xy": [-0.35, -0.02]},
        ),
        (
            "pick_coke_can",
            "variant_aggregation",
            674,
            "GraspSingleOpenedCokeCanInScene-v0",
            {"scene_name": "google_pick_coke_can_1_v4", "laid_vertically": True, "slightly_brighter_lighting": True},
            None,
            (0.35, 0.20, 0.0),
            {"init_xy": [-0.12, 0.42]},
        ),
        (
            "move_near",
            "visual_matching",
            239,
            "MoveNearGoogleBakedTexInScene-v0",
            {"scene_name": "google_pick_coke_can_1_v4", "urdf_version": "recolor_cabinet_visual_matching_1"},
            "google_move_near_real_eval_1",
            (0.35, 0.21, -0.09),
            {"episode_id": 59},
        ),
        (
            "close_drawer",
            "visual_matching",
            107,
            "CloseBottomDrawerCustomInScene-v0",
            {
                "shader_dir": "rt",
                "scene_name": "dummy_drawer",
                "station_name": "mk_station_recolor",
                "light_mode": "simple",
                "disable_bad_material": True,
            },
            "open_drawer_c2",
            (0.865, 0.222, -0.025),
            {"init_xy": [0.0, 0.0]},
        ),
        (
            "place_apple",
            "variant_aggregation",
            188,
            "PlaceIntoClosedTopDrawerCustomInScene-v0",
            {
                "shader_dir": "rt",
                "scene_name": "frl_apartment_stage_simple",
                "station_name": "mk_station3",
                "model_ids": "apple",
            },
            None,
            (0.65, 0.2, 0.0),
            {"init_xy": [-0.02, 0.08]},
        ),
    ],
)
def test_an_episode_is_what_the_script_says(task, variant, number, environment, settings, overlay, robot, placed):
    episode = episodes(task, variant)[number]
    assert episode.scene.environment == environment
    assert dict(episode.scene.settings) == settings
    assert episode.overlay == overlay
    assert episode.robot == pytest.approx(robot)
    request = episode.request()
    assert {name: pytest.approx(value) for name, value in request["object"].items()} == placed


def test_the_robot_faces_the_table_turned_by_its_yaw():
    for yaw in (0.0, *(pose[2] for pose in POSES.values()), -0.09):
        w, x, y, z = facing(yaw)
        center = Rotation.from_euler("z", math.pi)  # SIMPLER's quaternion 0 0 0 1, wxyz
        expected = (Rotation.from_euler("z", yaw) * center).as_matrix()
        np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), expected, atol=1e-12)


def test_drawers_without_ray_tracing_only_where_it_is_asked():
    scene = episodes("close_drawer")[0].scene
    assert scene.ray_traced
    assert scene.request()["settings"]["shader_dir"] == "rt"
    assert "shader_dir" not in scene.request(raster=True)["settings"]
    assert not episodes("pick_coke_can")[0].scene.ray_traced


def test_scenes_name_their_files():
    assert episodes("move_near")[0].scene.needs() == {
        "stages": ["google_pick_coke_can_1_v4"],
        "stations": [],
        "robots": [""],
        "models": [
            "blue_plastic_bottle",
            "orange",
            "baked_opened_pepsi_can",
            "baked_opened_7up_can",
            "baked_apple",
            "baked_sponge",
            "baked_opened_coke_can",
            "baked_opened_redbull_can",
        ],
        "tables": ["info_pick_custom_baked_tex_v0.json"],
    }
    assert episodes("place_apple")[0].scene.needs() == {
        "stages": [],
        "stations": ["mk_station_recolor"],
        "robots": ["recolor_cabinet_visual_matching_1"],
        "models": ["baked_apple_v2"],
        "tables": ["info_pick_custom_baked_tex_v1.json"],
    }


def test_nine_photos_share_one_scene():
    grid = episodes("close_top_drawer")
    assert len({episode.scene for episode in grid}) == 4  # one for each robot
    assert [episode.labels["pose"] for episode in grid[:9]] == list(POSES)
