"""Virtual KITTI 2.0.3: JPEG and 16-bit centimetre PNG, planar; 65535 is sky and everything beyond 655.34 m."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_shape, naming, read_pixels
from metricgold.datasets.frame import NO_SURFACE, Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, member_ids, no_gaps, paired_ids
from metricgold.images import intrinsics_from

FAR = 65535


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of SceneXX/<variation>/frames/{rgb,depth}/Camera_N; FrameRef.camera is fx, fy, cx, cy of intrinsic.txt."""
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for folder in folders_below(raw, "Scene*/*/frames"):
        frames += list_variation(dataset, folder.parent, gaps[folder.parent.parent.name])
    return Listing.of(frames, gaps)


def list_variation(dataset: str, variation: Path, gaps: Gaps) -> Iterator[FrameRef]:
    """Frames of all cameras of a scene in one weather; what is missing is counted into `gaps`."""
    cameras = read_intrinsics(variation / "intrinsic.txt")
    scene = variation.parent.name
    folders = {kind: variation / "frames" / kind for kind in ("rgb", "depth")}
    for camera in sorted({folder.name for kind in folders.values() for folder in kind.glob("Camera_*")}):
        rgb, depth = folders["rgb"] / camera, folders["depth"] / camera
        for frame in paired_ids(member_ids(rgb, "rgb_", ".jpg"), member_ids(depth, "depth_", ".png"), gaps):
            if (frame, camera) not in cameras:
                gaps["intrinsics missing"] += 1
                continue
            yield FrameRef(
                dataset,
                scene,
                name=f"{scene}/{variation.name}/{camera}/{frame}",
                rgb_path=rgb / f"rgb_{frame}.jpg",
                depth_path=depth / f"depth_{frame}.png",
                camera=cameras[frame, camera],
            )


def read_intrinsics(path: Path) -> dict[tuple[str, str], tuple[float, ...]]:
    """(frame, camera) as files and folders are called -> fx, fy, cx, cy of that frame; empty without the file.

    Raises ValueError naming the file and the row that is something else.
    """
    if not path.exists():
        return {}
    with naming(path):
        return dict(parse_row(line) for line in path.read_text().splitlines()[1:] if line.strip())


def parse_row(line: str) -> tuple[tuple[str, str], tuple[float, ...]]:
    """A row of intrinsic.txt: (frame, camera) as files and folders are called, and fx, fy, cx, cy."""
    try:
        frame, camera, fx, fy, cx, cy = map(float, line.split())
        if not (np.isfinite([cx, cy]).all() and 0 < fx < np.inf and 0 < fy < np.inf):
            raise ValueError
        return (f"{int(frame):05d}", f"Camera_{int(camera)}"), (fx, fy, cx, cy)
    except (ValueError, OverflowError):
        raise ValueError(f"expected frame, camera, fx, fy, cx, cy, got {line!r:.100}") from None


def read_frame(ref: FrameRef) -> Frame:
    """Centimetres to metres; 65535 shows no surface, 0 is invalid too. ValueError names a broken member."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    centimetres = read_pixels(ref.depth_path, "I;16")
    expect_shape(ref.depth_path, centimetres, rgb.shape[:2])
    no_surface = centimetres == FAR
    intrinsics = intrinsics_from(*ref.camera, first_pixel=0)  # cx = 620.5 for 1242 columns
    layers = {NO_SURFACE: no_surface}
    planar_depth_m = centimetres / np.float32(100)
    return Frame.from_arrays(rgb, planar_depth_m, ~no_surface, intrinsics, ref.scene, ref.name, layers)
