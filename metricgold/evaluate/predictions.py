"""A folder of predictions as a method: depth files of any program, and predictions.yaml, which says what they hold.

    kind: disparity_per_m   depth_m, disparity_per_m, relative_depth or relative_disparity
    scale: 0.001            what a stored number is multiplied by: then metres, or 1 / metres. Default 1, but every
                            file of integers needs one
    array: disparity        of .npz and .exr files that hold several
    coding: moge            of .png files whose numbers are coded: metricgold or moge
    resize: true            predictions of another size than their image are right, and fitted as the protocol says
    name: our-old-net       in tables; the folder's name if not given

Depth files of `metricgold predict` say all that themselves: a folder of them needs no predictions.yaml.

A frame's file is called as the frame, with folders as in its name, and ends in .npy, .npz, .png, .exr, .tiff, .tif,
.pfm or .pgm. What `predict` writes is found by the frame's name too: `<frame>.depth.png` and `<frame>.jpg.depth.png`.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from metricgold.datasets import ClosedModel, Frame, FrameRef, evenly_spaced, read_stored_depth, readable_frames
from metricgold.evaluate.methods import Estimate, Kind
from metricgold.evaluate.ours import estimate_of
from metricgold.images import read_depth, read_uncertainty_png
from metricgold.storage import digest_file, digest_json, faults_of, read_yaml

log = logging.getLogger(__name__)

STATEMENT = "predictions.yaml"
LOOKED_AT = 16  # frames of which the numbers are compared with the truth before anything is measured
MANY_PIXELS = 4096  # of one of them, evenly spaced
AGAINST_TRUTH = -0.5  # median rank correlation from which numbers run against the truth: of depth it is near 1
FAR_OFF = 10.0  # median ratio to the truth, or 1 over it, from which the unit or the scale is likely wrong

_FILE = re.compile(
    r"(?P<frame>.+?)(?P<image>\.(?:jpe?g|png|tiff?|bmp|webp|heic))?(\.depth(_mm)?)?\.(npy|npz|png|exr|tiff?|pfm|pgm)",
    re.IGNORECASE | re.DOTALL,
)
_NO_DEPTH = re.compile(r"\.(?:uncertainty|normals|preview)\.\w+")


class Statement(ClosedModel):
    """predictions.yaml. Made by read_statement."""

    kind: Kind
    scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    array: str | None = None
    coding: Literal["metricgold", "moge"] | None = None
    resize: bool = False
    name: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _coded_metres(self) -> "Statement":
        if self.coding and (self.kind != "depth_m" or self.scale is not None):
            raise ValueError(f"the coding {self.coding} gives metres: expected kind depth_m and no scale")
        return self


def read_statement(folder: Path) -> Statement | None:
    """Read and check predictions.yaml; None without one. ValueError lists every fault as `file: key: what`."""
    path = folder / STATEMENT
    if not path.exists():
        return None
    try:
        values = read_yaml(path)
        return Statement.model_validate({} if values is None else values)
    except ValidationError as error:
        faults = ((fault["loc"], f"{fault['msg']}, got {fault['input']!r:.80}") for fault in error.errors())
        raise ValueError(faults_of(path, faults)) from error


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Depth files by frame. Made by open_predictions, which has checked that every frame has one."""

    name: str
    digest: str
    statement: Statement | None
    files: Mapping[str, Path]  # frame name -> file
    takes_camera: bool = False

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """The stored estimate of each frame. ValueError names a file that is broken or of another size."""
        return [self.read(frame.name, (frame.rgb.shape[0], frame.rgb.shape[1])) for frame in frames]

    def read(self, frame: str, size: tuple[int, int]) -> Estimate:
        """The estimate of a frame whose image has this size, height and width."""
        path = self.files[frame]
        estimate = _read_own(path) if self.statement is None else _read_stated(path, self.statement)
        is_fitted = self.statement is not None and self.statement.resize
        if estimate.depth.shape != size and not is_fitted:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (estimate.depth.shape, size)]
            raise ValueError(
                f"{path}: a prediction of {sizes[0]} for an image of {sizes[1]}; "
                f"`resize: true` in {STATEMENT} has it fitted as the protocol says"
            )
        return estimate


