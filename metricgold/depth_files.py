"""Depth and uncertainty as files that say what their numbers mean."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from metricgold.log_depth import LogDepth
from metricgold.storage import write_aside

# Depth in a file: 16-bit grey PNG, logarithmic, so that every distance has the same relative step.

_NO_DEPTH, _BEYOND = 0, 65535
_CODES = 65533  # steps between code 1 (near_m) and code 65534 (far_m)
_DEPTH_ENCODING = (
    "depth = near_m * (far_m / near_m) ** ((code - 1) / 65533) for code 1 to 65534; "
    "0 = no depth, 65535 = beyond far_m; nearer than near_m is stored as near_m"
)
_UNCERTAINTY_STEP = 1e-4
_UNCERTAINTY_ENCODING = "uncertainty = code * step for code 0 to 65534 (saturating); 65535 = no value"


def write_log_depth_png(
    target: Path | BinaryIO, planar_depth_m: np.ndarray, log_depth: LogDepth, attributes: Mapping[str, str]
) -> None:
    """Write planar depth [H, W] in metres as a 16-bit PNG that names its unit, kind, range and formula.

    Depth that is NaN or not positive is stored as 0 = none. One step is ln(far/near)/65533, 0.008 % for
    0.5 to 80 m. `attributes` are further text chunks, such as the model's name.
    """
    depth_m = np.asarray(planar_depth_m, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.log(depth_m / np.float32(log_depth.near_m)) * np.float32(_CODES / log_depth.ln_range) + 1.5
    code = np.where(depth_m > 0, np.clip(code, 1, _BEYOND), _NO_DEPTH)  # NaN > 0 is False
    own = {"unit": "metres", "kind": "planar depth", "encoding": _DEPTH_ENCODING}
    own |= {"near_m": repr(float(log_depth.near_m)), "far_m": repr(float(log_depth.far_m))}
    _write_png_16bit(target, code.astype(np.uint16), own, attributes)


def read_log_depth_png(source: Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_log_depth_png wrote: float32 [H, W] in metres (NaN none, inf beyond far_m), text chunks."""
    code, attributes = _read_png_16bit(source, "planar depth")
    log_depth = LogDepth(float(attributes["near_m"]), float(attributes["far_m"]))
    steps = np.arange(_CODES + 1) / _CODES
    metres = np.concatenate([[np.nan], log_depth.near_m * np.exp(steps * log_depth.ln_range), [np.inf]])
    return metres.astype(np.float32)[code], attributes


def write_uncertainty_png(target: Path | BinaryIO, uncertainty: np.ndarray, attributes: Mapping[str, str]) -> None:
    """Write relative uncertainty [H, W] (median absolute deviation of ln depth) as a linear 16-bit PNG."""
    code = np.clip(np.asarray(uncertainty, np.float32) * np.float32(1 / _UNCERTAINTY_STEP) + 0.5, 0, 65534)
    code = np.where(np.isnan(code), 65535, code).astype(np.uint16)
    own = {"unit": "relative (ln depth)", "kind": "uncertainty", "encoding": _UNCERTAINTY_ENCODING}
    _write_png_16bit(target, code, own | {"step": repr(_UNCERTAINTY_STEP)}, attributes)


def read_uncertainty_png(source: Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_uncertainty_png wrote: float32 [H, W] (NaN where there is no value), text chunks."""
    code, attributes = _read_png_16bit(source, "uncertainty")
    values = code.astype(np.float32) * np.float32(attributes["step"])
    return np.where(code == 65535, np.float32(np.nan), values), attributes


def _write_png_16bit(
    target: Path | BinaryIO, code: np.ndarray, own: Mapping[str, str], attributes: Mapping[str, str]
) -> None:
    taken = sorted(set(own) & set(attributes))
    if taken:
        raise ValueError(f"attributes {taken} are set by the file format itself")
    text = PngImagePlugin.PngInfo()
    for key, value in {**own, **attributes}.items():
        text.add_text(key, value)
    if isinstance(target, Path):
        with write_aside(target) as aside, aside.open("wb") as file:
            _put_png(file, code, text)
    else:
        _put_png(target, code, text)


def _put_png(file: BinaryIO, code: np.ndarray, text: PngImagePlugin.PngInfo) -> None:
    # Difference to the row above, then run lengths: three times as fast as Pillow's search for the best
    # filter of each row, and smaller for depth.
    height, width = code.shape
    pixels = code.astype(">u2").view(np.uint8)  # [H, 2W]
    rows = np.full((height, 1 + 2 * width), 2, np.uint8)  # filter 2: up
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    file.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    for name, data, *_ in text.chunks:
        PngImagePlugin.putchunk(file, name, data)
    PngImagePlugin.putchunk(file, b"IDAT", deflate.compress(rows) + deflate.flush())
    PngImagePlugin.putchunk(file, b"IEND", b"")


def _read_png_16bit(source: Path | BinaryIO, kind: str) -> tuple[np.ndarray, dict[str, str]]:
    try:
        with Image.open(source, formats=["PNG"]) as image:
            code, attributes = np.array(image), dict(image.text)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{source} is not a PNG") from error
    if code.dtype != np.uint16 or attributes.get("kind") != kind:
        raise ValueError(f"{source} is no {kind} file of this project: {code.dtype}, kind {attributes.get('kind')!r}")
    return code, attributes
