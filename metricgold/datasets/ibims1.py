"""iBims-1, raw files: PNG, 16-bit planar depth of which 65535 is 50 m, a camera for each image, and masks.

In mask_invalid and mask_transp 0 is bad: not measured, or glass. The planes of mask_wall, mask_floor and mask_table are
numbered from 1 on; edges marks the borders between depths. Source: the publisher's evaluation script, which multiplies
depth by both masks and walks the planes by number, and public lists of the archive's content.
"""

import re
from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_shape, naming, read_depth_png, read_labels, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import intrinsics_from

UNITS_PER_METRE = 65535 / 50
GOOD = ("mask_invalid", "mask_transp")  # True where depth counts
PLANES = ("mask_wall", "mask_floor", "mask_table")  # 0: no such plane


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of ibims1_core_raw/{rgb,depth,...}; the kind of room is the scene, corridor of corridor_01.

    FrameRef.camera is fx, fy, cx, cy of calib/<image>.txt. Edges and planes are left out where they are not there.
    """
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for folder in folders_below(raw, "ibims1_core_raw"):
        images, depths = (member_ids(folder / kind, "", ".png") for kind in ("rgb", "depth"))
        for scene in sorted({scene_of(name) for name in images | depths}):
            of_scene = [{name for name in names if scene_of(name) == scene} for names in (images, depths)]
            for name in paired_ids(of_scene[0], of_scene[1], gaps[scene]):
                frames += refs_of(dataset, scene, name, folder, gaps[scene])
    return Listing.of(frames, gaps)


def scene_of(name: str) -> str:
    """corridor_01 -> corridor."""
    return re.sub(r"_\d+$", "", name)


def refs_of(dataset: str, scene: str, name: str, folder: Path, gaps: Gaps) -> list[FrameRef]:
    """The frame of an image, or none, counted into `gaps`, where a mask or its camera is missing."""
    layers = {layer: folder / layer / f"{name}.png" for layer in (*GOOD, *PLANES, "edges")}
    there = {layer: path for layer, path in layers.items() if path.exists()}
    calib = folder / "calib" / f"{name}.txt"
    if not (there.keys() >= set(GOOD) and calib.exists()):
        gaps["mask missing" if calib.exists() else "intrinsics missing"] += 1
        return []
    rgb_path, depth_path = folder / "rgb" / f"{name}.png", folder / "depth" / f"{name}.png"
    return [
        FrameRef(dataset, scene, name, rgb_path, depth_path, layer_paths=tuple(there.items()), camera=read_calib(calib))
    ]


def read_calib(path: Path) -> tuple[float, ...]:
    """fx, fy, cx, cy. ValueError naming the file that holds something else."""
    with naming(path):
        text = path.read_text()
        try:
            fx, fy, cx, cy = map(float, text.replace(",", " ").split())
        except ValueError:
            fx = fy = cx = cy = np.nan
        if not (0 < fx < np.inf and 0 < fy < np.inf and np.isfinite([cx, cy]).all()):
            raise ValueError(f"expected fx,fy,cx,cy, got {text.strip()!r:.100}")
        return fx, fy, cx, cy


def read_frame(ref: FrameRef) -> Frame:
    """Valid where there is depth and both masks are good. ValueError names a broken member.

    Layers: mask_invalid and mask_transp (True is good), edges (bool), mask_wall, mask_floor and mask_table (integers).
    """
    rgb = read_pixels(ref.rgb_path, "RGB")
    planar_depth_m, valid_mask = read_depth_png(ref.depth_path, UNITS_PER_METRE)
    expect_shape(ref.depth_path, planar_depth_m, rgb.shape[:2])
    layers = {name: read_labels(path, rgb.shape[:2]) for name, path in ref.layer_paths}
    layers |= {name: layers[name] != 0 for name in (*GOOD, "edges") if name in layers}
    layers |= {name: layers[name].astype(np.uint16) for name in PLANES if name in layers}
    intrinsics = intrinsics_from(*ref.camera, first_pixel=1)  # as the evaluation script counts
    valid_mask = valid_mask & layers["mask_invalid"] & layers["mask_transp"]
    return Frame.from_arrays(rgb, planar_depth_m, valid_mask, intrinsics, ref.scene, ref.name, layers)
