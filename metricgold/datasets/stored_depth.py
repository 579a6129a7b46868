"""Depth files of a team's own data: their numbers as they are stored, before any unit; and masks beside them.

A suffix decides the format, whatever its case. PNGs may be coded:

    sunrgbd     SUN RGB-D: the 16 bits are rotated by 3
    metricgold  this project's log-png, as `predict` writes it: metres
    moge        MoGe's 16-bit logarithm between the near and far of the file's texts: metres
    carla       CARLA's 24 bits over red, green and blue: metres, 1000 at the far plane
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from metricgold.datasets.arrays import Size, naming, read_npy, read_pixels
from metricgold.datasets.turns import expect_upright
from metricgold.extras import naming_the_extra
from metricgold.images import read_exr_channels, read_log_depth_png
from metricgold.storage import MAX_ARRAY_BYTES, read_npz as read_arrays

Coding = Literal["sunrgbd", "metricgold", "moge", "carla"]
GIVES_PLANAR_METRES = ("metricgold", "moge", "carla")


def read_stored_depth(path: Path, array: str | None = None, coding: Coding | None = None) -> np.ndarray:
    """Depth in the file's own numbers, integer or floating point [H, W]. ValueError names the file.

    array: name of the one that is meant in an .npz or EXR with several; coding: how the pixels of a PNG are read.
    """
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: depth is read from {', '.join(FORMATS)}")
    if coding and read is not read_png:
        raise ValueError(f"{path}: depth.coding {coding} is one of .png files")
    stored = CODINGS[coding](path) if coding else read(path, array)
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.dtype.kind not in "fui" or stored.ndim != 2:
        raise ValueError(f"{path}: expected numbers [H, W], got {stored.dtype} {list(stored.shape)}")
    return stored


def read_mask(path: Path, sizes: tuple[Size, ...]) -> np.ndarray:
    """Where a mask of one of these sizes is not 0, bool [H, W]: .npy, or an image of one channel."""
    from PIL import Image

    if path.suffix.lower() == ".npy":
        mask = read_npy(path)
    else:
        expect_upright(path)
        with naming(path), Image.open(path, formats=["PNG", "TIFF", "BMP", "PPM"]) as image:
            mask = np.array(image)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    if mask.dtype.kind not in "bui" or mask.shape not in sizes:
        expected = " or ".join(sorted({str(list(size)) for size in sizes}))
        raise ValueError(f"{path}: expected a mask {expected}, got {mask.dtype} {list(mask.shape)}")
    return np.asarray(mask != 0)


# Formats


def read_npz(path: Path, array: str | None) -> np.ndarray:
    """The array of that name, or the only one."""
    with naming(path):
        (stored,) = read_arrays(path, lambda names: [the_one_of(names, array)]).values()
        return np.asarray(stored)


def the_one_of(names: list[str], array: str | None) -> str:
    """The array of depth among these. ValueError where none is named and there is a choice."""
    if array is None and len(names) != 1:
        said = "depth.array in dataset.yaml must say which is meant; of predictions, array in predictions.yaml"
        raise ValueError(f"holds {', '.join(names)}; {said}")
    return array or names[0]


def read_png(path: Path, _array: str | None = None) -> np.ndarray:
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
                page = tiff.pages.first
                if page.nbytes > MAX_ARRAY_BYTES:
                    raise ValueError(f"expected at most {MAX_ARRAY_BYTES:,} bytes, got {page.nbytes:,}") from None
                stored = page.asarray()
            if stored.dtype.kind != "f":
                raise ValueError(f"expected floating point or 16-bit grey, got {stored.dtype}") from None
            return stored


def read_exr(path: Path, array: str | None) -> np.ndarray:
    """The channel of that name, or the only one."""
    with naming_the_extra():
        import OpenEXR  # noqa: F401 - that it is missing is no fault of the file
    with naming(path):
        _, channels = read_exr_channels(path, separate_channels=True)
        return np.array(channels[the_one_of(sorted(channels), array)].pixels)


_GAP = rb"(?:\s|#[^\n]*\n)+"
_NETPBM = re.compile(rb"(P5|Pf)" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\S{1,20})(?:\r\n|\s)")


def read_netpbm(path: Path, _array: str | None) -> np.ndarray:
    """PGM of 16 bits, big-endian, or grey PFM, whose rows are stored from the bottom up.

    Source: netpbm's pgm(5), and Debevec's definition of PFM, where the sign of the scale gives the order of bytes.
    Pillow would stretch a PGM whose largest value is not 65535.
    """
    with naming(path):
        data = path.read_bytes()
        head = _NETPBM.match(data)
        if head is None:
            raise ValueError("expected the head of a binary grey PGM (P5) or PFM (Pf)")
        shape, limit = (int(head[3]), int(head[2])), float(head[4])
        if head[1] == b"P5" and not 256 <= limit <= 65535:
            raise ValueError(f"expected 16-bit grey, got values up to {limit:g}")
        if head[1] == b"Pf" and abs(limit) != 1:
            raise ValueError(f"expected the scale 1 or -1, got {limit:g}: what it scales is not agreed upon")
        dtype = np.dtype(">u2" if head[1] == b"P5" else "<f4" if limit < 0 else ">f4")
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if len(data) - head.end() != num_bytes:
            raise ValueError(f"expected {num_bytes} bytes of pixels, got {len(data) - head.end()}")
        stored = np.frombuffer(data, dtype, offset=head.end()).reshape(shape)
        return (stored if head[1] == b"P5" else stored[::-1]).astype(dtype.newbyteorder("="))


FORMATS: dict[str, Callable[[Path, str | None], np.ndarray]] = {
    ".png": read_png,
    ".npy": lambda path, _array: read_npy(path),
    ".npz": read_npz,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".exr": read_exr,
    ".pfm": read_netpbm,
    ".pgm": read_netpbm,
}


# Codings


def unrotate_bits(path: Path) -> np.ndarray:
    """SUN RGB-D: the three lowest bits were stored as the highest; uint16 in the data set's millimetres."""
    code = read_png(path)
    return code >> 3 | code << 13


