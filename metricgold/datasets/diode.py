"""DIODE: PNG, float32 .npy of planar depth in metres [H, W, 1], and the mask of where the scanner can be trusted.

The 771 frames of `val` are found by walking the folders: the devkit's diode_meta.json names only 612 of them.
"""

from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_floats, expect_shape, read_npy, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import resize_intrinsics

SIZE = 768, 1024
# intrinsics.txt of the devkit: fx, fy, cx, cy = 886.81, 927.06, 512, 384. The pixels are not square. The images are
# rendered from panoramas, with the principal point in the middle of the image: its pixel centres are at +0.5.
INTRINSICS = np.array([[886.81, 0, 512], [0, 927.06, 384], [0, 0, 1]])


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of [val/]{indoors,outdoor}/scene_*/scan_*; `indoors/scene_00019` is a scene."""
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for top in (raw / "val", raw):
        for scan in folders_below(top, "indoors/scene_*/scan_*") + folders_below(top, "outdoor/scene_*/scan_*"):
            scene = scan.parent.relative_to(top).as_posix()
            depths = member_ids(scan, "", "_depth.npy")
            with_mask = depths & member_ids(scan, "", "_depth_mask.npy")
            gaps[scene]["mask missing"] += len(depths - with_mask)
            frames += [
                FrameRef(
                    dataset,
                    scene,
                    name=f"{scene}/{scan.name}/{frame}",
                    rgb_path=scan / f"{frame}.png",
                    depth_path=scan / f"{frame}_depth.npy",
                    mask_path=scan / f"{frame}_depth_mask.npy",
                )
                for frame in paired_ids(member_ids(scan, "", ".png"), depths, gaps[scene])
                if frame in with_mask
            ]
    return Listing.of(frames, gaps)


def read_frame(ref: FrameRef) -> Frame:
    """Valid where the mask is 1; layer `has_depth`: where there is a depth at all. ValueError names a broken member."""
    assert ref.mask_path is not None
    rgb = read_pixels(ref.rgb_path, "RGB")
    height, width = rgb.shape[:2]
    depth_m, mask = read_npy(ref.depth_path), read_npy(ref.mask_path)
    expect_floats(ref.depth_path, depth_m)
    expect_shape(ref.depth_path, depth_m, (height, width, 1))
    expect_shape(ref.mask_path, mask, (height, width))
    if mask.dtype.kind not in "bfiu":
        raise ValueError(f"{ref.mask_path}: expected numbers, got {mask.dtype}")
    depth_m = depth_m[..., 0]
    layers = {"has_depth": np.isfinite(depth_m) & (depth_m > 0)}
    intrinsics = resize_intrinsics(INTRINSICS, width / SIZE[1], height / SIZE[0])
    return Frame.from_arrays(rgb, depth_m, mask != 0, intrinsics, ref.scene, ref.name, layers)
