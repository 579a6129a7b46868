"""TartanAir v1, left camera: RGB PNG and float32 .npy of planar depth in metres; 90 degrees wide.

The sky is neither a constant nor infinity, it is geometry: in the frames seen a sphere some 4.1 km away, so that its
planar depth changes over the image by a third. It differs from surfaces by its distance along the ray: it is behind
the last wide gap of a frame, or beyond a limit where there is no gap. The limit is set here and not in the data
manifest, because it decides how a number is read, also without a manifest; a change of it needs a new encode.version.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_floats, expect_shape, read_npy, read_pixels
from metricgold.datasets.frame import NO_SURFACE, Frame
from metricgold.datasets.listing import FrameRef, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import pinhole, rays_from_intrinsics

FAR_RAY_DISTANCE_M = 1000.0
SKY_FROM_M = 300.0  # nothing nearer is ever taken for sky
SKY_GAP = 2.0  # ratio of ray distances; ground near the horizon leaves gaps up to this from one row to the next


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <env>[/<env>]/<Easy|Hard>/P0xx/{image_left,depth_left}; the environment is the scene."""
    return list_trajectories(dataset, raw, ("Easy", "Hard"), "left", ".npy")


def list_trajectories(dataset: str, raw: Path, levels: tuple[str, str], camera: str, depth_suffix: str) -> Listing:
    """Frames of <env>[/<env>]/<level>/P*/{image,depth}_<camera>, in both versions of the data set."""
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for level in levels:
        for folder in (*folders_below(raw, f"*/{level}/P*"), *folders_below(raw, f"*/*/{level}/P*")):
            scene = folder.relative_to(raw).parts[0]  # zips repeat the environment's name
            images, depths = folder / f"image_{camera}", folder / f"depth_{camera}"
            rgb_ids = member_ids(images, "", f"_{camera}.png")
            depth_ids = member_ids(depths, "", f"_{camera}_depth{depth_suffix}")
            frames += [
                FrameRef(
                    dataset,
                    scene,
                    name=f"{scene}/{level}/{folder.name}/{frame}",
                    rgb_path=images / f"{frame}_{camera}.png",
                    depth_path=depths / f"{frame}_{camera}_depth{depth_suffix}",
                )
                for frame in paired_ids(rgb_ids, depth_ids, gaps[scene])
            ]
    return Listing.of(frames, gaps)


def read_frame(ref: FrameRef) -> Frame:
    """Zero is invalid, and the sky, which shows no surface; intrinsics follow from the width.

    ValueError names a broken member.
    """
    planar_depth_m = read_npy(ref.depth_path)
    expect_floats(ref.depth_path, planar_depth_m)
    return frame_from(ref, planar_depth_m)


def frame_from(ref: FrameRef, planar_depth_m: np.ndarray) -> Frame:
    """A frame of a 90 degree camera whose surfaces end at the sky, or at FAR_RAY_DISTANCE_M along the ray."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    height, width = rgb.shape[:2]
    expect_shape(ref.depth_path, planar_depth_m, (height, width))
    ray_distance_m = planar_depth_m * ray_lengths(height, width)
    no_surface = ray_distance_m >= min(FAR_RAY_DISTANCE_M, sky_ray_distance_m(ray_distance_m))
    intrinsics, layers = pinhole(width / 2, height, width), {NO_SURFACE: no_surface}
    return Frame.from_arrays(rgb, planar_depth_m, ~no_surface, intrinsics, ref.scene, ref.name, layers)


def sky_ray_distance_m(ray_distance_m: np.ndarray) -> float:
    """Where along the ray the sky begins: behind the last gap that is SKY_GAP wide and ends at SKY_FROM_M or later.

    inf where a frame [H, W] has no such gap: without sky, or with nothing else. What is far, alone behind a gap, in a
    frame without sky is taken for sky: a loss of pixels beyond SKY_FROM_M, where sky for a surface would be an error.
    """
    seen = ray_distance_m[(ray_distance_m > 0) & (ray_distance_m < np.inf)]
    steps = np.unique(np.maximum(seen, SKY_FROM_M / SKY_GAP))  # differences nearer than that do not matter
    behind = steps[1:][(steps[1:] >= SKY_GAP * steps[:-1]) & (steps[1:] >= SKY_FROM_M)]
    return float(behind[-1]) if behind.size else np.inf


@lru_cache(maxsize=8)  # one size for all frames of a data set
def ray_lengths(height: int, width: int) -> np.ndarray:
    """Ray distance of one metre of planar depth, float64 [H, W]."""
    rays = rays_from_intrinsics(pinhole(width / 2, height, width), height, width)
    lengths: np.ndarray = np.linalg.norm(rays, axis=-1)
    return lengths
