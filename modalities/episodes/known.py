"""What is read of data sets whose fields are known, so that a configuration need not name them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modalities.episodes.base import Fields


@dataclass(frozen=True)
class Known:
    """
    Attributes:
        gripper, gripper_places: rule and places of `modalities.actions.gripper.apply_gripper`.
    """

    fields: Fields
    fps: float
    gripper: str = "keep"
    gripper_places: tuple[int, ...] = ()


# Name in dataset_info.json -> what its users read. RT-1: Octo's and OpenVLA's choice, 7 numbers, relative gripper made
# absolute, state with 8; its catalog calls `rotation_delta` roll, pitch, yaw.
RLDS = {
    "fractal20220817_data": Known(
        Fields(
            "observation/image",
            ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"),
            ("observation/base_pose_tool_reached", "observation/gripper_closed"),
            "observation/natural_language_instruction",
        ),
        fps=3.0,
        gripper="relative",
        gripper_places=(6,),
    ),
    "bridge_dataset": Known(
        Fields("observation/image_0", ("action",), ("observation/state",), "language_instruction"), fps=5.0
    ),
}


def chosen(known: Fields, image: str, actions: list[str], states: list[str], instruction: str) -> Fields:
    """The fields of a configuration, which leaves out what is to be as usual."""
    given = {"image": image, "actions": tuple(actions), "states": tuple(states), "instruction": instruction}
    return replace(known, **{name: value for name, value in given.items() if value})
