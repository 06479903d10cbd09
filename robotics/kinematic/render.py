"""The image of the one camera: from above the robot, looking away from it and down.

An oblique projection: what lies further off is higher in the image, and so is what is lifted; its shadow stays on the
table. The gripper is brighter the higher it is. So a height can be read off in two ways at 32 x 32 pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from robotics.kinematic.scene import DRAWER, Body, Scene

VIEW = 0.96  # meters from left to right
GROUND, UP = 0.8, 0.62  # rows per meter along x and along z, over columns per meter
MIDDLE = 0.62  # row of the middle of the table, over the rows of the image
DEPTH = 0.44  # meters from the middle of the table to its near and far edge
TABLE, FLOOR, SHADOW, CABINET, METAL, LIGHT = (
    np.array(color, dtype=np.float32) / 255
    for color in ((196, 164, 128), (92, 88, 84), (70, 52, 40), (120, 84, 60), (120, 125, 135), (230, 230, 215))
)
COLORS = {
    kind: np.array(color, dtype=np.float32) / 255
    for kind, color in {"apple": (205, 35, 40), "can": (40, 85, 200), "sponge": (240, 205, 50)}.items()
}
RADIUS = 0.068  # meters, of all that lies on the table: larger than life, so that 32 x 32 pixels show it


class Canvas:
    """float32 (size, size, 3) in [0, 1]; shapes are given in meters and have soft edges one pixel wide."""

    def __init__(self, size: int):
        self.size = size
        self.columns, self.rows, background = _empty(size)
        self.pixels = background.copy()

    def ellipse(self, point: np.ndarray, wide: float, high: float, color: np.ndarray, opacity: float = 1.0) -> None:
        """Paint one with these half axes around a point (3,); its edge is exact for circles, else approximate."""
        window, across, down = self._around(point, wide, high)
        distance = np.sqrt((across / wide) ** 2 + (down / high) ** 2) - 1
        self._paint(window, distance * min(wide, high), color, opacity)

    def box(self, point: np.ndarray, wide: float, high: float, color: np.ndarray) -> None:
        """Paint an upright rectangle with these half sides around a point (3,)."""
        window, across, down = self._around(point, wide, high)
        self._paint(window, np.maximum(np.abs(across) - np.float32(wide), np.abs(down) - np.float32(high)), color, 1.0)

    def _around(
        self, point: np.ndarray, wide: float, high: float
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """The part of the image that a shape touches, and its pixels' offsets (1, w) and (h, 1) in meters."""
        x, y, z = (float(value) for value in point)
        column, row = 0.5 - y / VIEW, MIDDLE - (GROUND * x + UP * z) / VIEW
        window = self._span(row, high), self._span(column, wide)
        down = (self.rows[window[0]] - np.float32(row))[:, None] * np.float32(VIEW)
        across = (self.columns[window[1]] - np.float32(column))[None] * np.float32(VIEW)
        return window, across, down

    def _span(self, center: float, half: float) -> slice:
        first = int((center - half / VIEW) * self.size) - 1
        last = int((center + half / VIEW) * self.size) + 2
        return slice(min(max(first, 0), self.size), min(max(last, 0), self.size))

    def _paint(self, window: tuple[slice, slice], distance: np.ndarray, color: np.ndarray, opacity: float) -> None:
        """Where `distance` (h, w) in meters is negative."""
        cover = np.clip(np.float32(0.5) - distance * np.float32(self.size / VIEW), 0, 1)[..., None]
        part = self.pixels[window]
        part += cover * np.float32(opacity) * (color - part)


def render(scene: Scene, size: int) -> np.ndarray:
    """uint8 (size, size, 3)."""
    canvas = Canvas(size)
    for body in scene.bodies:
        if body.kind != DRAWER:
            _shadow(canvas, body.position, RADIUS)
    _shadow(canvas, scene.gripper, 0.07)
    for body in sorted(scene.bodies, key=lambda body: -float(body.position[0])):  # far ones first
        (_drawer if body.kind == DRAWER else _thing)(canvas, body)
    _gripper(canvas, scene)
    return (canvas.pixels * 255 + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def _shadow(canvas: Canvas, point: np.ndarray, radius: float) -> None:
    canvas.ellipse(np.array([*point[:2], 0.0]), radius, radius * GROUND, SHADOW, 0.55)


def _thing(canvas: Canvas, body: Body) -> None:
    color = COLORS[body.kind]
    if body.kind == "apple":
        canvas.ellipse(body.position, RADIUS, RADIUS, color)
        lit = np.array([0, 0.02, 0.03])
    elif body.kind == "can":
        canvas.box(body.position, RADIUS * 0.8, RADIUS * 1.1, color)
        lit = np.array([0, 0, 0.08])
    else:
        canvas.box(body.position, RADIUS * 1.2, RADIUS * 0.7, color)
        lit = np.array([0, 0, 0.04])
    canvas.ellipse(body.position + lit, RADIUS * 0.55, RADIUS * 0.3, np.float32(0.5) + np.float32(0.5) * color, 0.8)


def _drawer(canvas: Canvas, body: Body) -> None:
    """Its front comes toward the robot; the handle is its lightest spot."""
    front = np.array([body.position[0] + 0.02, body.position[1], body.position[2]])
    back = np.array([body.closed + 0.02, *front[1:]])
    canvas.box(back, 0.24, 0.11, CABINET * np.float32(0.6))
    top = (front + back) / 2 + np.array([0, 0, 0.06])
    canvas.box(top, 0.18, GROUND * body.extension / 2 + 0.005, CABINET * np.float32(1.3))
    canvas.box(front, 0.18, 0.06, CABINET)
    canvas.box(body.position, 0.06, 0.018, LIGHT)


def _gripper(canvas: Canvas, scene: Scene) -> None:
    """Two fingers, as far apart as it is open, under a bar."""
    color = METAL * np.float32(0.6 + 1.4 * float(scene.gripper[2]))
    gap = 0.05 + 0.05 * scene.openness
    for side in (-1, 1):
        finger = scene.gripper + np.array([0, side * gap, 0.045])
        canvas.box(finger, 0.016, 0.045, color)
    canvas.box(scene.gripper + np.array([0, 0, 0.15]), gap + 0.016, 0.02, color)


@lru_cache(maxsize=8)
def _empty(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centers (size,) of the columns and of the rows in units of the side, and the empty table (size, size, 3)."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    light = (np.float32(0.85) + np.float32(0.2) * axis)[:, None, None]  # nearer the camera, brighter
    half = GROUND * DEPTH / VIEW
    inside = ((axis > MIDDLE - half) & (axis < MIDDLE + half))[:, None, None]
    image = np.where(inside, TABLE * light, FLOOR * light).repeat(size, axis=1)
    return axis, axis, image.astype(np.float32)
