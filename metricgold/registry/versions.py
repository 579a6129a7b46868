"""Versions of the model: which is current, what it scored and where it came from.

One registered model, `metricgold`, whose versions move through three aliases: `register` sets `candidate`,
`promote` moves `champion` if the gate holds and leaves the old one as `previous`, `rollback` swaps the two.
A version is keyed by the digest of its checkpoint: registering the same bytes twice gives the same version.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.model import digest_model
from metricgold.params import Params
from metricgold.registry.gate import benchmark_metric
from metricgold.registry.lineage import collect_lineage, flat, notes_of, tags_of
from metricgold.registry.measured import Measured, read_measured
from metricgold.registry.mlflow_client import (
    LINEAGE,
    NAME,
    log_datasets,
    log_metrics,
    log_params,
    log_rows,
    open_client,
    set_alias,
)
from metricgold.registry.model_card import log_card
from metricgold.registry.pyfunc import clear_copies, log_model
from metricgold.storage import only_writer, read_rows
from metricgold.train import state_of_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "experiment"  # a version's tag
CURVE_POINTS = 200  # of the loss curve kept in MLflow; the complete one stays in metrics.jsonl


def register(params: Params, model: Path, metrics: Path, experiment: str | None = None) -> dict[str, Any]:
    """Log one run and register its checkpoint; the version gets the alias `candidate`.

    model       diffusers folder of MetricGoldPipeline; beside it <model>.state/metrics.jsonl, if it was trained here
    metrics     JSON of `metricgold evaluate`, beside it its rows, and the folder benchmark with the summaries of
                `metricgold benchmark`
    experiment  DVC's name of the values that made it, a tag of the version. A version that these bytes have already
                keeps its own figures, which an experiment may have measured by other rules
    Returns name, version, run_id, model_uri, model_digest, alias and created (False: these bytes had a version).
    Raises ValueError when checkpoint or metrics are missing, when they do not belong together, or MLflow refuses.
    """
    for path, stage in ((model / "model_index.json", "train"), (metrics, "evaluate")):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `dvc repro {stage}` makes it")
    with only_writer(model, model.with_name(f".{model.name}.register.lock"), waits=True), open_client() as client:
        digest = digest_model(model)
        vae = (notes_of(model).get("depth_vae") or {}).get("backbone_vae")
        measured = read_measured(metrics, digest, vae)
        version = first_version(client, digest)
        created = version is None
        if version is None:
            mine = create_version(client, params, model, measured, digest, experiment)
            # Another machine may have done the same meanwhile; both see both now, and keep the first.
            version = first_version(client, digest) or mine
            created = version.version == mine.version
            if not created:
                client.delete_model_version(NAME, mine.version)
        elif not experiment and (
            version.tags.get("scores_digest") != measured.digest or "lineage_digest" not in version.tags
        ):
            for key, value in log_known(client, version.run_id, params, model, measured, digest).items():
                client.set_model_version_tag(NAME, version.version, key, value)
        set_alias(client, "candidate", version.version)
    return {
        "name": NAME,
        "version": str(version.version),
        "run_id": version.run_id,
        "model_uri": f"models:/{NAME}/{version.version}",
        "model_digest": digest,
        "alias": "candidate",
        "created": created,
    }


def first_version(client: "MlflowClient", digest: str) -> "ModelVersion | None":
    """The version of a checkpoint's bytes, the first of several; None without one."""
    same = client.search_model_versions(f"name = '{NAME}' and tags.model_digest = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def create_version(
    client: "MlflowClient", params: Params, model: Path, measured: Measured, digest: str, experiment: str | None
) -> "ModelVersion":
    """Log all that is known into one run, that of the training if it was tracked; register its model."""
    import mlflow
    from mlflow.exceptions import MlflowException

    experiment_id = mlflow.set_experiment(NAME).experiment_id
    with mlflow.start_run(run_of(client, experiment_id, digest), tags={"model_digest": digest}) as run:
        run_id = run.info.run_id
        clear_copies(client, experiment_id, run_id)
        tags = log_known(client, run_id, params, model, measured, digest)
        tags |= {EXPERIMENT: experiment} if experiment else {}
        logged = log_model(params, model, digest)
    try:
        client.create_registered_model(NAME, description="Depth in metres from one image.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Tags go in with the version: a kill in between leaves a run behind, never a version without its digest.
    return client.create_model_version(NAME, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id)


def run_of(client: "MlflowClient", experiment: str, digest: str) -> str | None:
    """The run that trained a checkpoint, or that began to register it and was killed; None without one.

    Never the run of another version: a training that is written again, such as with another calibration, continues in
    its run, where the new checkpoint's figures would take the place of the old one's.
    """
    taken = {version.run_id for version in client.search_model_versions(f"name = '{NAME}'")}
    runs = client.search_runs([experiment], f"tags.model_digest = '{digest}'")
    return next((run.info.run_id for run in runs if run.info.run_id not in taken), None)


def log_known(
    client: "MlflowClient", run_id: str, params: Params, model: Path, measured: Measured, digest: str
) -> dict[str, str]:
    """Log params, data sets, curve, figures and files of a checkpoint into its run; returns the tags of its version."""
    run = client.get_run(run_id).data
    lineage = collect_lineage(params, model, digest, measured, run.tags)
    log_params(client, run_id, flat(lineage["params"]))
    log_datasets(client, run_id, lineage["datasets"])
    state = state_of_model(model, digest)
    if state and "train/loss" not in run.metrics:  # trained elsewhere, or while MLflow was away
        rows = read_rows(state / "metrics.jsonl")
        step = len(rows) // CURVE_POINTS + 1
        log_rows(client, run_id, [*rows[:-1:step], *rows[-1:]])
    log_measured(client, run_id, measured)
    for file in filter(Path.is_file, (Path("dvc.lock"), Path("params.yaml"))):
        client.log_artifact(run_id, str(file))
    client.log_dict(run_id, lineage, LINEAGE)
    log_card(client, run_id, model, lineage, measured)
    tags = tags_of(lineage, measured)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    return tags


def log_measured(client: "MlflowClient", run_id: str, measured: Measured) -> None:
    """Metrics under their own names, those of one data set as <data set>/<name>; files and reports as artifacts."""
    scores = measured.scores
    overall = {key: value for key, value in scores.items() if key != "datasets"}
    rows = [overall, flat({"interval95": scores.get("interval95") or {}}, "/"), flat(scores.get("datasets", {}), "/")]
    for name, summary in measured.benchmarks.items():
        rows.append({benchmark_metric(name, key): value for key, value in summary.items() if "/" not in key})
    log_metrics(client, run_id, [(0, row) for row in rows])
    for file in measured.files:
        client.log_artifact(run_id, str(file), "benchmark" if file.stem in measured.benchmarks else None)
    for file in measured.reports:
        client.log_artifact(run_id, str(file), "reports")
