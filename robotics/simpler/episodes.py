"""SIMPLER's evaluation protocol of the Google robot, as data: which episodes a task has, cell by cell.

Source: the scripts rt1_*_visual_matching.sh and rt1_*_variant_agg.sh of SimplerEnv (commit 4ab7178). Three variants:

    visual_matching      the background is a photo of the real scene, four recolored robots
    variant_aggregation  other backgrounds, lights, tables, distractors, cabinets; no photo
    camera_variants      two other camera angles. Its authors leave them out of their averages, others count them
                         (825 instead of 675 cans, 600 instead of 480 move near), so they are a variant of their own

Every cell of a task has the same number of episodes, so that the mean over episodes is the mean over cells. Visual
matching and variant aggregation are never averaged together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

VARIANTS = ("visual_matching", "variant_aggregation", "camera_variants")

# Robots whose color is that of a photo; "" is the one that SIMPLER's scripts call None.
TABLE_ROBOTS = (
    "",
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
CABINET_ROBOTS = (TABLE_ROBOTS[3], *TABLE_ROBOTS[1:3], "")  # in the order of the drawer scripts
ORIENTATIONS = ("lr_switch", "upright", "laid_vertically")
# Where the robot stands before the cabinet, by the name of its photo: x, y (meters), yaw (radians).
POSES = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
STAGE, CABINET_STAGE = "google_pick_coke_can_1_v4", "frl_apartment_stage_simple"
CAN, CAN_DISTRACTORS = "GraspSingleOpenedCokeCanInScene-v0", "GraspSingleOpenedCokeCanDistractorInScene-v0"
NEAR, NEAR_BAKED = "MoveNearGoogleInScene-v0", "MoveNearGoogleBakedTexInScene-v0"
APPLE = "PlaceIntoClosedTopDrawerCustomInScene-v0"
NEAR_OBJECTS = (
    "opened_pepsi_can",
    "opened_7up_can",
    "apple",
    "sponge",
    "opened_coke_can",
    "opened_redbull_can",
)
FEWER_DISTRACTORS = ("opened_pepsi_can", "apple", "sponge", "orange")
MORE_DISTRACTORS = (
    "opened_7up_can",
    "opened_sprite_can",
    "sponge",
    "orange",
    "opened_fanta_can",
    "bridge_spoon_generated_modified",
)


@dataclass(frozen=True)
class Scene:
    """What a simulator is built from. Episodes with equal scenes share it.

    settings: keyword arguments of the environment, besides those that all have.
    models: of objects, whose files are checked.
    overlay: name of the photo behind the scene, or None.
    """

    environment: str
    max_steps: int
    settings: tuple[tuple[str, Any], ...]
    table: str
    models: tuple[str, ...] = ()
    overlay: str | None = None

    @property
    def ray_traced(self) -> bool:
        return dict(self.settings).get("shader_dir") == "rt"

    def request(self, raster: bool = False) -> dict[str, Any]:
        """For the simulator: its environment is kept by this.

        Args:
            raster: without ray tracing, also where the protocol has it. Drawers then have no shadows.
        """
        settings = {name: value for name, value in self.settings if not (raster and name == "shader_dir")}
        return {
            "environment": self.environment,
            "max_steps": self.max_steps,
            "settings": settings,
            "overlay": self.overlay,
        }

    def needs(self) -> dict[str, list[str]]:
        """Names of the files that the scene is made of, for the simulator's `missing_files`."""
        settings = dict(self.settings)
        stage = settings["scene_name"]
        drawers = "Drawer" in self.environment
        return {
            "stages": [] if stage.startswith("dummy") else [stage],
            "stations": [settings.get("station_name", "mk_station")] if drawers else [],
            "robots": [settings.get("urdf_version", "")],
            "models": list(self.models),
            "tables": [self.table],
        }


