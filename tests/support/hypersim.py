"""HyperSim's nominal camera, and the csv in which its reader finds the cameras of scenes."""

from math import radians, tan
from pathlib import Path

from metricgold.datasets.hypersim import CAMERA_CSV

_HALF_WIDTH = tan(radians(60) / 2)
NOMINAL_CAMERA = (_HALF_WIDTH, 0.0, 0.0, 0.0, _HALF_WIDTH * 3 / 4, 0.0, 0.0, 0.0, -1.0)  # 60 degrees wide, 4:3


def write_cameras(raw: Path, cameras: dict[str, tuple]) -> None:
    """One row of the csv for each scene."""
    names = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    lines = [",".join(["scene_name", *names])]
    lines += [",".join([scene, *map(repr, camera)]) for scene, camera in cameras.items()]
    (raw / CAMERA_CSV).write_text("\n".join(lines) + "\n")
