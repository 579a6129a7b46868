"""`metricgold calibrate`: measured points and the depth that a model predicts there, to a calibration or a reason.

The points are a csv: columns `image` (its key below the images or predictions), `x` and `y` (pixels of the upright
image, counted from 0; the centre of the first is 0.5, so that the whole number and the middle of a pixel are the same
pixel) and `metres`; or `image` and `depth`, a measured depth map that metricgold.read_depth reads. Metres are planar
depth or the ray distance that a laser rangefinder shows: the column `kind` says which, or one word for all rows.
"""

import csv
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BytesIO
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from metricgold.datasets import read_stored_depth
from metricgold.images import DepthFile, planar_from_ray_distance, rays_from_intrinsics, read_depth
from metricgold.model import digest_model
from metricgold.params import DISTANCE_KINDS, DistanceKind, Output, Predict
from metricgold.predict.calibration import Calibration, Camera, LeaveOneOut, Positive
from metricgold.predict.calibration_plot import draw_calibration
from metricgold.predict.entries import predict_entries
from metricgold.predict.job import BatchJob, DepthModel
from metricgold.predict.outputs import SUFFIXES, with_digest
from metricgold.predict.robust_fit import Fit, fit_calibration
from metricgold.storage import Folder, S3Prefix, open_bucket, parse_json, write_aside, write_json

log = logging.getLogger(__name__)

Number = Annotated[float, Field(allow_inf_nan=False)]
Row = tuple[Number, Number, Number]  # of intrinsics
EXACT_FIRST: tuple[Output, ...] = ("npz", "tiff", "exr", "log-png", "mm-png")  # where several are there
PIXELS_OF_MAP = 100  # evenly spaced over those with depth on both sides: neighbours say the same again
SATURATED = 1e-3  # of ln range: as near to an end as that, the model says only "at least"


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the csv: metres at a pixel, or the path of a depth map.

    scale  what the map's numbers are multiplied by to be metres; None for a map that says what its numbers mean
    """

    where: str  # file and line
    image: str
    kind: DistanceKind
    x: int = 0
    y: int = 0
    metres: float = 0.0
    depth_map: Path | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Predicted and measured planar depth in metres of one pixel."""

    image: str
    x: int
    y: int
    predicted_m: float
    measured_m: float


@dataclass(frozen=True, slots=True, eq=False)
class PredictedImage:
    """A depth file and its side-car."""

    key: str
    file: DepthFile
    facts: dict[str, Any]

    @property
    def camera(self) -> Camera:
        """Of the photograph."""
        return Camera.of(self.facts["intrinsics"], self.file.planar_depth_m.shape, self.facts.get("camera_name"))

    @property
    def depth_m(self) -> np.ndarray:
        """Planar depth [H, W], NaN where there is none or it saturates."""
        depth_m, near_m, far_m = self.file.planar_depth_m, self.facts["near_m"], self.facts["far_m"]
        margin = (far_m / near_m) ** SATURATED
        with np.errstate(invalid="ignore"):
            inside = (depth_m > near_m * margin) & (depth_m < far_m / margin)
        return np.where(inside, depth_m, np.nan)


def calibrate(
    points: Path,
    out: Path,
    *,
    predictions: str | None = None,
    images: str | None = None,
    model: Path | None = None,
    model_name: str = "",
    params: Predict | None = None,
    kind: DistanceKind | None = None,
    pipe: DepthModel | None = None,
) -> Calibration:
    """Fit a calibration to the points in a csv and write it to `out`, and a picture beside it.

    predictions  folder or s3://bucket/prefix of depth files with their side-cars; without it
    images       a folder or s3://bucket/prefix is predicted with the model's folder and params, or with `pipe`
    kind         of metres in rows that do not say it

    The picture is drawn also where the points fit nothing. Raises ValueError with the reason, and then leaves `out` as
    it was: for a csv with a fault, points outside their image or where the model gives no depth, images of different
    cameras or models, too few points, points that contradict each other, and where no fit lowers the error for sure.
    """
    measured = read_points(points, kind)
    if predictions is not None:
        return calibrate_on(open_bucket(predictions), measured, points, out)
    if images is None:
        raise ValueError("a calibration needs predictions, or images and a model that predicts them")
    with TemporaryDirectory(prefix="metricgold-") as scratch:
        job = BatchJob(
            (params or Predict()).model_copy(update={"outputs": ["npz", "json"], "gallery": 0}),
            *(images, scratch, Path(model or ""), model_name, digest_model(model) if model else ""),
        )
        predict_named(job, {one.image: one for one in measured}, pipe)
        return calibrate_on(open_bucket(scratch), measured, points, out)