def open_predictions(folder: Path, refs: Sequence[FrameRef]) -> Predictions:
    """A folder of predictions for these frames.

    Raises ValueError naming a frame without a file, or with two, and where the numbers run against the truth: disparity
    that is given as depth, or depth as disparity.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of predictions")
    statement = read_statement(folder)
    files = _files_by_frame(folder, {ref.name for ref in refs})
    digests = {frame: digest_file(path) for frame, path in files.items()}
    digest = digest_json([statement.model_dump(exclude={"name"}) if statement else None, digests])
    name = statement.name if statement and statement.name else folder.resolve().name
    predictions = Predictions(name, digest, statement, files)
    _check_numbers(folder, predictions, refs)
    return predictions


def _files_by_frame(folder: Path, frames: set[str]) -> dict[str, Path]:
    """The file of each frame. ValueError where one has none or several."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        match = _FILE.fullmatch(path.relative_to(folder).as_posix())
        if match is None or _NO_DEPTH.search(path.name):
            continue
        called = (match["frame"], f"{match['frame']}{match['image'] or ''}")
        for frame in frames.intersection(called):
            if frame in found:
                raise ValueError(f"{folder}: frame {frame} has two files, {found[frame].name} and {path.name}")
            found[frame] = path
    missing = sorted(frames - found.keys())
    if missing:
        raise ValueError(
            f"{folder}: no prediction for frame {missing[0]} ({len(missing)} of {len(frames)} frames have none); "
            f"expected a file such as {missing[0]}.npy"
        )
    return dict(sorted(found.items()))


def _read_own(path: Path) -> Estimate:
    """A depth file of `metricgold predict`, with the uncertainty in it or beside it."""
    try:
        file = read_depth(path)
    except ValueError as error:
        raise ValueError(f"{error}; for other files say in {STATEMENT} what they hold") from error
    beside = path.with_name(re.sub(r"\.depth(_mm)?\.\w+$", ".uncertainty.png", path.name))
    uncertainty, attributes = file.uncertainty, file.attributes
    if uncertainty is None and beside != path and beside.is_file():
        uncertainty, attributes = read_uncertainty_png(beside)
    is_calibrated = attributes.get("uncertainty_calibrated") == "true"
    # The model has depth at every pixel, and protocols ask for it: what it calls no surface is as far as it can see.
    farthest_m = file.far_m or np.nanmax(file.planar_depth_m, initial=0)
    depth_m = np.where(file.beyond_mask, np.float32(farthest_m), file.planar_depth_m)
    return estimate_of(depth_m, uncertainty, is_calibrated)


def _read_stated(path: Path, statement: Statement) -> Estimate:
    """A depth file of another program, its numbers as stated."""
    if path.suffix.lower() == ".png" and not statement.coding and _is_own(path):
        raise ValueError(f"{path}: a file of `metricgold predict`; say `coding: metricgold`, or nothing at all")
    stored = read_stored_depth(path, statement.array, statement.coding)
    if stored.dtype.kind in "ui" and statement.scale is None and statement.kind in ("depth_m", "disparity_per_m"):
        raise ValueError(f"{path}: holds integers; {STATEMENT} has to say their scale, such as `scale: 0.001`")
    scale = 1.0 if statement.scale is None else statement.scale
    return Estimate((stored * np.float64(scale)).astype(np.float32), statement.kind)


def _is_own(png: Path) -> bool:
    """Whether a PNG says that it holds planar depth, as those of this project do: its codes are no plain numbers."""
    try:
        read_depth(png)
    except ValueError:
        return False
    return True


# Whether the numbers can be what they are said to be


def _check_numbers(folder: Path, predictions: Predictions, refs: Sequence[FrameRef]) -> None:
    """Compare some frames with the truth. ValueError where larger numbers mean nearer and should mean farther."""
    some = [refs[i] for i in evenly_spaced(len(refs), LOOKED_AT)]
    correlations, ratios, kind = [], [], ""
    for _, frame in readable_frames(some, {}):
        estimate = predictions.read(frame.name, frame.valid_mask.shape)
        kind = estimate.kind
        if estimate.depth.shape == frame.valid_mask.shape:
            p, g = _sample(estimate.depth, frame)
            correlations.append(rank_correlation(p, g))
            ratios.append(np.median(p) / np.median(g) if "depth" in kind else np.median(p) * np.median(g))
    if np.isnan(correlations).all():  # constants, or nothing of the truth's size
        return
    correlation, ratio = float(np.nanmedian(correlations)), float(np.nanmedian(ratios))
    figures = f"rank correlation with true depth {correlation:.2f}, median ratio predicted / true {ratio:.3g}"
    if (correlation > -AGAINST_TRUTH) if "disparity" in kind else (correlation < AGAINST_TRUTH):
        other = "depth" if "disparity" in kind else "disparity"
        raise ValueError(f"{folder}: {kind} was stated, but these numbers are {other}: {figures}; see {STATEMENT}")
    if kind in ("depth_m", "disparity_per_m") and not 1 / FAR_OFF < ratio < FAR_OFF:
        log.warning("%s: %s was stated, in another unit as it seems: %s; see %s", folder, kind, figures, STATEMENT)


def _sample(numbers: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Some predicted numbers and true depths [N] of a frame, where both are known."""
    both = np.flatnonzero(frame.valid_mask & np.isfinite(numbers))
    some = both[evenly_spaced(len(both), MANY_PIXELS)]
    return numbers.ravel()[some].astype(np.float64), frame.planar_depth_m.ravel()[some].astype(np.float64)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two lists [N], equal values at their mean rank; NaN where one is constant."""
    ranks = [_ranks(values) for values in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(a) > 1 else np.nan


def _ranks(values: Iterable[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])
