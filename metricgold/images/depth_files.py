"""Depth, uncertainty and normals as files that state what their numbers mean.

Every file names its unit, its kind and how a number is read; `attributes` are further texts, such as the model's
name: any text without NUL, under names of letters, digits and _ . : - that all formats can hold. A file is written
completely or not at all. Equal values give equal bytes. PNG and TIFF are read up to twice PIL.Image.MAX_IMAGE_PIXELS.
"""

import io
import json
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image, PngImagePlugin

from metricgold.extras import naming_the_extra
from metricgold.images.colours import has_depth
from metricgold.log_depth import LogDepth
from metricgold.storage import MAX_ARRAY_BYTES, parse_json, read_npz, write_aside

_METRES = {"unit": "metres", "kind": "planar depth"}

DepthFileKind = Literal["log-png", "mm-png", "npz", "tiff", "exr"]


@dataclass(frozen=True, slots=True, eq=False)
class DepthFile:
    """What a depth file of this project holds, and what it says about itself.

    kind            format and encoding, one of log-png, mm-png, npz, tiff and exr
    planar_depth_m  float32 [H, W], metres along the optical axis; NaN where the file gives no depth
    beyond_mask     bool [H, W]: of those the pixels that show no surface, such as sky, or one out of range; an mm-png
                    does not tell them from others without depth
    attributes      the file's texts by name, such as unit, encoding, model and input
    near_m, far_m   metres that the codes of a log-png span; None for the other kinds
    uncertainty     float32 [H, W], relative, see write_uncertainty_png; in an npz only, else None
    intrinsics      float64 [3, 3], in pixels of planar_depth_m; in an npz only, else None
    """

    kind: DepthFileKind
    planar_depth_m: np.ndarray
    beyond_mask: np.ndarray
    attributes: dict[str, str]
    near_m: float | None = None
    far_m: float | None = None
    uncertainty: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


def read_depth(source: str | Path | BinaryIO) -> DepthFile:
    """Read any depth file that this project writes, log-png, mm-png, npz, tiff or exr, into metres, float32 [H, W].

    `source` is a path, or a file open for reading bytes. The content decides which kind it is, not the name. In all
    kinds a pixel is NaN where the file gives no depth: where none is known, and where it is beyond the range of the
    model or of the file. (The functions for one kind, such as read_log_depth_png, mark depth beyond the range as inf.)

    Raises ValueError naming the file, and what was expected, for anything else: a broken or truncated file, a file of
    uncertainty or normals, and depth written by other tools, whose numbers may mean anything; also for an exr where
    the extra `exr` is not installed. Raises OSError where the file cannot be opened. Source: each format is defined
    by the `encoding` that its files hold.
    """
    kind = _kind_of(source)
    near_m = far_m = uncertainty = intrinsics = None
    if kind == "npz":
        arrays, attributes = read_depth_npz(source)
        depth_m, uncertainty, intrinsics = arrays["planar_depth_m"], arrays.get("uncertainty"), arrays.get("intrinsics")
    elif kind == "log-png":
        depth_m, attributes = read_log_depth_png(source)
        near_m, far_m = float(attributes["near_m"]), float(attributes["far_m"])
    else:
        read = {"mm-png": read_mm_depth_png, "tiff": read_depth_tiff, "exr": read_depth_exr}[kind]
        depth_m, attributes = read(source)
    planar_depth_m = np.where(has_depth(depth_m), depth_m, np.float32(np.nan))
    return DepthFile(kind, planar_depth_m, np.isposinf(depth_m), attributes, near_m, far_m, uncertainty, intrinsics)


_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_KIND_OF_MAGIC: dict[bytes, DepthFileKind] = {
    b"PK\x03\x04": "npz",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"v/1\x01": "exr",
}
_KIND_OF_UNIT: dict[str | None, DepthFileKind] = {"metres": "log-png", "millimetres": "mm-png"}


