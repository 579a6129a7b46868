"""NYU Depth v2, labelled part: 1,449 frames of 480 x 640 in one MATLAB 7.3 file, which is HDF5.

MATLAB stores columns first, so every array is read with its axes reversed: images [N, 3, W, H] uint8, rawDepths and
depths [N, W, H] float32, planar metres aligned with the image. `rawDepths` is what the Kinect measured, 0 where it
measured nothing, and is the truth here; `depths` has those holes filled in and is the layer `filled_depth_m`. Along the
border some 8 pixels are white and without raw depth. Fields as in the publisher's own description of the file.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricgold.datasets.arrays import naming
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing
from metricgold.images import intrinsics_from, resize_intrinsics
from metricgold.storage import MAX_ARRAY_BYTES, dataset_within

if TYPE_CHECKING:
    import h5py

LABELLED = "nyu_depth_v2/nyu_depth_v2_labeled.mat"
# Of the colour camera at 480 x 640, from the data set's own toolbox (camera_params.m), in which pixels count from 0.
HEIGHT, WIDTH = 480, 640
CAMERA = 518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465  # fx, fy, cx, cy
INTRINSICS = intrinsics_from(*CAMERA, first_pixel=0)


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames `<scene>/<number>`, numbered from 1 in the order of the file as in the official split and public lists."""
    import h5py

    path = raw / LABELLED
    if not path.exists():
        return Listing([])
    with naming(path), h5py.File(path, "r") as file:
        scenes = read_texts(file, "scenes")
        num_images = dataset_within(file, "images").shape[0]
        if len(scenes) != num_images:
            raise ValueError(f"names {len(scenes)} scenes for {num_images} images, expected one for each")
    frames = [
        FrameRef(dataset, scene, f"{scene}/{index + 1:04d}", rgb_path=path, depth_path=path, index=index)
        for index, scene in enumerate(scenes)
    ]
    return Listing.of(frames, {})


def read_texts(file: "h5py.File", name: str) -> list[str]:
    """A MATLAB cell of texts: references to arrays of their UTF-16 codes. ValueError for anything else."""
    import h5py

    cells = dataset_within(file, name)
    if h5py.check_ref_dtype(cells.dtype) is not h5py.Reference:
        raise ValueError(f"expected {name} as references to texts, got {cells}")
    texts = [file[reference] for reference in cells[()].ravel()]
    for text in texts:
        if not isinstance(text, h5py.Dataset) or text.dtype != np.uint16 or text.external or text.is_virtual:
            raise ValueError(f"expected {name} as references to texts, got one to {text}")
    return [text[()].astype("<u2").tobytes().decode("utf-16-le") for text in texts]


def read_frame(ref: FrameRef) -> Frame:
    """Raw depth, 0 invalid, and the filled one as a layer. ValueError names a broken file.

    Frames of another size, as twins have, are seen by the same camera.
    """
    import h5py

    path = ref.depth_path
    with naming(path), h5py.File(path, "r") as file:
        rgb = read_one(file, "images", ref.index, "u", 4)
        raw_m, filled_m = (read_one(file, name, ref.index, "f", 3) for name in ("rawDepths", "depths"))
        if rgb.dtype != np.uint8 or not rgb.shape[:2] == raw_m.shape == filled_m.shape:
            shapes = f"{rgb.dtype} {list(rgb.shape)}, {list(raw_m.shape)} and {list(filled_m.shape)}"
            raise ValueError(f"expected uint8 [H, W, 3] and two depth maps [H, W], got {shapes}")
    intrinsics = resize_intrinsics(INTRINSICS, raw_m.shape[1] / WIDTH, raw_m.shape[0] / HEIGHT)
    layers = {"filled_depth_m": filled_m}
    return Frame.from_arrays(rgb, raw_m, raw_m > 0, intrinsics, ref.scene, ref.name, layers)


def read_one(file: "h5py.File", name: str, index: int | None, kind: str, ndim: int) -> np.ndarray:
    """One frame's part of an array of all, with its axes in the order of rows, columns, channels; no other is read."""
    dataset = dataset_within(file, name)
    if dataset.dtype.kind != kind or len(dataset.shape) != ndim:
        raise ValueError(f"expected {name} as numbers of kind {kind} in {ndim} dimensions, got {dataset}")
    largest = max(np.prod(dataset.shape[1:], dtype=float), np.prod(dataset.chunks or (), dtype=float))
    if largest * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise ValueError(f"expected at most {MAX_ARRAY_BYTES} bytes a frame, got {dataset}")
    return np.ascontiguousarray(dataset[index].T)