def read_metricgold(path: Path) -> np.ndarray:
    """This project's log-png: metres, NaN for none, infinity beyond the range."""
    read_png(path)  # its checksums
    return read_log_depth_png(path)[0]


def read_moge(path: Path) -> np.ndarray:
    """MoGe: 1 to 65534 are near to far by logarithm, 0 is none and 65535 infinite. Source: its utils/io.py."""
    from PIL import Image

    code = read_png(path)
    with naming(path), Image.open(path) as image:
        if not {"near", "far"} <= image.info.keys():
            raise ValueError("expected a PNG whose texts near and far say what its codes mean")
        near, far, unit = (float(image.info.get(name, 1)) for name in ("near", "far", "unit"))
    share = (code - 1.0) / 65533
    metres = near ** (1 - share) * far**share * unit
    return np.select([code == 0, code == 65535], [np.nan, np.inf], metres)


def read_carla(path: Path) -> np.ndarray:
    """CARLA: red is the lowest of three bytes, all ones are 1000 m. Source: its reference of sensors."""
    from PIL import Image

    expect_upright(path)
    with naming(path), Image.open(path) as image:
        mode = image.mode
    red, green, blue = np.moveaxis(read_pixels(path, "RGBA" if mode == "RGBA" else "RGB").astype(np.float64), 2, 0)[:3]
    return np.asarray((red + 256 * green + 65536 * blue) / (256**3 - 1) * 1000)


CODINGS: dict[Coding, Callable[[Path], np.ndarray]] = {
    "sunrgbd": unrotate_bits,
    "metricgold": read_metricgold,
    "moge": read_moge,
    "carla": read_carla,
}
