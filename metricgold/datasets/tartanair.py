"""TartanAir v1, left camera: RGB PNG and float32 .npy of planar depth in metres; 90 degrees wide.

The sky is no constant: in the frames seen it is a sphere some 4.1 km away, so its planar depth changes over the
image by a third. It is told from surfaces by its distance along the ray.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from metricgold.datasets.listing import FrameRef, Listing, member_ids, paired_ids
from metricgold.datasets.members import expect_shape, read_npy, read_pixels
from metricgold.frame import Frame
from metricgold.geometry import pinhole, rays_from_intrinsics

FAR_RAY_DISTANCE_M = 1000.0
FAR_RAY_DISTANCE_M_OF: dict[str, float] = {}  # environments known to end nearer or farther


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <env>[/<env>]/<Easy|Hard>/P0xx/{image_left,depth_left}; the environment is the scene."""
    return list_trajectories(dataset, raw, ("Easy", "Hard"), "left", ".npy")


def list_trajectories(dataset: str, raw: Path, levels: tuple[str, str], camera: str, depth_suffix: str) -> Listing:
    """Frames of <env>[/<env>]/<level>/P*/{image,depth}_<camera>, in both versions of the data set."""
    frames, gaps = [], Counter()
    for level in levels:
        for folder in (*raw.glob(f"*/{level}/P*"), *raw.glob(f"*/*/{level}/P*")):
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
                for frame in paired_ids(rgb_ids, depth_ids, gaps)
            ]
    return Listing.of(frames, gaps)


def read_frame(ref: FrameRef) -> Frame:
    """Zero and the sky are invalid; intrinsics follow from the width. ValueError names a broken member."""
    planar_depth_m = read_npy(ref.depth_path)
    if planar_depth_m.dtype.kind != "f":
        raise ValueError(f"{ref.depth_path}: expected floating point metres, got {planar_depth_m.dtype}")
    return frame_from(ref, planar_depth_m, FAR_RAY_DISTANCE_M_OF.get(ref.scene, FAR_RAY_DISTANCE_M))


def frame_from(ref: FrameRef, planar_depth_m: np.ndarray, far_ray_distance_m: float) -> Frame:
    """A frame of a 90 degree camera whose surfaces end at `far_ray_distance_m` along the ray."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    height, width = rgb.shape[:2]
    expect_shape(ref.depth_path, planar_depth_m, (height, width))
    intrinsics = pinhole(width / 2, height, width)
    ray_lengths = np.linalg.norm(rays_from_intrinsics(intrinsics, height, width), axis=-1)
    valid_mask = planar_depth_m * ray_lengths < far_ray_distance_m
    return Frame.checked(rgb, planar_depth_m, valid_mask, intrinsics, ref.scene, ref.name)
