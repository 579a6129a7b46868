"""The files of one image: its depth in several formats, what derives from it, and a side-car that explains them."""

import hashlib
import io
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from metricgold.images import (
    draw_preview,
    normals_from_depth,
    points_from_depth,
    write_depth_exr,
    write_depth_npz,
    write_depth_tiff,
    write_glb,
    write_log_depth_png,
    write_mm_depth_png,
    write_normals_png,
    write_ply,
    write_uncertainty_png,
)
from metricgold.log_depth import LogDepth
from metricgold.params import Output

# The side-car last: where it lies, the others do.
SUFFIXES: dict[Output, str] = {
    "log-png": ".depth.png",
    "mm-png": ".depth_mm.png",
    "npz": ".depth.npz",
    "tiff": ".depth.tiff",
    "exr": ".depth.exr",
    "uncertainty": ".uncertainty.png",
    "preview": ".preview.jpg",
    "normals": ".normals.png",
    "ply": ".ply",
    "glb": ".glb",
    "json": ".json",
}
DEFAULT: tuple[Output, ...] = ("log-png", "uncertainty", "preview", "json")
DEPTH: tuple[Output, ...] = ("log-png", "mm-png", "npz", "tiff", "exr")  # the first that is asked for is the depth file

_CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".tiff": "image/tiff",
    ".exr": "image/x-exr",
    ".npz": "application/zip",
    ".ply": "application/octet-stream",
    ".glb": "model/gltf-binary",
    ".json": "application/json",
}
_METADATA = ("input", "input_tag", "identity", "model")
_PLAIN = "".join(sorted(set(string.punctuation) - {"%"}))


@dataclass(frozen=True, eq=False)
class Depicted:
    """An image with its depth: what all files of it are made of.

    rgb             uint8 [H, W, 3]
    planar_depth_m  float32 [H, W]
    uncertainty     float32 [H, W], relative, NaN where it is not known
    valid_mask      bool [H, W]; points and normals are made of these pixels only
    intrinsics      float64 [3, 3]
    log_depth       the model's range
    facts           what the side-car says of input, model, camera and figures
    """

    rgb: np.ndarray
    planar_depth_m: np.ndarray
    uncertainty: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray
    log_depth: LogDepth
    facts: Mapping[str, Any]

    @cached_property
    def attributes(self) -> dict[str, str]:
        """What every file says of itself, in ASCII: see to_ascii."""
        texts = {name: to_ascii(self.facts[name]) for name in (*_METADATA, "model_sha256")}
        return texts | {"params": json.dumps(self.facts["params"], sort_keys=True)}


@dataclass(frozen=True, slots=True)
class File:
    """One output of an image; `sha256` of the depth file only."""

    kind: Output
    data: bytes
    sha256: str | None = None

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.kind]

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.suffix[self.suffix.rindex(".") :]]


def files_of(depicted: Depicted, kinds: Iterable[Output]) -> Iterator[File]:
    """Make the files of these kinds, one after the other."""
    wanted = set(kinds)
    depth_kind = next((kind for kind in DEPTH if kind in wanted), None)
    digest = None
    for kind in SUFFIXES:
        if kind not in wanted:
            continue
        data = _side_car(depicted, digest) if kind == "json" else _made(kind, depicted)
        if kind == depth_kind:
            digest = hashlib.sha256(data).hexdigest()
        yield File(kind, data, digest if kind == depth_kind else None)