def predict_named(job: BatchJob, wanted: dict[str, Measured], pipe: DepthModel | None) -> None:
    """Predict the images that the points name. ValueError for one that is not there or fails."""
    entries = [entry for entry in job.open_source().entries() if entry.key in wanted]
    if missing := sorted(wanted.keys() - {entry.key for entry in entries}):
        raise ValueError(f"{wanted[missing[0]].where}: {missing[0]} is not in {job.input}")
    for row in predict_entries(job, entries, pipe=pipe):
        if row["status"] != "done":
            raise ValueError(f"{wanted[row['input']].where}: {row['reason']}")


def calibrate_on(predictions: Folder | S3Prefix, measured: list[Measured], points: Path, out: Path) -> Calibration:
    """Fit, draw and write with predictions that are there."""
    predicted = {key: read_predicted(predictions, key) for key in dict.fromkeys(one.image for one in measured)}
    camera = camera_of_all(list(predicted.values()))
    pairs = [pair for one in measured for pair in pairs_of(one, predicted[one.image])]
    predicted_m, measured_m = (
        np.array([getattr(pair, name) for pair in pairs]) for name in ("predicted_m", "measured_m")
    )
    try:
        fit = fit_calibration(predicted_m, measured_m, [pair.image for pair in pairs])
    except ValueError as error:
        raise ValueError(f"{points}: {error}") from error
    picture = out.with_suffix(".png")
    with write_aside(picture) as aside:
        draw_calibration(aside, predicted_m, measured_m, fit)
    if fit.model == "none":
        raise ValueError(f"{points}: nothing to calibrate: {in_doubt(fit)}; {picture} shows it")
    calibration = stored(fit, pairs, camera, next(iter(predicted.values())).facts)
    if calibration.abs_rel.left_out == "point":
        log.warning("%s is of %d images: its error is that of their scenes; three images say more", out, len(predicted))
    write_json(out, calibration.model_dump(mode="json"))
    return calibration


def in_doubt(fit: Fit) -> str:
    """Why a fit is not kept."""
    mean, low, high = fit.improvement
    others = ", ".join(f"{error:.3f} with {model}" for model, error in fit.abs_rel.items() if model != "none")
    interval = f"90 %: {low:+.3f} to {high:+.3f}"
    return (
        f"AbsRel of {np.count_nonzero(fit.used)} points is {fit.abs_rel['none']:.3f} as predicted and {others}, "
        f"each point seen by a fit without it; it falls by {mean:.3f} ({interval}), which may be nothing"
    )


def stored(fit: Fit, pairs: list[Pair], camera: Camera, facts: dict[str, Any]) -> Calibration:
    """The calibration of a fit that is kept."""
    mean, low, high = fit.improvement
    by_image = fit.num_groups == len({pair.image for pair in pairs})
    return Calibration(
        model=facts["model"],
        model_digest=facts["model_digest"],
        params=facts["params"],
        camera=camera,
        kind=fit.model,
        **asdict(fit.line),
        scale_error=fit.scale_error,
        power_error=fit.power_error,
        abs_rel=LeaveOneOut(
            left_out="image" if by_image else "point",
            before=fit.abs_rel["none"],
            after=fit.abs_rel[fit.model],
            improvement=mean,
            interval_90=(low, high),
            models=dict(fit.abs_rel),
        ),
        num_points=len(pairs),
        num_used=int(np.count_nonzero(fit.used)),
        points=[{**asdict(pair), "used": bool(used)} for pair, used in zip(pairs, fit.used, strict=True)],
        date=datetime.now(UTC).date().isoformat(),
    )


