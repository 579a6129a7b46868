"""Flow `train-metricgold`: all of DVC's graph, then the registry."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.dvc_stages import check_licences, run_stages
from flows.experiments import PROJECT, Workspace, clear_workspaces, experiment_workspace, save_experiment
from flows.figures import show_benchmarks, show_metrics
from flows.hooks import HOOKS
from flows.registry_tasks import promote_version, register_version
from flows.run_watch import watched
from metricgold.params import Params, load_params

Value = bool | int | float | str | None


@flow(name="train-metricgold", **HOOKS)
@watched
def train_metricgold(overrides: dict[str, Value | list[Value]] | None = None, promote: bool = False) -> dict[str, Any]:
    """Bring every stage up to date, register the model as candidate and, with `promote`, promote it.

    Command: prefect deployment run train-metricgold (or: python -m flows.train_metricgold)
    Reads:   params.yaml, data_manifests/, what earlier stages wrote into data/ and models/
    Writes:  data/, models/, metrics/, plots/, MLflow; with promote the alias champion, if the gate holds
    Hours:   0.1 for the demo profile on two cores; days for the complete data sets on one GPU

    Stages that use a GPU wait for a slot of the limit metricgold-gpu. A cancelled run lets the trainer save, and the
    next run resumes there. Where SIGTERM stops the trainer alone, it saves too, and the run starts it again, up to
    three times.

    Args:
        overrides: Other values than params.yaml has, such as {"train.num_steps": 100}, for a DVC experiment.
        promote: Make the new version champion if the gate of params.yaml holds.
    """
    params = load_params(Path("params.yaml"), overrides)
    check_licences([*params.datasets, *params.benchmarks])
    clear_workspaces()
    if not overrides:
        return run_all(params, promote)
    with experiment_workspace(overrides, flow_run.name or "experiment") as workspace:
        return run_all(params, promote, workspace, overrides)


def run_all(
    params: Params,
    promote: bool,
    workspace: Workspace = PROJECT,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Stages, figures, experiment if it is one, registry; all in the folder of the workspace."""
    run_stages(workspace=workspace)
    scores = show_metrics(workspace.folders)
    benchmarks = show_benchmarks(params.benchmarks, workspace.folders)
    experiment = save_experiment(workspace, overrides) if overrides else None
    registered = register_version(workspace)
    promoted = promote_version(registered["version"], dry_run=False) if promote else None
    return {
        "metrics": scores,
        "benchmarks": benchmarks,
        "experiment": experiment,
        "registered": registered,
        "promoted": promoted,
    }


if __name__ == "__main__":
    train_metricgold()
