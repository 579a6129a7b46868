"""The cameras that people state for a job's images: by an option, in cameras.csv, or as COLMAP writes them.

cameras.csv lies beside the images of a folder or bucket. Its first line names the columns: glob, over keys as those of
--include, and any of fx, fy, cx, cy, focal_px, focal_35mm, fov_deg, width, height. The first line that matches an
image counts; an empty cell says nothing. COLMAP's cameras.txt counts where there is no cameras.csv, and its images.txt
beside it says which image has which camera (colmap.github.io/format.html); only one camera is everybody's.

Pixels: the centre of the first one is (0.5, 0.5), as COLMAP has it too. Numbers are in pixels of an image of width x
height where these are given, and scaled to an image of other size and the same proportions; else of the image itself.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from math import hypot
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metricgold.images import focal_px_from_fov, intrinsics_from, pinhole
from metricgold.storage import Folder, S3Prefix, Wanted, read_json

CSV, COLMAP, COLMAP_IMAGES = "cameras.csv", "cameras.txt", "images.txt"
CAMERA_FILES = (CSV, COLMAP, COLMAP_IMAGES)
MAX_BYTES = 256 << 20  # of one of them
_FULL_FRAME_DIAGONAL_MM = hypot(36, 24)  # CIPA DCG-001: equivalents are of the diagonal
_SAME_PROPORTIONS = 0.01  # of both scales; sides are whole pixels

Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Place = Annotated[float, Field(allow_inf_nan=False)]
StatedFrom = Literal["argument", "csv", "colmap"]

# The focal lengths and the principal point among the parameters of COLMAP's models; the rest is distortion.
_COLMAP_MODELS = {
    "SIMPLE_PINHOLE": ("fx", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("fx", "cx", "cy"),
    "RADIAL": ("fx", "cx", "cy"),
    "OPENCV": ("fx", "fy", "cx", "cy"),
    "FULL_OPENCV": ("fx", "fy", "cx", "cy"),
}


class StatedCamera(BaseModel):
    """A camera as people state it: fx with what else is known of fy, cx and cy, or one of the other three."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fx: Number | None = None  # pixels
    fy: Number | None = None
    cx: Place | None = None
    cy: Place | None = None
    focal_px: Number | None = None
    focal_35mm: Number | None = None  # of equal field of view on 35 mm film, by the diagonal
    fov_deg: Annotated[float, Field(gt=0, lt=180)] | None = None  # over the longer side
    width: Number | None = None
    height: Number | None = None

    @model_validator(mode="after")
    def _is_stated_once(self) -> "StatedCamera":
        given = [name for name in ("fx", "focal_px", "focal_35mm", "fov_deg") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of fx, focal_px, focal_35mm and fov_deg, got {' and '.join(given) or 'none'}"
            )
        if self.fx is None and not (self.fy is self.cx is self.cy is None):
            raise ValueError(f"fy, cx and cy go with fx, not with {given[0]}")
        if (self.cx is None) != (self.cy is None) or (self.width is None) != (self.height is None):
            raise ValueError("cx and cy, and width and height, are given together")
        return self

    @property
    def stated(self) -> dict[str, float]:
        """What was stated, by name; it decides depth."""
        return self.model_dump(exclude_none=True)

    def intrinsics(self, height: int, width: int) -> np.ndarray:
        """Intrinsics [3, 3] of an image of that size. ValueError where its proportions are not the camera's."""
        if self.fov_deg is not None:
            return pinhole(focal_px_from_fov(self.fov_deg, max(height, width)), height, width)
        if self.focal_35mm is not None:
            return pinhole(self.focal_35mm / _FULL_FRAME_DIAGONAL_MM * hypot(height, width), height, width)
        scale_x, scale_y = self._scales(height, width)
        fx = self.fx or self.focal_px or 0.0
        fy = self.fy or fx
        cx = width / 2 if self.cx is None else self.cx * scale_x
        cy = height / 2 if self.cy is None else self.cy * scale_y
        return intrinsics_from(fx * scale_x, fy * scale_y, cx, cy, first_pixel=0.5)

    def _scales(self, height: int, width: int) -> tuple[float, float]:
        """Pixels of the image for each of the camera, along x and y."""
        if self.width is None or self.height is None:
            return 1.0, 1.0
        scale_x, scale_y = width / self.width, height / self.height
        if abs(scale_x / scale_y - 1) > _SAME_PROPORTIONS:
            raise ValueError(
                f"its camera is of {self.width:g} x {self.height:g} pixels, the image has {width} x {height}: "
                "expected the same proportions"
            )
        return scale_x, scale_y


