"""KITTI: rectified photographs of the left colour camera, and the depth benchmark's annotated LiDAR depth.

Depth is planar, uint16 in 1/256 m, 0 for none: some four fifths of all pixels, and nothing in the upper third. The
annotation accumulates 11 scans and is what the improved Eigen split measures against. Drives lie below their date,
whose calib_cam_to_cam.txt says the camera: image size and focal length differ between dates. Depth lies below train or
val of the depth benchmark, which cuts across Eigen's split. Format: the devkits of the raw data and of the benchmark.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_shape, naming, read_depth_png, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import intrinsics_from

UNITS_PER_METRE = 256
CAMERA = "P_rect_02"  # projection of image_02 after rectification


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <date>/<drive>/image_02/data that have depth in data_depth_annotated/{train,val}/<drive>.

    A drive is a scene; FrameRef.camera is fx, fy, cx, cy of its date, and a date without calibration a ValueError.
    """
    photographs = {folder.parents[1].name: folder for folder in folders_below(raw, "*/*/image_02/data")}
    annotated = folders_below(raw, "data_depth_annotated/*/*/proj_depth/groundtruth/image_02")
    depths = {folder.parents[2].name: folder for folder in annotated}
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for drive in sorted(photographs.keys() | depths.keys()):
        frames += list_drive(dataset, drive, photographs.get(drive), depths.get(drive), gaps[drive])
    return Listing.of(frames, gaps)


def list_drive(
    dataset: str, drive: str, photographs: Path | None, depths: Path | None, gaps: Gaps
) -> Iterator[FrameRef]:
    """Frames of one drive, given its two folders; what is missing is counted into `gaps`."""
    rgb_ids, depth_ids = (member_ids(folder, "", ".png") if folder else set() for folder in (photographs, depths))
    paired = paired_ids(rgb_ids, depth_ids, gaps)
    if photographs and depths and paired:
        camera = read_camera(photographs.parents[2] / "calib_cam_to_cam.txt")
        for frame in paired:
            yield FrameRef(
                dataset,
                drive,
                name=f"{drive}/{frame}",
                rgb_path=photographs / f"{frame}.png",
                depth_path=depths / f"{frame}.png",
                camera=camera,
            )


def read_camera(path: Path) -> tuple[float, ...]:
    """fx, fy, cx, cy of image_02 after rectification, in the file's pixels. ValueError names the file."""
    with naming(path):
        rows = dict(line.partition(":")[::2] for line in path.read_text().splitlines())
        if CAMERA not in rows:
            raise ValueError(f"has no row {CAMERA}")
        try:
            (fx, skew, cx, _), (below, fy, cy, _), _ = np.reshape(
                [float(text) for text in rows[CAMERA].split()], (3, 4)
            )
            if skew or below or not (np.isfinite([cx, cy]).all() and 0 < fx < np.inf and 0 < fy < np.inf):
                raise ValueError
        except ValueError:
            raise ValueError(f"expected {CAMERA} as 12 numbers of a pinhole, got {rows[CAMERA]!r:.200}") from None
        return float(fx), float(fy), float(cx), float(cy)


def read_frame(ref: FrameRef) -> Frame:
    """Depth where a scan gave some. ValueError names a broken member."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    planar_depth_m, valid_mask = read_depth_png(ref.depth_path, UNITS_PER_METRE)
    expect_shape(ref.depth_path, planar_depth_m, rgb.shape[:2])
    intrinsics = intrinsics_from(*ref.camera, first_pixel=0)
    return Frame.from_arrays(rgb, planar_depth_m, valid_mask, intrinsics, ref.scene, ref.name)
