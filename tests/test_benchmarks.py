"""The benchmarks' names and report; their figures are measured by `make bench`, not here."""

import json

import pytest
from benchmarks import BOUNDS, CannotRun, least_seconds
from benchmarks.__main__ import LEFT_OUT, MEASURES, run, write_report


def test_every_name_of_the_table_is_measured_or_left_out_with_a_reason():
    measured = [name for names in MEASURES for name in names]
    assert sorted([*measured, *LEFT_OUT]) == sorted(BOUNDS)
    assert all(LEFT_OUT.values())


def test_report_of_stub_measurements(tmp_path, capsys):
    def refuse(folder):
        raise CannotRun("no such machine")

    def measure(folder):
        assert list(folder.iterdir()) == []
        return {"cache.index_open_s": 0.25, "frames.speedup_vs_script": 2.0}

    measures = {("cache.index_open_s", "frames.speedup_vs_script"): measure, ("batch.overhead",): refuse}
    figures, missing = run(measures, {"dask.speedup_2": "no Dask"})
    write_report(tmp_path / "reports" / "bench.json", figures, missing)

    report = json.loads((tmp_path / "reports" / "bench.json").read_text())
    meta = report.pop("_meta")
    assert report == {"cache.index_open_s": 0.25, "frames.speedup_vs_script": 2.0}
    assert meta["left_out"] == {"batch.overhead": "no such machine", "dask.speedup_2": "no Dask"}
    assert {"machine", "cores", "python", "torch", "date", "commit"} <= set(meta)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*report, "batch.overhead", "dask.speedup_2"]
    assert [line.split()[-1] for line in lines] == ["ok", "MISSED", "machine", "Dask"]


@pytest.mark.parametrize(("name", "good", "bad"), [("cache.index_open_s", 1, 1.01), ("dask.speedup_2", 1.8, 1.79)])
def test_bounds_include_their_limit(name, good, bad):
    assert BOUNDS[name].holds(good)
    assert not BOUNDS[name].holds(bad)


def test_contestants_take_turns_after_one_call_to_warm_up():
    calls = []
    assert len(least_seconds(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2)) == 2
    assert calls == ["a", "b"] * 3
