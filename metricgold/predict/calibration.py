"""A calibration: what points with known distances say of one model's depth through one camera, as a file.

metricgold.predict.calibrate makes it, `predict --calibration` applies it: see apply_calibration.
"""

from dataclasses import asdict, replace
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AliasChoices, Field, ValidationError

from metricgold.datasets import ClosedModel
from metricgold.images import relative_focal
from metricgold.log_depth import LogDepth
from metricgold.predict.outputs import EARLIER_DIGEST
from metricgold.predict.robust_fit import Line
from metricgold.storage import digest_json, faults_of, read_json

if TYPE_CHECKING:
    from metricgold.model import Prediction
    from metricgold.predict.outputs import ImageResult

    Predicted = TypeVar("Predicted", Prediction, ImageResult)

SAME_FOCAL = 0.03  # a 35 mm equivalent is rounded to whole millimetres: 2 % at 26 mm

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Camera(ClosedModel):
    """What makes two images those of one camera.

    relative_focal  metricgold.images.relative_focal, which no resizing changes
    name            make and model by EXIF; None where it does not say
    """

    relative_focal: Positive
    name: str | None = None

    @classmethod
    def of(cls, intrinsics: Any, size: tuple[int, int], name: str | None = None) -> "Camera":
        """The camera of an image of that height and width in pixels, by its intrinsics [3, 3]."""
        return cls(relative_focal=float(relative_focal(np.asarray(intrinsics), *size[:2])), name=name)

    def difference(self, other: "Camera") -> str | None:
        """How another camera differs; None if it is the same one."""
        if self.name and other.name and self.name != other.name:
            return f"{other.name}, not {self.name}"
        if abs(log(other.relative_focal / self.relative_focal)) > SAME_FOCAL:
            return f"of relative focal length {other.relative_focal:.3f}, not {self.relative_focal:.3f}"
        return None


class LeaveOneOut(ClosedModel):
    """AbsRel for points that a fit has not seen, by what is fitted."""

    left_out: Literal["image", "point"]
    before: NotNegative
    after: NotNegative
    improvement: float
    interval_90: tuple[float, float]
    models: dict[str, NotNegative]


class Calibration(ClosedModel):
    """depth = scale * predicted * (p / pivot_m) ^ (power - 1), p being predicted within near_m to far_m: see Line.

    For one model and one camera.

    scale_error, power_error  standard errors, relative and absolute
    params                    of the predictions that it was fitted to
    points                    what it was fitted to, with used false for those that disagree
    """

    version: Literal[1] = 1
    model: str
    model_digest: str = Field(validation_alias=AliasChoices("model_digest", EARLIER_DIGEST))
    params: dict[str, Any]
    camera: Camera
    kind: Literal["scale", "scale and power"]
    scale: Positive
    scale_error: NotNegative
    power: Positive
    power_error: NotNegative
    pivot_m: Positive
    near_m: Positive
    far_m: Positive
    abs_rel: LeaveOneOut
    num_points: int
    num_used: int
    points: list[dict[str, Any]]
    date: str

    @property
    def sha256(self) -> str:
        """Digest of all of it but the date."""
        values = self.model_dump(mode="json", exclude={"date", "model_digest"})
        return digest_json(values | {EARLIER_DIGEST: self.model_digest})  # so that files of before keep theirs

    @property
    def facts(self) -> dict[str, Any]:
        """What outputs say of it."""
        return {"kind": self.kind, **asdict(self.line), "scale_error": self.scale_error, "sha256": self.sha256}

    @property
    def summary(self) -> dict[str, Any]:
        """What is said about it in a few lines."""
        low, high = self.abs_rel.interval_90
        return {
            "kind": self.kind,
            "scale": round(self.scale, 4),
            "scale_error": round(self.scale_error, 4),
            "power": round(self.power, 4),
            "power_error": round(self.power_error, 4),
            "points_used": f"{self.num_used} of {self.num_points}",
            "abs_rel_before": round(self.abs_rel.before, 4),
            f"abs_rel_after, each {self.abs_rel.left_out} seen by a fit without it": round(self.abs_rel.after, 4),
            "improvement": f"{self.abs_rel.improvement:.4f} (90 %: {low:.4f} to {high:.4f})",
        }

    @property
    def line(self) -> Line:
        """What is done to depth in metres."""
        return Line(self.scale, self.power, self.pivot_m, self.near_m, self.far_m)

    def check_camera(self, intrinsics: np.ndarray | None, size: tuple[int, ...], name: str | None) -> None:
        """Raise ValueError for an image [H, W, ...] of another camera than its own, or of none; name: by EXIF."""
        if intrinsics is None:
            raise ValueError("it has no pinhole camera, and the calibration is one camera's")
        if reason := self.camera.difference(Camera.of(intrinsics, (size[0], size[1]), name)):
            raise ValueError(f"the calibration is another camera's: this one is {reason}")

    def apply_to_range(self, log_depth: LogDepth) -> LogDepth:
        """The range of calibrated depth: as the model's own moves along, nothing more saturates than did before."""
        near_m, far_m = self.line.apply(np.array([log_depth.near_m, log_depth.far_m])).tolist()
        return LogDepth(near_m, far_m)


def read_calibration(path: Path) -> Calibration:
    """Read a file of `metricgold calibrate`. ValueError lists every fault as `file: key: what`."""
    try:
        return Calibration.model_validate(read_json(path))
    except ValidationError as error:
        faults = ((fault["loc"], f"{fault['msg']}, got {fault['input']!r:.80}") for fault in error.errors())
        raise ValueError(faults_of(path, faults)) from error


def apply_calibration(
    calibration: Calibration, prediction: "Predicted", *, camera_name: str | None = None
) -> "Predicted":
    """A prediction in the metres of the calibration. Raises ValueError where it is of another camera, or of none.

    Its range moves along, and to the uncertainty, relative float32 [H, W], that of the fit is added (by squares); what
    was not known (NaN) stays so. Whether it is of the calibration's model, the caller knows.

    camera_name  make and model by EXIF, if known
    """
    depth_m = prediction.planar_depth_m
    calibration.check_camera(prediction.intrinsics, depth_m.shape, camera_name)
    of_fit = calibration.scale_error**2 + (calibration.power_error * np.log(depth_m / calibration.pivot_m)) ** 2
    uncertainty = np.sqrt((calibration.power * prediction.uncertainty) ** 2 + of_fit)
    return replace(
        prediction,
        planar_depth_m=calibration.line.apply(depth_m).astype(np.float32),
        uncertainty=uncertainty.astype(np.float32),
        log_depth=calibration.apply_to_range(prediction.log_depth),
    )
