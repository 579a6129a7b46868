"""The benchmarks' names and report; their figures are measured by `make bench`, not here."""

import json

import pytest

from tests.benchmarks import BOUNDS, CannotRun, batch, evaluate, formats, least_seconds, train
from tests.benchmarks.__main__ import LEFT_OUT, MEASURES, run, write_report
from tests.benchmarks.containers import CONTAINERS, make_shards


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


def test_the_free_model_is_one_that_a_job_takes(tmp_path):
    summary = batch.job(batch.write_photographs(tmp_path / "in", 2), tmp_path)()
    assert (summary["images_done"], summary["images_failed"]) == (2, 0)


def test_both_sides_of_the_training_race_take_a_step(tmp_path):
    work = train.small()
    one = {"batch_size": 1, "micro_batch_size": 1, "mixed_precision": "no"}
    work = work._replace(height=64, width=64, train=work.train.model_copy(update=one))
    ours, usual = train.OurStep(work, tmp_path), train.UsualStep(work)
    before = [next(network.parameters()).clone() for network in (ours.run.network, usual.parts["unet"])]
    ours()
    usual()
    after = [next(network.parameters()) for network in (ours.run.network, usual.parts["unet"])]
    assert all((one != two).any() for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_every_container_gives_back_what_it_was_given(container, tmp_path):
    pytest.importorskip(container.package)
    shards = make_shards(2, 4)
    (written,) = formats.place(tmp_path, [container], 2)
    for path, samples in zip(written.paths, shards, strict=True):
        container.write(path, samples)
    formats.check(written, shards)
    assert written.num_bytes() > 8 * 2 * 2 * 4 * 60 * 80 * 0.75
    with pytest.raises(ValueError, match="not what was written"):
        formats.check(written, shards[::-1])


def test_every_index_opens(tmp_path):
    for opener in formats.write_indices(tmp_path, 1000).values():
        seconds, _ = formats.index_cost(opener, tmp_path)
        assert seconds > 0


def test_both_sides_of_the_figures_race_answer_the_same(tmp_path):
    evaluate.check(evaluate.write_image(tmp_path / "0.npz", 0))


def test_table_in_markdown():
    assert formats.table([{"a": "1", "b": "2"}]).splitlines() == ["| a | b |", "| --- | ---: |", "| 1 | 2 |"]
