"""The few figures by which two commits, experiments or versions are compared, out of the hundreds in metrics/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricgold.params import Folders
from metricgold.storage import read_json, write_json

OF_ALL = ("abs_rel", "delta1", "rmse_m", "constant_abs_rel", "vae_floor_abs_rel", "ause_abs_rel", "coverage95")
OF_DATASET = ("abs_rel", "delta1")
OF_BENCHMARK = ("abs_rel", "abs_rel_low", "abs_rel_high", "delta1")


def write_headline(folders: Folders, datasets: Sequence[str], benchmarks: Sequence[str]) -> Path:
    """Write reports/headline.json from metrics/evaluate.json and metrics/benchmark/; returns its path.

    Only data sets and benchmarks that are named count. Raises OSError where one of the files is missing.
    """
    scores = read_json(folders.metrics("evaluate"))
    of_benchmarks = {name: read_json(folders.metrics(f"benchmark/{name}")) for name in benchmarks}
    interval = (scores.get("interval95") or {}).get("abs_rel") or {}
    values = {
        **_numbers(scores, OF_ALL),
        **{f"abs_rel_{end}": value for end, value in _numbers(interval, ("low", "high")).items()},
        "datasets": {name: _numbers(scores.get("datasets", {}).get(name, {}), OF_DATASET) for name in datasets},
        "benchmarks": {name: _numbers(found, OF_BENCHMARK) for name, found in of_benchmarks.items()},
    }
    write_json(folders.headline, values)
    return folders.headline


def _numbers(values: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Those of the named values that are numbers: a figure that could not be measured is left out."""
    return {name: values[name] for name in names if isinstance(values.get(name), int | float)}
