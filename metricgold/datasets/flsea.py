"""FLSea-VI: dives along canyons and in the Red Sea; RGB TIFF and float32 TIFF of planar depth in metres, 0 = none.

Depth is photogrammetry's. One calibration for each place, kalibr's pinhole, which counts pixel centres from 0. Its
lens distortion (2% at the corners of the canyons' images) is left out, as public evaluations do: depth fits the images
as they were taken. Source of the figures: UniDepth's reader and <place>/calibration/*kalibr-results-imucam.txt.
"""

from pathlib import Path

from metricgold.datasets.arrays import expect_shape, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import intrinsics_from, resize_intrinsics

SIZE = 608, 968
CAMERAS = {  # fx, fy, cx, cy at that size
    "canyons": (1175.3913431656817, 1174.2805075232263, 466.2595428966926, 271.2116633091501),
    "red_sea": (1296.666758476217, 1300.831316354508, 501.50386149846, 276.161712082695),
}
DEPTH_SUFFIX = "_SeaErra_abs_depth.tif"


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <place>/<dive>[/<dive>]/{imgs,depth}; `canyons/u_canyon` is a scene, FrameRef.camera its place's."""
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for place, camera in CAMERAS.items():
        # The archive repeats the name of a dive.
        globs = [f"{place}/{dive}/{kind}" for dive in ("*", "*/*") for kind in ("imgs", "depth")]
        for folder in sorted({path.parent for glob in globs for path in folders_below(raw, glob)}):
            scene = "/".join(folder.relative_to(raw).parts[:2])
            images, depths = folder / "imgs", folder / "depth"
            frames += [
                FrameRef(
                    dataset,
                    scene,
                    name=f"{scene}/{frame}",
                    rgb_path=images / f"{frame}.tiff",
                    depth_path=depths / f"{frame}{DEPTH_SUFFIX}",
                    camera=camera,
                )
                for frame in paired_ids(
                    member_ids(images, "", ".tiff"), member_ids(depths, "", DEPTH_SUFFIX), gaps[scene]
                )
            ]
    return Listing.of(frames, gaps)


def read_frame(ref: FrameRef) -> Frame:
    """Metres as they are stored; 0 is invalid. ValueError names a broken member."""
    rgb, depth_m = read_pixels(ref.rgb_path, "RGB"), read_pixels(ref.depth_path, "F")
    height, width = rgb.shape[:2]
    expect_shape(ref.depth_path, depth_m, (height, width))
    intrinsics = resize_intrinsics(intrinsics_from(*ref.camera, first_pixel=0), width / SIZE[1], height / SIZE[0])
    return Frame.from_arrays(rgb, depth_m, depth_m > 0, intrinsics, ref.scene, ref.name)
