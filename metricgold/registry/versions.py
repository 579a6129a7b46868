"""Versions of the model: which is current, what it scored and where it came from.

One registered model, `metricgold`, whose versions move through three aliases: `register` sets `candidate`,
`promote` moves `champion` if the gate holds and leaves the old one as `previous`, `rollback` swaps the two.
A version is keyed by the digest of its checkpoint: registering the same bytes twice gives the same version.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.evaluate import read_figures, read_rows_files
from metricgold.params import Params
from metricgold.registry.gate import ROWS, benchmark_metric
from metricgold.registry.lineage import flat, lineage_tags, score_tags
from metricgold.registry.mlflow_client import (
    NAME,
    log_metrics,
    log_params,
    log_rows,
    open_client,
)
from metricgold.registry.pyfunc import clear_copies, log_model
from metricgold.storage import digest_folder, only_writer, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CURVE_POINTS = 200  # of the loss curve kept in MLflow; the complete one stays in metrics.jsonl


def register(params: Params, model: Path, metrics: Path) -> dict[str, Any]:
    """Log one run and register its checkpoint; the version gets the alias `candidate`.

    model    diffusers folder of MetricGoldPipeline; beside it <model>.state/metrics.jsonl, if it was trained here
    metrics  JSON of `metricgold evaluate`, beside it its rows, and the folder benchmark with the summaries of
             `metricgold benchmark`
    Returns name, version, run_id, model_uri, model_digest, alias and created (False: these bytes had a version).
    Raises ValueError when checkpoint or metrics are missing, when they do not belong together, or MLflow refuses.
    """
    for path, stage in ((model / "model_index.json", "train"), (metrics, "evaluate")):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `dvc repro {stage}` makes it")
    with only_writer(model, model.with_name(f".{model.name}.register.lock"), waits=True), open_client() as client:
        digest = digest_folder(model)
        measured = read_measured(metrics, digest)
        version = first_version(client, digest)
        created = version is None
        if version is None:
            mine = create_version(client, params, model, measured, digest)
            # Another machine may have done the same meanwhile; both see both now, and keep the first.
            version = first_version(client, digest) or mine
            created = version.version == mine.version
            if not created:
                client.delete_model_version(NAME, mine.version)
        elif version.tags.get("scores_digest") != measured.tags["scores_digest"]:
            _log_measured(client, version.run_id, measured)
            for key, value in measured.tags.items():
                client.set_model_version_tag(NAME, version.version, key, value)
        client.set_registered_model_alias(NAME, "candidate", version.version)
    return {
        "name": NAME,
        "version": str(version.version),
        "run_id": version.run_id,
        "model_uri": f"models:/{NAME}/{version.version}",
        "model_digest": digest,
        "alias": "candidate",
        "created": created,
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a checkpoint: its evaluation, the file of the frames behind it, and benchmarks by name."""

    scores: dict[str, Any]
    rows: Path | None
    benchmarks: dict[str, dict[str, Any]]

    @property
    def tags(self) -> dict[str, str]:
        """score_tags of all of it."""
        return score_tags(self.scores, self.benchmarks)


def read_measured(metrics: Path, model_digest: str) -> Measured:
    """What lies in and beside the JSON of `metricgold evaluate`, as far as it is of this checkpoint.

    ValueError for an evaluation that does not name this checkpoint; such a benchmark is left out with a warning.
    """
    scores, benchmarks = read_figures(metrics, model_digest), {}
    for path in sorted((metrics.parent / "benchmark").glob("*.json")):
        try:
            benchmarks[path.stem] = read_figures(path, model_digest)
        except ValueError as error:
            logger.warning("not registered: %s", error)
    return Measured(scores, rows_beside(metrics, scores), benchmarks)


def rows_beside(metrics: Path, scores: dict[str, Any]) -> Path | None:
    """The file of the frames of an evaluation, None without one. ValueError for that of another checkpoint."""
    path = metrics.with_name(ROWS)
    if not path.is_file():
        logger.warning("%s: no such file; the gate will compare means alone, without their intervals", path)
        return None
    if read_rows_files([path]).where(method="model").unique("method_digest") != [scores["model_digest"]]:
        raise ValueError(f"{path} is about another checkpoint than {metrics}; `dvc repro evaluate` writes both")
    return path


def first_version(client: "MlflowClient", digest: str) -> "ModelVersion | None":
    """The version of a checkpoint's bytes, the first of several; None without one."""
    same = client.search_model_versions(f"name = '{NAME}' and tags.model_digest = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def create_version(
    client: "MlflowClient", params: Params, model: Path, measured: "Measured", digest: str
) -> "ModelVersion":
    """Log params, scores, curve and files into one run, that of the training if it was tracked; register its model."""
    import mlflow
    from mlflow.exceptions import MlflowException

    tags = {**lineage_tags(params, model), **measured.tags, "model_digest": digest}
    experiment = mlflow.set_experiment(NAME).experiment_id
    with mlflow.start_run(run_of(client, experiment, digest), tags=tags) as run:
        run_id = run.info.run_id
        clear_copies(client, experiment, run_id)
        log_params(client, run_id, flat(params.model_dump(mode="json")))
        _log_measured(client, run_id, measured)
        if "train/loss" not in client.get_run(run_id).data.metrics:  # trained elsewhere, or while MLflow was away
            rows = read_rows(model.with_name(model.name + ".state") / "metrics.jsonl")
            step = len(rows) // CURVE_POINTS + 1
            log_rows(client, run_id, [*rows[:-1:step], *rows[-1:]])
        for file in filter(Path.is_file, (Path("dvc.lock"), Path("params.yaml"))):
            mlflow.log_artifact(str(file))
        logged = log_model(params, model)
    try:
        client.create_registered_model(NAME, description="Depth in metres from one image.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Tags go in with the version: a kill in between leaves a run behind, never a version without its digest.
    return client.create_model_version(NAME, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id)


def run_of(client: "MlflowClient", experiment: str, digest: str) -> str | None:
    """The run that trained a checkpoint, or that began to register it and was killed; None without one.

    Never the run of another version: a training that is written again, such as with another calibration, goes on in its
    run, where the new checkpoint's figures would take the place of the old one's.
    """
    taken = {version.run_id for version in client.search_model_versions(f"name = '{NAME}'")}
    runs = client.search_runs([experiment], f"tags.model_digest = '{digest}'")
    return next((run.info.run_id for run in runs if run.info.run_id not in taken), None)


def _log_measured(client: "MlflowClient", run_id: str, measured: Measured) -> None:
    """Metrics under their own names, those of one data set as <data set>/<name>; files as artifacts."""
    scores = measured.scores
    overall = {key: value for key, value in scores.items() if key != "datasets"}
    rows = [overall, flat({"interval95": scores.get("interval95") or {}}, "/"), flat(scores.get("datasets", {}), "/")]
    for name, summary in measured.benchmarks.items():
        rows.append({benchmark_metric(name, key): value for key, value in summary.items() if "/" not in key})
        client.log_dict(run_id, summary, f"benchmark/{name}.json")
    log_metrics(client, run_id, [(0, row) for row in rows])
    client.log_dict(run_id, scores, "evaluate.json")
    if measured.rows is not None:
        client.log_artifact(run_id, str(measured.rows))
