"""What the rows of an evaluation say about the uncertainty that its model states: figures, and the reliability diagram.

Frames without an uncertainty have no figures of CALIBRATION; a model that states none has no reliability.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.evaluate.depth_ranges import save_figure
from metricgold.evaluate.rows import Row
from metricgold.metrics import COVERAGES, interval_by_scene

FIGURES = (*COVERAGES, "ause_abs_rel")
RANKED = ("mean_uncertainty", "abs_rel")
STEPS = [step / 10 for step in range(10)]  # shares removed, of which rows hold the AbsRel that stays


def reliability(images: Sequence[Row]) -> dict[str, Any]:
    """FIGURES over the images of a data set, with the ends of their intervals by scene; empty without an uncertainty.

    spearman_images: rank correlation of the images' mean uncertainty and AbsRel, 1 where the more uncertain image is
    always the worse one.
    """
    known = with_uncertainty(images)
    if not known:
        return {}
    scenes = [image["scene"] for image in known]
    intervals = {key: interval_by_scene([image[key] for image in known], scenes) for key in FIGURES}
    uncertainty, error = (np.argsort(np.argsort([image[key] for image in known])) for key in RANKED)
    correlation = float(np.corrcoef(uncertainty, error)[0, 1]) if len(known) > 1 else None
    ends = {key: {"low": one.low, "high": one.high} if isfinite(one.low) else None for key, one in intervals.items()}
    return {key: one.mean for key, one in intervals.items()} | {"spearman_images": correlation, "interval95": ends}


def with_uncertainty(images: Sequence[Row]) -> list[Row]:
    """The images of which the model states an uncertainty."""
    return [image for image in images if isfinite(image.get("mean_uncertainty", np.nan))]


def mean_reliability(of_datasets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures over data sets, each weighing the same; empty where one has none."""
    keys = (*FIGURES, "spearman_images")
    if not of_datasets or not all(of_datasets):
        return {}
    known = [key for key in keys if all(one[key] is not None for one in of_datasets)]
    return {key: float(np.mean([one[key] for one in of_datasets])) for key in known}


def plot_reliability(path: Path, of_datasets: Mapping[str, Sequence[Row]]) -> None:
    """Shares of pixels within the stated intervals, and AbsRel of what is left without the most uncertain pixels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#808080", lw=1, label="calibrated")
    for name, images in of_datasets.items():
        if known := with_uncertainty(images):
            within = [float(np.mean([image[key] for image in known])) for key in COVERAGES]
            left.plot([0, *COVERAGES.values()], [0, *within], "o-", ms=4, label=name)
            rest = [np.nanmean([image.get(f"sparsification/{step:g}", np.nan) for image in images]) for step in STEPS]
            right.plot(STEPS, rest, "o-", ms=4, label=name)
    left.set(xlabel="pixels that should lie within", ylabel="pixels that do", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="most uncertain pixels left out", ylabel="AbsRel of the rest", xlim=(0, 1))
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    save_figure(path, figure)
