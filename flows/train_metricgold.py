"""Flow `train-metricgold`: all of DVC's graph, then the registry."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.dvc_stages import check_licences, run_stages, stage_graph
from flows.experiments import PROJECT, Workspace, clear_workspaces, experiment_workspace, save_experiment
from flows.hooks import HOOKS
from flows.registry_tasks import promote_version, register_version
from flows.run_watch import watched
from metricgold.params import Folders, Params, load_params
from metricgold.storage import read_json

Value = bool | int | float | str | None


def show_metrics(folders: Folders) -> dict[str, Any]:
    """The measured figures as a table on the run's page."""
    scores = read_json(folders.metrics("evaluate"))
    rows = {"all": scores, **scores.get("datasets", {})}
    names = [key for key, value in scores.items() if isinstance(value, int | float)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[name]:.4g}" if name in row else "" for name in names) + " |")
    create_markdown_artifact("\n".join(lines), key="metrics", description="held-out scenes")
    return scores


def show_benchmarks(names: list[str], folders: Folders) -> dict[str, Any]:
    """The figures of each benchmark by its default protocol, as a table on the run's page."""
    scores = {name: read_json(folders.metrics(f"benchmark/{name}")) for name in names}
    columns = ("protocol", "num_frames", "abs_rel", "delta1")
    lines = ["| benchmark | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in scores.items():
        cells = [
            str(row.get("protocol", "")),
            str(row.get("num_frames", "")),
            *(interval(row, key) for key in columns[2:]),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if names:
        create_markdown_artifact("\n".join(lines), key="benchmarks", description="benchmarks, 95 % intervals by scene")
    return scores


def interval(row: dict[str, Any], key: str) -> str:
    """A figure with the ends of its interval, as far as they are there."""
    values = [f"{row[name]:.4g}" for name in (key, f"{key}_low", f"{key}_high") if row.get(name) is not None]
    return values[0] + (f" ({values[1]} to {values[2]})" if len(values) == 3 else "") if values else ""


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
    run_stages(stage_graph(folder=workspace.folder), workspace)
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
