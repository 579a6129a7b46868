"""The few figures that commits are compared by."""

import json

import pytest

from metricgold.evaluate.headline import write_headline
from metricgold.params import Folders
from metricgold.params.sections import load_params
from tests.support import ROOT

BENCHMARK = {
    "abs_rel": 0.3,
    "abs_rel_low": 0.2,
    "abs_rel_high": 0.4,
    "delta1": None,
    "p/m/abs_rel": 0.3,
    "protocol": "p",
}


@pytest.fixture
def folders(tmp_path):
    """Figures of two data sets and two benchmarks."""
    scores = {"abs_rel": 0.2, "delta1": 0.7, "digest": "d", "interval95": {"abs_rel": {"low": 0.1, "high": 0.3}}}
    scores["datasets"] = {name: {"abs_rel": 0.2, "delta1": 0.7, "constant": {"abs_rel": 1.0}} for name in "ab"}
    (tmp_path / "metrics/benchmark").mkdir(parents=True)
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps(scores))
    for name in "cd":
        (tmp_path / f"metrics/benchmark/{name}.json").write_text(json.dumps(BENCHMARK))
    return Folders(tmp_path)


def test_figures_of_what_is_named_and_no_others(folders):
    assert json.loads(write_headline(folders, ["a"], ["c"]).read_text()) == {
        "abs_rel": 0.2,
        "abs_rel_low": 0.1,
        "abs_rel_high": 0.3,
        "delta1": 0.7,
        "datasets": {"a": {"abs_rel": 0.2, "delta1": 0.7}},
        "benchmarks": {"c": {"abs_rel": 0.3, "abs_rel_low": 0.2, "abs_rel_high": 0.4}},
    }


def test_figures_that_are_missing_are_named(folders):
    with pytest.raises(OSError, match="nowhere"):
        write_headline(folders, ["a"], ["nowhere"])


def test_the_demo_has_few_enough_to_read(tmp_path):
    params = load_params(ROOT / "params.yaml")
    every = dict.fromkeys(("abs_rel", "abs_rel_low", "abs_rel_high", "delta1", "rmse_m", "silog", "coverage95"), 0.5)
    (tmp_path / "metrics/benchmark").mkdir(parents=True)
    for name in params.benchmarks:
        (tmp_path / f"metrics/benchmark/{name}.json").write_text(json.dumps(every))
    scores = every | {"datasets": dict.fromkeys(params.datasets, every)}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps(scores))
    text = write_headline(Folders(tmp_path), params.datasets, params.benchmarks).read_text()
    assert text.count("0.5") <= 40
