"""Measured figures as tables on a run's page."""

from typing import Any

from prefect.artifacts import create_markdown_artifact

from metricgold.params import Folders
from metricgold.storage import read_json


def show_metrics(folders: Folders) -> dict[str, Any]:
    """The measured figures as a table on the run's page."""
    scores = read_json(folders.metrics("evaluate"))
    rows = {"all": scores, **scores.get("datasets", {})}
    names = [key for key, value in scores.items() if isinstance(value, int | float)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[name]:.4g}" if name in row else "" for name in names) + " |")
    create_markdown_artifact("\n".join(lines), key="metrics", description="held-out scenes")
    return scores


def show_benchmarks(names: list[str], folders: Folders) -> dict[str, Any]:
    """The figures of each benchmark by its default protocol, as a table on the run's page."""
    scores = {name: read_json(folders.metrics(f"benchmark/{name}")) for name in names}
    columns = ("protocol", "num_frames", "abs_rel", "delta1")
    lines = ["| benchmark | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in scores.items():
        cells = [
            str(row.get("protocol", "")),
            str(row.get("num_frames", "")),
            *(interval(row, key) for key in columns[2:]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if names:
        create_markdown_artifact("\n".join(lines), key="benchmarks", description="benchmarks, 95 % intervals by scene")
    return scores


def interval(row: dict[str, Any], key: str) -> str:
    """A figure with the ends of its interval, as far as they are there."""
    values = [f"{row[name]:.4g}" for name in (key, f"{key}_low", f"{key}_high") if row.get(name) is not None]
    return values[0] + (f" ({values[1]} to {values[2]})" if len(values) == 3 else "") if values else ""
