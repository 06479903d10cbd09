"""The simulator's side of the pipe: a program that SIMPLER's own Python environment runs by its path.

It needs numpy and what SIMPLER itself needs, and imports nothing of this project: SAPIEN 2.2.2 wants numpy 1 and a
Python without the wheels that training uses. `robotics/simpler/client.py` starts it, and takes from here how a message
is written: 4 bytes for the length of a JSON header, the header, and the bytes of the arrays that it mentions.

A request is {"do": NAME, ...}, an answer {"answer": ...} or {"error": {"kind", "message"}}. Whatever libraries print
goes to stderr, which the client keeps in a file.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import traceback
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LONGEST = 1 << 28  # bytes of one message: an image of 512 x 640 has 1 MB, so a length above is no message of ours
CAMERA = "overhead_camera"
CONTROL = "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner"
# SimplerEnv makes an environment per episode and resets it without a seed. It then draws this episode seed: the first
# number of RandomState(2022). Given to every reset, it makes an episode a function of its options alone.
EPISODE_SEED = 40194941
SCENE_SEED = 2022  # SimplerEnv builds every scene with it
LOWEST = 0.5  # meters: an object below this has fallen through a scene whose stage is missing
PACKAGES = ("numpy", "sapien", "gymnasium", "setuptools", "scipy", "opencv-python", "opencv-python-headless", "ruckig")


# ---- messages -------------------------------------------------------------------------------------------------------


def write_message(stream: BinaryIO, message: Any) -> None:
    """Write one message; arrays of numbers may be anywhere in it."""
    arrays: list[np.ndarray] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biuf":
                raise TypeError(f"an array of {value.dtype} cannot be sent")
            arrays.append(np.ascontiguousarray(value))
            return {"__array__": len(arrays) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return value

    header = json.dumps(plain(message)).encode()
    stream.write(struct.pack("<I", len(header)) + header + b"".join(array.tobytes() for array in arrays))
    stream.flush()


def read_message(stream: BinaryIO) -> Any:
    """The next message.

    Raises:
        EOFError: the other side is gone.
        ValueError: the bytes are not a message.
    """
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    if length > LONGEST:
        raise ValueError(f"a message of {length} bytes")
    message = json.loads(_exactly(stream, length))

    def arrays(value: Any) -> Any:
        if isinstance(value, dict):
            if "__array__" in value:
                dtype, shape = np.dtype(value["dtype"]), value["shape"]
                data = _exactly(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
                return np.frombuffer(data, dtype).reshape(shape).copy()
            return {key: arrays(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [arrays(entry) for entry in value]
        return value

    return arrays(message)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    if count > LONGEST:
        raise ValueError(f"a message of {count} bytes")
    data = b""
    while len(data) < count:
        part = stream.read(count - len(data))
        if not part:
            raise EOFError("the pipe was closed")
        data += part
    return data


# ---- what is installed ----------------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    """Versions of this Python and of the packages whose versions matter; None where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": ".".join(str(number) for number in sys.version_info[:3])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    try:
        import mani_skill2_real2sim  # pyright: ignore[reportMissingImports] - of the simulator's environment

        found["mani_skill2_real2sim"] = str(mani_skill2_real2sim.__path__[0])
        found["assets"] = str(mani_skill2_real2sim.ASSET_DIR)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being imported is what the user must read
        found["mani_skill2_real2sim"], found["problem"] = None, f"{type(error).__name__}: {error}"
    return found


def renderer() -> dict[str, Any]:
    """Make a renderer and a camera. Without any Vulkan driver SAPIEN only says so, and dies at the camera."""
    import sapien.core as sapien  # pyright: ignore[reportMissingImports] - of the simulator's environment

    engine = sapien.Engine()
    drawing = sapien.SapienRenderer()
    engine.set_renderer(drawing)
    scene = engine.create_scene()
    scene.add_camera("check", 16, 16, 1.0, 0.01, 10.0)
    scene.update_render()
    return {"made": True}


