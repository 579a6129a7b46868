"""HyperSim: linear HDR colour and distance along the ray, HDF5 float16 (github.com/apple/ml-hypersim).

Planar depth here is -z in the scene's own camera space. With u, v at pixel centres in [-1, 1], v up, and
ray = M_cam_from_uv (u, v, 1), it is distance * (-ray_z / |ray|). In tilt-shift scenes, where the image plane
is not perpendicular to the optical axis, this stays the distance along that axis, not from the tilted plane.
More than half of the scenes differ from the nominal 60 degree camera, so M_cam_from_uv is read per scene from
metadata_camera_parameters.csv at the top of the raw folder; without its row a scene is refused, not guessed.

The colour of a frame may be brightest where nothing was hit, so the exposure is taken from pixels that show an
entity; where the file of entity ids is missing, from those that have a distance.

Where nothing was hit there may be a window or a hole in a mesh: such pixels are not said to show no surface.
"""

import csv
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_floats, expect_shape, naming, read_hdf5
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import (
    FrameRef,
    Gaps,
    Listing,
    folders_below,
    member_ids,
    missing_numbers,
    no_gaps,
    paired_ids,
)
from metricgold.images import fit_pinhole, pixel_centres, planar_from_ray_distance

log = logging.getLogger(__name__)

CAMERA_CSV = "metadata_camera_parameters.csv"


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <scene>/images/scene_cam_XX_{final,geometry}_hdf5; FrameRef.camera is M_cam_from_uv by rows.

    A scene without a row in the csv raises ValueError. Gaps in the numbers of a trajectory's frames are counted up to
    its last one; a missing file of entity ids is logged, and its frame stays.
    """
    cameras = read_cameras(raw / CAMERA_CSV) if (raw / CAMERA_CSV).exists() else {}
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for images in folders_below(raw, "*/images"):
        scene = images.parent.name
        if scene not in cameras:
            raise ValueError(f"{raw / CAMERA_CSV}: no row for scene {scene}, so its depth cannot be made planar")
        frames += list_scene(dataset, images, cameras[scene], gaps[scene])
    without_entities = sum(ref.entity_path is None for ref in frames)
    if without_entities:
        log.warning("%s: %d frames lack render_entity_id, distance stands in for it", dataset, without_entities)
    return Listing.of(frames, gaps)


def read_cameras(path: Path) -> dict[str, tuple[float, ...]]:
    """Scene -> M_cam_from_uv as nine numbers by rows. ValueError names the file and what is wrong in it."""
    columns = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    with naming(path), path.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = {"scene_name", *columns} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"lacks the columns {sorted(missing)}")
        return {row["scene_name"]: parse_camera(row["scene_name"], [row[column] for column in columns]) for row in rows}


def parse_camera(scene: str, texts: list[str]) -> tuple[float, ...]:
    """M_cam_from_uv as nine numbers. ValueError unless it spans a plane of directions, the middle one ahead."""
    try:
        camera = tuple(map(float, texts))
    except (TypeError, ValueError):
        camera = (np.nan,) * 9
    if not np.isfinite(camera).all() or np.linalg.det(np.reshape(camera, (3, 3))) == 0 or camera[8] >= 0:
        raise ValueError(f"scene {scene}: M_cam_from_uv is not a camera: {texts}")
    return camera


def list_scene(dataset: str, images: Path, camera: tuple[float, ...], gaps: Gaps) -> Iterator[FrameRef]:
    """Frames of all trajectories of one scene; what is missing is counted into `gaps`."""
    scene = images.parent.name
    folders = (*images.glob("scene_cam_*_final_hdf5"), *images.glob("scene_cam_*_geometry_hdf5"))
    for number in sorted({folder.name.split("_")[2] for folder in folders}):
        final, geometry = images / f"scene_cam_{number}_final_hdf5", images / f"scene_cam_{number}_geometry_hdf5"
        entities = member_ids(geometry, "frame.", ".render_entity_id.hdf5")
        colours = member_ids(final, "frame.", ".color.hdf5")
        depths = member_ids(geometry, "frame.", ".depth_meters.hdf5")
        gaps.update({"number missing": missing_numbers(colours | depths)})
        for frame in paired_ids(colours, depths, gaps):
            yield FrameRef(
                dataset,
                scene,
                name=f"{scene}/cam_{number}/frame.{frame}",
                rgb_path=final / f"frame.{frame}.color.hdf5",
                depth_path=geometry / f"frame.{frame}.depth_meters.hdf5",
                entity_path=geometry / f"frame.{frame}.render_entity_id.hdf5" if frame in entities else None,
                camera=camera,
            )


def read_frame(ref: FrameRef) -> Frame:
    """Tone-mapped rgb, planar depth; NaN distance and entity -1 are invalid. ValueError names a broken member."""
    colour, ray_distance_m = read_hdf5(ref.rgb_path), read_hdf5(ref.depth_path)
    expect_floats(ref.rgb_path, colour)
    expect_floats(ref.depth_path, ray_distance_m)
    size = ray_distance_m.shape
    if len(size) != 2 or min(size) < 2:
        raise ValueError(f"{ref.depth_path}: expected shape [H, W], got {list(size)}")
    expect_shape(ref.rgb_path, colour, (*size, 3))
    if ref.entity_path is None:
        known = np.isfinite(ray_distance_m)
    else:
        entity_ids = read_hdf5(ref.entity_path).astype(np.int32, copy=False)
        expect_shape(ref.entity_path, entity_ids, size)
        if (entity_ids == 0).any():
            raise ValueError(f"{ref.entity_path}: entity id 0, which no HyperSim frame may hold")
        known = entity_ids != -1
    cosine, intrinsics = cosines_and_intrinsics(ref.camera, *size)
    planar_depth_m = np.multiply(ray_distance_m, cosine, dtype=np.float32, casting="same_kind")
    return Frame.from_arrays(tone_map(colour, known), planar_depth_m, known, intrinsics, ref.scene, ref.name)


@lru_cache(maxsize=8)  # frames come scene by scene
def cosines_and_intrinsics(camera: tuple[float, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Planar depth of one metre along each ray, float32 [H, W], and the nearest pinhole's intrinsics."""
    rays = rays_from_camera(camera, height, width)
    return planar_from_ray_distance(np.ones((height, width)), rays).astype(np.float32), fit_pinhole(rays)