# What was measured


def read_points(path: Path, kind: DistanceKind | None) -> list[Measured]:
    """The rows of the csv. ValueError names file, line and column of a fault."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="", restval="")
            columns = set(reader.fieldnames or ())
            rows = [(f"{path}: line {reader.line_num}", row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a csv file: {error}") from error
    if not (columns >= {"image", "x", "y", "metres"} or columns >= {"image", "depth"}):
        raise ValueError(f"{path}: expected the columns image, x, y, metres, or image, depth; got {sorted(columns)}")
    if not rows:
        raise ValueError(f"{path}: holds no points")
    return [read_row(where, row, path.parent, kind) for where, row in rows]


def read_row(where: str, row: dict[str, str], folder: Path, kind: DistanceKind | None) -> Measured:
    """One row; `kind` if it does not say its own."""
    cells = {name: (cell or "").strip() for name, cell in row.items() if name}
    image, of_row = cells["image"], cells.get("kind") or kind
    if not image:
        raise ValueError(f"{where}: image: is empty")
    if (depth := cells.get("depth")) and not cells.get("scale"):
        return Measured(where, image, "planar", depth_map=folder / depth)
    if of_row not in DISTANCE_KINDS:
        raise ValueError(
            f"{where}: kind: say whether metres are planar or a ray distance, here or with --kind; got {of_row!r}"
        )
    if depth:
        return Measured(where, image, of_row, depth_map=folder / depth, scale=above_0(cells, "scale", where))
    x, y = (int(np.floor(number_in(cells, name, where))) for name in ("x", "y"))
    return Measured(where, image, of_row, x, y, above_0(cells, "metres", where))


def number_in(cells: dict[str, str], name: str, where: str) -> float:
    """The number in a cell."""
    try:
        number = float(cells.get(name, ""))
    except ValueError:
        number = np.nan
    if not isfinite(number):
        raise ValueError(f"{where}: {name}: expected a number, got {cells.get(name, '')!r:.80}")
    return number


def above_0(cells: dict[str, str], name: str, where: str) -> float:
    """The number in a cell that holds a length or a scale."""
    number = number_in(cells, name, where)
    if number <= 0:
        raise ValueError(f"{where}: {name}: expected a number above 0, got {number:g}")
    return number


# What was predicted


def read_predicted(predictions: Folder | S3Prefix, key: str) -> PredictedImage:
    """The depth file of an image and its side-car. ValueError where one is missing, or depth was calibrated already."""
    side_car = predictions.own_key(key) + SUFFIXES["json"]
    names = [predictions.own_key(key) + SUFFIXES[kind] for kind in EXACT_FIRST]
    name = next(filter(predictions.exists, names), None)
    if name is None or not predictions.exists(side_car):
        raise ValueError(f"{predictions}: no depth of {key} with its side-car: expected {side_car} and {names[0]}")
    facts = read_facts(predictions.read(side_car), f"{predictions}: {side_car}")
    if facts.get("calibration"):
        raise ValueError(f"{predictions}: {name} is calibrated already; predict it without --calibration")
    if facts.get("intrinsics") is None:
        raise ValueError(f"{predictions}: {key} has no pinhole camera, and a calibration is one camera's")
    return PredictedImage(key, read_depth(BytesIO(predictions.read(name))), facts)


class _Facts(BaseModel):
    """What a calibration needs of a side-car."""

    model: str
    model_digest: str
    params: dict[str, Any]
    near_m: Positive
    far_m: Positive
    intrinsics: tuple[Row, Row, Row] | None
    camera_name: str | None = None


def read_facts(data: bytes, name: str) -> dict[str, Any]:
    """A side-car, whoever wrote it. ValueError led by `name` for one that lacks what a calibration needs."""
    facts = parse_json(data, name)
    try:
        facts = with_digest(facts) if isinstance(facts, dict) else facts
        _Facts.model_validate(facts)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
    return facts


def camera_of_all(predicted: list[PredictedImage]) -> Camera:
    """The camera that all images have. ValueError names two that differ in it, or in how they were predicted."""
    first, *others = predicted
    for one in others:
        if reason := first.camera.difference(one.camera):
            raise ValueError(f"{one.key} is of another camera than {first.key}: {reason}")
        for name in ("model_digest", "params"):
            if one.facts[name] != first.facts[name]:
                raise ValueError(f"{one.key} was predicted with another {name} than {first.key}")
    return first.camera


def pairs_of(measured: Measured, predicted: PredictedImage) -> Iterator[Pair]:
    """Pixels with both depths. ValueError for a point that has no prediction, and a map of another size."""
    if measured.depth_map is not None:
        yield from pairs_of_map(measured.depth_map, read_map(measured, predicted), predicted)
        return
    depth_m, (x, y) = predicted.depth_m, (measured.x, measured.y)
    height, width = depth_m.shape
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"{measured.where}: ({x}, {y}) is outside {measured.image}, which has {width} x {height} pixels"
        )
    if np.isnan(depth_m[y, x]):
        raise ValueError(
            f"{measured.where}: at ({x}, {y}) of {measured.image} the model gives no depth within its range"
        )
    metres = measured.metres
    if measured.kind == "ray distance":
        metres = to_planar(metres, predicted.facts["intrinsics"], x, y)
    yield Pair(measured.image, x, y, float(depth_m[y, x]), metres)


def to_planar(ray_distance_m: float, intrinsics: Any, x: int, y: int) -> float:
    """Planar depth from the ray distance at the centre of pixel (x, y)."""
    from_pixel = np.array(intrinsics, np.float64)
    from_pixel[:2, 2] -= x, y  # its centre becomes that of the first pixel
    return float(planar_from_ray_distance(np.array([[ray_distance_m]]), rays_from_intrinsics(from_pixel, 1, 1))[0, 0])


def read_map(measured: Measured, predicted: PredictedImage) -> np.ndarray:
    """Planar depth of a measured map in metres, NaN where it has none; of the size of the prediction, else ValueError.

    In a map of another program numbers that are 0, below 0 or not finite mean that nothing was measured.
    """
    path, scale = measured.depth_map, measured.scale
    assert path is not None
    try:
        depth_m = read_depth(path).planar_depth_m
    except ValueError as error:
        if scale is None:
            raise ValueError(f"{error}; for a map of another program the column scale says the metres of 1") from error
        depth_m = read_stored_depth(path) * np.float64(scale)
        depth_m = np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.nan)
    else:
        if scale is not None:
            raise ValueError(f"{path}: says itself what its numbers mean; leave the column scale empty")
    if depth_m.shape != predicted.depth_m.shape:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (depth_m.shape, predicted.depth_m.shape)]
        raise ValueError(f"{path}: a depth map of {sizes[0]} for an image of {sizes[1]}")
    if measured.kind == "ray distance":
        rays = rays_from_intrinsics(np.array(predicted.facts["intrinsics"], np.float64), *depth_m.shape)
        depth_m = planar_from_ray_distance(depth_m, rays)
    return depth_m


def pairs_of_map(path: Path, measured_m: np.ndarray, predicted: PredictedImage) -> Iterable[Pair]:
    """PIXELS_OF_MAP pixels, evenly spaced among those with depth on both sides."""
    depth_m = predicted.depth_m
    both = np.flatnonzero(np.isfinite(measured_m) & np.isfinite(depth_m))
    if not both.size:
        raise ValueError(f"{path}: it and the prediction of {predicted.key} share no pixel with depth")
    chosen = both[np.unique(np.linspace(0, both.size - 1, PIXELS_OF_MAP).astype(int))]
    rows, columns = np.unravel_index(chosen, depth_m.shape)
    for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
        yield Pair(predicted.key, x, y, float(depth_m[y, x]), float(measured_m[y, x]))
