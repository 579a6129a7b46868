"""The tables of one ruler: cells with a mean and its 95 % interval by scene, for the page and for Markdown alike."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from metricgold.evaluate.report.comparisons import NUM_PLANES, Comparison, MethodRows, paired_difference
from metricgold.metrics import Interval, focal_trend, scale_ratio

ALIGNED = {
    "metric": "metric",
    "scale": "scale-aligned",
    "affine_depth": "affine in depth",
    "affine_disparity": "affine in disparity",
    "affine_log_depth": "affine in log depth",
}
NONE = "\u2013"  # where there is no figure
LOWER, HIGHER = -1, 1  # which way a figure is better; 0 where neither is


@dataclass(frozen=True, slots=True)
class Figure:
    """A column of rows: how tables call it, with how many digits, and which way it is better."""

    column: str
    title: str
    digits: int = 3
    better: int = LOWER

    @property
    def heading(self) -> str:
        return f"{self.title} {'↓ ↑'[self.better + 1]}".rstrip()

    def format(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, the interval below it, whether it is the best of its column, and what is to be noticed."""

    text: str
    interval: str = ""
    best: bool = False
    mark: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one ruler. `groups` are headings above the header with the number of columns each spans."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = ()

    @property
    def flat_header(self) -> list[str]:
        """The header in one line, each title after that of its group."""
        above = [name for name, span in self.groups for _ in range(span)] or [""] * len(self.header)
        return [f"{name} {title}".lstrip() for name, title in zip(above, self.header, strict=True)]


ACCURACY = [
    Figure(f"{alignment}/{name}", title, better=better)
    for alignment in ALIGNED
    for name, title, better in (("abs_rel", "AbsRel", LOWER), ("delta1", "δ1", HIGHER))
]
METRIC = [
    Figure("metric/sq_rel", "SqRel, m"),
    Figure("metric/rmse_m", "RMSE, m"),
    Figure("metric/mae_m", "MAE, m"),
    Figure("metric/rmse_log", "RMSE log"),
    Figure("metric/log10", "log10"),
    Figure("metric/silog", "SILog", 1),
    Figure("metric/silog_unidepth", "SILog of UniDepth", 1),
    Figure("metric/silog_dav2", "SILog of Depth Anything V2"),
    Figure("metric/delta_half", "δ 1.25^½", better=HIGHER),
    Figure("metric/delta2", "δ2", better=HIGHER),
    Figure("metric/delta3", "δ3", better=HIGHER),
]
CALIBRATION = [
    Figure("ause_abs_rel", "AUSE, AbsRel"),
    Figure("ause_rmse", "AUSE, RMSE"),
    Figure("coverage50", "covered by 50 %", better=0),
    Figure("coverage68", "covered by 68 %", better=0),
    Figure("coverage80", "covered by 80 %", better=0),
    Figure("coverage95", "covered by 95 %", better=0),
    Figure("mean_uncertainty", "mean uncertainty", better=0),
]
PAIRED = [*ACCURACY, *(figure for figure in METRIC if figure.column in ("metric/rmse_m", "metric/silog"))]
PAIRED += [Figure("boundary_f1", "boundary F1", better=HIGHER)]


def accuracy(comparison: Comparison) -> Table:
    """AbsRel and δ1 by each alignment, side by side."""
    note = "Metric figures align nothing. Scale-aligned ones divide out the median ratio; affine ones fit scale and "
    note += "shift by least squares in what they name. Relative methods have no metric figures."
    return figures_table(comparison, "Accuracy by alignment", note, ACCURACY, [(name, 2) for name in ALIGNED.values()])


def figures_table(
    comparison: Comparison, title: str, note: str, figures: Sequence[Figure], groups: Sequence[tuple[str, int]] = ()
) -> Table:
    """Methods that have any of the figures, by figures, with the best of each column."""
    intervals = {method: [method.interval(figure.column) for figure in figures] for method in comparison.methods}
    shown = {method: found for method, found in intervals.items() if any(found)}
    best = [
        best_of(comparison, {method: found[place] for method, found in shown.items()}, figure)
        for place, figure in enumerate(figures)
    ]
    rows = [
        [
            *named(comparison, method),
            *(
                interval_cell(interval, figure.format, best=method is of_best)
                for interval, figure, of_best in zip(found, figures, best, strict=True)
            ),
        ]
        for method, found in shown.items()
    ]
    header = ["method", "frames", *(figure.heading for figure in figures)]
    return Table(title, note, header, rows, [("", 2), *groups] if groups else ())


def best_of(comparison: Comparison, column: Mapping[MethodRows, Interval | None], figure: Figure) -> MethodRows | None:
    """The best of a column among those that have figures for all frames; None where fewer than two compare."""
    means = {
        method: figure.better * interval.mean
        for method, interval in column.items()
        if interval is not None and comparison.complete(method) and not method.is_floor
    }
    return max(means, key=means.__getitem__) if figure.better and len(means) > 1 else None


def named(comparison: Comparison, method: MethodRows) -> list[Cell]:
    """Method and number of frames, marked where some are missing."""
    return [Cell(method.title), Cell(f"{method.num_frames}", mark=not comparison.complete(method))]


def interval_cell(interval: Interval | None, form: Callable[[float], str], *, best: bool = False) -> Cell:
    """A mean with its interval, which one scene does not have; a dash where there is no figure."""
    if interval is None:
        return Cell(NONE)
    ends = f"{form(interval.low)} to {form(interval.high)}" if np.isfinite(interval.low) else ""
    return Cell(form(interval.mean), ends, best)


# By range of true depth


RANGE = re.compile(r"range/(?P<from_m>[\d.e+-]+?)-(?P<to_m>[\d.e+]+)/abs_rel")


