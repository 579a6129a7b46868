"""A raw HyperSim frame to rgb and planar depth, against the script that is usually written for it."""

from pathlib import Path

import h5py
import numpy as np

from metricgold.datasets import FrameRef, hypersim

from . import least_seconds

HEIGHT, WIDTH = 768, 1024
FOCAL_PX = 886.81  # 60 degrees wide


def conversion(folder: Path) -> dict[str, float]:
    ref = write_frame(folder)
    ours_s, script_s, read_s = least_seconds(
        lambda: hypersim.read_frame(ref),
        lambda: _script(ref.rgb_path, ref.depth_path, ref.entity_path),
        lambda: (_read(ref.rgb_path), _read(ref.depth_path)),
        rounds=20,
    )
    return {"frames.speedup_vs_script": script_s / ours_s, "frames.time_vs_read": ours_s / read_s}


def write_frame(folder: Path) -> FrameRef:
    """A frame with upstream's types, chunks and compression; it packs about as well as a real one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.sin(x / 90) + np.cos(y / 70)
    grain = rng.normal(0, 0.05, (HEIGHT, WIDTH, 3))
    colour = np.exp(waves[..., None] * [1, 0.9, 0.8] + grain).astype(np.float16)
    ray_distance_m = (4 + waves + np.hypot(x - WIDTH / 2, y) / 200).astype(np.float16)
    entity_ids = (1 + x // 64 + 16 * (y // 64)).astype(np.int32)
    ray_distance_m[:40, :60], entity_ids[:40, :60] = np.nan, -1
    images = folder / "ai_001_001" / "images"
    final, geometry = images / "scene_cam_00_final_hdf5", images / "scene_cam_00_geometry_hdf5"
    _write(final / "frame.0000.color.hdf5", colour)
    _write(geometry / "frame.0000.depth_meters.hdf5", ray_distance_m)
    _write(geometry / "frame.0000.render_entity_id.hdf5", entity_ids)
    (ref,) = hypersim.list_frames("hypersim", folder, default_camera=hypersim.NOMINAL_CAMERA).frames
    return ref


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = (96, 128, 1)[: array.ndim]
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=array, chunks=chunks, compression="gzip", compression_opts=9)


def _read(path: Path) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return file["dataset"][:]


def _script(rgb_path: Path, depth_path: Path, entity_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The yardstick: one focal length for all scenes, the image plane anew for each frame, float64 throughout."""
    colour = _read(rgb_path).astype(np.float64)
    distance_m = _read(depth_path).astype(np.float64)
    known = _read(entity_path) != -1

    brightness = 0.3 * colour[..., 0] + 0.59 * colour[..., 1] + 0.11 * colour[..., 2]
    bright = np.percentile(brightness[known], 90)
    scale = 0.8**2.2 / bright if bright >= 1e-4 else 0.0
    rgb = np.clip(np.power(np.maximum(colour * scale, 0), 1 / 2.2), 0, 1)

    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2 + 0.5, np.arange(HEIGHT) - HEIGHT / 2 + 0.5)
    plane = np.stack([x, y, np.full_like(x, FOCAL_PX)], axis=-1)
    planar_depth_m = distance_m / np.linalg.norm(plane, axis=-1) * FOCAL_PX
    planar_depth_m[~known | np.isnan(planar_depth_m)] = 0
    return (rgb * 255).astype(np.uint8), planar_depth_m.astype(np.float32)
