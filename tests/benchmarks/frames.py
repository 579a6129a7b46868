"""A raw HyperSim frame to rgb and planar depth, against the script that is usually written for it.

The script ends with two PNGs on disk, because that is what its trainer reads; ours ends with a Frame in memory, because
that is what our encoder takes, and no PNG is ever written. So the script's PNGs are part of its work, and the figure
without them stands beside: what remains is reading, tone mapping and conversion on both sides.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from metricgold.datasets.readers import FrameRef, hypersim
from tests.support.hypersim import NOMINAL_CAMERA, write_cameras

from . import least_seconds

HEIGHT, WIDTH = 768, 1024
FOCAL_PX = 886.81  # 60 degrees wide
ROUNDS = 20
FRAMES_PER_PROCESS = 12


def conversion(folder: Path) -> dict[str, float]:
    ref = write_frame(folder)
    ours_s, script_s, script_without_png_s, read_s = least_seconds(
        lambda: hypersim.read_frame(ref),
        lambda: _write_pngs(folder, *_script(ref.rgb_path, ref.depth_path, ref.entity_path)),
        lambda: _script(ref.rgb_path, ref.depth_path, ref.entity_path),
        lambda: (_read(ref.rgb_path), _read(ref.depth_path)),
        rounds=ROUNDS,
    )
    return {
        "frames.speedup_vs_script": script_s / ours_s,
        "frames.time_vs_read": ours_s / read_s,
        "frames.speedup_vs_script_without_png": script_without_png_s / ours_s,
        "frames.speedup_2_processes": speedup_2_processes([ref] * FRAMES_PER_PROCESS),
    }


def speedup_2_processes(refs: Sequence[FrameRef]) -> float:
    """How many times faster two processes read two lists of frames than one process reads both."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        one_s, two_s = least_seconds(
            lambda: list(processes.map(_read_frames, [[*refs, *refs]])),
            lambda: list(processes.map(_read_frames, [refs, refs])),
            rounds=5,
        )
    return one_s / two_s


def _read_frames(refs: Sequence[FrameRef]) -> None:
    for ref in refs:
        hypersim.read_frame(ref)


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
    write_cameras(folder, {"ai_001_001": NOMINAL_CAMERA})
    (ref,) = hypersim.list_frames("hypersim", folder).frames
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


def _write_pngs(folder: Path, rgb: np.ndarray, planar_depth_m: np.ndarray) -> None:
    """8-bit colour and 16-bit millimetres, as Pillow compresses them by default."""
    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray((planar_depth_m * 1000).astype(np.uint16)).save(folder / "depth.png")
