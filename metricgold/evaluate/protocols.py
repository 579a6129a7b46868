"""By which rules a benchmark is measured: frames, truth, crop, range, how a prediction is fitted to the truth.

Every protocol is a file of its own, metricgold/evaluate/protocols/<name>.yaml, with the source that defines it. Its
digest names all that decides figures: tables compare only rows of one digest.

The truth decides which pixels count, never the model: a model whose own range ends short of the protocol's is wrong
there. Public scripts slice with excluded ends, rows 45:471 are 426 rows, and leave out truth that equals an end of
the range; so does every protocol.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from math import log
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from metricgold.datasets import ClosedModel, Frame, FrameRef, matches_name
from metricgold.params import DatasetName
from metricgold.storage import digest_json, faults_of, read_yaml

FOLDER = Path(__file__).with_suffix("")
WITH_CAMERA = "+camera"  # after a protocol's name: the same with the camera given
TWIN = "-synthetic"
MAX_STRETCH = 0.05  # by which the aspect of a prediction may differ from the truth's: networks round to 14 or 64 pixels

Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # rows, columns
Box = tuple[int, int, int, int]  # rows from, to, columns from, to; the ends are excluded
Share = Annotated[float, Field(ge=0, le=1)]
Window = tuple[slice, slice]  # rows, columns of a frame


class Frames(ClosedModel):
    """Which frames are measured: all those of the data set whose names match `names`, pinned for the real data set."""

    names: str = "*"  # a glob
    count: Annotated[int, Field(ge=1)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # names_digest of their names


class Crop(ClosedModel):
    """Which part of a frame is seen and counts."""

    window: Size | None = None  # bottom centre; the model sees this part alone
    box: Box | None = None  # of the window, else of the frame
    shares: tuple[Share, Share, Share, Share] | None = None  # the same in shares of height and width, rounded down
    shares_of: Literal["window", "frame"] = "window"
    # Frames of these sizes have window and box in pixels as they stand here; one of another size, such as a smaller
    # synthetic twin's, has them in proportion to the first. Without sizes every frame has them as they stand.
    sizes: tuple[Size, ...] = ()

    @model_validator(mode="after")
    def _one_part(self) -> "Crop":
        if self.box and self.shares:
            raise ValueError("box and shares exclude each other")
        if self.shares_of == "frame" and not self.shares:
            raise ValueError("shares_of needs shares")
        return self

    def window_of(self, shape: Size) -> Window:
        """The part of a frame [H, W] that a model sees: the bottom centre, else all of it."""
        height, width = shape
        rows, columns = shape if self.window is None else self._scaled(self.window, shape)
        if rows > height or columns > width:
            raise ValueError(f"a frame of {height} x {width} pixels has no window of {rows} x {columns}")
        left = (width - columns) // 2
        return slice(height - rows, height), slice(left, left + columns)

    def mask(self, shape: Size) -> np.ndarray:
        """The pixels of a frame [H, W] that count, bool [H, W]."""
        counted = np.zeros(shape, bool)
        window = counted[self.window_of(shape)]  # a view
        part = counted if self.shares_of == "frame" else window
        if self.box:
            top, bottom, left, right = self._scaled(self.box, shape)
        elif self.shares:
            sides = (part.shape[0], part.shape[0], part.shape[1], part.shape[1])
            top, bottom, left, right = (int(share * side) for share, side in zip(self.shares, sides, strict=True))
        else:
            top, bottom, left, right = 0, part.shape[0], 0, part.shape[1]
        part[top:bottom, left:right] = True
        return counted

    def _scaled(self, pixels: Sequence[int], shape: Size) -> Sequence[int]:
        """Rows and columns in pixels of a frame of this size."""
        if not self.sizes or shape in self.sizes:
            return pixels
        per_side = len(pixels) // 2
        scales = [of / stated for of, stated in zip(shape, self.sizes[0], strict=True)]
        return [round(value * scales[i // per_side]) for i, value in enumerate(pixels)]


class Protocol(ClosedModel):
    """The rules of one benchmark. `name` is that of its file, with +camera where the camera is given."""

    name: str
    benchmark: DatasetName
    title: str
    source: Annotated[list[str], Field(min_length=1)]  # who defines these rules: title and address
    notes: str = ""
    default: bool = False  # of the benchmark's protocols, the one that is measured where none is named
    frames: Frames = Frames()
    truth: str = "planar_depth_m"  # or a layer of the frame that holds metres
    masks: tuple[str, ...] = ()  # layers that must be true, beside what is valid in the truth
    crop: Crop = Crop()
    min_m: Annotated[float, Field(ge=0)] = 0.0  # truth counts above
    max_m: Annotated[float, Field(gt=0)] | None = None  # and below; None: all
    clip_m: tuple[float, float | None] | None = None  # of predictions, after they are resized
    # bilinear: pixel centres at +0.5; bilinear-corners: outer pixels on outer pixels; nearest: the nearest centre
    resize: Literal["bilinear", "bilinear-corners", "nearest"] = "bilinear"
    camera: Literal["given", "withheld"] = "withheld"  # from methods that can take one
    average: Literal["image", "pixel", "scene"] = "image"  # over which figures are means
    figures: tuple[Literal["boundary", "planarity", "edges"], ...] = ()  # beside those of every benchmark

    @property
    def digest(self) -> str:
        """sha256 of all that decides figures; names, titles, sources and notes do not."""
        return digest_json(self.model_dump(mode="json", exclude={"name", "title", "source", "notes", "default"}))

    def counted(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """True depth in metres, float32 [H, W], and the pixels that count, bool [H, W], of a whole frame.

        Raises ValueError where the frame lacks a layer by which this protocol counts.
        """
        if self.truth == "planar_depth_m":
            true_m, counted = frame.planar_depth_m, frame.valid_mask.copy()
        else:
            true_m = self._layer(frame, self.truth)
            counted = true_m > 0
        counted &= true_m > self.min_m
        if self.max_m is not None:
            counted &= true_m < self.max_m
        for name in self.masks:
            counted &= self._layer(frame, name).astype(bool)
        return true_m, counted & self.crop.mask(counted.shape)

    def window(self, shape: Size) -> Window:
        """Rows and columns of a frame [H, W] that a model is to see; predictions of them are what `fit` takes."""
        return self.crop.window_of(shape)

    def fit(self, pred_m: np.ndarray, shape: Size) -> np.ndarray:
        """A prediction in metres as large as the frame's truth [H, W], clipped as the protocol says, float32.

        Raises as `resize_map`.
        """
        fitted = self.resize_map(pred_m, shape)
        return fitted if self.clip_m is None else np.clip(fitted, *self.clip_m)

    def resize_map(self, values: np.ndarray, shape: Size) -> np.ndarray:
        """Any map [h, w] of the frame [H, W] or of its window, as large as the frame, float32; NaN beside the window.

        Its aspect says of which of the two it is. Raises ValueError for a map of another aspect.
        """
        values = np.asarray(values, np.float32)
        if values.shape == tuple(shape):
            return values
        if values.ndim != 2 or not values.size:
            raise ValueError(f"a prediction must be a map [height, width], got shape {list(values.shape)}")
        whole = np.full(shape, np.nan, np.float32)
        part = min(whole[self.window(shape)], whole, key=lambda seen: _stretch(values.shape, seen.shape))  # views
        if _stretch(values.shape, part.shape) > MAX_STRETCH:
            sizes = [f"{width} x {height}" for height, width in (values.shape, part.shape)]
            raise ValueError(f"a prediction of {sizes[0]} pixels has not the aspect of {sizes[1]}")
        part[...] = _resized(values, part.shape, self.resize)
        return whole

    def select(self, refs: Sequence[FrameRef]) -> list[FrameRef]:
        """Those that this protocol measures, in the order of their names."""
        return sorted((ref for ref in refs if matches_name(ref.name, self.frames.names)), key=lambda ref: ref.name)

    def check_frames(self, refs: Sequence[FrameRef]) -> None:
        """ValueError unless `refs`, all frames of the split of a data set, have those that this protocol measures.

        A synthetic twin has frames of its own: any that match will do.
        """
        names = [ref.name for ref in self.select(refs)]
        if not names:
            raise ValueError(f"protocol {self.name} measures frames {self.frames.names!r}, and there is none")
        if refs[0].dataset != self.benchmark:
            return
        expected, digest = self.frames.count, names_digest(names)
        if expected not in (None, len(names)) or self.frames.sha256 not in (None, digest):
            raise ValueError(
                f"protocol {self.name} measures {expected} frames of {self.benchmark} with names of sha256 "
                f"{str(self.frames.sha256)[:12]}, but there are {len(names)} of {digest[:12]}"
            )

    def _layer(self, frame: Frame, name: str) -> np.ndarray:
        if name not in frame.layers:
            there = ", ".join(frame.layers) or "none"
            raise ValueError(f"frame {frame.name} has no layer {name!r}, which protocol {self.name} needs; has {there}")
        return frame.layers[name]


def names_digest(names: Sequence[str]) -> str:
    """sha256 of the sorted names, each with a line end: that of a file with the sorted list."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


