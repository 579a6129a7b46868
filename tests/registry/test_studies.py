"""A study in MLflow: one parent, a run for each measured run, none twice; and an MLflow that is away."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from metricgold.registry import studies
from metricgold.registry.studies import track_study
from tests.registry.project import mlflow_client


def summary(seed, digest="d"):
    return {
        "levels": {"loss": "l1", "seed": str(seed)},
        "facts": {"digest": digest, "commit": "abc", "machine": "CPU, 2 cores"},
        "costs": {"passes": 20.0},
        "figures": {"mine/abs_rel": 0.1 + seed},
    }


def runs_with(condition):
    client = mlflow_client()
    return client.search_runs([client.get_experiment_by_name("metricgold").experiment_id], condition)


def the_parent():
    (parent,) = runs_with("tags.study = 'losses'")
    return parent


def children():
    return runs_with(f"tags.`mlflow.parentRunId` = '{the_parent().info.run_id}'")


def test_every_run_is_one_below_the_study_and_none_is_sent_twice(project):
    track_study("losses", "Is it?", [summary(0)])
    track_study("losses", "Is it?", [summary(0), summary(1)])
    track_study("losses", "Is it?", [summary(0), summary(1, digest="e")])  # measured with other params
    parent = the_parent()
    assert parent.info.run_name == "study losses" and parent.data.tags["mlflow.note.content"] == "Is it?"
    assert sorted(run.data.params["seed"] for run in children()) == ["0", "1", "1"]
    (first,) = (run for run in children() if run.data.params["seed"] == "0")
    assert first.data.metrics == {"mine/abs_rel": 0.1, "cost/passes": 20.0}
    assert first.data.params["loss"] == "l1" and first.info.status == "FINISHED"


@pytest.mark.parametrize("where", ["log_params", "log_metrics"])
def test_a_run_that_a_killed_call_has_begun_is_finished_and_not_sent_twice(project, monkeypatch, where):
    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(studies, where, killed)
        track_study("losses", "Is it?", [summary(0)])
    assert [run.info.status for run in children()] == ["RUNNING"]
    track_study("losses", "Is it?", [summary(0), summary(1)])
    assert [run.info.status for run in children()] == ["FINISHED"] * 2
    assert sorted(run.data.metrics["mine/abs_rel"] for run in children()) == [0.1, 1.1]
    assert sorted(run.data.params["seed"] for run in children()) == ["0", "1"]


def test_calls_that_share_a_study_send_each_run_once(project):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: track_study("losses", "Is it?", map(summary, range(4))), range(4)))
    assert sorted(run.data.params["seed"] for run in children()) == ["0", "1", "2", "3"]


def test_an_mlflow_that_is_away_costs_a_warning(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "0.1")
    track_study("losses", "Is it?", [summary(0)])
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING" and "losses" in record.message]
    assert "not in MLflow yet" in warning.message
