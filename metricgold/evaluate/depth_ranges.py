"""Figures by range of true depth: the ranges in metres, sums over their pixels, and the table and plot of them."""

import csv
from collections.abc import Iterable, Sequence
from math import ceil, floor, log2
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.log_depth import LogDepth
from metricgold.storage import write_aside

RangeRow = dict[str, float]  # of one range: from_m, to_m, means over its pixels by name, num_pixels


def range_edges_m(log_depth: LogDepth) -> np.ndarray:
    """Edges in metres of the depth ranges: near_m, the powers of two between, and far_m.

    The first and the last range join their neighbour where they are narrower than half a doubling.
    """
    first, last = ceil(log2(log_depth.near_m) + 0.5), floor(log2(log_depth.far_m) - 0.5)
    return np.array([log_depth.near_m, *(2.0 ** np.arange(first, last + 1)), log_depth.far_m])


def range_index(true_m: np.ndarray, edges_m: np.ndarray) -> np.ndarray:
    """The range [N] that each depth [N] in metres is in; a depth beyond the outer edges is in the range next to it."""
    return np.clip(np.searchsorted(edges_m, true_m, side="right") - 1, 0, len(edges_m) - 2)


class ByDepth:
    """Sums of figures over pixels, by range of true depth."""

    def __init__(self, edges_m: np.ndarray) -> None:
        self.edges_m = edges_m
        self.sums: dict[str, np.ndarray] = {}
        self.pixels = np.zeros(len(edges_m) - 1, dtype=np.int64)

    def add(self, ranges: np.ndarray, **figures: np.ndarray) -> None:
        """Add pixels: the range of each (range_index) and its figures by name, all [N]."""
        for name, values in figures.items():
            sums = np.bincount(ranges, weights=values, minlength=len(self.pixels))
            self.sums[name] = self.sums.get(name, 0) + sums
        self.pixels += np.bincount(ranges, minlength=len(self.pixels))

    def rows(self) -> list[RangeRow]:
        """from_m, to_m, the mean of each figure over all pixels, and num_pixels; empty ranges are left out."""
        return [
            {
                "from_m": float(self.edges_m[i]),
                "to_m": float(self.edges_m[i + 1]),
                **{name: float(sums[i] / pixels) for name, sums in self.sums.items()},
                "num_pixels": int(pixels),
            }
            for i, pixels in enumerate(self.pixels)
            if pixels
        ]


def middle_m(row: RangeRow) -> float:
    """The geometric middle of a row's range."""
    return (row["from_m"] * row["to_m"]) ** 0.5


def cells(row: RangeRow, *figures: str) -> list[str]:
    """A row's cells of a CSV file: range, its middle in metres, and the figures that are named."""
    numbers = [middle_m(row), *(row[name] for name in figures)]
    return [f"{row['from_m']:g}-{row['to_m']:g} m", *(f"{number:.6g}" for number in numbers)]


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file for DVC's plots."""
    with write_aside(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def dress_depth_axis(ax: Any, edges_m: np.ndarray, ticks_m: Sequence[float]) -> None:
    """Make matplotlib's x axis one of true depth, logarithmic from the first edge to the last."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ax.set(xscale="log", xlim=(edges_m[0], edges_m[-1]))
    ax.xaxis.set_major_locator(FixedLocator(ticks_m))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def save_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG; equal figures give equal bytes."""
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