def ranges_of(comparison: Comparison) -> list[tuple[float, float, str]]:
    """from_m, to_m and column of each range of true depth in which these rows have AbsRel."""
    columns = comparison.methods[0].rows.columns
    found = [
        (float(match["from_m"]), float(match["to_m"]), match[0]) for match in map(RANGE.fullmatch, columns) if match
    ]
    return sorted(one for one in found if any(method.interval(one[2]) for method in comparison.methods))


def middle_m(from_m: float, to_m: float) -> float:
    """The geometric middle of a range; of one that begins at 0, of its farther half."""
    middle: float = ((from_m or to_m / 2) * to_m) ** 0.5
    return middle


def by_range(comparison: Comparison) -> Table:
    """AbsRel by range of true depth."""
    figures = [Figure(column, f"{from_m:g} to {to_m:g} m") for from_m, to_m, column in ranges_of(comparison)]
    note = "Metric AbsRel, mean over an image's pixels in the range, then over the images that have some."
    return figures_table(comparison, "AbsRel by true depth", note, figures)


# Scale


def scale(comparison: Comparison) -> Table:
    """Median ratio predicted / true: what is typical, its spread over scenes, its trend over focal length."""
    note = "Ratio of the median predicted to the median true depth; of a scene the geometric mean of its images', and "
    note += (
        "typical is the median of the scenes'. Spread is the standard deviation of the scenes' ln ratios: 0.1 is about "
    )
    note += (
        "10 %. Trend is the slope of ln ratio over ln focal length: 0 for a model that knows its camera, -1 for one "
    )
    note += "that takes every camera for the same."
    header = ["method", "frames", "typical ratio", "smallest of a scene", "largest of a scene", "spread over scenes"]
    rows = []
    for method in comparison.methods:
        if not method.is_metric:
            continue
        true_m, pred_m = method.medians_m
        scenes = method.by_scene(method.log_ratios)
        ratio = scale_ratio(pred_m, true_m, method.scenes)
        ends = [Cell(f"{np.exp(end):.3f}") for end in (scenes.min(), scenes.max())]
        spread = Cell(f"{ratio.log_spread:.3f}" if np.isfinite(ratio.log_spread) else NONE)
        trend = interval_cell(trend_of(method), "{:+.2f}".format)
        rows.append([*named(comparison, method), Cell(f"{ratio.ratio:.3f}"), *ends, spread, trend])
    return Table("Scale", note, [*header, "trend over focal length"], rows)


def trend_of(method: MethodRows) -> Interval | None:
    """Slope of ln ratio over ln focal length; None where it does not vary."""
    true_m, pred_m = method.medians_m
    trend = focal_trend(pred_m, true_m, method.focal_widths, method.scenes)
    return trend if np.isfinite(trend.mean) else None


# Two methods side by side


@dataclass(frozen=True, slots=True)
class Pair:
    """Two methods side by side; `num_clear` figures of the table differ by more than their interval."""

    titles: tuple[str, str]
    num_clear: int
    table: Table


def pairs(comparison: Comparison) -> list[Pair]:
    """Every two methods, on the frames that both have figures for."""
    found = [pair_of(a, b) for a, b in combinations(comparison.methods, 2)]
    return [pair for pair in found if pair.table.rows]


def pair_of(a: MethodRows, b: MethodRows) -> Pair:
    """Both methods' figures and their paired differences; marked where the interval excludes 0."""
    rows, clear = [], 0
    for figure in PAIRED:
        if (difference := paired_difference(a, b, figure.column)) is None:
            continue
        interval, num_frames = difference
        excludes_zero = interval.low > 0 or interval.high < 0
        clear += excludes_zero
        which = (a if interval.mean * figure.better > 0 else b).title if excludes_zero else "no clear difference"
        cells = [interval_cell(method.interval(figure.column), figure.format) for method in (a, b)]
        signed = interval_cell(interval, f"{{:+.{figure.digits + 1}f}}".format)
        rows.append(
            [
                Cell(figure_title(figure)),
                Cell(f"{num_frames}"),
                *cells,
                Cell(signed.text, signed.interval, mark=excludes_zero),
                Cell(which, best=excludes_zero),
            ]
        )
    header = ["figure", "frames of both", a.title, b.title, "difference", "better"]
    return Pair((a.title, b.title), clear, Table(f"{a.title} against {b.title}", "", header, rows))


def figure_title(figure: Figure) -> str:
    """Alignment and name of a figure, such as metric AbsRel."""
    alignment = figure.column.partition("/")[0]
    return f"{ALIGNED[alignment]} {figure.title}" if alignment in ALIGNED else figure.title


# Other figures


def others(comparison: Comparison) -> Table:
    """Figures that only some protocols have: boundaries, planes, edges; whatever the rows hold besides."""
    known = {figure.column for figure in (*METRIC, *CALIBRATION)} | {"num_pixels", "median_true_m", "median_pred_m"}
    columns = [
        column
        for column in comparison.methods[0].rows.figures
        if column not in known
        and column.partition("/")[0] not in {*ALIGNED, "range", "sparsification"}
        and not column.endswith(NUM_PLANES)
    ]
    better = {"boundary": HIGHER, "planarity": LOWER, "edges": LOWER}
    figures = [
        Figure(column, column.replace("_", " ").replace("/", " "), better=better.get(re.split("[/_]", column)[0], 0))
        for column in columns
    ]
    figures = [figure for figure in figures if any(method.interval(figure.column) for method in comparison.methods)]
    note = "Figures that this protocol asks for besides. Errors of planes are means over the planes of all images, as "
    note += "iBims-1's authors publish them."
    return figures_table(comparison, "Boundaries, planes and edges", note, figures)
