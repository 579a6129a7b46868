"""What the summary says of each day."""

import json

import pytest

import metricgold.predict.days as days_module
from metricgold.predict.days import Day, days_with, earlier_days
from metricgold.storage.buckets import Folder
from tests.predict.test_stage import fill, run

SUMMARY = {"images_done": 5, "images_kept": 3, "images_failed": 1, "images_skipped": 4, "seconds": 1.5}
SUMMARY |= {"drift": ["depth_median_m is 6.1"], "over_budget": None}


def test_runs_of_a_day_are_one_line_and_two_weeks_stay():
    (first,) = days_with(SUMMARY, [])
    (both,) = days_with(SUMMARY | {"images_failed": 0}, [Day(**first)])
    assert both | {"day": ""} == {
        **{"day": "", "runs": 2, "images_done": 4, "images_failed": 0, "images_skipped": 4},
        **{"seconds": 3.0, "drift": 2, "over_budget": None},
    }
    before = [Day(day=f"2020-01-{n:02d}", runs=1) for n in range(1, 21)]
    assert [day["day"] for day in days_with(SUMMARY, before)] == [*(day.day for day in before[7:]), first["day"]]


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", '{"days": 3}', '{"days": [{"day": 1}]}', '{"days": [[]]}'])
def test_a_summary_without_days_has_none(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    assert earlier_days(Folder(tmp_path)) == []


def test_each_run_adds_to_its_day(tmp_path, monkeypatch):
    source, out = fill(tmp_path / "in", 2), tmp_path / "out"
    run(source, out)
    assert run(source, out)["days"][-1]["runs"] in (1, 2)  # midnight may have come
    monkeypatch.setattr(days_module, "MAX_DAYS", 1)
    days = run(source, out)["days"]
    assert json.loads((out / "summary.json").read_text())["days"] == days and len(days) == 1
