"""Depth files of a team's own data: their numbers as they are stored, before any unit.

A suffix decides the format, whatever its case, for the head of a file as for its numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metricgold.datasets.arrays import Size, naming, read_npy, read_pixels, size_of_image, size_of_npy
from metricgold.datasets.turns import expect_upright


class Format(NamedTuple):
    """How a file of one suffix is read."""

    read: Callable[[Path, str | None], np.ndarray]  # path and depth.array
    size: Callable[[Path], Size | None]  # by its head; None where only decoding tells


def read_stored_depth(path: Path, array: str | None = None) -> np.ndarray:
    """Depth in the file's own numbers, integer or floating point [H, W]. ValueError names the file."""
    stored = format_of(path).read(path, array)
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.dtype.kind not in "fui" or stored.ndim != 2:
        raise ValueError(f"{path}: expected numbers [H, W], got {stored.dtype} {list(stored.shape)}")
    return stored


def format_of(path: Path) -> Format:
    """The format of a depth file; ValueError names those that are read."""
    if found := FORMATS.get(path.suffix.lower()):
        return found
    raise ValueError(f"{path}: depth is read from {', '.join(FORMATS)}")


def read_npz(path: Path, array: str | None) -> np.ndarray:
    """The array of that name, or the only one."""
    with naming(path), np.load(path, allow_pickle=False) as arrays:
        if array is None and len(arrays.files) != 1:
            names = ", ".join(arrays.files)
            raise ValueError(f"holds {names}; depth.array in dataset.yaml must say which is meant")
        return np.asarray(arrays[array or arrays.files[0]])


def read_png(path: Path, _array: str | None) -> np.ndarray:
    """16-bit grey."""
    expect_upright(path)
    return read_pixels(path, "I;16")


def read_tiff(path: Path, _array: str | None) -> np.ndarray:
    """Floats of 16, 32 or 64 bits, or 16-bit grey, [H, W]."""
    from PIL import Image, UnidentifiedImageError

    expect_upright(path)
    with naming(path):
        try:
            with Image.open(path, formats=["TIFF"]) as image:
                if image.mode not in ("F", "I;16", "I;16B"):
                    raise ValueError(f"expected floating point or 16-bit grey, got mode {image.mode}")
                return np.array(image)
        except UnidentifiedImageError:  # floats of 16 and 64 bits
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                stored = tiff.pages.first.asarray()
            if stored.dtype.kind != "f":
                raise ValueError(f"expected floating point or 16-bit grey, got {stored.dtype}") from None
            return stored


FORMATS = {
    ".png": Format(read_png, size_of_image),
    ".npy": Format(lambda path, _array: read_npy(path), size_of_npy),
    ".npz": Format(read_npz, lambda _path: None),
    ".tif": Format(read_tiff, size_of_image),
    ".tiff": Format(read_tiff, size_of_image),
}