@dataclass(frozen=True)
class Episode:
    """One episode. `labels` name its cells in a table: variant, robot, orientation, pose, and so on.

    robot: x, y in meters and yaw in radians, relative to facing the table.
    placed: what SIMPLER calls obj_init_options: `init_xy` of the object, or the number of a layout.
    """

    scene: Scene
    robot: tuple[float, float, float]
    placed: tuple[tuple[str, Any], ...]
    overlay: str | None = None
    labels: dict[str, str] = field(default_factory=dict, compare=False)

    def request(self) -> dict[str, Any]:
        """For the simulator's `reset`."""
        x, y, yaw = self.robot
        return {
            "robot": {"xy": [x, y], "quaternion": facing(yaw)},
            "object": {name: list(value) if isinstance(value, tuple) else value for name, value in self.placed},
            "overlay": self.overlay,
        }


def needed(grid: Sequence[Episode]) -> dict[str, list[str]]:
    """Names of the files that some episodes are made of, for the simulator's `missing_files`."""
    wanted: dict[str, set[str]] = {}
    for scene in {episode.scene for episode in grid}:
        for kind, names in scene.needs().items():
            wanted.setdefault(kind, set()).update(names)
    wanted["overlays"] = {episode.overlay for episode in grid if episode.overlay}
    return {kind: sorted(names) for kind, names in wanted.items()}


def facing(yaw: float) -> list[float]:
    """Rotation about z by `yaw` after the half turn that faces the table, as a quaternion wxyz."""
    return [-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2)]


def spaced(first: float, last: float, count: int) -> list[float]:
    return [first] if count == 1 else [first + (last - first) * k / (count - 1) for k in range(count)]


def robot_name(robot: str) -> str:
    return robot or "default"


# ---- pick coke can --------------------------------------------------------------------------------------------------

CAN_PLACES = [(x, y) for x in spaced(-0.35, -0.12, 5) for y in spaced(-0.02, 0.42, 5)]


def cans(environment: str, labels: dict[str, str], models: tuple[str, ...] = (), **settings: Any) -> list[Episode]:
    """25 places of a can that lies or stands as `settings` say."""
    overlay = settings.pop("overlay", None)
    scene = Scene(
        environment,
        80,
        tuple({"scene_name": STAGE, **settings}.items()),
        "info_pick_custom_v0.json",
        ("opened_coke_can", *models),
        overlay,
    )
    return [
        Episode(scene, (0.35, 0.20, 0.0), (("init_xy", place),), overlay, {**labels, "place": str(number)})
        for number, place in enumerate(CAN_PLACES)
    ]


def pick_coke_can(variant: str) -> list[Episode]:
    found: list[Episode] = []
    if variant == "visual_matching":
        for robot, orientation in product(TABLE_ROBOTS, ORIENTATIONS):
            labels = {"robot": robot_name(robot), "orientation": orientation}
            settings: dict[str, Any] = {orientation: True, **({"urdf_version": robot} if robot else {})}
            found += cans(CAN, labels, overlay="google_coke_can_real_eval_1", **settings)
        return found
    if variant == "camera_variants":
        for orientation, number in product(ORIENTATIONS, ("", "2")):
            environment = f"GraspSingleOpenedCokeCanAltGoogleCamera{number}InScene-v0"
            labels = {"variant": f"camera {number or 1}", "orientation": orientation}
            facing: dict[str, Any] = {orientation: True}
            found += cans(environment, labels, **facing)
        return found
    cells: list[tuple[str, str, tuple[str, ...], dict[str, Any]]] = [
        ("base", CAN, (), {}),
        ("table 1", CAN, (), {"scene_name": "Baked_sc1_staging_objaverse_cabinet1_h870"}),
        ("table 2", CAN, (), {"scene_name": "Baked_sc1_staging_objaverse_cabinet2_h870"}),
        ("distractors", CAN_DISTRACTORS, FEWER_DISTRACTORS, {}),
        ("more distractors", CAN_DISTRACTORS, MORE_DISTRACTORS, {"distractor_config": "more"}),
        ("background 1", CAN, (), {"scene_name": f"{STAGE}_alt_background"}),
        ("background 2", CAN, (), {"scene_name": f"{STAGE}_alt_background_2"}),
        ("darker", CAN, (), {"slightly_darker_lighting": True}),
        ("brighter", CAN, (), {"slightly_brighter_lighting": True}),
    ]
    for (name, environment, models, changed), orientation in product(cells, ORIENTATIONS):
        labels = {"variant": name, "orientation": orientation}
        found += cans(environment, labels, models, **{orientation: True, **changed})
    return found


