"""What is computed from the rows of a benchmark, without a model: figures for DVC, a table for its plots, the page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.evaluate.depth_ranges import write_table
from metricgold.evaluate.report.comparisons import SHORT, MethodRows, comparisons_of
from metricgold.evaluate.report.page import write_report
from metricgold.evaluate.report.tables import middle_m, ranges_of
from metricgold.evaluate.rows import ROWS, Rows, read_rows_files
from metricgold.metrics import ALIGNMENTS
from metricgold.params import Folders
from metricgold.storage import write_json

SUMMED_UP = ("abs_rel", "delta1")


@dataclass(frozen=True, slots=True)
class BenchmarkOutputs:
    """Where the results of one benchmark are."""

    metrics: Path  # a small flat JSON for DVC
    plot: Path  # AbsRel by true depth as CSV
    pictures: Path  # a folder of all benchmarks, each in one of its own
    rows: Path
    html: Path
    markdown: Path

    @classmethod
    def of(cls, folders: Folders, name: str) -> "BenchmarkOutputs":
        """Those of a project."""
        reports = folders.reports / "benchmark"
        return cls(
            metrics=folders.metrics(f"benchmark/{name}"),
            plot=folders.plots / f"benchmark/{name}.csv",
            pictures=folders.plots / "benchmark",
            rows=reports / f"{name}{ROWS}",
            html=reports / f"{name}.html",
            markdown=reports / f"{name}.md",
        )

    def journal(self, data_digest: str) -> Path:
        """Rows as they are made, kept as long as the data are these."""
        return self.rows.with_name(f".{self.rows.name.removesuffix(ROWS)}.{data_digest[:12]}.jsonl")


def write_results(out: BenchmarkOutputs, protocol: str, method_digest: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write plot, page and, last, the figures of all rows in out.rows; returns these.

    protocol, method_digest  whose figures stand on top
    facts                    what the figures on top are to be known by besides, such as the model's digest
    """
    rows = read_rows_files([out.rows])
    summary = summarize(rows, protocol, method_digest) | facts
    write_table(out.plot, ["protocol", "method", "range", "depth_m", "abs_rel"], by_range(rows))
    write_report(rows, out.pictures, out.html, out.markdown)
    write_json(out.metrics, summary)
    return summary


def rebuild_report(paths: Sequence[Path], pictures: Path) -> dict[str, Any]:
    """Rebuild the page of rows files beside the first of them, without a model; returns where it is.

    pictures  folder of all benchmarks' pictures, as far as they are here

    The page of one file has its name; that of several is called comparison.
    """
    rows = read_rows_files(paths)
    name = paths[0].name.removesuffix(ROWS) if len(paths) == 1 else "comparison"
    html, markdown = (paths[0].with_name(f"{name}.{suffix}") for suffix in ("html", "md"))
    write_report(rows, pictures, html, markdown)
    return {"html": str(html), "markdown": str(markdown), "num_rows": len(rows)}


def summarize(rows: Rows, protocol: str, method_digest: str) -> dict[str, Any]:
    """AbsRel and delta1 with the ends of their 95 % intervals by scene: of one method and protocol on top, flat.

    Below, `<protocol>/<method>/<figure>` of all; an aligned figure, where that is all that a relative method has, is
    called `<alignment>_<figure>`.
    """
    summary: dict[str, Any] = {}
    for comparison in comparisons_of(rows):
        for method in comparison.methods:
            figures = figures_of(method)
            summary |= {f"{comparison.protocol}/{method.title}/{key}": value for key, value in figures.items()}
            if (comparison.protocol, method.rows["method_digest"][0]) == (protocol, method_digest):
                facts = {"protocol": protocol, "ruler_digest": comparison.digest, "num_frames": method.num_frames}
                facts["method_digest"] = method_digest  # model, steps and runs, or a folder of predictions
                summary |= figures | facts
    return summary


def figures_of(method: MethodRows) -> dict[str, float]:
    """SUMMED_UP of one method: its mean, and `_low` and `_high` of its interval, which a single scene does not have."""
    figures: dict[str, float] = {}
    for figure in SUMMED_UP:
        found = ((alignment, method.interval(f"{alignment}/{figure}")) for alignment in ALIGNMENTS)
        alignment, interval = next(((name, one) for name, one in found if one), ("metric", None))
        key = figure if alignment == "metric" else f"{alignment}_{figure}"
        if interval:
            figures |= {key: interval.mean, f"{key}_low": interval.low, f"{key}_high": interval.high}
    return {key: value for key, value in figures.items() if np.isfinite(value)}


def every_figure(paths: Sequence[Path]) -> dict[str, Any]:
    """All figures of rows files: benchmark -> protocol -> method -> figure -> its mean and the ends of its interval.

    Means and 95 % intervals are those of the page; the ends are None where there is no interval, with a single scene.
    Where rows of two rulers have one protocol's name, each is followed by the first digits of its digest.
    """
    rulers = comparisons_of(read_rows_files(paths))
    names = Counter((comparison.benchmark, comparison.protocol) for comparison in rulers)
    tree: dict[str, Any] = {}
    for comparison in rulers:
        is_unique = names[comparison.benchmark, comparison.protocol] == 1
        protocol = comparison.protocol if is_unique else f"{comparison.protocol} {comparison.digest[:SHORT]}"
        tree.setdefault(comparison.benchmark, {})[protocol] = {
            method.title: {
                figure: [number if np.isfinite(number) else None for number in interval]
                for figure in method.rows.figures
                if (interval := method.interval(figure))
            }
            for method in comparison.methods
        }
    return tree


def by_range(rows: Rows) -> Iterator[list[Any]]:
    """Rows of the plot's table: metric AbsRel by range of true depth, over images that have pixels in it."""
    for comparison in comparisons_of(rows):
        ranges = ranges_of(comparison)
        for method in comparison.methods:
            for from_m, to_m, column in ranges:
                if interval := method.interval(column):
                    figures = (f"{middle_m(from_m, to_m):.6g}", f"{interval.mean:.6g}")
                    yield [comparison.protocol, method.title, f"{from_m:g}-{to_m:g} m", *figures]
