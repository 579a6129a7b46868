"""Figures of a run, and how they differ from those of the last runs."""

import json
from contextlib import closing

import pytest

import metricgold.predict.drift as drift_module
from metricgold.predict.drift import drifts, earlier_runs, report_drift
from metricgold.predict.receipt import Receipt, RunFigures
from metricgold.storage.buckets import Folder
from tests.predict.test_receipt import done, failed
from tests.predict.test_stage import fill, run


def figures(
    depth_m: float | None = 4.0,
    uncertainty: float | None = 0.1,
    assumed: float = 0.0,
    images: int = 20,
    unlikeness: float | None = 1.0,
):
    medians = {"depth_median_m": depth_m, "uncertainty_median": uncertainty, "unlikeness_median": unlikeness}
    return RunFigures(images=images, share_assumed=assumed, **medians)


BEFORE = [figures(3.0), figures(4.0), figures(9.0)]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (figures(), []),
        (figures(6.0), []),
        (figures(6.1), ["depth_median_m is 6.1, in the last 3 runs 4"]),
        (figures(2.6), ["depth_median_m is 2.6, in the last 3 runs 4"]),
        (figures(6.1, images=19), []),
        (figures(None, 0.0), ["uncertainty_median is 0, in the last 3 runs 0.1"]),
        (figures(assumed=0.5), []),
        (figures(assumed=0.6), ["share_assumed is 0.6, in the last 3 runs 0"]),
    ],
)
def test_what_differs_by_more_than_the_threshold(now, words):
    assert drifts(now, BEFORE, 0.5) == words
    assert drifts(now, [], 0.5) == []


def test_images_unlike_those_of_the_training_drift_from_the_first_run_on():
    words = "unlikeness_median is 1.6, of frames like those of the training 1"
    assert drifts(figures(unlikeness=1.6), [], 0.5) == [words]
    assert drifts(figures(unlikeness=1.6), [figures(unlikeness=1.5)], 0.5) == [words]
    assert drifts(figures(unlikeness=1.6), BEFORE, 0.5) == [words, "unlikeness_median is 1.6, in the last 3 runs 1"]
    for unlikeness in (None, 1.0, 1.5):
        assert drifts(figures(unlikeness=unlikeness), [figures(unlikeness=None)], 0.5) == []


def test_runs_of_an_earlier_version_are_compared(tmp_path):
    run = dict(figures())
    del run["unlikeness_median"]
    (tmp_path / "summary.json").write_text(json.dumps({"runs": [run]}))
    assert earlier_runs(Folder(tmp_path)) == [figures(unlikeness=None)]


def test_few_images_leave_no_mark_and_the_last_ten_runs_stay(caplog):
    assert report_drift(figures(images=3), BEFORE, 0.5) == {"runs": BEFORE, "drift": []}
    many = [figures(float(n)) for n in range(1, 11)]
    report = report_drift(figures(100.0), many, 0.5)
    assert report["runs"] == [*many[1:], figures(100.0)]
    assert "drift: depth_median_m is 100, in the last 10 runs 5.5" in caplog.text


def test_figures_are_of_the_images_that_this_run_predicted(tmp_path):
    with closing(Receipt(Folder(tmp_path))) as receipt:
        assert receipt.figures()["depth_median_m"] is None
        for n, (median_m, reason) in enumerate([(1.0, None), (2.0, "no EXIF"), (5.0, None), (8.0, None)]):
            row = done(
                f"{n}\udcff", median_m=median_m, uncertainty_median=None, focal_reason=reason, unlikeness=1.0 + n
            )
            receipt.add(row | {"seconds": {"read": 0.5, "model": 2.0, "write": 0.25}})
        receipt.add(failed("z", "z: no"))
        assert receipt.figures() == {
            "images": 4,
            "depth_median_m": 3.5,
            "uncertainty_median": None,
            "unlikeness_median": 2.5,
            "share_assumed": 0.25,
        }
        assert receipt.seconds_by_step() == {"read": 2.0, "model": 8.0, "write": 1.0}


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", "{}", '{"runs": 3}', '{"runs": [{"images": 1}]}', '{"runs": [{"images": "x"}]}']
)
def test_a_summary_without_figures_has_none(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    assert earlier_runs(Folder(tmp_path)) == []


def test_each_run_adds_its_figures_and_one_that_predicts_nothing_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(drift_module, "MIN_IMAGES", 3)
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    first = run(source, out)
    assert [one["images"] for one in first["runs"]] == [4] and first["drift"] == []
    assert first["seconds_by_step"].keys() == {"read", "model", "write"}
    again = run(source, out)
    assert (again["runs"], again["seconds_by_step"]["model"]) == (first["runs"], 0.0)
    assert json.loads((out / "summary.json").read_text())["runs"] == first["runs"]
