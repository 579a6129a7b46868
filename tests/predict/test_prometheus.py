"""The figures of a run in Prometheus' text format."""

import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metricgold.model import peak_gpu_memory_mb
from metricgold.predict.prometheus import MetricsFile
from tests.predict.test_stage import fill, run


def samples(path) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name.removeprefix("metricgold_batch_"), *list(sample.labels.values())[1:]): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_file_for_the_textfile_collector(tmp_path):
    metrics = MetricsFile(tmp_path / "new" / "depth.prom")
    source = fill(tmp_path / "in", 3)
    (source / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (source / "notes.txt").write_text("no picture")
    summary = run(source, tmp_path / 'out "1"')
    metrics.write(summary)
    found = samples(metrics.path)
    assert [found["images", word] for word in ("done", "kept", "failed", "skipped")] == [3, 0, 1, 1]
    assert found["failures", next(iter(summary["reasons"]))] == 1
    assert found["step_seconds", "model"] == summary["seconds_by_step"]["model"]
    assert found["seconds",] == summary["seconds"] and found["over_budget",] == found["drift_warnings",] == 0
    assert found["end_time_seconds",] > 1.7e9 and ("gpu_memory_bytes",) not in found
    metrics.write(summary | {"gpu_memory_mb": 2.5, "reasons": {}, "over_budget": "all failed"})
    found = samples(metrics.path)
    assert found["gpu_memory_bytes",] == 2.5e6 and found["over_budget",] == 1
    assert not any(name == "failures" for name, *_ in found)
    assert [path.name for path in metrics.path.parent.iterdir()] == ["depth.prom"]


def test_what_waits_is_told_while_the_next_run_works_beside_the_figures_of_the_last(tmp_path):
    metrics = MetricsFile(tmp_path / "depth.prom")
    metrics.write_waiting("out", 9)
    assert samples(metrics.path) == {("images_waiting",): 9}
    metrics.write(run(fill(tmp_path / "in", 3), tmp_path / "out"))
    ended = samples(metrics.path)
    assert (ended["images_waiting",], ended["images", "done"]) == (0, 3)
    for waiting in (7, 3):
        metrics.write_waiting(str(tmp_path / "out"), waiting)
        assert samples(metrics.path) == ended | {("images_waiting",): waiting}
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["depth.prom"]


def test_what_waits_and_cannot_be_written_ends_no_job(tmp_path, caplog):
    metrics = MetricsFile(tmp_path / "new" / "depth.prom")
    metrics.path.mkdir()
    metrics.write_waiting("out", 9)
    assert "depth.prom does not say what waits" in caplog.text


def test_what_is_missing_is_said_before_the_job(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ValueError, match=r"metricgold\[serve\]"):
        MetricsFile(tmp_path / "depth.prom")


def test_without_a_gpu_its_memory_is_not_told(monkeypatch):
    assert peak_gpu_memory_mb() is None
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert peak_gpu_memory_mb() is None