# ---- move near ------------------------------------------------------------------------------------------------------


def near(environment: str, labels: dict[str, str], baked: bool = False, **settings: Any) -> list[Episode]:
    """60 layouts: five triplets of objects, six ordered pairs of each, two arrangements."""
    overlay = settings.pop("overlay", None)
    prefix, table = ("baked_", "info_pick_custom_baked_tex_v0.json") if baked else ("", "info_pick_custom_v0.json")
    models = ("blue_plastic_bottle", "orange", *(f"{prefix}{name}" for name in NEAR_OBJECTS))
    scene = Scene(environment, 80, tuple({"scene_name": STAGE, **settings}.items()), table, models, overlay)
    return [
        Episode(scene, (0.35, 0.21, -0.09), (("episode_id", k),), overlay, {**labels, "layout": str(k)})
        for k in range(60)
    ]


def move_near(variant: str) -> list[Episode]:
    found: list[Episode] = []
    if variant == "visual_matching":
        for robot in TABLE_ROBOTS:
            changed = {"urdf_version": robot} if robot else {}
            photo = "google_move_near_real_eval_1"
            found += near(NEAR_BAKED, {"robot": robot_name(robot)}, baked=True, overlay=photo, **changed)
        return found
    if variant == "camera_variants":
        for number in ("", "2"):
            found += near(f"MoveNearAltGoogleCamera{number}InScene-v0", {"variant": f"camera {number or 1}"})
        return found
    cells: list[tuple[str, dict[str, Any]]] = [
        ("base", {}),
        ("no distractor", {"no_distractor": True}),
        ("background 1", {"scene_name": f"{STAGE}_alt_background"}),
        ("background 2", {"scene_name": f"{STAGE}_alt_background_2"}),
        ("darker", {"slightly_darker_lighting": True}),
        ("brighter", {"slightly_brighter_lighting": True}),
        ("table 1", {"scene_name": "Baked_sc1_staging_objaverse_cabinet1_h870"}),
        ("table 2", {"scene_name": "Baked_sc1_staging_objaverse_cabinet2_h870"}),
    ]
    for name, settings in cells:
        found += near(NEAR, {"variant": name}, **settings)
    return found


# ---- drawers, and the apple in one ----------------------------------------------------------------------------------

APPLE_PLACES = [(x, y) for x in spaced(-0.08, -0.02, 3) for y in spaced(-0.02, 0.08, 3)]
CABINET_CELLS: list[tuple[str, dict[str, Any]]] = [
    ("base", {}),
    ("background 1", {"scene_name": "modern_bedroom_no_roof"}),
    ("background 2", {"scene_name": "modern_office_no_roof"}),
    ("brighter", {"light_mode": "brighter"}),
    ("darker", {"light_mode": "darker"}),
    ("cabinet 2", {"station_name": "mk_station2"}),
    ("cabinet 3", {"station_name": "mk_station3"}),
]


def matched_cabinet(robot: str) -> dict[str, Any]:
    """Settings of the visual matching of drawers, all ray traced."""
    matched = {
        "shader_dir": "rt",
        "scene_name": "dummy_drawer",
        "station_name": "mk_station_recolor",
        "light_mode": "simple",
        "disable_bad_material": True,
    }
    return {**matched, "urdf_version": robot} if robot else matched


