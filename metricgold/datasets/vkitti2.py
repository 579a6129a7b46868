"""Virtual KITTI 2.0.3: JPEG and 16-bit centimetre PNG, planar; 65535 is sky and everything beyond 655.34 m."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metricgold.datasets.depth_png import read_depth_png
from metricgold.datasets.listing import FrameRef, Listing, member_ids, paired_ids
from metricgold.datasets.members import expect_shape, naming, read_pixels
from metricgold.frame import Frame

FAR = 65535


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of SceneXX/<variation>/frames/{rgb,depth}/Camera_N; FrameRef.camera is fx, fy, cx, cy of intrinsic.txt."""
    frames, gaps = [], Counter()
    for folder in sorted(raw.glob("Scene*/*/frames")):
        frames += _list_variation(dataset, folder.parent, gaps)
    return Listing.of(frames, gaps)


def _list_variation(dataset: str, variation: Path, gaps: Counter) -> Iterator[FrameRef]:
    cameras = read_intrinsics(variation / "intrinsic.txt")
    scene = variation.parent.name
    folders = {kind: variation / "frames" / kind for kind in ("rgb", "depth")}
    for camera in sorted({folder.name for kind in folders.values() for folder in kind.glob("Camera_*")}):
        rgb, depth = folders["rgb"] / camera, folders["depth"] / camera
        number = int(camera.removeprefix("Camera_"))
        for frame in paired_ids(member_ids(rgb, "rgb_", ".jpg"), member_ids(depth, "depth_", ".png"), gaps):
            if (int(frame), number) not in cameras:
                gaps["intrinsics missing"] += 1
                continue
            yield FrameRef(
                dataset,
                scene,
                name=f"{scene}/{variation.name}/{camera}/{frame}",
                rgb_path=rgb / f"rgb_{frame}.jpg",
                depth_path=depth / f"depth_{frame}.png",
                camera=cameras[int(frame), number],
            )


def read_intrinsics(path: Path) -> dict[tuple[int, int], tuple[float, ...]]:
    """(frame, camera) -> fx, fy, cx, cy as the file has them; empty when there is no file."""
    if not path.exists():
        return {}
    with naming(path):
        rows = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
        return {(int(frame), int(camera)): tuple(map(float, numbers)) for frame, camera, *numbers in rows}


def read_frame(ref: FrameRef) -> Frame:
    """Centimetres to metres; 65535 and 0 invalid. ValueError names a broken member."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    planar_depth_m, valid_mask = read_depth_png(ref.depth_path, 100, no_depth=FAR)
    expect_shape(ref.depth_path, planar_depth_m, rgb.shape[:2])
    fx, fy, cx, cy = ref.camera
    # The file counts pixel centres from 0 (cx = 620.5 for 1242 columns), a Frame from 0.5.
    intrinsics = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
    return Frame.checked(rgb, planar_depth_m, valid_mask, intrinsics, ref.scene, ref.name)
