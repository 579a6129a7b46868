"""Access to MLflow: a client whose errors are one line, and rows of metrics in the batches that it takes.

Tracking goes to MLFLOW_TRACKING_URI, else to mlflow.db and mlruns/ in the working folder.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from metricgold.extras import naming_the_extra
from metricgold.registry.tracking_store import NAME as NAME, prepare_store
from metricgold.storage import digest_json, read_json, without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LINEAGE = "lineage.json"  # in a checkpoint, by its trainer; and a run's artifact, by `register`
BEHIND = {"mlflow", "sqlalchemy", "botocore", "boto3"}  # whose errors are those of a store, whatever their classes
BATCH_LIMIT = 1000  # metrics that MLflow takes at once
DATASET_DIGEST = 32  # digits of it; MLflow takes 36 at most
ROWS_AT_ONCE = 50  # rows of a training sent together, each with fewer than 20 figures

MetricRow = dict[str, float]  # a line of the trainer's metrics.jsonl: step, loss, lr, val_abs_rel and others


@contextmanager
def open_client() -> Iterator["MlflowClient"]:
    """A client of the tracking store, which is made ready first, see prepare_store.

    Raises ValueError where MLflow is not installed, cannot be reached or refuses, without passwords in its message.
    """
    # Only the word "true" counts; MLflow reads both when it is imported.
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # of one small file
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of tables on each first use
    # It would print the address, password and all, into the answer of `register --json`.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Of a server that is lost on the way; MLflow's own are seven tries and four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with naming_the_extra():
        import mlflow
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        mlflow.set_tracking_uri(uri)
        prepare_store(uri)
        yield mlflow.MlflowClient()
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in BEHIND:
            raise
        said = str(error).partition("\n[SQL:")[0]
        # `from None`: the cause would show the address with its password again.
        raise ValueError(without_passwords(f"MLflow at {uri}: {said}")) from None


def named_version(uri: str) -> tuple[str, str]:
    """Name, and version or alias, of models:/name@alias or models:/name/version. ValueError for anything else."""
    name, _, which = uri.removeprefix("models:/").replace("@", "/").partition("/")
    if not which:
        raise ValueError(f"{uri}: expected models:/name@alias or models:/name/version")
    return name, which


def set_alias(client: "MlflowClient", alias: str, version: str) -> None:
    """Give a version an alias, also while others give it to versions of theirs: the last one has it.

    MLflow looks for the alias and then adds or changes its row. Of two that add it at once, PostgreSQL refuses one,
    which finds the row when it asks again.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(NAME, alias, version)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":  # MLflow's word for a statement that the database refuses
            raise
        client.set_registered_model_alias(NAME, alias, version)


def find_version(client: "MlflowClient", which: str, name: str = NAME) -> "ModelVersion":
    """A version by its number or alias. Raises ValueError where no version has the alias."""
    if which.isdigit():
        return client.get_model_version(name, which)
    version = version_of_alias(client, which, name)
    if version is None:
        raise ValueError(f"no version of {name} has the alias {which}")
    return version


def version_of_alias(client: "MlflowClient", alias: str, name: str = NAME) -> "ModelVersion | None":
    """The version that has an alias, None if no version has it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no such alias
            return None
        raise


def read_record(client: "MlflowClient", version: "ModelVersion") -> dict[str, Any]:
    """The lineage.json that `register` left with a version; empty for versions of before there was one."""
    if LINEAGE not in {artifact.path for artifact in client.list_artifacts(version.run_id)}:
        return {}
    with TemporaryDirectory(prefix="metricgold-") as folder:
        record: dict[str, Any] = read_json(Path(client.download_artifacts(version.run_id, LINEAGE, folder)))
    return record


def log_params(client: "MlflowClient", run_id: str, values: dict[str, Any]) -> None:
    """Log the params that the run does not have: MLflow refuses to change one, and a training's own stay true."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items() if key not in known])


def log_rows(client: "MlflowClient", run_id: str, rows: list[MetricRow], *, after: int = 0) -> int:
    """Log the rows beyond the step `after` as train/<name> and val/<name>; returns the last step that is logged now."""

    def in_groups(row: MetricRow) -> MetricRow:
        named = {key: value for key, value in row.items() if key != "step"}
        return {f"val/{k[4:]}" if k.startswith("val_") else f"train/{k}": value for k, value in named.items()}

    rows = [row for row in rows if row["step"] > after]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        log_metrics(client, run_id, [(int(row["step"]), in_groups(row)) for row in rows[start : start + ROWS_AT_ONCE]])
    return int(rows[-1]["step"]) if rows else after


def log_metrics(client: "MlflowClient", run_id: str, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
    """Log the numbers among the values of (step, values); other values are passed over."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now, step)
        for step, row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    for start in range(0, len(metrics), BATCH_LIMIT):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH_LIMIT])


def log_datasets(client: "MlflowClient", run_id: str, datasets: dict[str, dict[str, Any]]) -> None:
    """Log data sets as the run's inputs: name, digest, role, and what is known of each."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for name, known in datasets.items():
        facts = {key: known[key] for key in ("licence", "manifest")} | {"num_archives": len(known["archives"])}
        digest = digest_json({key: known[key] for key in ("manifest", "archives")})[:DATASET_DIGEST]
        source = json.dumps({"name": name})
        one = Dataset(name, digest, "metricgold", source, profile=json.dumps(facts))
        inputs.append(DatasetInput(one, [InputTag("mlflow.data.context", known["role"])]))
    client.log_inputs(run_id, datasets=inputs)
