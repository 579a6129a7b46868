"""Charts as SVG, once for light and once for dark, in colours and shapes that do not depend on seeing red or green."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.evaluate.report.comparisons import Comparison, MethodRows
from metricgold.evaluate.report.tables import ALIGNED, middle_m, ranges_of, trend_of
from metricgold.images import data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, which is not seen on white; each method has a shape of its own too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BESIDE = "#8a8f98"  # floors and baselines
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
LEVELS = (50, 68, 80, 95)
# Ink, soft ink and lines of the page; nothing else in a chart has these colours.
LIGHT, DARK = ("#1d2530", "#5d6b7c", "#dfe5ec"), ("#e6ebf1", "#9aa7b6", "#313b47")
SIZE_IN = (4.8, 3.2)  # without the legend


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as data URIs for light and dark pages, with its title and what it shows in words."""

    title: str
    alt: str
    light: str
    dark: str


Draw = Callable[["Axes"], None]


def charts(comparison: Comparison) -> list[Chart]:
    """All charts for which these rows have figures."""
    drawings = (alignments, by_range, ratio_by_scene, ratio_by_focal, coverage, sparsification)
    return [found for draw in drawings if (found := draw(comparison)) is not None]


def chart(title: str, alt: str, draw: Draw) -> Chart:
    """The chart that `draw` draws. Equal drawings give equal bytes."""
    light = _svg(draw)
    dark = light
    for of_light, of_dark in zip(LIGHT, DARK, strict=True):
        dark = dark.replace(of_light, of_dark)
    return Chart(title, alt, *(data_uri(svg.encode(), "image/svg+xml") for svg in (light, dark)))


def _svg(draw: Draw) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink, soft, line = LIGHT
    settings = {
        **{"svg.hashsalt": "metricgold", "svg.fonttype": "none", "font.size": 9.5, "text.color": ink},
        **{"axes.labelcolor": ink, "axes.edgecolor": soft, "xtick.color": soft, "ytick.color": soft},
        **{"xtick.labelcolor": ink, "ytick.labelcolor": ink, "grid.color": line, "legend.frameon": False},
    }
    with rc_context(settings):
        figure = Figure(figsize=SIZE_IN, layout="constrained", facecolor="none")
        ax = figure.subplots()
        ax.set_facecolor("none")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(linewidth=0.8)
        ax.set_axisbelow(True)
        draw(ax)
        add_legend(figure, ax)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode()


def style(comparison: Comparison, method: MethodRows) -> dict[str, Any]:
    """Colour and shape of a method, the same in all charts of a ruler; what stands beside the models is grey."""
    place = comparison.methods.index(method)
    colour = BESIDE if method.is_floor or method.is_baseline else COLOURS[place % len(COLOURS)]
    return {"color": colour, "marker": SHAPES[place % len(SHAPES)], "markersize": 5}


