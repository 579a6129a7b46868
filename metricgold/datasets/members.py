"""Members of the archives as arrays. Whatever is wrong with one becomes a ValueError that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any failure inside into `ValueError: path: reason`."""
    try:
        yield
    except MemoryError:
        raise  # says something about this machine, not about the file
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except Exception as error:  # broken bytes raise OSError, KeyError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: cannot be read: {error}") from error


def read_pixels(path: Path, mode: str) -> np.ndarray:
    """Pixels of an image that must have this Pillow mode, e.g. RGB: uint8 [H, W, 3], I;16: uint16 [H, W]."""
    from PIL import Image

    with naming(path), Image.open(path) as image:
        if image.mode != mode:
            raise ValueError(f"expected mode {mode}, got {image.mode}")
        return np.array(image)


def read_npy(path: Path) -> np.ndarray:
    """Array of an .npy file; pickled objects are refused."""
    with naming(path):
        return np.load(path, allow_pickle=False)


def read_hdf5(path: Path) -> np.ndarray:
    """The array called `dataset` of an HDF5 file."""
    import h5py

    with naming(path), h5py.File(path, "r") as file:
        return file["dataset"][()]


def expect_shape(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """ValueError naming the file unless the array has this shape."""
    if array.shape != shape:
        raise ValueError(f"{path}: expected shape {list(shape)}, got {list(array.shape)}")
