"""Whether a run's images are still like those of the last runs into the same output, and like those of the training.

A camera that was turned, a lens that fell out of a table or a night that became day show here first: no image fails.
"""

import logging
from math import inf, isfinite
from statistics import median
from typing import Any, cast

from metricgold.predict.receipt import SUMMARY, RunFigures
from metricgold.storage import Folder, S3Prefix, parse_json

log = logging.getLogger(__name__)

MIN_IMAGES = 20  # of a run that is compared; the figures of fewer say little
MAX_RUNS = 10  # that a run is compared with


def drifts(now: RunFigures, before: list[RunFigures], max_drift: float) -> list[str]:
    """What differs by more than `max_drift` from the median of the earlier runs or from the training, in words.

    Medians differ by their ratio, the larger over the smaller, less 1; shares by their difference.
    """
    if now["images"] < MIN_IMAGES:
        return []
    found = []
    if (unlikeness := now["unlikeness_median"] or 1.0) - 1 > max_drift:
        found.append(f"unlikeness_median is {unlikeness:.4g}, of frames like those of the training 1")
    for name in ("depth_median_m", "uncertainty_median", "unlikeness_median", "share_assumed"):
        value, *earlier = [cast("dict[str, float | None]", run)[name] for run in (now, *before)]
        known = [number for number in earlier if number is not None]
        if value is None or not known:
            continue
        was = median(known)
        drift = abs(value - was) if name == "share_assumed" else _ratio(value, was) - 1
        if drift > max_drift:
            found.append(f"{name} is {value:.4g}, in the last {len(known)} runs {was:.4g}")
    return found


def _ratio(a: float, b: float) -> float:
    """The larger over the smaller; 1 for equals."""
    return 1.0 if a == b else max(a, b) / min(a, b) if min(a, b) > 0 else inf


def earlier_runs(sink: Folder | S3Prefix) -> list[RunFigures]:
    """Figures of the last runs into this output, the newest last, as its summary has them; else none."""
    if not sink.exists(SUMMARY):
        return []
    try:
        summary = parse_json(sink.read(SUMMARY), SUMMARY)
        return [_figures(run) for run in summary["runs"]][-MAX_RUNS:]
    except (ValueError, KeyError, TypeError, FileNotFoundError):  # of an earlier version, or not ours
        return []


def _figures(run: dict[str, Any]) -> RunFigures:
    """What a summary says of a run. KeyError, TypeError or ValueError for anything else."""
    run = {"unlikeness_median": None} | run  # earlier versions have none
    numbers = {name: run[name] for name in RunFigures.__annotations__}
    known = [number for name, number in numbers.items() if number is not None or name in ("images", "share_assumed")]
    if not all(map(isfinite, known)):
        raise ValueError(f"{SUMMARY}: figures of a run that are no numbers")
    return cast(RunFigures, numbers)


def report_drift(now: RunFigures, before: list[RunFigures], max_drift: float) -> dict[str, Any]:
    """For the summary: `runs` with this one if it has enough images, and `drift`, which is warned of too."""
    found = drifts(now, before, max_drift)
    for words in found:
        log.warning("drift: %s", words)
    runs = [*before, now][-MAX_RUNS:] if now["images"] >= MIN_IMAGES else before
    return {"runs": runs, "drift": found}