def check_kinds(kinds: Iterable[Output]) -> None:
    """Raise ValueError where files of these kinds cannot be made on this machine, by making them of two pixels."""
    depth_m = np.ones((1, 2), np.float32)
    facts = dict.fromkeys((*_METADATA, "model_sha256"), "") | {"params": {}}
    two = np.zeros((1, 2, 3), np.uint8), depth_m, depth_m, depth_m > 0, np.eye(3), LogDepth(0.5, 80.0), facts
    for file in files_of(Depicted(*two), kinds):
        assert file.data


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Whose output an object is, as S3 keeps it beside the bytes."""
    return {name: facts[name] for name in _METADATA}


def to_ascii(text: str) -> str:
    """Text as printable ASCII, all else as %XX of its bytes; urllib.parse.unquote gives it back."""
    return quote(text, safe=_PLAIN, errors="surrogateescape")


def figures(planar_depth_m: np.ndarray, uncertainty: np.ndarray, valid_mask: np.ndarray) -> dict[str, float | None]:
    """Least, median and greatest depth in metres, the median uncertainty, and the share of pixels that saturate."""
    known_m = planar_depth_m[np.isfinite(planar_depth_m) & (planar_depth_m > 0)]
    low_m, middle_m, high_m = (_figure(f, known_m) for f in (np.min, np.median, np.max))
    return {
        "min_m": low_m,
        "median_m": middle_m,
        "max_m": high_m,
        "uncertainty_median": _figure(np.median, uncertainty[np.isfinite(uncertainty)]),
        "saturated": round(1 - np.count_nonzero(valid_mask) / valid_mask.size, 6),
    }


def _figure(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
    return float(statistic(values)) if values.size else None


def _made(kind: Output, depicted: Depicted) -> bytes:
    buffer = io.BytesIO()
    _MAKERS[kind](buffer, depicted)
    return buffer.getvalue()


def _side_car(depicted: Depicted, sha256: str | None) -> bytes:
    """JSON for whoever does not read PNG chunks; equal runs give equal bytes, so no times."""
    said = {
        **depicted.facts,
        "unit": "metres",
        "kind": "planar depth",
        "near_m": depicted.log_depth.near_m,
        "far_m": depicted.log_depth.far_m,
        "intrinsics": depicted.intrinsics.tolist(),
        "first_pixel": 0.5,  # where its centre is, by these intrinsics
        "sha256": sha256,
    }
    lines = (
        f"  {json.dumps(name)}: {json.dumps(said[name], sort_keys=True, allow_nan=False)}" for name in sorted(said)
    )
    return "{{\n{}\n}}\n".format(",\n".join(lines)).encode()  # json's own indentation takes four times as long


# --- one kind each


def _write_log_png(file: BinaryIO, it: Depicted) -> None:
    write_log_depth_png(file, it.planar_depth_m, it.log_depth, it.attributes)


def _write_mm_png(file: BinaryIO, it: Depicted) -> None:
    write_mm_depth_png(file, it.planar_depth_m, it.attributes)


def _write_npz(file: BinaryIO, it: Depicted) -> None:
    write_depth_npz(file, it.planar_depth_m, it.uncertainty, it.intrinsics, it.attributes)


def _write_tiff(file: BinaryIO, it: Depicted) -> None:
    write_depth_tiff(file, it.planar_depth_m, it.attributes)


def _write_exr(file: BinaryIO, it: Depicted) -> None:
    write_depth_exr(file, it.planar_depth_m, it.attributes)


def _write_uncertainty(file: BinaryIO, it: Depicted) -> None:
    write_uncertainty_png(file, it.uncertainty, it.attributes)


def _write_preview(file: BinaryIO, it: Depicted) -> None:
    draw_preview(it.planar_depth_m).save(file, "JPEG", quality=90, subsampling=0)


def _write_normals(file: BinaryIO, it: Depicted) -> None:
    write_normals_png(file, normals_from_depth(_valid_depth_m(it), it.intrinsics), it.attributes)


def _write_ply(file: BinaryIO, it: Depicted) -> None:
    write_ply(file, *_points(it), it.attributes)


def _write_glb(file: BinaryIO, it: Depicted) -> None:
    write_glb(file, *_points(it), it.attributes)


_MAKERS: dict[Output, Callable[[BinaryIO, Depicted], None]] = {
    "log-png": _write_log_png,
    "mm-png": _write_mm_png,
    "npz": _write_npz,
    "tiff": _write_tiff,
    "exr": _write_exr,
    "uncertainty": _write_uncertainty,
    "preview": _write_preview,
    "normals": _write_normals,
    "ply": _write_ply,
    "glb": _write_glb,
}


def _points(it: Depicted) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] in metres and their colours, of the valid pixels."""
    depth_m = _valid_depth_m(it)
    known = np.isfinite(depth_m) & (depth_m > 0)
    return points_from_depth(depth_m, it.intrinsics)[known], it.rgb[known]


def _valid_depth_m(it: Depicted) -> np.ndarray:
    return np.where(it.valid_mask, it.planar_depth_m, np.float32(np.nan))
