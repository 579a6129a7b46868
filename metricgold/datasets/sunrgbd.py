"""SUN RGB-D: photographs of four sensors with measured depth, planar millimetres whose 16 bits are rotated by 3.

Each capture has a folder below SUNRGBD/<sensor>/: image/*.jpg, depth/*.png and depth_bfx/*.png, one file each and not
always of one name, and intrinsics.txt, which counts pixels from 1 as the publisher's own read3dPoints does. `depth` is
what the sensor measured and what the public lists of the 5,050 test frames for depth name; it is the truth here.
`depth_bfx` has holes filled in from their surroundings and is the layer `filled_depth_m`. Sizes differ by sensor.

The toolbox's allsplit.mat lists the official 5,050 test and 5,285 training captures. The same places of SUN3D are on
both sides, so that a scene is named by side and place; of all other captures, where nothing is said of the place, each
is a scene. kv1/NYUdata/NYU<number> is frame <number> of NYU Depth v2, with the same 654 for tests.
"""

from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import expect_shape, naming, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, member_ids, no_gaps
from metricgold.datasets.mat5 import read_cell_of_texts
from metricgold.datasets.stored_depth import unrotate_bits
from metricgold.images import intrinsics_from

SPLIT_LIST = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
SPLITS = {"test": "alltest", "train": "alltrain"}


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames `<side>/<folder of the capture>` of the official list; ValueError where there are captures and no list."""
    if not (raw / "SUNRGBD").is_dir() and not (raw / SPLIT_LIST).exists():
        return Listing([])
    frames: list[FrameRef] = []
    gaps = no_gaps()
    for side, array in SPLITS.items():
        for stored in read_cell_of_texts(raw / SPLIT_LIST, array):
            # Paths of the publisher's machine, some with doubled or final slashes.
            capture = [part for part in stored.partition("/SUNRGBD/")[2].split("/") if part]
            if not capture or {".", ".."} & set(capture):
                raise ValueError(f"{raw / SPLIT_LIST}: expected folders below /SUNRGBD/, got {stored!r:.200}")
            scene = "/".join((side, *capture[:3]))
            ref = ref_of_capture(
                dataset, scene, "/".join((side, *capture)), raw.joinpath("SUNRGBD", *capture), gaps[scene]
            )
            frames += [ref] if ref else []
    return Listing.of(frames, gaps)


def ref_of_capture(dataset: str, scene: str, name: str, folder: Path, gaps: Gaps) -> FrameRef | None:
    """The frame in a folder, or None where a file is missing, which is counted into `gaps`."""
    rgb, depth = only_file(folder / "image", ".jpg"), only_file(folder / "depth", ".png")
    if rgb is None or depth is None:
        gaps["depth missing" if rgb else "rgb missing"] += 1
        return None
    filled = only_file(folder / "depth_bfx", ".png")
    return FrameRef(dataset, scene, name, rgb, depth, layer_paths=(("filled_depth_m", filled),) if filled else ())


def only_file(folder: Path, suffix: str) -> Path | None:
    """The one file of that suffix, None without any; ValueError for several, of which only one would belong."""
    stems = member_ids(folder, "", suffix)
    if len(stems) > 1:
        raise ValueError(f"{folder}: expected one {suffix} file, got {len(stems)}")
    return folder / f"{stems.pop()}{suffix}" if stems else None


def read_frame(ref: FrameRef) -> Frame:
    """Measured depth, 0 invalid, and the filled one as a layer. ValueError names a broken member."""
    rgb = read_pixels(ref.rgb_path, "RGB")
    planar_depth_m = read_depth(ref.depth_path, rgb.shape[:2])
    layers = {layer: read_depth(path, rgb.shape[:2]) for layer, path in ref.layer_paths}
    intrinsics = read_intrinsics(ref.rgb_path.parents[1] / "intrinsics.txt")
    return Frame.from_arrays(rgb, planar_depth_m, planar_depth_m > 0, intrinsics, ref.scene, ref.name, layers)


def read_depth(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Metres float32 [H, W], 0 for none."""
    millimetres = unrotate_bits(path)
    expect_shape(path, millimetres, shape)
    return millimetres / np.float32(1000)


def read_intrinsics(path: Path) -> np.ndarray:
    """[3, 3] with pixel centres at +0.5. ValueError names the file."""
    with naming(path):
        text = path.read_text()
        try:
            matrix = np.reshape([float(number) for number in text.split()], (3, 3))
            (fx, _, cx), (_, fy, cy), _ = matrix
            if not np.isfinite(matrix).all() or fx <= 0 or fy <= 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"expected the nine numbers of a camera matrix, got {text!r:.200}") from None
    return intrinsics_from(fx, fy, cx, cy, first_pixel=1)