def missing_files(needs: dict[str, list[str]]) -> list[str]:
    """Which of the files that scenes are made of are not there: SAPIEN itself only logs it and goes on without."""
    from mani_skill2_real2sim import ASSET_DIR, PACKAGE_ASSET_DIR  # pyright: ignore[reportMissingImports]

    assets, robots = Path(ASSET_DIR), Path(PACKAGE_ASSET_DIR) / "descriptions" / "googlerobot_description"
    wanted = [assets / "hab2_bench_assets" / "stages" / f"{name}.glb" for name in needs.get("stages", [])]
    wanted += [assets / "real_inpainting" / f"{name}.png" for name in needs.get("overlays", [])]
    wanted += [assets / "custom" / name for name in needs.get("tables", [])]
    for name in needs.get("models", []):
        folder = assets / "custom" / "models" / name
        wanted.append(folder / "collision.obj")
        forms = [folder / f"textured.{form}" for form in ("obj", "dae", "glb")]
        visual = next((path for path in forms if path.exists()), None)
        if visual is None:
            wanted.append(folder / "textured.*")
        else:
            wanted += [visual, *_named_in(visual)]
    for name in needs.get("stations", []):
        path = assets / "custom" / f"{name}.urdf"
        wanted += [path, *_named_in(path)]
    for name in needs.get("robots", []):
        suffix = f"_{name}" if name else ""
        path = robots / f"google_robot_meta_sim_fix_wheel_fix_fingertip{suffix}.urdf"
        wanted += [path, *_named_in(path)]
    return sorted({str(path) for path in wanted if not path.exists()})


def _named_in(path: Path) -> list[Path]:
    """Files that a URDF, OBJ or MTL file refers to."""
    if not path.exists() or path.suffix not in (".urdf", ".obj", ".mtl"):
        return []
    if path.suffix == ".urdf":
        names = [mesh.get("filename", "") for mesh in ElementTree.parse(path).iter("mesh")]
    else:
        pattern = r"^mtllib[ \t]+(.+?)\s*$" if path.suffix == ".obj" else r"^map_K[ad][ \t]+(.+?)\s*$"
        names = re.findall(pattern, path.read_text(errors="replace"), re.MULTILINE)
    found = [path.parent / name for name in names if name]
    return found + [inner for name in found for inner in _named_in(name)]


# ---- one environment ------------------------------------------------------------------------------------------------