def rays_from_camera(camera: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Rays float64 [H, W, 3], x right, y down, z forward, through every pixel centre of M_cam_from_uv."""
    x, y = pixel_centres(height, width)
    uv = np.stack([2 * x / width - 1, 1 - 2 * y / height, np.ones_like(x)], axis=-1)
    x_right_y_up_z_back = uv @ np.reshape(camera, (3, 3)).T
    rays: np.ndarray = x_right_y_up_z_back * [1, -1, -1]
    return rays


def tone_map(colour: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Linear HDR colour [H, W, 3] to rgb uint8 [H, W, 3], as the data set's own tools do it, in float32.

    The 90th percentile p of 0.3 R + 0.59 G + 0.11 B over the known pixels bool [H, W] becomes 0.8 after the
    power 1/2.2: scale = 0.8^2.2 / p, or 1 without a known pixel, or 0 when p < 1e-4. Rounded to the nearest of
    256 levels.
    """
    scale = exposure(colour, known)
    if colour.dtype == np.float16:
        # Only 65,536 different values: the power is taken of each once.
        table = _to_display(np.arange(1 << 16, dtype=np.uint16).view(np.float16), scale)
        return table.take(colour.view(np.uint16), mode="clip")  # no index is out of bounds, and clip skips that check
    return _to_display(colour, scale)


def exposure(colour: np.ndarray, known: np.ndarray) -> float:
    """The factor of tone_map on linear colour."""
    brightness = np.zeros(known.shape, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # colours that are NaN or infinite have no brightness
        for channel, weight in enumerate((0.3, 0.59, 0.11)):
            brightness += weight * colour[..., channel].astype(np.float32)
    brightness = brightness[known & np.isfinite(brightness)]
    if not brightness.size:
        return 1.0
    bright = float(np.percentile(brightness, 90, overwrite_input=True))
    return 0.8**2.2 / bright if bright >= 1e-4 else 0.0


def _to_display(linear: np.ndarray, scale: float) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        exposed = np.maximum(np.nan_to_num(linear.astype(np.float32) * np.float32(scale), posinf=np.inf), 0)
        display: np.ndarray = np.rint(np.clip(exposed ** np.float32(1 / 2.2), 0, 1) * 255).astype(np.uint8)
    return display
