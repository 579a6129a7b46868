"""A study in MLflow: one parent, a run for each measured run, none twice; and an MLflow that is away."""

from metricgold.registry.studies import track_study
from tests.registry.project import mlflow_client


def summary(seed, digest="d"):
    return {
        "levels": {"loss": "l1", "seed": str(seed)},
        "facts": {"digest": digest, "commit": "abc", "machine": "CPU, 2 cores"},
        "costs": {"passes": 20.0},
        "figures": {"mine/abs_rel": 0.1 + seed},
    }


def test_every_run_is_one_below_the_study_and_none_is_sent_twice(project):
    track_study("losses", "Is it?", [summary(0)])
    track_study("losses", "Is it?", [summary(0), summary(1)])
    track_study("losses", "Is it?", [summary(0), summary(1, digest="e")])  # measured with other params
    client = mlflow_client()
    experiment = client.get_experiment_by_name("metricgold").experiment_id
    (parent,) = client.search_runs([experiment], "tags.study = 'losses'")
    assert parent.info.run_name == "study losses" and parent.data.tags["mlflow.note.content"] == "Is it?"
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.params["seed"] for run in children) == ["0", "1", "1"]
    (first,) = (run for run in children if run.data.params["seed"] == "0")
    assert first.data.metrics == {"mine/abs_rel": 0.1, "cost/passes": 20.0}
    assert first.data.params["loss"] == "l1" and first.info.status == "FINISHED"


def test_an_mlflow_that_is_away_costs_a_warning(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "0.1")
    track_study("losses", "Is it?", [summary(0)])
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING" and "losses" in record.message]
    assert "not in MLflow yet" in warning.message
