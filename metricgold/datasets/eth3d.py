"""ETH3D, high-resolution multi-view: photographs, laser depth without a head, mask images and COLMAP's cameras.

A depth map is named like its photograph, .JPG, but is raw little-endian float32 by rows, infinity where the scan has
no point. It fits the photograph as it was taken. Mask images come with the archives called occlusion; where a
photograph has none, nothing is masked. Their values are those of ETH3D's dataset-pipeline: 1 is what looks other than
the scan (reflections, glass, flares), 2 where the scan is wrong (what moved or was not scanned). Both are masked here;
the layer unmasked_depth_m holds all depth.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.datasets.arrays import format_size, naming, read_labels, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import fit_pinhole, pixel_centres, resize_intrinsics

PARAMETERS = {"THIN_PRISM_FISHEYE": 12, "PINHOLE": 4}  # COLMAP's names, and how many numbers follow the size
GRID = 96  # pixels between the rays that a pinhole is fitted to


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <scene>/{images,ground_truth_depth,masks_for_images}/dslr_images.

    FrameRef.camera is (model, width, height, parameters...) of dslr_calibration_jpg. ValueError names a broken file.
    """
    frames: list[FrameRef] = []
    gaps = no_gaps()
    found = (folders_below(raw, f"*/{kind}/dslr_images") for kind in ("images", "ground_truth_depth"))
    for folder in sorted({path.parents[1] for paths in found for path in paths}):
        frames += list_scene(dataset, folder, gaps[folder.name])
    return Listing.of(frames, gaps)


def list_scene(dataset: str, folder: Path, gaps: Gaps) -> Iterator[FrameRef]:
    """Frames of one scene; what is missing is counted into `gaps`."""
    images, depths, masks = (
        folder / kind / "dslr_images" for kind in ("images", "ground_truth_depth", "masks_for_images")
    )
    cameras = read_cameras(folder / "dslr_calibration_jpg")
    masked = member_ids(masks, "", ".png")
    for name in paired_ids(member_ids(images, "", ".JPG"), member_ids(depths, "", ".JPG"), gaps):
        if name not in cameras:
            gaps["intrinsics missing"] += 1
            continue
        yield FrameRef(
            dataset,
            scene=folder.name,
            name=f"{folder.name}/{name}",
            rgb_path=images / f"{name}.JPG",
            depth_path=depths / f"{name}.JPG",
            mask_path=masks / f"{name}.png" if name in masked else None,
            camera=cameras[name],
        )


