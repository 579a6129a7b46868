"""A training that MLflow follows: its rows, its end, and an MLflow that is slow, down or new."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest
import yaml

from metricgold.registry import live
from metricgold.registry.live import track
from tests.registry.project import PARAMS, mlflow_client, register_scores
from tests.support.waiting import wait_until

STATE = Path("models/metricgold.state")


@pytest.fixture
def fresh(project, monkeypatch):
    """A project whose trainer has written nothing yet."""
    monkeypatch.setattr(live, "SEND_EVERY_S", 0.1)
    (STATE / "metrics.jsonl").unlink()
    return project


def _row(step, **more):
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": 1.0, **more}


def _run_of_state():
    return mlflow_client().get_run(json.loads((STATE / "mlflow.json").read_text())["run_id"])


def _steps(name="train/loss"):
    return [metric.step for metric in mlflow_client().get_metric_history(_run_of_state().info.run_id, name)]


def _train(steps, then=None):
    with track(PARAMS, STATE) as report:
        for step in steps:
            report(_row(step))
        if then is not None:
            raise then


def test_training_is_seen_while_it_runs(fresh):
    with track(PARAMS, STATE) as report:
        assert not (STATE / "mlflow.json").exists()  # the trainer may still clear its folder
        report(_row(10))
        (STATE / "samples").mkdir()
        (STATE / "samples/step-000020.png").write_bytes(b"picture")
        report(_row(20, val_abs_rel=0.3))
        wait_until(lambda: (STATE / "mlflow.json").exists() and _steps("val/abs_rel"))
        assert (_run_of_state().info.status, _steps()) == ("RUNNING", [10, 20])
    run = _run_of_state()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "train")
    assert run.data.params["train.lr"] == "3e-05" and "evaluate.seed" not in run.data.params
    assert [file.path for file in mlflow_client().list_artifacts(run.info.run_id, "samples")] == [
        "samples/step-000020.png"
    ]


def test_a_trainer_that_is_refused_leaves_the_run_of_the_living_one_alone(fresh):
    with track(PARAMS, STATE) as report:
        report(_row(10))
        wait_until(lambda: (STATE / "mlflow.json").exists() and _steps())
        with pytest.raises(BlockingIOError):
            _train([], BlockingIOError("another run writes here"))
        assert _run_of_state().info.status == "RUNNING"
    assert _run_of_state().info.status == "FINISHED"


def test_a_stopped_training_goes_on_in_its_run_and_its_checkpoint_is_registered_there(fresh):
    with pytest.raises(SystemExit):
        _train([10, 20, 30], SystemExit(143))
    assert _run_of_state().info.status == "KILLED"
    with pytest.raises(ValueError, match="loss"):
        _train([20, 30, 40], ValueError("loss"))  # from a checkpoint at step 10
    assert (_run_of_state().info.status, _steps()) == ("FAILED", [10, 20, 30, 40])
    # What a killed process had not sent is on the disk.
    (STATE / "metrics.jsonl").write_text("".join(json.dumps(_row(step)) + "\n" for step in (30, 40, 50, 60)))
    _train([])
    assert (_run_of_state().info.status, _steps()) == ("FINISHED", [10, 20, 30, 40, 50, 60])
    answer = register_scores()
    run = _run_of_state()
    assert answer["run_id"] == run.info.run_id and run.info.status == "FINISHED"
    assert run.data.metrics["abs_rel"] == 0.2 and run.data.params["evaluate.seed"] == "0"
    assert len(_steps()) == 6
    assert not register_scores()["created"]


def test_a_run_that_is_not_there_is_made_anew_with_all_rows(fresh):
    (STATE / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
    (STATE / "metrics.jsonl").write_text(json.dumps(_row(10)) + "\n")
    _train([20])
    assert _steps() == [10, 20]


def test_training_does_not_mind_that_mlflow_is_down(fresh, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:1")
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "0.2")
    with caplog.at_level(logging.WARNING), track(PARAMS, STATE) as report:
        report(_row(10))
        wait_until(lambda: caplog.records)
        report(_row(20))
    said = [record.getMessage() for record in caplog.records if record.name == "metricgold.registry.live"]
    assert len(said) == 1 and "127.0.0.1:1" in said[0] and "metrics.jsonl" in said[0]
    assert "sesame" not in caplog.text


def test_a_server_that_hangs_stalls_nothing(fresh, monkeypatch, caplog):
    gate = threading.Event()
    monkeypatch.setattr(live, "open_client", gate.wait)
    monkeypatch.setattr(live, "END_S", 0.2)
    started = time.monotonic()
    _train(range(1, 1000))
    assert time.monotonic() - started < 20
    assert "no answer within 0 s" in caplog.text
    gate.set()


@pytest.mark.parametrize(
    ("options", "variables", "tracked"), [([], {}, True), (["--no-track"], {}, False), ([], {"RANK": "1"}, False)]
)
def test_the_command_train_is_tracked_once_unless_told_not_to(fresh, monkeypatch, options, variables, tracked):
    from click.testing import CliRunner

    from metricgold.cli import main

    Path("params.yaml").write_text(yaml.safe_dump({"datasets": ["hypersim-synthetic"]}))
    for key, value in variables.items():
        monkeypatch.setenv(key, value)

    def train(*_, report, **__):
        if report is not None:
            report(_row(10))

    monkeypatch.setattr("metricgold.train.train", train)
    done = CliRunner().invoke(main, ["train", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (STATE / "mlflow.json").exists() == tracked
