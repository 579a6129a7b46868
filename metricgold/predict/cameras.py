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
import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from unicodedata import normalize

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metricgold.images import focal_px_from_35mm, focal_px_from_fov, intrinsics_from, pinhole
from metricgold.storage import Folder, S3Prefix, Wanted, literal_head, read_json

log = logging.getLogger(__name__)

CSV, COLMAP, COLMAP_IMAGES = "cameras.csv", "cameras.txt", "images.txt"
CAMERA_FILES = (CSV, COLMAP, COLMAP_IMAGES)
MAX_BYTES = 256 << 20  # of one of them
_SAME_PROPORTIONS = 0.01  # of both scales; sides are whole pixels

Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Place = Annotated[float, Field(allow_inf_nan=False)]
StatedFrom = Literal["argument", "csv", "colmap"]

# The parameters of COLMAP's models: focal lengths and principal point, and how many of distortion follow.
_COLMAP_MODELS = {
    "SIMPLE_PINHOLE": (("fx", "cx", "cy"), 0),
    "PINHOLE": (("fx", "fy", "cx", "cy"), 0),
    "SIMPLE_RADIAL": (("fx", "cx", "cy"), 1),
    "RADIAL": (("fx", "cx", "cy"), 2),
    "OPENCV": (("fx", "fy", "cx", "cy"), 4),
    "FULL_OPENCV": (("fx", "fy", "cx", "cy"), 8),
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
            return pinhole(focal_px_from_35mm(self.focal_35mm, height, width), height, width)
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


class StatedLine(NamedTuple):
    """A camera, the images that it is stated for, and where that stands, such as cameras.csv line 3."""

    glob: str
    camera: StatedCamera
    place: str


@dataclass(frozen=True)
class Cameras:
    """Which camera was stated for which image, for a look at each of many.

    lines    those with globs, in order
    by_head  the numbers of those whose matches begin with a text: a file may have a line an image
    keys     the images of COLMAP, which names each in full
    """

    stated_from: StatedFrom
    lines: tuple[StatedLine, ...] = ()
    by_head: Mapping[str, Sequence[int]] = field(default_factory=dict)
    keys: Mapping[str, StatedLine] = field(default_factory=dict)

    @classmethod
    def of_globs(cls, stated_from: StatedFrom, lines: Iterable[StatedLine]) -> "Cameras":
        """Those of a file whose first line that matches an image counts."""
        lines, by_head = tuple(lines), defaultdict[str, list[int]](list)
        for number, line in enumerate(lines):
            by_head[literal_head(normalize("NFC", line.glob))].append(number)
        return cls(stated_from, lines, dict(by_head))

    def of_image(self, key: str) -> StatedLine | None:
        """What is stated for an image; None where nobody has stated a camera."""
        key = normalize("NFC", key)
        if key in self.keys:
            return self.keys[key]
        texts = {text[:end] for text in (key, key.rpartition("/")[2]) for end in range(len(text) + 1)}
        numbers = sorted(number for text in texts for number in self.by_head.get(text, ()))
        lines = (self.lines[number] for number in numbers)
        return next((line for line in lines if key in Wanted(include=(line.glob,))), None)

    def warn_of_unused(self, used: Container[str]) -> None:
        """Log the first place that states a camera of no image; `used` are the places that did."""
        places = dict.fromkeys(line.place for line in (*self.lines, *self.keys.values()))
        unused = [place for place in places if place not in used]
        if unused:
            others = f" (and of {len(unused) - 1} more)" if len(unused) > 1 else ""
            log.warning("no image has the camera of %s%s", unused[0], others)


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
        line = StatedLine("**", read_intrinsics(intrinsics), str(intrinsics))
    elif given:
        line = StatedLine("**", _checked(given, "the camera of all images"), "argument")
    else:
        return None
    return Cameras.of_globs("argument", [line])


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
    rows = csv.reader(io.StringIO(_text(data, CSV), newline=""))
    try:
        columns = _columns(next(rows, []))
        lines = [_line(columns, row, f"{CSV} line {rows.line_num}") for row in rows if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f"{CSV} line {rows.line_num}: {error}") from error
    if not lines:
        raise ValueError(f"{CSV}: no line with a camera")
    return Cameras.of_globs("csv", lines)


def _columns(names: Iterable[str]) -> list[str]:
    columns = [name.strip() for name in names]
    known = ("glob", *StatedCamera.model_fields)
    fault = next((f"unknown column {name!r}" for name in columns if name not in known), None)
    fault = fault or next((f"two columns {name}" for name in known if columns.count(name) > 1), None)
    fault = fault or (None if "glob" in columns else "the column glob is missing")
    if fault:
        raise ValueError(f"{CSV} line 1: {fault}; columns are {', '.join(known)}")
    return columns


def _line(columns: Sequence[str], row: Sequence[str], place: str) -> StatedLine:
    if len(row) > len(columns):
        raise ValueError(f"{place}: more cells than columns")
    cells = {name: text.strip() for name, text in zip(columns, row, strict=False) if text.strip()}
    if "glob" not in cells:
        raise ValueError(f"{place}: glob is empty")
    return StatedLine(cells.pop("glob"), _checked(cells, place), place)


def parse_colmap(cameras: bytes, images: bytes | None) -> Cameras:
    """Cameras of COLMAP's text files. ValueError for a model that is no pinhole, and for several without images.txt."""
    by_id = dict(_colmap_cameras(cameras))
    if images is None:
        if len(by_id) != 1:
            raise ValueError(f"{COLMAP}: {len(by_id)} cameras, and no {COLMAP_IMAGES} that says whose they are")
        return Cameras.of_globs("colmap", [StatedLine("**", *next(iter(by_id.values())))])
    keys: dict[str, StatedLine] = {}
    for number, row in _colmap_images(images):
        words = row.split(maxsplit=9)
        if len(words) != 10 or words[8] not in by_id:
            raise ValueError(
                f"{COLMAP_IMAGES} line {number}: expected an image of a camera in {COLMAP}, got {row!r:.80}"
            )
        key = normalize("NFC", words[9].strip())
        keys[key] = StatedLine(key, *by_id[words[8]])
    return Cameras("colmap", keys=keys)


def _colmap_images(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines of images, with their numbers. The line after each holds its points, and may be empty."""
    lines = enumerate(_text(data, COLMAP_IMAGES).splitlines(), 1)
    for number, line in lines:
        if line.strip() and not line.startswith("#"):
            yield number, line
            number, points = next(lines, (0, ""))
            if len(points.split()) % 3:
                raise ValueError(f"{COLMAP_IMAGES} line {number}: expected x, y and id of points, got {points!r:.80}")


def _colmap_cameras(data: bytes) -> Iterator[tuple[str, tuple[StatedCamera, str]]]:
    distorted = 0
    for number, line in enumerate(_text(data, COLMAP).splitlines(), 1):
        place, words = f"{COLMAP} line {number}", line.split()
        if not words or line.startswith("#"):
            continue
        names, num_distortion = _COLMAP_MODELS.get(words[1] if len(words) > 1 else "", ((), -1))
        if num_distortion < 0 or len(words) != 4 + len(names) + num_distortion:
            known = ", ".join(_COLMAP_MODELS)
            raise ValueError(f"{place}: expected a camera of COLMAP with a model of {known}, got {line!r:.80}")
        values = dict(zip(("width", "height", *names), words[2:], strict=False))
        distorted += any(word.strip("+-0.") for word in words[4 + len(names) :])
        yield words[0], (_checked(values, place), place)
    if distorted:
        log.warning("%s: distortion is not undone, of %d: undistort images of strong lenses", COLMAP, distorted)


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