def read_cameras(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Name of a photograph without suffix -> its camera; empty without the files. ValueError names a broken one."""
    cameras, images = folder / "cameras.txt", folder / "images.txt"
    if not (cameras.exists() and images.exists()):
        return {}
    with naming(cameras):
        camera_of_id = dict(parse_camera(line) for line in lines_of(cameras) if line.strip())
    with naming(images):
        # Each is followed by a line of key points, which may be empty.
        rows = [line.split() for line in lines_of(images)[::2] if line.strip()]
        for row in rows:
            if len(row) != 10 or row[8] not in camera_of_id:
                expected = "an id, a pose, the id of a camera of cameras.txt and a name"
                raise ValueError(f"expected {expected}, got {' '.join(row)!r:.100}")
        return {Path(row[9]).stem: camera_of_id[row[8]] for row in rows}


def lines_of(path: Path) -> list[str]:
    """Without comments."""
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def parse_camera(line: str) -> tuple[str, tuple[Any, ...]]:
    """A row of cameras.txt: its id, and model, width, height and parameters."""
    number, model = (*line.split(), "")[:2]
    try:
        values = tuple(map(float, line.split()[2:]))
    except ValueError:
        values = ()
    is_camera = len(values) == 2 + PARAMETERS.get(model, -1) and np.isfinite(values).all() and min(values[:4]) > 0
    if not is_camera:
        known = " or ".join(PARAMETERS)
        raise ValueError(f"expected a camera {known} with its size and parameters, got {line!r:.100}")
    return number, (model, *values)


def read_frame(ref: FrameRef) -> Frame:
    """Valid where there is depth that no mask image hides; intrinsics of the nearest pinhole.

    Layers: unmasked (bool: there is depth), unmasked_depth_m (float32). A frame has 24 million pixels: depth is read
    into the one array that the frame keeps. ValueError names a broken member.
    """
    rgb = read_pixels(ref.rgb_path, "RGB")
    height, width = rgb.shape[:2]
    _, camera_width, camera_height, *_ = ref.camera
    if (width, height) != (camera_width, camera_height):
        camera_size = f"{camera_width:g} x {camera_height:g}"
        raise ValueError(f"{ref.rgb_path}: is {format_size((height, width))}, expected {camera_size} as of its camera")
    unmasked_depth_m = read_depth(ref.depth_path, height, width)
    unmasked = unmasked_depth_m > 0
    planar_depth_m, valid_mask = unmasked_depth_m, unmasked
    if ref.mask_path is not None:
        valid_mask = read_labels(ref.mask_path, (height, width)) == 0
        valid_mask &= unmasked
        planar_depth_m = unmasked_depth_m * valid_mask
    layers = {"unmasked": unmasked, "unmasked_depth_m": unmasked_depth_m}
    with naming(ref.rgb_path):
        intrinsics = nearest_pinhole(ref.camera)
    return Frame(rgb, planar_depth_m, valid_mask, intrinsics, ref.scene, ref.name, layers)


def read_depth(path: Path, height: int, width: int) -> np.ndarray:
    """float32 [H, W] in metres, 0 where there is none. ValueError unless the file holds exactly so many numbers."""
    with naming(path):
        num_bytes, expected = path.stat().st_size, 4 * height * width
        if num_bytes != expected:
            raise ValueError(
                f"expected {expected} bytes, float32 of {width} x {height} as its photograph, got {num_bytes}"
            )
        depth_m = np.fromfile(path, "<f4").astype(np.float32, copy=False).reshape(height, width)
    depth_m[~(depth_m < np.inf)] = 0  # infinity, and NaN
    np.maximum(depth_m, 0, out=depth_m)
    return depth_m


@lru_cache(maxsize=64)  # of one scene some four
def nearest_pinhole(camera: tuple[Any, ...]) -> np.ndarray:
    """Intrinsics [3, 3] of the pinhole that best maps rays to the pixels that they fall on (least squares).

    The rays are those of pixels spread evenly over the image, the lens undone. ETH3D's files count from the corner of
    the first pixel, as a Frame does.
    """
    model, width, height, fx, fy, cx, cy, *distortion = camera
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)
    if model == "PINHOLE":
        return intrinsics
    columns, rows = max(2, round(float(width) / GRID)), max(2, round(float(height) / GRID))
    scale = float(width) / columns, float(height) / rows
    coarse = resize_intrinsics(intrinsics, 1 / scale[0], 1 / scale[1])
    x, y = pixel_centres(rows, columns)
    distorted = np.stack([(x - coarse[0, 2]) / coarse[0, 0], (y - coarse[1, 2]) / coarse[1, 1]], axis=-1)
    rays = undo_lens(distorted, np.array(distortion, dtype=np.float64))
    return resize_intrinsics(fit_pinhole(rays), *scale)


def undo_lens(distorted: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Rays [..., 3] that a THIN_PRISM_FISHEYE lens puts at these points [..., 2] of the plane at 1: Newton's method."""
    angles, step = distorted.copy(), 1e-6
    for _ in range(50):
        error = distort(angles, distortion) - distorted
        if np.abs(error).max() < 1e-9:
            break
        slopes = [
            (distort(angles + shift, distortion) - distort(angles - shift, distortion)) / (2 * step)
            for shift in np.eye(2) * step
        ]
        angles -= (np.linalg.pinv(np.stack(slopes, axis=-1)) @ error[..., None])[..., 0]
    # Where a lens folds the image over, the way back may end on the other side of the axis, or nowhere.
    if not (np.abs(error).max() < 1e-9 and ((angles * distorted).sum(axis=-1) >= 0).all()):
        raise ValueError(f"the distortion {distortion.tolist()} of its camera cannot be undone")
    theta = np.linalg.norm(angles, axis=-1, keepdims=True)
    return np.concatenate([angles * np.sinc(theta / np.pi), np.cos(theta)], axis=-1)


def distort(angles: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Where rays fall on the plane at 1 [..., 2], by their direction times their angle to the axis [..., 2].

    Source: COLMAP's and ETH3D's THIN_PRISM_FISHEYE, parameters k1, k2, p1, p2, k3, k4, sx1, sy1.
    """
    k1, k2, p1, p2, k3, k4, sx1, sy1 = distortion
    x, y = angles[..., 0], angles[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    shift_x = 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + sx1 * r2
    shift_y = 2 * p2 * x * y + p1 * (r2 + 2 * y * y) + sy1 * r2
    return np.stack([x * radial + shift_x, y * radial + shift_y], axis=-1)
