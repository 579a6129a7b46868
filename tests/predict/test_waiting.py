"""How many files a job still has to do, while it works."""

from types import SimpleNamespace

import pytest

from metricgold.predict import stage, waiting as waiting_module
from metricgold.predict.quota import Quota
from metricgold.predict.waiting import Waiting
from metricgold.storage import read_progress
from tests.predict.test_stage import PARAMS, fill
from tests.support.pipes import FakePipe

NUM = 6


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of NUM images, one at a time, that waits until all are counted; with what it told."""

    class Patient(Waiting):
        def after(self, num_seen):
            if (left := super().after(num_seen)) is None and self._thread.ident is not None:
                self._thread.join()
                left = super().after(num_seen)
            return left

    monkeypatch.setattr(stage, "Waiting", Patient)
    monkeypatch.setattr(waiting_module, "COUNT_AFTER_S", 0.0)
    monkeypatch.setattr(waiting_module, "TELL_EVERY_S", 0.0)
    monkeypatch.setenv("METRICGOLD_PROGRESS", str(tmp_path / "progress.json"))
    source, told = fill(tmp_path / "in", NUM), []

    def run(**options):
        metrics = SimpleNamespace(write_waiting=lambda output, count: told.append((output, count)))
        params = PARAMS.model_copy(update={"batch_size": 1})
        options |= {"model_name": "metricgold/1", "pipe": FakePipe(), "metrics": metrics}
        return stage.predict_all(params, tmp_path / "none", str(source), str(tmp_path / "out"), **options)

    return SimpleNamespace(run=run, told=told, folder=tmp_path)


def test_what_waits_grows_less_until_nothing_does(job):
    summary = job.run()
    assert job.told[:NUM] == [(str(job.folder / "out"), count) for count in range(NUM, 0, -1)]
    progress = read_progress(job.folder / "progress.json")
    assert (progress.done, progress.total) == (NUM, NUM) and summary["images_waiting"] == 0


def test_a_run_that_ends_by_its_quota_says_what_is_left_for_the_next(job):
    assert job.run(quota=Quota(max_images=4))["images_waiting"] == NUM - 4
    assert job.run()["images_waiting"] == 0


def test_a_short_job_is_not_listed_twice(job, monkeypatch):
    monkeypatch.setattr(waiting_module, "COUNT_AFTER_S", 3600.0)
    assert job.run(quota=Quota(max_images=4))["images_waiting"] is None
    assert job.told == [] and read_progress(job.folder / "progress.json") is None


def test_a_listing_that_fails_ends_no_job(job, monkeypatch):
    def fail():
        raise OSError("away")

    with Waiting(fail, print) as waiting:
        assert waiting.after(0) is None
        waiting._thread.join()
        assert waiting.after(1) is None
