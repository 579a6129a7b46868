"""The files of one image: its depth in several formats, what derives from it, and a side-car that explains them."""

import hashlib
import io
import json
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO, Literal, Required, TypedDict
from urllib.parse import quote

import numpy as np

from metricgold.images import (
    draw_preview,
    flying_pixels,
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

# The side-car last: where it exists, the others do.
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
EARLIER_DIGEST = "model_sha256"  # what files of before call model_digest
DEFAULT: tuple[Output, ...] = ("log-png", "uncertainty", "preview", "json")
DEPTH: tuple[Output, ...] = ("log-png", "mm-png", "npz", "tiff", "exr")  # the first of them in a job is its depth file
NEED_PINHOLE: frozenset[Output] = frozenset({"normals", "ply", "glb"})

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
_Label = Literal["input", "input_tag", "identity", "model"]
_LABELS: tuple[_Label, ...] = ("input", "input_tag", "identity", "model")  # of every file and object
_PLAIN = "".join(sorted(set(string.punctuation) - {"%"}))


class DepthFigures(TypedDict, total=False):
    """Figures of one image over its pixels; None where no pixel has a value."""

    min_m: float | None
    median_m: float | None
    max_m: float | None
    uncertainty_median: float | None
    saturated: float  # share of pixels that are not valid: nearer than near_m, or without a surface


class ImageFacts(DepthFigures, total=False):
    """What the side-car of an image and its row in the receipt both hold."""

    input: Required[str]  # key in the source
    input_tag: Required[str]  # ETag, or size and time: changes with the bytes
    identity: Required[str]  # digest of what decides every output; in a row also of the camera that people state
    width: int
    height: int
    truncated: bool  # the input ends early or is damaged, and the rest of it is blank or wrong
    focal_px: float | None  # None for a panorama
    focal_from: str  # argument, csv, colmap or exif; fov_deg where it is assumed; none for a panorama
    focal_place: str | None  # the file and line that state it
    scale_assumed: bool  # the model's scale follows from the focal length, which is assumed
    focal_reason: str | None  # why EXIF has none, where it is assumed
    panorama: str | None  # how it was projected; its depth is not planar
    num_members: int  # runs that were merged
    uncertainty_calibrated: bool  # whether it is the standard error that the model was calibrated to state
    drop_edges: bool  # whether flying pixels are left out of point clouds
    params: dict[str, Any]  # those that decide the numbers
    model: str
    model_digest: str
    camera_name: str | None  # make and model by EXIF
    calibration: dict[str, Any]  # by which depth was corrected; not there where it is the model's own


@dataclass(frozen=True, eq=False)
class ImageResult:
    """An image with its depth: all its files are made from this.

    rgb             uint8 [H, W, 3]
    planar_depth_m  float32 [H, W], of every pixel
    uncertainty     float32 [H, W], relative, NaN where it is not known
    valid_mask      bool [H, W]; points and normals are made from these pixels only
    intrinsics      float64 [3, 3]; None for a panorama, of which none of NEED_PINHOLE can be made
    log_depth       its range
    facts           about input, model, camera and figures, for the side-car
    unlikeness      to held-out frames of the training, 1 for a typical one; None where the model does not know
    """

    rgb: np.ndarray
    planar_depth_m: np.ndarray
    uncertainty: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray | None
    log_depth: LogDepth
    facts: ImageFacts
    unlikeness: float | None = None

    @cached_property
    def attributes(self) -> dict[str, str]:
        """What every file says about itself, in ASCII: see to_ascii."""
        texts = {name: to_ascii(text) for name, text in labels(self.facts).items()}
        texts["model_digest"] = to_ascii(self.facts["model_digest"])
        if panorama := self.facts.get("panorama"):
            texts["panorama"] = f"{panorama}: the values are not planar depth, and pixels no rays of a pinhole"
        if calibration := self.facts.get("calibration"):
            texts["calibration"] = json.dumps(calibration, sort_keys=True)
        texts["focal_px"] = json.dumps(self.facts.get("focal_px"))  # not who states it: equal depth, equal bytes
        texts["scale_assumed"] = str(self.facts.get("scale_assumed", False)).lower()
        texts["uncertainty_calibrated"] = str(self.facts.get("uncertainty_calibrated", False)).lower()
        return texts | {"params": json.dumps(self.facts["params"], sort_keys=True)}

    @cached_property
    def seen_depth_m(self) -> np.ndarray:
        """planar_depth_m as files have it: inf where the model sees no surface, near_m where one is nearer."""
        middle_m = (self.log_depth.near_m * self.log_depth.far_m) ** 0.5  # invalid is either at one end or at the other
        return np.where(self.valid_mask | ~(self.planar_depth_m > middle_m), self.planar_depth_m, np.float32(np.inf))

    @property
    def valid_depth_m(self) -> np.ndarray:
        """planar_depth_m, NaN outside valid_mask."""
        return np.where(self.valid_mask, self.planar_depth_m, np.float32(np.nan))

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, 3] in metres and their colours, uint8 [N, 3], of the valid pixels; of drop_edges without edges."""
        depth_m = self.valid_depth_m
        known = np.isfinite(depth_m) & (depth_m > 0)
        if self.facts.get("drop_edges"):
            known &= ~flying_pixels(self.planar_depth_m)
        return points_from_depth(depth_m, self.intrinsics)[known], self.rgb[known]


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


def files_of(result: ImageResult, kinds: Iterable[Output]) -> Iterator[File]:
    """Make the files of these kinds, one after the other; the first kind of DEPTH among them is the depth file."""
    wanted = set(kinds)
    depth_kind = next((kind for kind in DEPTH if kind in wanted), None)
    digest = None
    for kind in SUFFIXES:
        if kind not in wanted:
            continue
        if kind == "json":
            yield File(kind, side_car(result, digest))
            continue
        buffer = io.BytesIO()
        _WRITERS[kind](buffer, result)
        if kind == depth_kind:
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        yield File(kind, buffer.getvalue(), digest if kind == depth_kind else None)


_WRITERS: dict[Output, Callable[[BinaryIO, ImageResult], None]] = {
    "log-png": lambda file, it: write_log_depth_png(file, it.seen_depth_m, it.log_depth, it.attributes),
    "mm-png": lambda file, it: write_mm_depth_png(file, it.seen_depth_m, it.attributes),
    "npz": lambda file, it: write_depth_npz(file, it.seen_depth_m, it.uncertainty, it.intrinsics, it.attributes),
    "tiff": lambda file, it: write_depth_tiff(file, it.seen_depth_m, it.attributes),
    "exr": lambda file, it: write_depth_exr(file, it.seen_depth_m, it.attributes),
    "uncertainty": lambda file, it: write_uncertainty_png(file, it.uncertainty, it.attributes),
    "preview": lambda file, it: draw_preview(it.seen_depth_m).save(file, "JPEG", quality=90, subsampling=0),
    "normals": lambda file, it: write_normals_png(
        file, normals_from_depth(it.valid_depth_m, it.intrinsics), it.attributes
    ),
    "ply": lambda file, it: write_ply(file, *it.points, it.attributes),
    "glb": lambda file, it: write_glb(file, *it.points, it.attributes),
}


def with_digest(facts: dict[str, Any]) -> dict[str, Any]:
    """What a file states of itself, by today's names: model_digest was model_sha256 before."""
    return {"model_digest" if name == EARLIER_DIGEST else name: fact for name, fact in facts.items()}