class Simulator:
    """Environments by what they are built from. Few are kept: each holds a scene with its textures."""

    KEPT = 2

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.gym: Any = None
        self.fresh = False  # made, and not yet reset

    def make(self, scene: dict[str, Any]) -> dict[str, Any]:
        """Build the environment of a scene, or go back to it."""
        key = json.dumps(scene, sort_keys=True)
        reused = key in self.kept
        if reused:
            self.gym = self.kept.pop(key)
        else:
            while len(self.kept) >= self.KEPT:
                self.kept.pop(next(iter(self.kept))).close()
            import gymnasium  # pyright: ignore[reportMissingImports] - of the simulator's environment
            import mani_skill2_real2sim.envs  # noqa: F401  # pyright: ignore[reportMissingImports] - registers them

            settings = dict(scene["settings"])
            if scene.get("overlay"):
                settings.update(rgb_overlay_path=_overlay(scene["overlay"]), rgb_overlay_cameras=[CAMERA])
            self.gym = gymnasium.make(
                scene["environment"],
                disable_env_checker=True,
                obs_mode="rgbd",
                robot="google_robot_static",
                sim_freq=513,
                control_freq=3,
                control_mode=CONTROL,
                max_episode_steps=scene["max_steps"],
                camera_cfgs={"add_segmentation": True},
                **settings,
            )
        self.fresh = not reused
        self.kept[key] = self.gym  # the last of the dict is the one used last
        space = self.gym.action_space
        return {"reused": reused, "low": np.asarray(space.low), "high": np.asarray(space.high)}

    def reset(self, episode: dict[str, Any]) -> dict[str, Any]:
        """Begin an episode: `robot` {xy, quaternion}, `object` options, `overlay` or None."""
        import cv2  # pyright: ignore[reportMissingImports] - of the simulator's environment

        inner = self.gym.unwrapped
        if episode.get("overlay"):
            inner.rgb_overlay_path = _overlay(episode["overlay"])
            inner.rgb_overlay_img = cv2.cvtColor(cv2.imread(inner.rgb_overlay_path), cv2.COLOR_BGR2RGB) / 255
        robot = episode["robot"]
        options = {
            "robot_init_options": {
                "init_xy": np.array(robot["xy"], dtype=np.float64),
                "init_rot_quat": np.array(robot["quaternion"], dtype=np.float64),
            },
            "obj_init_options": {
                name: np.array(value, dtype=np.float64) if isinstance(value, list) else value
                for name, value in episode["object"].items()
            },
        }
        if not self.fresh:
            # A scene as it is when SimplerEnv makes it. Otherwise objects would come to rest elsewhere, by a little,
            # after another episode than they do in a new environment.
            self.gym.reset(seed=SCENE_SEED, options={"reconfigure": True})
        self.fresh = False
        observation, _ = self.gym.reset(seed=EPISODE_SEED, options=options)
        fallen = {name: pose[2] for name, pose in self._objects().items() if pose[2] < LOWEST}
        if fallen:
            raise ValueError(f"objects fell through the scene: {fallen} (meters); a stage is missing or damaged")
        return self._state(observation)

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """One control step with the action that SIMPLER takes."""
        observation, _, success, ended, info = self.gym.step(np.asarray(action, dtype=np.float64))
        return {**self._state(observation), "success": bool(success), "ended": bool(ended), "info": _numbers(info)}

    def advance(self) -> dict[str, Any]:
        """Go on to the next subtask, as SIMPLER's loop does when a policy terminates one that is not the last."""
        inner = self.gym.unwrapped
        if not inner.is_final_subtask():
            inner.advance_to_next_subtask()
        return {"instruction": inner.get_language_instruction(), "final": bool(inner.is_final_subtask())}

    def privileged(self) -> dict[str, Any]:
        """What no policy may see, for scripted experts: poses (7,) of the world, wxyz, and joints of the cabinet."""
        inner = self.gym.unwrapped
        cabinet = getattr(inner, "art_obj", None)
        joints, links = {}, {}
        if cabinet is not None:
            names = [joint.name for joint in cabinet.get_active_joints()]
            joints = dict(zip(names, [float(value) for value in cabinet.get_qpos()], strict=True))
            links = {link.name: _pose(link.pose) for link in cabinet.get_links()}
        robot = {link.name: _pose(link.pose) for link in inner.agent.robot.get_links() if "finger" in link.name}
        return {"objects": self._objects(), "joints": joints, "links": links, "fingers": robot}

    def close(self) -> None:
        for made in self.kept.values():
            made.close()
        self.kept, self.gym = {}, None

    def _objects(self) -> dict[str, np.ndarray]:
        inner = self.gym.unwrapped
        skipped = ("ground", "goal_site", "", "arena")
        return {actor.name: _pose(actor.pose) for actor in inner.get_actors() if actor.name not in skipped}

    def _state(self, observation: Any) -> dict[str, Any]:
        inner = self.gym.unwrapped
        image = np.ascontiguousarray(observation["image"][CAMERA]["rgb"])
        return {
            "image": image,
            "base_pose": _pose(inner.agent.robot.pose),
            "tcp_pose": _pose(inner.tcp.pose),
            "gripper_closed": float(inner.agent.get_gripper_closedness()),
            "instruction": inner.get_language_instruction(),
            "final": bool(inner.is_final_subtask()),
        }


def _overlay(name: str) -> str:
    from mani_skill2_real2sim import ASSET_DIR  # pyright: ignore[reportMissingImports]

    return str(Path(ASSET_DIR) / "real_inpainting" / f"{name}.png")


def _pose(pose: Any) -> np.ndarray:
    return np.hstack([pose.p, pose.q]).astype(np.float64)


def _numbers(value: Any) -> Any:
    """The part of SIMPLER's info that JSON can hold; some of its numbers are text ("0.200")."""
    if isinstance(value, dict):
        return {str(key): _numbers(entry) for key, entry in value.items()}
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str) or value is None else str(value)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # SIMPLER and SAPIEN print; that must not get among the answers
    simulator = Simulator()
    doing = {
        "versions": lambda request: versions(),
        "renderer": lambda request: renderer(),
        "missing_files": lambda request: missing_files(request["needs"]),
        "make": lambda request: simulator.make(request["scene"]),
        "reset": lambda request: simulator.reset(request["episode"]),
        "step": lambda request: simulator.step(request["action"]),
        "advance": lambda request: simulator.advance(),
        "privileged": lambda request: simulator.privileged(),
    }
    while True:
        try:
            request = read_message(sys.stdin.buffer)
        except EOFError:
            break
        try:
            answer = {"answer": doing[request["do"]](request)}
        except Exception as error:  # noqa: BLE001 - the client tells what went wrong, whatever it is
            traceback.print_exc()
            answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
        write_message(answers, answer)
    simulator.close()


if __name__ == "__main__":
    main()
