"""Stands in for robotics/simpler/worker.py where there is no SAPIEN: the same messages, images, rates and rules.

What a reset shows (poses, gripper, instruction) was recorded from the real one (simpler_resets.json). Physics is only
this: the tool moves as it is told, and a drawer is pushed by a tool in front of it. FAKE_SIMPLER names a failure.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from robotics.simpler.actions import axis_angle_to_quaternion, quaternion_product, rotated  # noqa: E402
from robotics.simpler.worker import read_message, write_message  # noqa: E402

RECORDED = json.loads((Path(__file__).parent / "simpler_resets.json").read_text())
FAILURE = os.environ.get("FAKE_SIMPLER", "")
LOW = np.array([-1, -1, -1, -np.pi / 2, -np.pi / 2, -np.pi / 2, -1], dtype=np.float32)
FORCED = 100  # step at which the apple's second subtask begins
REACH = 0.0025  # the panel's half thickness, and what the fingers have before the tool


class Fake:
    def __init__(self) -> None:
        self.resets = 0

    def versions(self, request: dict[str, Any]) -> dict[str, Any]:
        found = {
            "python": "3.11.7",
            "numpy": "1.26.4",
            "sapien": "2.2.2",
            "gymnasium": "0.29.1",
            "setuptools": "65.5.0",
        }
        if FAILURE == "no simpler":
            return {**found, "mani_skill2_real2sim": None, "problem": "ModuleNotFoundError: no mani_skill2_real2sim"}
        if FAILURE == "numpy 2":
            found["numpy"] = "2.1.3"
        return {**found, "mani_skill2_real2sim": "somewhere", "assets": "assets"}

    def missing_files(self, request: dict[str, Any]) -> list[str]:
        removed = os.environ.get("FAKE_REMOVED", "")
        names = [name for kind in request["needs"].values() for name in kind]
        return [f"assets/{removed}"] if removed in names and removed else []

    def renderer(self, request: dict[str, Any]) -> dict[str, Any]:
        if FAILURE == "no renderer":
            raise RuntimeError("Cannot find a suitable rendering device")
        return {"made": True}

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        self.scene = request["scene"]
        return {"reused": False, "low": LOW, "high": -LOW}

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        self.steps, self.subtask, self.resets = 0, 0, self.resets + 1
        placed = request["episode"]["robot"]["xy"]
        recorded = RECORDED[
            "apple" if "Apple" in self.scene["environment"] or "Place" in self.scene["environment"] else "drawer"
        ]
        self.base, self.tool = np.array(recorded["base_pose"]), np.array(recorded["tcp_pose"])
        moved = np.array([*placed, self.base[2]]) - self.base[:3]
        self.base[:3] += moved
        self.tool[:3] += moved
        self.closed, self.words = recorded["gripper_closed"], recorded["instructions"]
        self.drawer = 0.2 if "Close" in self.scene["environment"] else 0.0
        return self.state()

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request["action"]
        assert action.shape == (7,)
        dying = self.steps == 3 and self.resets == int(os.environ.get("FAKE_DIES_IN", "1"))
        if FAILURE == "dies" and dying and not Path(os.environ["FAKE_DIED"]).exists():
            Path(os.environ["FAKE_DIED"]).touch()
            print("vk::PhysicalDevice::createDeviceUnique: ErrorExtensionNotPresent", file=sys.stderr, flush=True)
            os.abort()
        if FAILURE == "hangs" and self.steps == 3:
            time.sleep(60)
        print("a library prints this")  # must not get among the answers
        if self.steps >= FORCED:
            self.subtask = 1
        self.steps += 1
        turn = self.base[3:]
        self.tool[:3] += rotated(turn, action[:3])
        around = axis_angle_to_quaternion(rotated(turn, action[3:6]))
        self.tool[3:] = quaternion_product(around, self.tool[3:])
        self.closed = float(np.clip(self.closed + action[6] / 4, 0, 1))
        if abs(self.tool[2] - 0.685) < 0.07 and "Close" in self.scene["environment"]:
            self.drawer = float(np.clip(min(self.drawer, self.tool[0] - 0.0175 - REACH), 0, 0.5))
        success = self.drawer <= 0.05 if "Close" in self.scene["environment"] else False
        info = {"qpos": self.drawer, "success": success, "command": float(action[6])}
        ended = self.steps >= int(os.environ.get("FAKE_STEPS", self.scene["max_steps"]))
        return {**self.state(), "success": success, "ended": ended, "info": info}

    def advance(self, request: dict[str, Any]) -> dict[str, Any]:
        self.subtask = 1
        return {"instruction": self.words[-1], "final": True}

    def privileged(self, request: dict[str, Any]) -> dict[str, Any]:
        link = np.array([self.drawer - 0.295, 0, 0.685, 1, 0, 0, 0])
        return {
            "objects": {},
            "joints": {"top_drawer_joint": self.drawer},
            "links": {"top_drawer": link},
            "fingers": {},
        }

    def state(self) -> dict[str, Any]:
        image = np.zeros((512, 640, 3), dtype=np.uint8)
        image[: 1 + self.steps] = 255
        word = self.words[min(self.subtask, len(self.words) - 1)]
        return {
            "image": image,
            "base_pose": self.base,
            "tcp_pose": self.tool,
            "gripper_closed": self.closed,
            "instruction": word,
            "final": True,
        }


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    fake = Fake()
    while True:
        try:
            request = read_message(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = {"answer": getattr(fake, request["do"])(request)}
        except Exception as error:  # noqa: BLE001 - as the real one
            answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
        write_message(answers, answer)


if __name__ == "__main__":
    main()
