"""Another version under the alias takes over while requests come in."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.params.sections import Predict
from metricgold.predict.job import BatchJob
from metricgold.serve.follow import following
from metricgold.serve.stage import newer_model
from tests.serve.test_app import ask, metres
from tests.support.serving import CountingModel, depth_of, photograph, served_model, serving
from tests.support.waiting import wait_until

OLD, NEW = depth_of(photograph()), 2 * depth_of(photograph())


def test_no_request_is_lost_while_the_alias_moves():
    newest, moved = served_model(CountingModel(scale=2.0), name="metricgold/4"), Event()

    def newer(name):
        return newest if moved.is_set() and name != newest.name else None

    with serving(CountingModel()) as (client, service), following(service, newer, 0.01), ThreadPoolExecutor(8) as pool:

        def one(n):
            if n == 100:
                moved.set()
            depth_m = metres(ask(client))
            return next(found for found, expected in enumerate((OLD, NEW)) if np.allclose(depth_m, expected, rtol=1e-4))

        found = list(pool.map(one, range(300)))
        assert found[:90] == [0] * 90 and found[-50:] == [1] * 50
        assert client.get("/v1/model").json()["name"] == "metricgold/4"
        assert 'metricgold_reloads_total{outcome="done"} 1.0' in client.get("/metrics").text


def test_a_registry_that_is_away_leaves_the_present_version_at_work(caplog):
    faults = iter([ConnectionError("away"), ConnectionError("away"), ValueError("no such version")])

    def newer(_):
        if fault := next(faults, None):
            raise fault
        return served_model(CountingModel(scale=2.0), name="metricgold/4")

    with serving(CountingModel()) as (client, service), following(service, newer, 0.2):
        np.testing.assert_allclose(metres(ask(client)), OLD, rtol=1e-4)
        wait_until(lambda: service.model.name == "metricgold/4")
        np.testing.assert_allclose(metres(ask(client)), NEW, rtol=1e-4)
        assert 'metricgold_reloads_total{outcome="failed"} 3.0' in client.get("/metrics").text
    said = [record.message for record in caplog.records if "as before" in record.message]
    assert said == ["metricgold/3 is served as before: away", "metricgold/3 is served as before: no such version"]


def test_a_server_ends_while_the_registry_does_not_answer():
    asked, answers = Event(), Event()

    def newer(_):
        asked.set()
        answers.wait(60)

    with serving(CountingModel()) as (client, service), following(service, newer, 0.01):
        assert asked.wait(10)
        assert ask(client).status_code == 200
    answers.set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_name_is_loaded_and_warmed_up(dtype, monkeypatch, tmp_path):
    """In half precision in the model's own thread, because a load changes torch's default dtype for a moment."""
    import threading

    loaded = []

    def load_model(job):
        loaded.append((job.model_name, threading.current_thread().name))
        return CountingModel(one_step=True)

    monkeypatch.setattr(BatchJob, "load_model", load_model)
    with serving(CountingModel()) as (_, service):
        resolve, params = (lambda: (tmp_path, "metricgold/4")), Predict(dtype=dtype)
        assert newer_model(service, params, resolve, "metricgold/4") is None
        model = newer_model(service, params, resolve, "metricgold/3")
    ((name, thread),) = loaded
    assert name == model.name == "metricgold/4" and thread.startswith("model") == (dtype != "float32")
    assert model.pipe.batches == [[(64, 96)]]


def test_only_an_alias_can_be_followed():
    for model in ("models/metricgold", "models:/metricgold/3"):
        done = CliRunner().invoke(main, ["serve", "--model", model, "--follow-alias"])
        assert done.exit_code == 2 and f"{model} is no alias" in done.output