def protocol_names() -> list[str]:
    """The names of all protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """The protocol of this name; with +camera after it, the same with the camera given to methods that can take one.

    Raises ValueError for an unknown name.
    """
    stem = name.removesuffix(WITH_CAMERA)
    if stem not in protocol_names():
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(protocol_names())}, each also with +camera")
    protocol = _read(FOLDER / f"{stem}.yaml")
    return protocol if stem == name else protocol.model_copy(update={"name": name, "camera": "given"})


def protocols_of(dataset: str) -> list[Protocol]:
    """The protocols of a data set, first the default one; a synthetic twin has those of its original.

    A data set that is not a benchmark has none.
    """
    original = dataset.removesuffix(TWIN)
    found = [protocol for protocol in map(load_protocol, protocol_names()) if protocol.benchmark == original]
    return sorted(found, key=lambda protocol: not protocol.default)


@cache
def _read(path: Path) -> Protocol:
    values = read_yaml(path)
    try:
        return Protocol.model_validate({"name": path.stem, **(values or {})})
    except ValidationError as error:
        raise ValueError(faults_of(path, ((fault["loc"], fault["msg"]) for fault in error.errors()))) from error


def _stretch(size: Sequence[int], other: Sequence[int]) -> float:
    """How far the aspects of two sizes differ: the absolute logarithm of their ratio."""
    return abs(log(size[0] * other[1] / (size[1] * other[0])))


def _resized(values: np.ndarray, size: Size, method: str) -> np.ndarray:
    """A map [h, w] at another size, without smoothing first, as public evaluations do it."""
    for axis, (old, new) in enumerate(zip(values.shape, size, strict=True)):
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
        if method != "bilinear-corners":
            at = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        if method == "nearest":
            values = values.take(np.floor(at + 0.5).astype(int), axis)
            continue
        low = np.floor(at).astype(int)
        weight = (at - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        below, above = values.take(low, axis), values.take(np.minimum(low + 1, old - 1), axis)
        values = below + weight * (above - below)
    return values