def add_legend(figure: "Figure", ax: "Axes") -> None:
    """What has a label, below the chart, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    columns = 1 if max(map(len, labels)) > 22 else 2
    figure.set_figheight(SIZE_IN[1] + 0.19 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


# Accuracy


def alignments(comparison: Comparison) -> Chart | None:
    """AbsRel by alignment: what is left of the error once scale, or scale and shift, are given."""
    if not any(method.interval(f"{name}/abs_rel") for method in comparison.methods for name in ALIGNED):
        return None

    def draw(ax: "Axes") -> None:
        for offset, method in spread_out(comparison):
            found = [(row, method.interval(f"{name}/abs_rel")) for row, name in enumerate(ALIGNED)]
            known = [(row + offset, interval) for row, interval in found if interval]
            means = np.array([interval.mean for _, interval in known])
            bars = [[interval.mean - interval.low, interval.high - interval.mean] for _, interval in known]
            rows = [row for row, _ in known]
            # No bar where one scene gives no interval, nor below 0 by rounding.
            bars_of = np.nan_to_num(np.maximum(np.reshape(bars, (-1, 2)), 0)).T
            ax.errorbar(means, rows, xerr=bars_of, linestyle="none", label=method.title, **style(comparison, method))
        ax.set_yticks(range(len(ALIGNED)), list(ALIGNED.values()))
        ax.set_ylim(len(ALIGNED) - 0.5, -0.5)
        ax.set(xlabel="AbsRel, with 95 % interval by scene")
        ax.set_xlim(left=0)

    alt = "AbsRel of each method by alignment, with intervals; the table “Accuracy by alignment” has the figures."
    return chart("AbsRel by alignment", alt, draw)


def spread_out(comparison: Comparison) -> Iterator[tuple[float, MethodRows]]:
    """Each method with its place within a row of 1."""
    num = len(comparison.methods)
    for place, method in enumerate(comparison.methods):
        yield 0.7 * ((place + 0.5) / num - 0.5), method


def by_range(comparison: Comparison) -> Chart | None:
    """AbsRel against true depth."""
    ranges = ranges_of(comparison)
    if not ranges:
        return None

    def draw(ax: "Axes") -> None:
        middles_m = np.array([middle_m(from_m, to_m) for from_m, to_m, _ in ranges])
        for method in comparison.methods:
            found = [method.interval(column) for _, _, column in ranges]
            means = [interval.mean if interval else np.nan for interval in found]
            if np.isfinite(means).any():
                ax.plot(middles_m, means, label=method.title, linewidth=1.4, **style(comparison, method))
        ax.set(xscale="log", xlabel="true planar depth, m", ylabel="AbsRel")
        plain_ticks(ax.xaxis, [from_m for from_m, _, _ in ranges if from_m] + [ranges[-1][1]])
        ax.set_ylim(bottom=0)

    alt = "AbsRel of each method against true depth; the table “AbsRel by true depth” has the figures."
    return chart("AbsRel by true depth", alt, draw)


def plain_ticks(axis: Any, ticks: list[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers; of many, every other one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 9]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# Scale


def metric_methods(comparison: Comparison) -> list[MethodRows]:
    """Methods whose depth is in metres."""
    return [method for method in comparison.methods if method.is_metric]


def medians(comparison: Comparison) -> list[Chart]:
    """For each metric model, median predicted against median true depth: one point a scene, faint ones for images."""
    models = [method for method in metric_methods(comparison) if not (method.is_floor or method.is_baseline)]
    return [of_medians(comparison, method) for method in models]


def of_medians(comparison: Comparison, method: MethodRows) -> Chart:
    """Scatter of one method."""
    true_m, pred_m = method.medians_m
    scenes_true, scenes_pred = (np.exp(method.by_scene(np.log(depth_m))) for depth_m in (true_m, pred_m))
    both_m = np.concatenate([true_m, pred_m])
    ends_m = float(np.nanmin(both_m)) / 1.15, float(np.nanmax(both_m)) * 1.15

    def draw(ax: "Axes") -> None:
        from metricgold.images import metre_ticks

        look = style(comparison, method)
        ax.plot(ends_m, ends_m, color="#808080", linewidth=1, label="right scale")
        for factor in (0.8, 1.25):
            ax.plot(ends_m, [end * factor for end in ends_m], color="#808080", linewidth=0.8, linestyle=":")
        ax.scatter(true_m, pred_m, s=8, color=look["color"], alpha=0.4, linewidths=0, rasterized=True)
        ax.scatter(scenes_true, scenes_pred, s=26, color=look["color"], marker=look["marker"], label="scene")
        ax.set(xscale="log", yscale="log", xlim=ends_m, ylim=ends_m, xlabel="median true depth, m")
        ax.set(ylabel="median predicted depth, m", box_aspect=1)
        for axis in (ax.xaxis, ax.yaxis):
            plain_ticks(axis, metre_ticks(ends_m, 5))

    spread = np.std(method.by_scene(method.log_ratios))
    ratio = np.exp(np.nanmean(method.log_ratios))
    alt = f"Median predicted against median true depth of {method.title} by scene, on logarithmic axes; median ratio "
    alt += f"{ratio:.2f}, spread {spread:.2f}. Dotted lines are 25 % off."
    return chart(f"{method.title}: medians by scene", alt, draw)


def ratio_by_scene(comparison: Comparison) -> Chart | None:
    """Median ratio of each scene, method by method."""
    methods = metric_methods(comparison)
    if not methods:
        return None

    def draw(ax: "Axes") -> None:
        ax.axvline(1, color="#808080", linewidth=1)
        for row, method in enumerate(methods):
            ratios = np.exp(method.by_scene(method.log_ratios))
            nudge = 0.25 * np.sin(2.4 * np.arange(len(ratios)))  # apart, and the same each time
            ax.plot(ratios, row + nudge, linestyle="none", alpha=0.7, **style(comparison, method))
            ax.plot(np.exp(np.log(ratios).mean()), row, marker="|", markersize=22, color=ax.xaxis.label.get_color())
        ax.set_yticks(range(len(methods)), [shortened(method.title) for method in methods])
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.set(xscale="log", xlabel="median ratio, predicted / true")
        low, high = ax.get_xlim()
        ax.set_xlim(min(low, 0.8), max(high, 1.25))
        plain_ticks(ax.xaxis, round_ticks(*ax.get_xlim()))

    alt = "Median ratio of each scene, one row a method, and their mean; the table “Scale” has the figures."
    return chart("Median ratio by scene", alt, draw)


RATIO_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)


def round_ticks(low: float, high: float) -> list[float]:
    """Round ratios within a range, or two numbers of two digits near its ends where there are none."""
    inside = [float(tick) for tick in RATIO_TICKS if low <= tick <= high]
    return inside if len(inside) > 1 else [float(f"{low * (high / low) ** share:.2g}") for share in (0.1, 0.9)]


def shortened(title: str) -> str:
    """A name short enough for an axis."""
    return title if len(title) <= 24 else f"{title[:12]}…{title[-11:]}"


def ratio_by_focal(comparison: Comparison) -> Chart | None:
    """Median ratio against focal length, where it varies."""
    methods = [method for method in metric_methods(comparison) if trend_of(method)]
    if not methods:
        return None

    def draw(ax: "Axes") -> None:
        ax.axhline(1, color="#808080", linewidth=1)
        for method in methods:
            known = np.isfinite(method.log_ratios)
            x, y, look = np.log(method.focal_widths[known]), method.log_ratios[known], style(comparison, method)
            ax.plot(np.exp(x), np.exp(y), linestyle="none", alpha=0.3, rasterized=True, **(look | {"markersize": 3}))
            slope, start = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            ax.plot(np.exp(ends), np.exp(start + slope * ends), label=method.title, linewidth=1.6, **look)
        ax.set(xscale="log", yscale="log", xlabel="focal length, image widths", ylabel="median ratio, predicted / true")
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            plain_ticks(axis, round_ticks(low, high))

    alt = "Median ratio of each image against focal length, with a line for each method; “Scale” has the trends."
    return chart("Median ratio by focal length", alt, draw)


# Calibration


def coverage(comparison: Comparison) -> Chart | None:
    """How many pixels an interval covers against how many it should."""
    found = {
        method: [method.interval(f"coverage{level}") for level in LEVELS]
        for method in comparison.methods
        if method.interval(f"coverage{LEVELS[0]}")
    }
    if not found:
        return None

    def draw(ax: "Axes") -> None:
        ax.plot([0, 100], [0, 100], color="#808080", linewidth=1, label="calibrated")
        for method, intervals in found.items():
            measured = [100 * interval.mean if interval else np.nan for interval in intervals]
            ax.plot([0, *LEVELS], [0, *measured], label=method.title, linewidth=1.4, **style(comparison, method))
        ax.set(xlabel="pixels that should be covered, %", ylabel="pixels covered, %", xlim=(0, 100), ylim=(0, 100))

    said = "; ".join(
        f"{method.title} {', '.join(f'{100 * one.mean:.0f}' for one in intervals if one)}"
        for method, intervals in found.items()
    )
    return chart("Calibration", f"Pixels covered where 50, 68, 80 and 95 % should be: {said}.", draw)


def sparsification(comparison: Comparison) -> Chart | None:
    """AbsRel of what is left once the most uncertain pixels are gone."""
    curves = {method: curve for method in comparison.methods if len(curve := sparsification_of(method)) > 1}
    if not curves:
        return None

    def draw(ax: "Axes") -> None:
        for method, points in curves.items():
            shares, errors = zip(*points, strict=True)
            ax.plot(np.array(shares) * 100, errors, label=method.title, linewidth=1.4, **style(comparison, method))
        ax.set(xlabel="most uncertain pixels left out, %", ylabel="AbsRel of the rest", xlim=(0, 100))
        ax.set_ylim(bottom=0)

    alt = "AbsRel of the pixels that are left against the share of most uncertain ones left out, method by method."
    return chart("Sparsification", alt, draw)


def sparsification_of(method: MethodRows) -> list[tuple[float, float]]:
    """(share left out, mean AbsRel of the rest) of a method, in order."""
    columns = [column for column in method.rows.figures if column.startswith("sparsification/")]
    found = [(float(column.split("/")[1]), method.interval(column)) for column in columns]
    return sorted((share, interval.mean) for share, interval in found if interval)