def drawers(verb: str, names: tuple[str, ...], variant: str) -> list[Episode]:
    """`verb`: Open or Close; `names`: among Top, Middle, Bottom."""
    table = "info_pick_custom_v0.json"
    nothing = (("init_xy", (0.0, 0.0)),)
    found: list[Episode] = []
    if variant == "visual_matching":
        for robot, name in product(CABINET_ROBOTS, names):
            # One scene for nine photos: the photo belongs to the episode, and is changed at its reset.
            settings = tuple(matched_cabinet(robot).items())
            scene = Scene(f"{verb}{name}DrawerCustomInScene-v0", 113, settings, table, (), "open_drawer_a0")
            for pose, place in POSES.items():
                labels = {"robot": robot_name(robot), "drawer": name.lower(), "pose": pose}
                found.append(Episode(scene, place, nothing, f"open_drawer_{pose}", labels))
    if variant == "variant_aggregation":
        for (cell, settings), name in product(CABINET_CELLS, names):
            chosen = {"shader_dir": "rt", "scene_name": CABINET_STAGE, **settings}
            scene = Scene(f"{verb}{name}DrawerCustomInScene-v0", 113, tuple(chosen.items()), table)
            for x, y in product(spaced(0.65, 0.85, 3), spaced(-0.2, 0.2, 3)):
                labels = {"variant": cell, "drawer": name.lower(), "pose": f"{x:.2f},{y:.1f}"}
                found.append(Episode(scene, (x, y, 0.0), nothing, None, labels))
    return found


def place_apple(variant: str) -> list[Episode]:
    table = "info_pick_custom_baked_tex_v1.json"
    found: list[Episode] = []
    if variant == "visual_matching":
        for robot in CABINET_ROBOTS:
            settings = tuple({**matched_cabinet(robot), "model_ids": "baked_apple_v2"}.items())
            scene = Scene(APPLE, 200, settings, table, ("baked_apple_v2",), "open_drawer_a0")
            for pose, (number, place) in product(("a0", "b0", "c0"), enumerate(APPLE_PLACES)):
                labels = {"robot": robot_name(robot), "pose": pose, "place": str(number)}
                episode = Episode(scene, POSES[pose], (("init_xy", place),), f"open_drawer_{pose}", labels)
                found.append(episode)
    if variant == "variant_aggregation":
        for cell, settings in CABINET_CELLS:
            chosen = {"shader_dir": "rt", "scene_name": CABINET_STAGE, **settings, "model_ids": "apple"}
            scene = Scene(APPLE, 200, tuple(chosen.items()), table, ("apple",))
            for y, (number, place) in product(spaced(-0.2, 0.2, 3), enumerate(APPLE_PLACES)):
                labels = {"variant": cell, "pose": f"0.65,{y:.1f}", "place": str(number)}
                found.append(Episode(scene, (0.65, y, 0.0), (("init_xy", place),), None, labels))
    return found


ALL = ("Top", "Middle", "Bottom")
PUBLISHED = ("pick_coke_can", "move_near", "open_drawer", "close_drawer", "place_apple")  # what papers report
TASKS: dict[str, Callable[[str], list[Episode]]] = {
    "pick_coke_can": pick_coke_can,
    "move_near": move_near,
    "open_drawer": lambda variant: drawers("Open", ALL, variant),
    "close_drawer": lambda variant: drawers("Close", ALL, variant),
    "place_apple": place_apple,
    # Parts of the drawer tasks, for a quick look. Published numbers are over all three drawers.
    "open_top_drawer": lambda variant: drawers("Open", ("Top",), variant),
    "open_middle_drawer": lambda variant: drawers("Open", ("Middle",), variant),
    "open_bottom_drawer": lambda variant: drawers("Open", ("Bottom",), variant),
    "close_top_drawer": lambda variant: drawers("Close", ("Top",), variant),
    "close_middle_drawer": lambda variant: drawers("Close", ("Middle",), variant),
    "close_bottom_drawer": lambda variant: drawers("Close", ("Bottom",), variant),
}


@cache
def episodes(task: str, variant: str = "visual_matching") -> tuple[Episode, ...]:
    """All episodes of a task, cell by cell as in SIMPLER's scripts; none where the variant has none of it.

    Args:
        task: a key of `TASKS`.
        variant: of `VARIANTS`.
    """
    return tuple(TASKS[task](variant))
