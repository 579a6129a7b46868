"""Write the page about benchmarks and its Markdown from rows: no model is needed, and no other file."""

import html
from pathlib import Path
from typing import Any

from markupsafe import Markup

from metricgold.evaluate.report.charts import charts, medians
from metricgold.evaluate.report.comparisons import SHORT, Comparison, comparisons_of
from metricgold.evaluate.report.pictures import KINDS, picture_card, pictured
from metricgold.evaluate.report.signatures import RULES, signatures
from metricgold.evaluate.report.tables import (
    CALIBRATION,
    METRIC,
    accuracy,
    by_range,
    figures_table,
    others,
    pairs,
    scale,
)
from metricgold.evaluate.rows import Rows
from metricgold.images import ERROR_COLOURS, WORST_SHOWN, ColourScale, css_gradient, load_template
from metricgold.storage import one_line, write_aside


def write_report(rows: Rows, pictures: Path, out_html: Path, out_md: Path) -> None:
    """Write one HTML page that needs no other file, and the same tables as Markdown.

    rows      of any number of benchmarks, protocols and methods; those of one ruler share tables, others never do
    pictures  folder that write_pictures fills; a method without pictures there has none on the page

    Equal rows and pictures give equal bytes. ValueError where there is no row.
    """
    if not len(rows):
        raise ValueError("there is no row of a benchmark to report on")
    sections = [section(comparison, Path(pictures)) for comparison in comparisons_of(rows)]
    facts = {
        "sections": sections,
        "rules": RULES,
        "num_methods": len({method.title for one in sections for method in one["comparison"].methods}),
        "num_benchmarks": len({one["comparison"].benchmark for one in sections}),
        "num_frames": sum(one["comparison"].num_frames for one in sections),
        "kinds": KINDS,
        "error_scale": error_scale(),
    }
    filters = {"line": one_line, "cell": markdown_cell}
    for out, name in ((out_html, "page.html.j2"), (out_md, "page.md.j2")):
        text = load_template(Path(__file__).with_name(name), filters).render(facts)
        with write_aside(Path(out)) as aside:
            aside.write_text(text, encoding="utf-8")


def section(comparison: Comparison, pictures: Path) -> dict[str, Any]:
    """What both templates show of one ruler."""
    tables = [
        accuracy(comparison),
        figures_table(comparison, "Metric figures", "Nothing is aligned.", METRIC),
        by_range(comparison),
        scale(comparison),
        figures_table(comparison, "Calibration of uncertainty", CALIBRATION_NOTE, CALIBRATION),
        others(comparison),
    ]
    cards = [picture_card(pictures, comparison, one) for one in pictured(comparison)]
    return {
        "comparison": comparison,
        "short": comparison.digest[:SHORT],
        "tables": [table for table in tables if table.rows],
        "signatures": signatures(comparison),
        "charts": charts(comparison),
        "medians": medians(comparison),
        "pairs": pairs(comparison),
        "cards": [card for card in cards if card],
        "left_out": left_out(comparison),
    }


CALIBRATION_NOTE = (
    "AUSE is the area between the sparsification curves by uncertainty and by true error; 0 is best. "
    "Coverage is the share of pixels whose truth is within the interval that should hold so many."
)


def left_out(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(method, frame, reason) of images without figures, at most 20 of each method."""
    found = []
    for method in comparison.methods:
        without = method.rows.where(method.rows["reason"] != "")
        found += [(method.title, *pair) for pair in zip(without["frame"][:20], without["reason"][:20], strict=True)]
    return found


def error_scale() -> ColourScale:
    """The scale of the error maps."""
    ticks = [(0.0, "0 %"), (50.0, f"{100 * WORST_SHOWN / 2:.0f} %"), (100.0, f"{100 * WORST_SHOWN:.0f} %+")]
    return {"gradient": css_gradient(ERROR_COLOURS), "ticks": ticks}


def markdown_cell(text: str) -> Markup:
    """A text that stays within its cell of a Markdown table, and is no tag."""
    escaped = html.escape(one_line(text), quote=False)
    return Markup(escaped.replace("\\", "\\\\").replace("|", "\\|"))  # noqa: S704, escaped in the line above
