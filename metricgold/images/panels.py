"""Photograph, truth, depth and error side by side, with scales in metres and per cent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metricgold.images.colours import DEPTH_COLOURS, ERROR_COLOURS, NO_DEPTH, WORST_SHOWN, colour_range, metre_ticks
from metricgold.storage import write_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("photograph", "truth", "depth", "error")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with its prediction. rgb uint8 [H, W, 3]; depths [H, W] metres; valid_mask bool [H, W]."""

    name: str
    rgb: np.ndarray
    pred_m: np.ndarray
    true_m: np.ndarray
    valid_mask: np.ndarray

    @property
    def relative_error(self) -> np.ndarray:
        """|p - g| / g [H, W], NaN where the truth is unknown."""
        truth_m = np.where(self.valid_mask, self.true_m, np.nan)
        error: np.ndarray = np.abs(self.pred_m - truth_m) / truth_m
        return error

    @property
    def range_m(self) -> tuple[float, float]:
        """Metres at both ends of the colours, the same for truth and prediction, so that they can be compared.

        Where there is truth, the pixels without it (mostly sky) do not stretch the scale.
        """
        if not self.valid_mask.any():
            return colour_range(self.pred_m)
        return colour_range(np.vstack([self.pred_m, self.true_m]), np.vstack([self.valid_mask, self.valid_mask]))


def write_panels(path: Path, examples: Sequence[Example], columns: Sequence[str], width_px: int) -> Path:
    """One row per example, one column per word of COLUMNS, with scales in metres and per cent.

    Raises ValueError for no example or an unknown column. Equal inputs give equal bytes.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not examples or not set(columns) <= set(COLUMNS):
        raise ValueError(f"panels need examples and columns out of {COLUMNS}, got {len(examples)} and {columns}")
    # Inches of one picture and of a row; matplotlib counts 100 pixels to the inch here.
    height, width = examples[0].rgb.shape[:2]
    row_in = width_px / 100 / len(columns) * (0.80 * height / width) + 0.12
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(width_px / 100, row_in * len(examples) + 0.25), dpi=100, layout=layout)
    axes = figure.subplots(len(examples), len(columns), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        for ax, column in zip(row, columns, strict=True):
            draw_panel(figure, ax, column, example)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title({"depth": "planar depth, m", "error": "error", "truth": "truth, m"}.get(column, column), size=9)
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def draw_panel(figure: "Figure", ax: "Axes", column: str, example: Example) -> None:
    """One picture of an example, by a word of COLUMNS, with its scale."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ax.set_axis_off()
    if column == "photograph":
        ax.imshow(example.rgb)
        return
    if column == "error":
        shown, colours, norm = example.relative_error, ERROR_COLOURS, Normalize(0, WORST_SHOWN)
        ticks, label = [0, WORST_SHOWN / 2, WORST_SHOWN], "{:.0%}"
    else:
        shown = example.pred_m if column == "depth" else np.where(example.valid_mask, example.true_m, np.nan)
        colours, norm = DEPTH_COLOURS, LogNorm(*example.range_m)
        ticks, label = metre_ticks(example.range_m), "{:g}"
    drawn = ax.imshow(shown, cmap=colormaps[colours].with_extremes(bad=np.array(NO_DEPTH) / 255), norm=norm)
    bar = figure.colorbar(drawn, ax=ax, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label.format(value)))
    bar.ax.tick_params(labelsize=7, length=2)
