"""Rows in heaps that compare: one ruler each, and within it a method's figures frame by frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metricgold.evaluate.protocols import load_protocol
from metricgold.evaluate.rows import Rows
from metricgold.metrics import Interval, interval_by_scene, mean_by_scene, paired_interval, scene_weights

SHORT = 12  # hex digits of a digest on the page
NUM_PLANES = "_num_planes"  # after the kind of plane: how many an image has of it


@dataclass(frozen=True)
class MethodRows:
    """One method's rows under one ruler, in the order of the frames.

    average  over what the protocol takes means: image, pixel or scene
    """

    title: str
    rows: Rows
    average: str

    @cached_property
    def num_frames(self) -> int:
        """Frames with figures; the others have a reason."""
        return int(np.count_nonzero(self.rows["reason"] == ""))

    @cached_property
    def scenes(self) -> list[str]:
        """The scene of each frame."""
        scenes: list[str] = self.rows["scene"].tolist()
        return scenes

    @property
    def is_floor(self) -> bool:
        """Whether these rows are of the truth through a VAE and back: a bound, no method."""
        return self.rows["method"][0].startswith("vae_floor")

    @property
    def is_baseline(self) -> bool:
        """Whether these rows are of a map that does not look at the image."""
        return self.rows["method"][0].startswith(("best_constant", "mean_map"))

    def values(self, figure: str) -> np.ndarray:
        """A figure of each frame [N], NaN where it is not defined; all NaN where these rows do not have it."""
        if figure not in self.rows.columns:
            return np.full(len(self.rows), np.nan)
        return np.where(self.rows["reason"] == "", self.rows[figure], np.nan)

    @cached_property
    def weights(self) -> np.ndarray:
        """What each frame [N] weighs in a mean."""
        if self.average == "pixel":
            return np.nan_to_num(self.values("num_pixels"))
        return scene_weights(self.scenes) if self.average == "scene" else np.ones(len(self.rows))

    def weights_of(self, figure: str) -> np.ndarray:
        """What each frame [N] weighs in the mean of a figure: errors of planes are means over planes."""
        planes = f"{figure.rpartition('_')[0]}{NUM_PLANES}"
        return np.nan_to_num(self.values(planes)) if planes in self.rows.columns else self.weights

    def interval(self, figure: str) -> Interval | None:
        """The mean as the protocol takes it, with its 95 % interval by scene; None where no frame has the figure."""
        if figure not in self._intervals:
            interval = interval_by_scene(self.values(figure), self.scenes, weights=self.weights_of(figure))
            self._intervals[figure] = interval if np.isfinite(interval.mean) else None
        return self._intervals[figure]

    @cached_property
    def _intervals(self) -> dict[str, Interval | None]:
        return {}  # tables, charts and failures ask for the same ones

    @cached_property
    def is_metric(self) -> bool:
        """Whether its depth is in metres."""
        return bool(np.isfinite(self.values("metric/abs_rel")).any())

    @cached_property
    def medians_m(self) -> tuple[np.ndarray, np.ndarray]:
        """Median true and predicted depth of each frame [N], metres; NaN where the depth is not metric."""
        known = np.isfinite(self.values("metric/abs_rel"))
        true_m, pred_m = (np.where(known, self.values(name), np.nan) for name in ("median_true_m", "median_pred_m"))
        return true_m, pred_m

    @cached_property
    def log_ratios(self) -> np.ndarray:
        """ln of the median predicted over the median true depth, by frame [N]; NaN where depth is not metric."""
        true_m, pred_m = self.medians_m
        return np.log(pred_m) - np.log(true_m)

    def by_scene(self, values: np.ndarray) -> np.ndarray:
        """Means of values [N] by scene, in the order of the scenes' names; those that have none are left out."""
        means = np.array(list(mean_by_scene(values, self.scenes).values()))
        return means[np.isfinite(means)]

    @property
    def focal_widths(self) -> np.ndarray:
        """Focal length of each frame [N] in image widths, so that images of several sizes compare."""
        widths: np.ndarray = self.rows["focal_px"] / self.rows["width"]
        return widths


@dataclass(frozen=True)
class Comparison:
    """What was measured in one way: protocol, data set and frames are equal, so that means compare."""

    benchmark: str
    protocol: str
    digest: str
    average: str
    methods: tuple[MethodRows, ...]

    @cached_property
    def num_frames(self) -> int:
        """Frames that any method has figures for."""
        return len({frame for method in self.methods for frame in frames_of(method)})

    @cached_property
    def num_scenes(self) -> int:
        """Scenes of these frames."""
        return len({scene for method in self.methods for scene in method.scenes})

    def complete(self, method: MethodRows) -> bool:
        """Whether the method has figures for every frame that any of them has."""
        return method.num_frames == self.num_frames

    @property
    def has_all(self) -> bool:
        """Whether all methods do, so that all rows of a table compare."""
        return all(map(self.complete, self.methods))


def frames_of(method: MethodRows) -> set[str]:
    """Names of the frames for which a method has figures."""
    return set(method.rows["frame"][method.rows["reason"] == ""].tolist())


def comparisons_of(rows: Rows) -> list[Comparison]:
    """The rows by ruler, sorted by benchmark and protocol; of its methods models, then floors, then baselines.

    A name that stands for several digests is followed by each one's first digits.
    """
    return sorted(_comparisons(rows), key=lambda one: (one.benchmark, one.protocol, one.digest))


def _comparisons(rows: Rows) -> Iterator[Comparison]:
    for digest in rows.unique("ruler_digest"):
        of_ruler = rows.where(ruler_digest=digest)
        protocol = of_ruler["protocol"][0]
        average = average_of(protocol, of_ruler["protocol_digest"][0])
        methods = []
        for name in of_ruler.unique("method"):
            of_name = of_ruler.where(method=name)
            digests = of_name.unique("method_digest")
            for one in digests:
                title = name if len(digests) == 1 else f"{name} {one[:SHORT]}"
                of_method = of_name.where(method_digest=one)
                order = np.argsort(of_method["frame"].astype(str), kind="stable")
                methods.append(MethodRows(title, of_method.take(order), average))
        methods.sort(key=lambda method: (method.is_baseline, method.is_floor))  # models first, floors, baselines
        yield Comparison(of_ruler["benchmark"][0], protocol, digest, average, tuple(methods))


def average_of(name: str, digest: str) -> str:
    """Over what a protocol takes means; over images for one of another installation, whose rules are not known here."""
    try:
        protocol = load_protocol(name)
    except ValueError:
        return "image"
    return protocol.average if protocol.digest == digest else "image"


def paired_difference(a: MethodRows, b: MethodRows, figure: str) -> tuple[Interval, int] | None:
    """Mean of a - b over the frames that both have the figure for, its interval by scene, and how many they are."""
    _, at_a, at_b = np.intersect1d(
        a.rows["frame"].astype(str), b.rows["frame"].astype(str), assume_unique=True, return_indices=True
    )
    ours, theirs = a.values(figure)[at_a], b.values(figure)[at_b]
    num_frames = int(np.count_nonzero(np.isfinite(ours) & np.isfinite(theirs)))
    if not num_frames:
        return None
    return paired_interval(ours, theirs, a.rows["scene"][at_a].tolist(), weights=a.weights_of(figure)[at_a]), num_frames
