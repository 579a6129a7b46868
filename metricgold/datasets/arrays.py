"""Members of the archives as arrays. Any fault of a file becomes a ValueError that names the file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricgold.images import register_heif
from metricgold.storage import MAX_ARRAY_BYTES, dataset_within

if TYPE_CHECKING:
    import h5py

Size = tuple[int, int]  # rows, columns


def format_size(size: Size | None) -> str:
    """Columns x rows."""
    return "unknown" if size is None else f"{size[1]} x {size[0]}"


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


def read_pixels(path: Path, *modes: str) -> np.ndarray:
    """Pixels of a PNG, JPEG or TIFF that must have one of these Pillow modes.

    RGB gives uint8 [H, W, 3], I;16 uint16 [H, W], F float32 [H, W]. A PNG's checksums are compared first: Pillow reads
    pixels whose checksum is wrong without a warning.
    """
    from PIL import Image

    formats = ["PNG", "JPEG", "TIFF"]
    with naming(path):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.verify()
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.mode not in modes:
                raise ValueError(f"expected mode {' or '.join(modes)}, got {image.mode}")
            return np.array(image)


def read_labels(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Ids of a PNG of one channel that must have this size, uint8 or uint16 [H, W], bool where it has 1 bit."""
    labels = read_pixels(path, "1", "L", "P", "I;16")
    expect_shape(path, labels, size)
    return labels


def read_depth_png(path: Path, units_per_metre: float) -> tuple[np.ndarray, np.ndarray]:
    """Planar depth float32 [H, W] in metres (0 where invalid) and valid mask bool [H, W] of a 16-bit grey PNG.

    NYUv2 stores millimetres, KITTI 1/256 m. A pixel is invalid where it holds 0. Raises ValueError naming the file
    when it is not 16-bit grey: read as 8 bits, a KITTI map would be rounded to metres and look right.
    """
    units = read_pixels(path, "I;16")
    valid_mask = units != 0
    planar_depth_m = np.where(valid_mask, units / np.float32(units_per_metre), np.float32(0))
    return planar_depth_m.astype(np.float32), valid_mask


def read_npy(path: Path) -> np.ndarray:
    """Array of an .npy file; pickled objects are refused."""
    with naming(path):
        # Mapped, because that compares the size in the header with the file's before anything is allocated.
        return np.array(np.lib.format.open_memmap(path, mode="r"))


def read_size(path: Path) -> Size | None:
    """Rows and columns by the head of an image, .npy or HDF5; None where only decoding tells.

    ValueError names a broken file.
    """
    match path.suffix.lower():
        case ".npz" | ".exr" | ".pfm":
            return None
        case ".npy":
            return size_of_npy(path)
        case ".hdf5":
            return size_of_hdf5(path)
        case _:
            return size_of_image(path)


def size_of_npy(path: Path) -> Size:
    """Rows and columns of an array; ValueError also where the file is shorter than its head says."""
    with naming(path):
        # Opened as a map: no number is read.
        rows, columns = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        return rows, columns


def size_of_hdf5(path: Path) -> Size:
    """Rows and columns of the array called `dataset`."""
    import h5py

    with naming(path), h5py.File(path, "r") as hdf5:
        rows, columns = dataset_within(hdf5, "dataset").shape[:2]
        return rows, columns


def size_of_image(path: Path) -> Size:
    """Rows and columns as an image is stored; ValueError for a file that no reader of images knows."""
    from PIL import Image, UnidentifiedImageError

    register_heif()
    with naming(path):
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except UnidentifiedImageError:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise
            import tifffile

            with tifffile.TiffFile(path) as tiff:  # floats of 16 and 64 bits, which Pillow does not know
                rows, columns = tiff.pages.first.shape[:2]
                return rows, columns


def read_hdf5(path: Path) -> np.ndarray:
    """The numbers called `dataset` of an HDF5 file, up to MAX_ARRAY_BYTES of them.

    Chunks that are packed by gzip alone, as in HyperSim, are inflated by libdeflate: in less than half the time of
    the zlib in HDF5, and outside the lock that HDF5 puts on all threads. Every other layout goes through h5py.
    """
    import h5py

    with naming(path), h5py.File(path, "r") as file:
        dataset = dataset_within(file, "dataset")
        if dataset.dtype.kind not in "fiu" or dataset.shape is None:
            raise ValueError(f"expected numbers, got {dataset}")
        if max(map(prod, (dataset.shape, dataset.chunks or ()))) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
            raise ValueError(f"expected at most {MAX_ARRAY_BYTES} bytes, got {dataset}")
        return inflate_chunks(dataset) if has_plain_gzip_chunks(dataset) else np.asarray(dataset[()])


def has_plain_gzip_chunks(dataset: "h5py.Dataset") -> bool:
    """Whether every chunk is there, went through gzip alone and, inflated, holds the numbers as numpy has them."""
    import h5py

    if not dataset.chunks:
        return False
    recipe, num_chunks = dataset.id.get_create_plist(), prod(map(ceil, np.divide(dataset.shape, dataset.chunks)))
    return bool(
        recipe.get_nfilters() == 1
        and recipe.get_filter(0)[0] == h5py.h5z.FILTER_DEFLATE
        and dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype))
        and dataset.id.get_num_chunks() == num_chunks
    )


def inflate_chunks(dataset: "h5py.Dataset") -> np.ndarray:
    """All numbers of a dataset for which has_plain_gzip_chunks holds."""
    from deflate import zlib_decompress

    array, chunk = np.empty(dataset.shape, dataset.dtype), dataset.chunks
    num_bytes = prod(chunk) * array.itemsize
    for corner in product(*map(range, [0] * array.ndim, array.shape, chunk)):
        filters_left_out, packed = dataset.id.read_direct_chunk(corner)
        # What gzip cannot make smaller is stored as it is.
        numbers = packed if filters_left_out else zlib_decompress(packed, num_bytes)
        part = array[tuple(slice(start, start + size) for start, size in zip(corner, chunk, strict=True))]
        # A chunk at the border overhangs it.
        part[...] = np.frombuffer(numbers, array.dtype).reshape(chunk)[tuple(map(slice, part.shape))]
    return array


def expect_shape(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """ValueError naming the file unless the array has this shape."""
    if array.shape != shape:
        raise ValueError(f"{path}: expected shape {list(shape)}, got {list(array.shape)}")


def expect_floats(path: Path, array: np.ndarray) -> None:
    """ValueError naming the file unless the array holds floating point numbers."""
    if array.dtype.kind != "f":
        raise ValueError(f"{path}: expected floating point numbers, got {array.dtype}")