@dataclass(frozen=True)
class Cameras:
    """Which camera was stated for which image, for a look at each of many.

    globs  in order, with their camera and where it stands, such as cameras.csv line 3
    names  keys without magic, and their place in that order: most files have a line an image
    """

    stated_from: StatedFrom
    globs: tuple[tuple[int, str, StatedCamera, str], ...] = ()
    names: Mapping[str, tuple[int, StatedCamera, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, stated_from: StatedFrom, lines: Sequence[tuple[str, StatedCamera, str]]) -> "Cameras":
        """From a glob, a camera and its place a line, in order."""
        globs: list[tuple[int, str, StatedCamera, str]] = []
        names: dict[str, tuple[int, StatedCamera, str]] = {}
        for number, (glob, camera, place) in enumerate(lines):
            if has_magic(glob) or glob.endswith("/"):
                globs.append((number, glob, camera, place))
            else:
                names.setdefault(normalize("NFC", glob), (number, camera, place))
        return cls(stated_from, tuple(globs), names)

    def of_image(self, key: str) -> tuple[StatedCamera, str] | None:
        """The camera of an image and where it is stated; None where nobody has stated one."""
        key = normalize("NFC", key)
        found = [self.names[name] for name in {key, key.rpartition("/")[2]} if name in self.names]
        first = min(found, key=lambda one: one[0], default=None)
        for number, glob, camera, place in self.globs:
            if first is not None and number > first[0]:
                break
            if key in Wanted(include=(glob,)):
                return camera, place
        return None if first is None else first[1:]


def stated_for_all(
    *,
    intrinsics: Path | None = None,
    focal_px: float | None = None,
    focal_35mm: float | None = None,
    fov_deg: float | None = None,
) -> Cameras | None:
    """The camera of all images by the options of a command; None without one. ValueError names a fault in the file."""
    numbers = {"focal_px": focal_px, "focal_35mm": focal_35mm, "fov_deg": fov_deg}
    given = {name: value for name, value in numbers.items() if value is not None}
    if len(given) + (intrinsics is not None) > 1:
        raise ValueError("give one of intrinsics, focal-px, focal-35mm and fov-deg")
    if intrinsics is not None:
        return Cameras.of("argument", [("**", read_intrinsics(intrinsics), str(intrinsics))])
    return Cameras.of("argument", [("**", StatedCamera(**given), "argument")]) if given else None


def read_intrinsics(path: Path) -> StatedCamera:
    """A camera from JSON: the columns of cameras.csv by name, or a matrix [3, 3]. ValueError names file and fault."""
    values = read_json(path)
    if isinstance(values, list):
        values = _of_matrix(values, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object with fx, fy, cx, cy or a matrix [3, 3], got {values!r:.80}")
    return _checked(values, str(path))


def find_cameras(source: Folder | S3Prefix) -> Cameras | None:
    """Those stated beside the images; None where there are none. ValueError names file, line and fault."""
    if source.only is None and source.exists(CSV):
        return parse_csv(source.read(CSV, MAX_BYTES))
    if source.only is None and source.exists(COLMAP):
        images = source.read(COLMAP_IMAGES, MAX_BYTES) if source.exists(COLMAP_IMAGES) else None
        return parse_colmap(source.read(COLMAP, MAX_BYTES), images)
    return None


def parse_csv(data: bytes) -> Cameras:
    """Cameras of a cameras.csv. ValueError names the line and what is wrong with it."""
    rows = csv.DictReader(io.StringIO(_text(data, CSV), newline=""), restkey="more")
    columns = [name.strip() for name in rows.fieldnames or ()]
    unknown = sorted(set(columns) - {"glob", *StatedCamera.model_fields})
    if "glob" not in columns or unknown:
        known = ", ".join(("glob", *StatedCamera.model_fields))
        what = f"unknown column {unknown[0]!r}" if unknown else "the column glob is missing"
        raise ValueError(f"{CSV}: line 1: {what}; columns are {known}")
    lines = []
    for row in rows:
        place = f"{CSV} line {rows.line_num}"
        if "more" in row:
            raise ValueError(f"{place}: more cells than columns")
        cells = {name.strip(): text.strip() for name, text in row.items() if text and text.strip()}
        glob = cells.pop("glob", None)
        if glob is None:
            raise ValueError(f"{place}: glob is empty")
        lines.append((glob, _checked(cells, place), place))
    if not lines:
        raise ValueError(f"{CSV}: no line with a camera")
    return Cameras.of("csv", lines)


def parse_colmap(cameras: bytes, images: bytes | None) -> Cameras:
    """Cameras of COLMAP's text files. ValueError for a model that is no pinhole, and for several without images.txt."""
    by_id = dict(_colmap_cameras(cameras))
    if images is None:
        if len(by_id) != 1:
            raise ValueError(f"{COLMAP}: {len(by_id)} cameras, and no {COLMAP_IMAGES} that says whose they are")
        return Cameras.of("colmap", [("**", *next(iter(by_id.values())))])
    lines = []
    # Every second line holds the points of the image before it, and may be empty.
    rows = [line for line in _text(images, COLMAP_IMAGES).splitlines() if not line.startswith("#")]
    for number, row in enumerate(rows[::2], 1):
        words = row.split(maxsplit=9)
        if not words:
            continue
        if len(words) != 10 or words[8] not in by_id:
            raise ValueError(f"{COLMAP_IMAGES}: image {number} names no camera of {COLMAP}: {row!r:.80}")
        lines.append((words[9].strip(), *by_id[words[8]]))
    return Cameras.of("colmap", lines)


def _colmap_cameras(data: bytes) -> Iterator[tuple[str, tuple[StatedCamera, str]]]:
    for number, line in enumerate(_text(data, COLMAP).splitlines(), 1):
        place, words = f"{COLMAP} line {number}", line.split()
        if not words or line.startswith("#"):
            continue
        names = _COLMAP_MODELS.get(words[1]) if len(words) > 1 else None
        if names is None or len(words) < 4 + len(names):
            known = ", ".join(_COLMAP_MODELS)
            raise ValueError(f"{place}: expected a camera of COLMAP with a model of {known}, got {line!r:.80}")
        values = dict(zip(("width", "height", *names), words[2:], strict=False))
        yield words[0], (_checked(values, place), place)


def _of_matrix(rows: list[Any], place: str) -> dict[str, Any]:
    try:
        matrix = np.array(rows, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    pinhole_only = matrix.shape == (3, 3) and not np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]) and matrix[2, 2] == 1
    if not pinhole_only:
        raise ValueError(f"{place}: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {json.dumps(rows)[:80]}")
    return {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}


def _checked(values: Mapping[str, Any], place: str) -> StatedCamera:
    try:
        return StatedCamera.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ") + (f", got {fault['input']!r:.40}" if name else "")
        raise ValueError(f"{place}: {name + ': ' if name else ''}{what}") from None


def _text(data: bytes, name: str) -> str:
    if len(data) >= MAX_BYTES:
        raise ValueError(f"{name}: more than {MAX_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected UTF-8, got {data[:40]!r}") from error
