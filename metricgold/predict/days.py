"""What the runs of each day into one output have done: a line a day, for whoever looks once a day."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from metricgold.predict.receipt import SUMMARY
from metricgold.storage import Folder, S3Prefix

MAX_DAYS = 14  # that a summary has


class Day(BaseModel):
    """The runs that ended on one day, in UTC.

    images_failed, images_skipped and over_budget are of the last of them: the next run tries the same images again.
    """

    day: str  # such as 2026-11-29
    runs: int = 0
    images_done: int = 0  # that these runs predicted
    images_failed: int = 0
    images_skipped: int = 0
    seconds: float = 0.0
    drift: int = 0  # warnings of drift
    over_budget: str | None = None


class _Summary(BaseModel):
    days: list[Day] = []


def earlier_days(sink: Folder | S3Prefix) -> list[Day]:
    """The days that the output's summary has, the newest last; none where it has none, or is not ours."""
    try:
        return _Summary.model_validate_json(sink.read(SUMMARY)).days if sink.exists(SUMMARY) else []
    except ValidationError:
        return []


def days_with(summary: dict[str, Any], before: list[Day]) -> list[dict[str, Any]]:
    """For the summary: the days with a run that ends now, whose summary this is."""
    today = datetime.now(UTC).date().isoformat()
    same = next((day for day in before if day.day == today), Day(day=today))
    now = Day(
        day=today,
        runs=same.runs + 1,
        images_done=same.images_done + summary["images_done"] - summary["images_kept"],
        images_failed=summary["images_failed"],
        images_skipped=summary["images_skipped"],
        seconds=round(same.seconds + summary["seconds"], 3),
        drift=same.drift + len(summary["drift"]),
        over_budget=summary["over_budget"],
    )
    days = [*(day for day in before if day.day != today), now]
    return [day.model_dump() for day in days[-MAX_DAYS:]]