def side_car(result: ImageResult, sha256: str | None) -> bytes:
    """JSON for readers that see no PNG chunks; equal runs give equal bytes, so it holds no times.

    sha256  of the depth file; None if there is none
    """
    values = {
        **result.facts,
        "unit": "metres",
        "kind": "depth of a panorama, not planar" if result.facts.get("panorama") else "planar depth",
        "near_m": result.log_depth.near_m,
        "far_m": result.log_depth.far_m,
        "intrinsics": None if result.intrinsics is None else result.intrinsics.tolist(),
        "first_pixel": 0.5,  # coordinate of its centre under these intrinsics
        "sha256": sha256,
    }
    lines = (
        f"  {json.dumps(name)}: {json.dumps(values[name], sort_keys=True, allow_nan=False)}" for name in sorted(values)
    )
    return "{{\n{}\n}}\n".format(",\n".join(lines)).encode()  # json's own indentation takes four times as long


def check_kinds(kinds: Iterable[Output]) -> None:
    """Raise ValueError where files of these kinds cannot be made on this machine, by making them from two pixels."""
    depth_m = np.ones((1, 2), np.float32)
    facts: ImageFacts = {"input": "", "input_tag": "", "identity": "", "model": "", "model_digest": "", "params": {}}
    two = np.zeros((1, 2, 3), np.uint8), depth_m, depth_m, depth_m > 0, np.eye(3), LogDepth(0.5, 80.0)
    for _ in files_of(ImageResult(*two, facts), kinds):
        pass


def labels(facts: ImageFacts) -> dict[str, str]:
    """What S3 keeps beside the bytes of an output: which input, model and calibration it was made from."""
    texts = {name: facts[name] for name in _LABELS}
    return texts | ({"calibration": calibration["sha256"]} if (calibration := facts.get("calibration")) else {})


def to_ascii(text: str) -> str:
    """Text as printable ASCII, all else as %XX of its bytes; urllib.parse.unquote gives it back."""
    return quote(text, safe=_PLAIN, errors="surrogateescape")


def with_figures(result: ImageResult) -> ImageResult:
    """The image with its depth_figures among its facts."""
    figures = depth_figures(result.seen_depth_m, result.uncertainty, result.valid_mask)
    return replace(result, facts={**result.facts, **figures})


def depth_figures(planar_depth_m: np.ndarray, uncertainty: np.ndarray, valid_mask: np.ndarray) -> DepthFigures:
    """Least, median and greatest depth in metres, the median uncertainty, and the share of pixels that saturate."""

    def figure(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
        return float(statistic(values)) if values.size else None

    known_m = planar_depth_m[np.isfinite(planar_depth_m) & (planar_depth_m > 0)]
    return {
        "min_m": figure(np.min, known_m),
        "median_m": figure(np.median, known_m),
        "max_m": figure(np.max, known_m),
        "uncertainty_median": figure(np.median, uncertainty[np.isfinite(uncertainty)]),
        "saturated": round(1 - np.count_nonzero(valid_mask) / valid_mask.size, 6),
    }
