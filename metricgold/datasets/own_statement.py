"""dataset.yaml of a team's own data: what is stated, as typed, closed models.

metricgold.datasets.own_data describes the file.
"""

from collections.abc import Callable
from math import atan, degrees
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from metricgold.datasets.arrays import Size, format_size
from metricgold.datasets.splits import ClosedModel, Exclusion, split_of_scene
from metricgold.datasets.stored_depth import GIVES_PLANAR_METRES, Coding
from metricgold.params import DistanceKind
from metricgold.storage import faults_of, read_yaml

STATEMENT = "dataset.yaml"
METRES = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001}
CAMERA = ("fx", "fy", "cx", "cy")
CAMERA_SIZE = ("width", "height")
MAX_STRETCH = 0.02  # of one axis against the other, by rounding: ScanNet's 640 x 480 of 1296 x 968 are 0.4 % off
FIELD_OF_VIEW_DEG = (10.0, 150.0)  # over the long side


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Pixels = Annotated[int, Field(strict=True, gt=0)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


def require_pixel_convention(first_pixel: float) -> float:
    """One of the two places that the centre of an image's first pixel has."""
    if first_pixel not in (0, 0.5):
        raise ValueError(f"must be 0 (OpenCV) or 0.5 (COLMAP), found {first_pixel:g}")
    return first_pixel


def is_stretched(size: Size, other: Size) -> bool:
    """Whether one of two sizes is not the other one scaled, but for rounding."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) > MAX_STRETCH


class StoredDepth(ClosedModel):
    """What a number in a depth file means. invalid and far are stored values, after any coding and before any unit."""

    unit: Literal["metre", "centimetre", "millimetre"] | Positive
    kind: DistanceKind
    invalid: Numbers
    far: Number | None
    array: str | None = None  # of an .npz or channel of an EXR with several
    coding: Coding | None = None  # of a PNG whose pixels are no plain numbers
    resize: Literal["nearest"] | None = None  # depth of another size than its rgb
    mask: Literal["valid", "invalid"] | None = None  # what other values than 0 in a separate file of masks mean

    @model_validator(mode="after")
    def _coded_metres(self) -> "StoredDepth":
        if self.coding in GIVES_PLANAR_METRES and (self.unit, self.kind) != ("metre", "planar"):
            raise ValueError(f"the coding {self.coding} gives planar metres: expected unit metre and kind planar")
        return self

    @property
    def metres_per_unit(self) -> float:
        """What a stored value is multiplied by."""
        return METRES[self.unit] if isinstance(self.unit, str) else self.unit


class Intrinsics(ClosedModel):
    """Of all frames; without fx, fy, cx, cy they are in frames.csv. width, height: of the image that they belong to."""

    first_pixel: Annotated[Number, AfterValidator(require_pixel_convention)]
    fx: Positive | None = None
    fy: Positive | None = None
    cx: Number | None = None
    cy: Number | None = None
    width: Pixels | None = None
    height: Pixels | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "Intrinsics":
        missing = [name for name in CAMERA if getattr(self, name) is None]
        if missing and len(missing) < len(CAMERA):
            raise ValueError(f"lacks {', '.join(missing)}: give all of {', '.join(CAMERA)} or none")
        if (self.width is None) != (self.height is None) or (self.width and missing):
            raise ValueError(
                "width and height are the size of the image that fx, fy, cx, cy belong to: give all or none"
            )
        return self

    @property
    def camera(self) -> tuple[float, ...] | None:
        """fx, fy, cx, cy, and width, height where they are stated; None where every row has its own."""
        stated = (self.fx, self.fy, self.cx, self.cy, self.width, self.height)
        return tuple(value for value in stated if value is not None) or None


class Recording(NamedTuple):
    """FrameRef.camera of this reader: all that turns a depth file into planar metres."""

    fx: float
    fy: float
    cx: float  # the centre of the first pixel is at 0.5
    cy: float
    metres_per_unit: float
    is_ray_distance: bool
    invalid: tuple[float, ...]
    far: float  # inf: no such value
    array: str | None
    camera_size: Size | None  # of the image that the camera is stated for; None: the rgb
    coding: Coding | None
    is_resized: bool
    mask: str | None

    def intrinsics(self, size: Size) -> np.ndarray:
        """K in pixels of an image of this size, float64 [3, 3]. ValueError for one that it cannot belong to."""
        height, width = size
        rows, columns = self.camera_size or size
        sx, sy = width / columns, height / rows
        if is_stretched(size, (rows, columns)):
            raise ValueError(f"{format_size(size)} is not {format_size((rows, columns))}, its camera's image, scaled")
        fx, fy, cx, cy = self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy
        if fault := camera_fault((fx, fy, cx, cy), size):
            raise ValueError(
                f"{fault}; expected a camera in pixels of the rgb, or with width and height of its own image"
            )
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


class Statement(ClosedModel):
    """dataset.yaml. Made by read_statement."""

    depth: StoredDepth
    intrinsics: Intrinsics
    splits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    exclude: tuple[Exclusion, ...] = ()

    def splitter(self, raw: Path, split: str) -> Callable[[str, str], str | None]:
        """A function (scene, frame name) -> split or None. ValueError where `split` is not among splits."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise ValueError(f"{raw / STATEMENT}: splits: has no {split!r}, known: {known}")
        return lambda scene, _name: split_of_scene(scene, self.splits, f"{raw / STATEMENT}: splits")

    def recording(self, camera: tuple[float, ...]) -> Recording:
        """What is stated of a frame with this camera, which is as Intrinsics.camera has it."""
        fx, fy, cx, cy, *camera_size = camera
        to_half = 0.5 - self.intrinsics.first_pixel
        return Recording(
            fx,
            fy,
            cx + to_half,
            cy + to_half,
            metres_per_unit=self.depth.metres_per_unit,
            is_ray_distance=self.depth.kind == "ray distance",
            invalid=self.depth.invalid,
            far=np.inf if self.depth.far is None else self.depth.far,
            array=self.depth.array,
            camera_size=(int(camera_size[1]), int(camera_size[0])) if camera_size else None,
            coding=self.depth.coding,
            is_resized=self.depth.resize is not None,
            mask=self.depth.mask,
        )


def camera_fault(camera: tuple[float, ...], size: Size) -> str:
    """Why fx, fy, cx, cy, in pixels with centres at +0.5, cannot belong to an image of this size; empty if they can."""
    (fx, fy, cx, cy), (height, width) = camera, size
    if not (0 < cx < width and 0 < cy < height):
        return f"its principal point {cx:.6g}, {cy:.6g} is outside the image of {format_size(size)}"
    focal_px, centre, side = (fx, cx, width) if width >= height else (fy, cy, height)
    fov_deg = degrees(atan(centre / focal_px) + atan((side - centre) / focal_px))
    low, high = FIELD_OF_VIEW_DEG
    if not low <= fov_deg <= high:
        return f"its field of view over the long side, {side} pixels, is {fov_deg:.3g} degrees, not {low:g} to {high:g}"
    return ""


def read_statement(raw: Path) -> Statement:
    """Read and check dataset.yaml. ValueError lists every fault as `file: key: what`."""
    path = Path(raw) / STATEMENT
    values = read_yaml(path)
    try:
        return Statement.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ValueError(faults_of(path, ((fault["loc"], describe(fault)) for fault in error.errors()))) from error


def describe(fault: ErrorDetails) -> str:
    """What pydantic found wrong with one value, in a few words."""
    if fault["type"] == "missing":
        return "missing, and it is never guessed"
    text = fault["msg"].removeprefix("Value error, ")
    return text if fault["type"] == "value_error" else f"{text}, found {fault['input']!r:.80}"
