"""A world that a camera can stand in: solids, light, air and the places for the camera.

x and y on the ground, z up, metres.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from metricgold.datasets.synthetic.raycast import NOTHING, Floats, Point, Solids
from metricgold.datasets.synthetic.shading import Air, Light

Rng = np.random.Generator
T = TypeVar("T")
SUN_M = 1000.0  # as far as the sun needs to be for parallel shadows


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a camera stands. `yaw` turns left from +y, `pitch` up; radians."""

    position_m: Point
    yaw: float
    pitch: float

    def world_from_camera(self) -> Floats:
        """Rotation [3, 3] from camera axes (x right, y down, z along the axis) to the world's."""
        sine, cosine = np.sin(self.yaw), np.cos(self.yaw)
        up, level = np.sin(self.pitch), np.cos(self.pitch)
        right = np.array([cosine, sine, 0])
        forward = np.array([-sine * level, cosine * level, up])
        return np.stack([right, np.cross(forward, right), forward], axis=1)


@dataclass(frozen=True, eq=False)
class World:
    """Solids, light and air, and `draw_pose` for one more place of the camera.

    lamps    lights beside the first one
    clear_m  how far the nearest thing ahead is at least, and the middle of the view
    flies    the camera may be above or below things
    """

    solids: Solids
    light: Light
    air: Air
    draw_pose: Callable[[Rng], Pose]
    lamps: tuple[Light, ...] = ()
    clear_m: tuple[float, float] = (0.55, 1.8)
    flies: bool = False

    def in_fog(self, haze_per_m: float) -> Air:
        """The same air, thicker, with a sky as grey as the haze."""
        return Air(haze_per_m, self.air.horizon, self.air.horizon)

    def pose(self, rng: Rng) -> Pose:
        """The first of 50 poses that has room, else the last one."""
        for _ in range(50):
            pose = self.draw_pose(rng)
            if self.has_room_at(pose):
                break
        return pose

    def has_room_at(self, pose: Pose) -> bool:
        """Whether nothing is above, below or near ahead of the camera, and the middle of its view is far enough."""
        x, y, _ = pose.position_m
        plumb = self.solids.cast(np.array([x, y, 100.0]), np.array([[0.0, 0.0, -1.0]]), bounded_only=True)
        if plumb.solid[0] != NOTHING and not self.flies:
            return False
        across, down = np.meshgrid(np.linspace(-0.7, 0.7, 9), np.linspace(-0.5, 0.5, 7))
        rays = np.stack([across, down, np.ones_like(across)], axis=-1).reshape(-1, 3) @ pose.world_from_camera().T
        planar_depth_m = self.solids.cast(np.array(pose.position_m), rays).distances
        nearest_m, middle_m = self.clear_m
        return bool(planar_depth_m.min() > nearest_m and np.median(planar_depth_m) > middle_m)


def pick(rng: Rng, choices: Sequence[T]) -> T:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]
