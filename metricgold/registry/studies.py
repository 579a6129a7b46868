"""A study in MLflow: one parent run for the study, and below it one for each run that was measured, whoever did it."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.registry.mlflow_client import NAME, log_metrics, log_params, open_client
from metricgold.storage import only_writer, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MOST_RUNS = 10_000  # of a study
RESULTS = Path("studies/results")
PARENT = "mlflow.parentRunId"  # the tag by which MLflow's pages show runs below another one
KEY = "study_run"  # the tag by which a run is known here


def track_study(name: str, question: str, runs: Iterable[Mapping[str, Any]]) -> None:
    """Log the runs of a study that MLflow lacks: levels and seed, facts, figures and costs.

    A run that a killed call has begun is finished, and calls of one project wait for each other, so that none is there
    twice. An MLflow that is down or refuses costs a warning: the rows are in the results, and the next call sends them.
    """
    try:
        with only_writer(RESULTS / f"{name}.mlflow", waits=True), open_client() as client:
            parent = _parent_of(client, name, question)
            below = _search(client, f"tags.`{PARENT}` = '{parent.info.run_id}'")
            known = {one.data.tags.get(KEY): one for one in below}
            for run in runs:
                there = known.get(_key_of(run))
                if there is None or there.info.status != "FINISHED":
                    _log_run(client, parent, run, there)
    except Exception as error:  # no fault of MLflow may end a study
        logger.warning("study %s is not in MLflow yet: %s", name, without_passwords(str(error)))


def _key_of(run: Mapping[str, Any]) -> str:
    """What a run is known by here: measured with other params it is another one."""
    levels = ", ".join(f"{name} {level}" for name, level in run["levels"].items())
    return f"{levels}, {run['facts']['digest']}"


def _parent_of(client: "MlflowClient", name: str, question: str) -> Any:
    found = _search(client, f"tags.study = '{name}'")
    if found:
        return found[0]
    tags = {"study": name, "mlflow.note.content": question}
    run = client.create_run(_experiment(), run_name=f"study {name}", tags=tags)
    client.set_terminated(run.info.run_id)
    return run


def _log_run(client: "MlflowClient", parent: Any, run: Mapping[str, Any], begun: Any = None) -> None:
    name, tags = ", ".join(run["levels"].values()), {PARENT: parent.info.run_id, KEY: _key_of(run)}
    child = begun or client.create_run(parent.info.experiment_id, run_name=name, tags=tags)
    log_params(client, child.info.run_id, {**run["levels"], **run["facts"]})
    costs = {f"cost/{key}": value for key, value in run["costs"].items()}
    log_metrics(client, child.info.run_id, [(0, {**run["figures"], **costs})])
    client.set_terminated(child.info.run_id)  # last: one that is not finished is sent again


def _search(client: "MlflowClient", condition: str) -> list[Any]:
    return list(client.search_runs([_experiment()], condition, max_results=MOST_RUNS))


def _experiment() -> str:
    import mlflow

    return str(mlflow.set_experiment(NAME).experiment_id)
