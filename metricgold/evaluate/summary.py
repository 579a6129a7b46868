"""What is computed from the rows of a benchmark, without a model: figures for DVC, a table for its plots, the page."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.evaluate.depth_ranges import write_table
from metricgold.evaluate.report.page import write_report
from metricgold.evaluate.report.rulers import SHORT, Measured, rulers_of
from metricgold.evaluate.rows import Rows, read_rows_files
from metricgold.metrics import ALIGNMENTS
from metricgold.params import Folders
from metricgold.storage import write_json

SUMMED_UP = ("abs_rel", "delta1")
RANGE = re.compile(r"range/(?P<low_m>[^-]+)-(?P<high_m>.+)/abs_rel")
ROWS = ".rows.parquet"  # after the benchmark's name


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
    for ruler in rulers_of(rows):
        for method in ruler.methods:
            figures = figures_of(method)
            summary |= {f"{ruler.protocol}/{method.title}/{key}": value for key, value in figures.items()}
            if (ruler.protocol, method.rows["method_digest"][0]) == (protocol, method_digest):
                facts = {"protocol": protocol, "ruler_digest": ruler.digest, "num_frames": method.num_frames}
                facts["method_digest"] = method_digest  # model, steps and runs, or a folder of predictions
                summary |= figures | facts
    return summary


def figures_of(method: Measured) -> dict[str, float]:
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
    rulers = rulers_of(read_rows_files(paths))
    names = Counter((ruler.benchmark, ruler.protocol) for ruler in rulers)
    tree: dict[str, Any] = {}
    for ruler in rulers:
        is_unique = names[ruler.benchmark, ruler.protocol] == 1
        protocol = ruler.protocol if is_unique else f"{ruler.protocol} {ruler.digest[:SHORT]}"
        tree.setdefault(ruler.benchmark, {})[protocol] = {
            method.title: {
                figure: [number if np.isfinite(number) else None for number in interval]
                for figure in method.rows.figures
                if (interval := method.interval(figure))
            }
            for method in ruler.methods
        }
    return tree


def by_range(rows: Rows) -> Iterator[list[Any]]:
    """Rows of the plot's table: metric AbsRel by range of true depth, over images that have pixels in it."""
    columns = [match for match in map(RANGE.fullmatch, rows.figures) if match]
    columns.sort(key=lambda match: float(match["low_m"]))
    measured = [(ruler.protocol, method) for ruler in rulers_of(rows) for method in ruler.methods]
    for protocol, method in measured:
        for match in columns:
            low_m, high_m = float(match["low_m"]), float(match["high_m"])
            middle_m = (low_m * high_m) ** 0.5 if low_m else high_m / 2**0.5
            if interval := method.interval(match[0]):
                depth_range, figures = f"{low_m:g}-{high_m:g} m", (f"{middle_m:.6g}", f"{interval.mean:.6g}")
                yield [protocol, method.title, depth_range, *figures]