def _kind_of(source: str | Path | BinaryIO) -> DepthFileKind:
    """The kind of a depth file by its first bytes, and of a PNG by its unit; ValueError for any other file."""
    with _at_start(source) as file:
        head = file.read(len(_PNG_MAGIC))
        file.seek(-len(head), io.SEEK_CUR)
        if head == _PNG_MAGIC:
            with _reading(source, "PNG"), Image.open(file, formats=["PNG"]) as image:
                held, unit = image.info.get("kind"), image.info.get("unit")
            if held == "planar depth" and unit in _KIND_OF_UNIT:
                return _KIND_OF_UNIT[unit]
            raise _not_depth(source, f"a PNG of {held} in {unit}" if held else "a PNG that names neither unit nor kind")
    kind = next((kind for magic, kind in _KIND_OF_MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        raise _not_depth(source, f"a file that begins with {head!r}" if head else "an empty file")
    return kind


@contextmanager
def _at_start(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """The source open for a look at its beginning; a file that was open already is put back to where it stood."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            yield file
    else:
        start = source.tell()
        try:
            yield source
        finally:
            source.seek(start)


def _not_depth(source: str | Path | BinaryIO, what: str) -> ValueError:
    return ValueError(f"{source}: expected a depth file of MetricGold (log-png, mm-png, npz, tiff or exr), got {what}")


# 16-bit grey PNG, logarithmic, so that every distance has the same relative step.

_NO_DEPTH, _BEYOND = 0, 65535
_CODES = 65533  # steps between code 1 (near_m) and code 65534 (far_m)
_DEPTH_ENCODING = (
    "depth = near_m * (far_m / near_m) ** ((code - 1) / 65533) for code 1 to 65534; "
    "0 = no depth, 65535 = beyond far_m; nearer than near_m is stored as near_m"
)


def write_log_depth_png(
    target: str | Path | BinaryIO, planar_depth_m: np.ndarray, log_depth: LogDepth, attributes: Mapping[str, str]
) -> None:
    """Write planar depth [H, W] in metres as a 16-bit PNG that names its unit, kind, range and formula.

    Depth that is NaN or not positive is stored as 0 = none. One step is ln(far/near)/65533, 0.008 % for
    0.5 to 80 m.
    """
    depth_m = _image(planar_depth_m)
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.log(depth_m / np.float32(log_depth.near_m)) * np.float32(_CODES / log_depth.ln_range) + 1.5
    code = np.where(depth_m > 0, np.clip(code, 1, _BEYOND), _NO_DEPTH)  # NaN > 0 is False
    own = _METRES | {"encoding": _DEPTH_ENCODING}
    own |= {"near_m": repr(float(log_depth.near_m)), "far_m": repr(float(log_depth.far_m))}
    _write_png(target, code.astype(np.uint16), own, attributes)


def read_log_depth_png(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_log_depth_png wrote: float32 [H, W] in metres (NaN none, inf beyond far_m), text chunks."""
    code, attributes = _read_png(source, np.uint16, "planar depth", "metres")
    with _reading(source, "log depth PNG with its range"):
        log_depth = LogDepth(float(attributes["near_m"]), float(attributes["far_m"]))
    steps = np.arange(_CODES + 1) / _CODES
    metres = np.concatenate([[np.nan], log_depth.near_m * np.exp(steps * log_depth.ln_range), [np.inf]])
    return metres.astype(np.float32)[code], attributes


# 16-bit grey PNG in millimetres, as depth cameras and most tools have it.

_MM_ENCODING = (
    "depth = code / 1000 metres for code 1 to 65535; 0 = no depth, or beyond 65.535 m; nearer than 1 mm is stored as 1"
)


def write_mm_depth_png(
    target: str | Path | BinaryIO, planar_depth_m: np.ndarray, attributes: Mapping[str, str]
) -> None:
    """Write planar depth [H, W] in metres as a 16-bit PNG in millimetres.

    0 is none, and also depth beyond 65.535 m, which has no code: it never wraps around.
    """
    depth_m = _image(planar_depth_m)
    mm = np.rint(depth_m.astype(np.float64) * 1000)
    code = np.where((mm <= 65535) & (depth_m > 0), np.maximum(mm, 1), 0)
    _write_png(target, code.astype(np.uint16), _METRES | {"unit": "millimetres", "encoding": _MM_ENCODING}, attributes)


def read_mm_depth_png(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_mm_depth_png wrote: float32 [H, W] in metres (NaN none or beyond 65.535 m), text chunks."""
    code, attributes = _read_png(source, np.uint16, "planar depth", "millimetres")
    return np.where(code == 0, np.float32(np.nan), code.astype(np.float32) / 1000), attributes


_UNCERTAINTY_STEP = 1e-4
_UNCERTAINTY_ENCODING = "uncertainty = code * step for code 0 to 65534 (saturating); 65535 = no value"


def write_uncertainty_png(
    target: str | Path | BinaryIO, uncertainty: np.ndarray, attributes: Mapping[str, str]
) -> None:
    """Write relative uncertainty [H, W] as a linear 16-bit PNG.

    It is the standard error of ln depth where the attribute uncertainty_calibrated is true, else the median absolute
    deviation of ln depth over the runs.
    """
    code = np.clip(_image(uncertainty) * np.float32(1 / _UNCERTAINTY_STEP) + 0.5, 0, 65534)
    code = np.where(np.isnan(code), 65535, code).astype(np.uint16)
    own = {"unit": "relative (ln depth)", "kind": "uncertainty", "encoding": _UNCERTAINTY_ENCODING}
    _write_png(target, code, own | {"step": repr(_UNCERTAINTY_STEP)}, attributes)


def read_uncertainty_png(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_uncertainty_png wrote: float32 [H, W] (NaN where no value is known), text chunks."""
    code, attributes = _read_png(source, np.uint16, "uncertainty", "relative (ln depth)")
    with _reading(source, "uncertainty PNG with its step"):
        values = code.astype(np.float32) * np.float32(attributes["step"])
    return np.where(code == 65535, np.float32(np.nan), values), attributes


_NORMALS_ENCODING = (
    "n = code / 255 * 2 - 1 for the red, green and blue code: x right, y down, z forward, in the camera's axes; "
    "0, 0, 0 = unknown"
)


def write_normals_png(target: str | Path | BinaryIO, normals: np.ndarray, attributes: Mapping[str, str]) -> None:
    """Write unit normals [H, W, 3] as an 8-bit RGB PNG, n * 0.5 + 0.5; NaN is stored as 0, 0, 0 = unknown."""
    normals = np.asarray(normals, np.float32)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise ValueError(f"normals must be [H, W, 3], got {list(normals.shape)}")
    known = np.isfinite(normals).all(axis=2, keepdims=True)
    code = np.where(known, np.clip(normals * 0.5 + 0.5, 0, 1) * 255 + 0.5, 0).astype(np.uint8)
    own = {"unit": "unit vector", "kind": "normals", "encoding": _NORMALS_ENCODING}
    _write_png(target, code, own, attributes)


def read_normals_png(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_normals_png wrote: float32 [H, W, 3] of length 1 (NaN unknown), text chunks."""
    code, attributes = _read_png(source, np.uint8, "normals", "unit vector")
    normals = code.astype(np.float32) / 127.5 - 1
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return np.where(code.any(axis=2, keepdims=True), normals, np.float32(np.nan)), attributes


# Metres as they are: NaN is none, inf beyond what the model can see.

_FLOAT_ENCODING = "float32 metres; NaN = no depth, inf = beyond range"


def write_depth_npz(
    target: str | Path | BinaryIO,
    planar_depth_m: np.ndarray,
    uncertainty: np.ndarray | None,
    intrinsics: np.ndarray | None,
    attributes: Mapping[str, str],
) -> None:
    """Write an NPZ: planar_depth_m float32 [H, W]; uncertainty float32 [H, W] and intrinsics float64 [3, 3] if given.

    Each attribute is an array of one string under its own name.
    """
    arrays: dict[str, np.ndarray] = {"planar_depth_m": _depth_or_nan(planar_depth_m)}
    if uncertainty is not None:
        arrays["uncertainty"] = _image(uncertainty)
    if intrinsics is not None:
        arrays["intrinsics"] = np.asarray(intrinsics, np.float64).reshape(3, 3)
    taken = (*_NPZ_ARRAYS, "file", "allow_pickle")  # the last are arguments of np.savez
    texts = with_own(_METRES | {"encoding": _FLOAT_ENCODING}, attributes, taken)
    with open_whole(target) as file:
        np.savez(file, allow_pickle=False, **arrays, **{key: np.array(text) for key, text in texts.items()})


_NPZ_ARRAYS = ("planar_depth_m", "uncertainty", "intrinsics")


def read_depth_npz(source: str | Path | BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what write_depth_npz wrote: its arrays by name, its attributes."""
    with _reading(source, "NPZ"):
        stored = read_npz(source)
    arrays = {key: stored[key] for key in _NPZ_ARRAYS if key in stored}
    attributes = {key: str(value) for key, value in stored.items() if key not in _NPZ_ARRAYS}
    kinds = {key: (array.dtype.name, array.ndim) for key, array in arrays.items()}
    expected = {"planar_depth_m": ("float32", 2), "uncertainty": ("float32", 2), "intrinsics": ("float64", 2)}
    if "planar_depth_m" not in arrays or attributes.get("unit") != "metres" or not kinds.items() <= expected.items():
        raise _not_depth(source, f"an NPZ of {', '.join(sorted(stored)) or 'nothing'}")
    return arrays, attributes


_IMAGE_DESCRIPTION = 270


def write_depth_tiff(target: str | Path | BinaryIO, planar_depth_m: np.ndarray, attributes: Mapping[str, str]) -> None:
    """Write planar depth [H, W] in metres as a float32 TIFF; the attributes are JSON in its ImageDescription."""
    texts = with_own(_METRES | {"encoding": _FLOAT_ENCODING}, attributes)
    tags = {_IMAGE_DESCRIPTION: json.dumps(texts, sort_keys=True)}
    with open_whole(target) as file:
        Image.fromarray(_depth_or_nan(planar_depth_m)).save(file, "TIFF", tiffinfo=tags)


def read_depth_tiff(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_depth_tiff wrote: float32 [H, W] in metres (NaN none, inf beyond range), attributes."""
    with _reading(source, "TIFF"), Image.open(source, formats=["TIFF"]) as image:
        depth_m, text = np.array(image), str(image.getexif().get(_IMAGE_DESCRIPTION, ""))
    try:
        attributes = dict(parse_json(text, "description"))
    except (ValueError, TypeError):  # a description of another tool
        attributes = {}
    if depth_m.dtype != np.float32 or not _METRES.items() <= attributes.items():
        raise _not_depth(source, f"a TIFF of {depth_m.dtype} with the description {text!r:.80}")
    return depth_m, attributes


def write_depth_exr(target: str | Path | BinaryIO, planar_depth_m: np.ndarray, attributes: Mapping[str, str]) -> None:
    """Write planar depth [H, W] in metres as an OpenEXR image, float32 and losslessly compressed.

    It is in the channel Z, OpenEXR's name for depth, and again in Y, that of grey: without Y, OpenCV reads zeros. The
    second one takes 4 % more bytes. Raises ValueError where the package OpenEXR is missing.
    """
    openexr = _openexr()
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    texts = with_own(_METRES | {"encoding": _FLOAT_ENCODING}, attributes, taken=_EXR_HEADER)
    depth_m = _depth_or_nan(planar_depth_m)
    exr = openexr.File(header | texts, {"Y": depth_m, "Z": depth_m})
    with tempfile.TemporaryDirectory(prefix="metricgold-") as folder, open_whole(target) as file:
        exr.write(f"{folder}/depth.exr")  # it writes to names only
        file.write(Path(folder, "depth.exr").read_bytes())


_EXR_HEADER = (
    *("channels", "chunkCount", "compression", "dataWindow", "displayWindow", "lineOrder", "name", "pixelAspectRatio"),
    *("screenWindowCenter", "screenWindowWidth", "tiles", "type", "version", "view"),
)


def read_depth_exr(source: str | Path | BinaryIO) -> tuple[np.ndarray, dict[str, str]]:
    """Read what write_depth_exr wrote: float32 [H, W] in metres (NaN none, inf beyond range), attributes."""
    _openexr()  # that it is missing is no fault of the file
    data = Path(source).read_bytes() if isinstance(source, str | Path) else source.read()
    with tempfile.TemporaryDirectory(prefix="metricgold-") as folder, _reading(source, "OpenEXR"):
        Path(folder, "depth.exr").write_bytes(data)
        header, channels = read_exr_channels(Path(folder, "depth.exr"))
    attributes = {key: value for key, value in header.items() if isinstance(value, str)}
    if "Z" not in channels or not _METRES.items() <= attributes.items():
        raise _not_depth(source, f"an OpenEXR image with the channels {', '.join(sorted(channels))}")
    return channels["Z"].pixels, attributes


def read_exr_channels(path: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and channels of an OpenEXR image; options of OpenEXR.File. ValueError for one beyond MAX_ARRAY_BYTES.

    OpenEXR by itself makes room for the size that a header claims.
    """
    openexr = _openexr()
    header = openexr.File(str(path), header_only=True).header()
    (left, top), (right, bottom) = header["dataWindow"]
    num_bytes = 4 * (int(right) - int(left) + 1) * (int(bottom) - int(top) + 1) * len(header["channels"])
    if num_bytes > MAX_ARRAY_BYTES:
        raise ValueError(f"expected at most {MAX_ARRAY_BYTES:,} bytes, got a header of {num_bytes:,}")
    return header, openexr.File(str(path), **options).channels()


def _openexr() -> Any:
    with naming_the_extra():
        import OpenEXR
    return OpenEXR


# What they share


def _image(values: np.ndarray) -> np.ndarray:
    image = np.ascontiguousarray(values, np.float32)  # OpenEXR reads the memory as it is
    if image.ndim != 2 or not image.size:
        raise ValueError(f"an image [H, W] was expected, got {list(image.shape)}")
    return image


def _depth_or_nan(planar_depth_m: np.ndarray) -> np.ndarray:
    depth_m = _image(planar_depth_m)
    return np.where(depth_m > 0, depth_m, np.float32(np.nan))


_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,79}")  # 79: PNG 1.2, 11.3.4.2


def with_own(own: Mapping[str, str], attributes: Mapping[str, str], taken: tuple[str, ...] = ()) -> dict[str, str]:
    """The texts of a file: its format's own, then the attributes.

    Raises ValueError where both claim a name, and for a name or text that not every format can hold.
    """
    clash = sorted({*own, *taken} & set(attributes))
    if clash:
        raise ValueError(f"attributes {clash} are set by the file format itself")
    for name, text in attributes.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of an attribute must be 1 to 79 of A-Z a-z 0-9 _ . : -, got {name!r:.100}")
        if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):  # surrogates: of undecodable names
            raise ValueError(f"attribute {name} must be text without NUL that UTF-8 can hold, got {text!r:.100}")
    return {**own, **attributes}


@contextmanager
def open_whole(target: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a target for writing; a path is written aside and appears when all is in it."""
    if isinstance(target, str | Path):
        with write_aside(Path(target)) as aside, aside.open("wb") as file:
            yield file
    else:
        yield target


_BROKEN = (
    *(ValueError, TypeError, SyntaxError, EOFError, RuntimeError, LookupError, ArithmeticError, MemoryError),
    *(BadZipFile, zlib.error, Image.DecompressionBombError),
)


@contextmanager
def _reading(source: str | Path | BinaryIO, format_name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the file itself, not what is in it
            raise
        raise ValueError(f"{source} is not a {format_name}, or not a complete one: {error}") from error
    except _BROKEN as error:
        raise ValueError(f"{source} is not a {format_name}, or not a complete one: {error}") from error


def _write_png(
    target: str | Path | BinaryIO, code: np.ndarray, own: Mapping[str, str], attributes: Mapping[str, str]
) -> None:
    text = PngImagePlugin.PngInfo()
    for key, value in with_own(own, attributes).items():
        text.add_text(key, value)
    # Difference to the row above, then run lengths: three times as fast as Pillow's search for the best
    # filter of each row, and smaller for depth.
    height, width = code.shape[:2]
    bits, colour_type = (16, 0) if code.dtype == np.uint16 else (8, 2)  # grey or RGB
    pixels = code.astype(">u2").view(np.uint8) if bits == 16 else code.reshape(height, -1)  # [H, bytes of a row]
    rows = np.full((height, 1 + pixels.shape[1]), 2, np.uint8)  # filter 2: up
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    with open_whole(target) as file:
        file.write(_PNG_MAGIC)
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        for name, data, *_ in text.chunks:
            PngImagePlugin.putchunk(file, name, data)
        PngImagePlugin.putchunk(file, b"IDAT", deflate.compress(rows.data) + deflate.flush())
        PngImagePlugin.putchunk(file, b"IEND", b"")


def _read_png(source: str | Path | BinaryIO, dtype: type, kind: str, unit: str) -> tuple[np.ndarray, dict[str, str]]:
    with _reading(source, "PNG"), Image.open(source, formats=["PNG"]) as image:
        code = np.array(image)
        attributes = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
    found = [str(code.dtype), attributes.get("kind"), attributes.get("unit")]
    if found != [np.dtype(dtype).name, kind, unit]:
        raise ValueError(
            f"{source}: expected a PNG of {kind} in {unit}, written by MetricGold; got dtype, kind and unit {found}"
        )
    return code, attributes
