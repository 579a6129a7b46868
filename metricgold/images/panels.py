"""Depth and its error as colours with a scale that says metres."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricgold.storage.files import write_aside

DEPTH_COLOURS = "Spectral"  # near red, far blue, on a logarithmic scale
ERROR_COLOURS = "magma"
WORST_SHOWN = 0.5  # relative error at the bright end
NO_DEPTH = (235, 235, 235)  # light grey: nothing measured here
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
        """|p - g| / g [H, W], NaN where there is no truth."""
        truth = np.where(self.valid_mask, self.true_m, np.nan)
        return np.abs(self.pred_m - truth) / truth

    @property
    def range_m(self) -> tuple[float, float]:
        """Nearest and farthest depth worth a colour, the same for truth and prediction, so that they compare.

        Where there is truth, the pixels without it (mostly sky) do not stretch the scale.
        """
        if not self.valid_mask.any():
            return colour_range(self.pred_m)
        return colour_range(np.concatenate([self.pred_m[self.valid_mask], self.true_m[self.valid_mask]]))


def colour_range(depth_m: np.ndarray) -> tuple[float, float]:
    """Metres at both ends of the colours: the middle 98 % of the finite pixels, at least a tenth apart."""
    near_m, far_m = np.percentile(depth_m[np.isfinite(depth_m)], [1, 99])
    return float(near_m), float(max(far_m, 1.1 * near_m))


def colour_depth(depth_m: np.ndarray, range_m: tuple[float, float], valid: np.ndarray | None = None) -> np.ndarray:
    """Planar depth [H, W] in metres to uint8 [H, W, 3], logarithmic between range_m; grey where not valid."""
    near_m, far_m = range_m
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(depth_m / near_m) / np.log(far_m / near_m)
    return colour_share(share, DEPTH_COLOURS, np.ones_like(depth_m, dtype=bool) if valid is None else valid)


def colour_error(relative_error: np.ndarray) -> np.ndarray:
    """Relative error [H, W] to uint8 [H, W, 3]: dark is right, bright is WORST_SHOWN or more, grey is NaN."""
    return colour_share(relative_error / WORST_SHOWN, ERROR_COLOURS, np.isfinite(relative_error))


def colour_share(share: np.ndarray, colours: str, valid: np.ndarray) -> np.ndarray:
    """Shares 0 to 1 [H, W] to uint8 [H, W, 3] by one of matplotlib's colour maps; grey where not valid."""
    from matplotlib import colormaps

    table = colormaps[colours](np.linspace(0, 1, 256), bytes=True)[:, :3]
    index = np.clip(np.nan_to_num(share) * 255, 0, 255).round().astype(np.uint8)
    return np.where(valid[..., None], table[index], np.array(NO_DEPTH, np.uint8))


def metre_ticks(range_m: tuple[float, float]) -> list[float]:
    """Round metres inside a range (1, 2, 5, 10 ..., finer where those are too few); its ends for a narrow one."""
    near_m, far_m = range_m
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [m for power in range(-3, 5) for step in steps if near_m <= (m := step * 10.0**power) <= far_m]
        if len(inside) >= 3:
            return inside
    return [near_m, far_m]


def png_bytes(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_panels(path: Path, examples: Sequence[Example], columns: Sequence[str], width_px: int) -> Path:
    """One row per example, one column per word of COLUMNS, with scales in metres and per cent.

    Raises ValueError for no example or an unknown column. Equal inputs give equal bytes.
    """
    from matplotlib.figure import Figure

    if not examples or not set(columns) <= set(COLUMNS):
        raise ValueError(f"panels need examples and columns out of {COLUMNS}, got {len(examples)} and {columns}")
    # Inches of one picture and of a row; matplotlib counts 100 pixels to the inch here.
    height, width = examples[0].rgb.shape[:2]
    row_in = width_px / 100 / len(columns) * (0.80 * height / width) + 0.12
    figure = Figure(figsize=(width_px / 100, row_in * len(examples) + 0.25), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(examples), len(columns), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        for ax, column in zip(row, columns, strict=True):
            _draw(figure, ax, column, example)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title({"depth": "planar depth, m", "error": "error", "truth": "truth, m"}.get(column, column), size=9)
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def _draw(figure, ax, column: str, example: Example) -> None:
    """One picture with its scale."""
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
