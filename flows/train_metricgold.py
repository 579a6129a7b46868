"""Flow `train-metricgold`: all of DVC's graph, then the registry."""

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.child_processes import DVC
from flows.dvc_stages import check_licences, forget_torn_locks, run_stages, run_until_done, stage_graph
from flows.gpu_slots import gpu_slot
from flows.hooks import HOOKS
from flows.registry_tasks import promote_version, register_version
from flows.run_watch import watched
from metricgold.params import Folders, load_params
from metricgold.storage import read_json

Value = bool | int | float | str | None


@task(task_run_name="experiment", cache_policy=NO_CACHE)
def run_experiment(overrides: dict[str, Any]) -> None:
    """The graph with other values than those of params.yaml, kept by DVC as an experiment of its own."""
    changes = [f"--set-param=++{key}={literal(value)}" for key, value in overrides.items()]
    log = get_run_logger().info
    forget_torn_locks()
    with gpu_slot(log) as variables:
        run_until_done("experiment", [*DVC, "exp", "run", *changes], log, **variables)


def literal(value: Any) -> str:
    """A value in the grammar of `dvc exp run --set-param`, where a text without quotes can be a command of its own.

    Raises ValueError for a text that cannot be quoted or that would stand for another value.
    """
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if not value.isprintable() or any(part in value for part in ("'", "\\", "${")):
        raise ValueError(f"override {value!r}: expected a text without quotes, backslashes, ${{ and control characters")
    return f"'{value}'"


def show_metrics() -> dict[str, Any]:
    """The measured figures as a table on the run's page."""
    scores = read_json(Folders().metrics("evaluate"))
    rows = {"all": scores, **scores.get("datasets", {})}
    names = [key for key, value in scores.items() if isinstance(value, int | float)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[name]:.4g}" if name in row else "" for name in names) + " |")
    create_markdown_artifact("\n".join(lines), key="metrics", description="held-out scenes")
    return scores


def show_benchmarks(names: list[str]) -> dict[str, Any]:
    """The figures of each benchmark by its default protocol, as a table on the run's page."""
    scores = {name: read_json(Folders().metrics(f"benchmark/{name}")) for name in names}
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
    graph = stage_graph()
    if overrides:
        run_experiment(overrides)
    else:
        run_stages(graph)
    scores, benchmarks, registered = show_metrics(), show_benchmarks(params.benchmarks), register_version()
    promoted = promote_version(registered["version"], dry_run=False) if promote else None
    return {"metrics": scores, "benchmarks": benchmarks, "registered": registered, "promoted": promoted}


if __name__ == "__main__":
    train_metricgold()
