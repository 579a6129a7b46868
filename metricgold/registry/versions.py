"""Versions of the model: which is current, what it scored and where it came from.

One registered model, `metricgold`, whose versions move through three aliases: `register` sets `candidate`,
`promote` moves `champion` if the gate holds and leaves the old one as `previous`, `rollback` swaps the two.
A version is keyed by the digest of its checkpoint: registering the same bytes twice gives the same version.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.params import Params, Promote
from metricgold.registry.lineage import flat, lineage_tags, score_tags
from metricgold.registry.mlflow_client import (
    NAME,
    find_version,
    log_metrics,
    log_params,
    log_rows,
    open_client,
    version_of_alias,
)
from metricgold.registry.pyfunc import clear_copies, log_model
from metricgold.storage import digest_folder, digest_json, only_writer, read_json, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CURVE_POINTS = 200  # of the loss curve kept in MLflow; the complete one stays in metrics.jsonl


def register(params: Params, model: Path, metrics: Path) -> dict[str, Any]:
    """Log one run and register its checkpoint; the version gets the alias `candidate`.

    model    diffusers folder of MetricGoldPipeline; beside it <model>.state/metrics.jsonl, if it was trained here
    metrics  JSON of `metricgold evaluate`
    Returns name, version, run_id, model_uri, model_digest, alias and created (False: these bytes had a version).
    Raises ValueError when checkpoint or metrics are missing, or MLflow refuses.
    """
    for path, stage in ((model / "model_index.json", "train"), (metrics, "evaluate")):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `dvc repro {stage}` makes it")
    scores = read_json(metrics)
    if not isinstance(scores, dict) or not isinstance(scores.get("abs_rel"), float | int):
        raise ValueError(f"{metrics}: no number abs_rel in it, expected the figures of `metricgold evaluate`")
    with only_writer(model, model.with_name(f".{model.name}.register.lock"), waits=True), open_client() as client:
        digest = digest_folder(model)
        version = first_version(client, digest)
        created = version is None
        if version is None:
            mine = create_version(client, params, model, scores, digest)
            # Another machine may have done the same meanwhile; both see both now, and keep the first.
            version = first_version(client, digest) or mine
            created = version.version == mine.version
            if not created:
                client.delete_model_version(NAME, mine.version)
        elif version.tags.get("scores_digest") != digest_json(scores):
            _log_scores(client, version.run_id, scores)
            for key, value in score_tags(scores).items():
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


def first_version(client: "MlflowClient", digest: str) -> "ModelVersion | None":
    """The version of a checkpoint's bytes, the first of several; None without one."""
    same = client.search_model_versions(f"name = '{NAME}' and tags.model_digest = '{digest}'")
    return min(same, key=lambda version: int(version.version), default=None)


def create_version(
    client: "MlflowClient", params: Params, model: Path, scores: dict[str, Any], digest: str
) -> "ModelVersion":
    """Log params, scores, curve and files into one run, that of the training if it was tracked; register its model."""
    import mlflow
    from mlflow.exceptions import MlflowException

    tags = {**lineage_tags(params, model), **score_tags(scores), "model_digest": digest}
    experiment = mlflow.set_experiment(NAME).experiment_id
    # The run that trained these bytes, or one that began to register them and was killed.
    runs = client.search_runs([experiment], f"tags.model_digest = '{digest}'", max_results=1)
    with mlflow.start_run(runs[0].info.run_id if runs else None, tags=tags) as run:
        run_id = run.info.run_id
        clear_copies(client, experiment, run_id)
        log_params(client, run_id, flat(params.model_dump(mode="json")))
        _log_scores(client, run_id, scores)
        if "train/loss" not in client.get_run(run_id).data.metrics:  # trained elsewhere, or while MLflow was away
            rows = read_rows(model.with_name(model.name + ".state") / "metrics.jsonl")
            step = len(rows) // CURVE_POINTS + 1
            log_rows(client, run_id, [*rows[:-1:step], *rows[-1:]])
        mlflow.log_dict(scores, "evaluate.json")
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


def _log_scores(client: "MlflowClient", run_id: str, scores: dict[str, Any]) -> None:
    """Metrics under their own names; those of one data set as <data set>/<name>."""
    overall = {key: value for key, value in scores.items() if key != "datasets"}
    log_metrics(client, run_id, [(0, overall), (0, flat(scores.get("datasets", {}), "/"))])


def promote(gate: Promote, *, version: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Check a version (the candidate if not given) against the gate and make it champion if every check holds.

    Returns passed, checks [{name, value, bound, passed}], version, alias (of the version now, or after a run without
    dry_run) and previous (the champion before). AbsRel is compared with the champion's only where both were measured
    by the same evaluation. Raises ValueError for an unknown version.
    """
    with open_client() as client:
        candidate = find_version(client, version or "candidate")
        champion = version_of_alias(client, "champion")
        checks = check_gate(gate, client, candidate, champion)
        passed = all(check["passed"] for check in checks)
        is_new = champion is None or champion.version != candidate.version
        if passed and is_new and not dry_run:
            if champion is not None:
                client.set_registered_model_alias(NAME, "previous", champion.version)
            client.set_registered_model_alias(NAME, "champion", candidate.version)
    return {
        "passed": passed,
        "checks": checks,
        "version": str(candidate.version),
        "alias": "champion" if passed or not is_new else "candidate",
        "previous": str(champion.version) if champion else None,
        "dry_run": dry_run,
    }


def check_gate(
    gate: Promote, client: "MlflowClient", candidate: "ModelVersion", champion: "ModelVersion | None"
) -> list[dict[str, Any]]:
    """The checks of the gate that have a bound; a value that is missing or not a number fails its check."""

    def check(name: str, value: float | None, bound: float | None, *, at_least: bool = False) -> None:
        if bound is not None:
            passed = value is not None and (value >= bound if at_least else value <= bound)
            checks.append({"name": name, "value": value, "bound": bound, "passed": passed})

    checks: list[dict[str, Any]] = []
    scores = client.get_run(candidate.run_id).data.metrics
    abs_rel = scores.get("abs_rel")
    check("abs_rel", abs_rel, gate.max_abs_rel)
    check("delta1", scores.get("delta1"), gate.min_delta1, at_least=True)
    check("constant_ratio", _ratio(abs_rel, scores.get("constant_abs_rel")), gate.max_constant_ratio)
    check("vae_floor_abs_rel", scores.get("vae_floor_abs_rel"), gate.max_vae_floor_abs_rel)
    if champion is not None and champion.version != candidate.version:
        if champion.tags.get("evaluation_digest") == candidate.tags.get("evaluation_digest"):
            ratio = _ratio(abs_rel, client.get_run(champion.run_id).data.metrics.get("abs_rel"))
            check("regression", None if ratio is None else ratio - 1, gate.max_regression)
        else:
            logger.warning(
                "champion %s was measured by another evaluation: no comparison with it, evaluate it again for one",
                champion.version,
            )
    return checks


def _ratio(value: float | None, reference: float | None) -> float | None:
    """value / reference; None where either is missing, or the reference is 0."""
    return None if value is None or not reference else value / reference


def rollback(*, dry_run: bool = False) -> dict[str, Any]:
    """Make the previous champion champion again; the two change places, so a second rollback undoes the first.

    Returns version (the champion now, or after a run without dry_run), alias, previous (the champion before) and
    dry_run. Raises ValueError when no version has the alias previous.
    """
    with open_client() as client:
        previous, champion = find_version(client, "previous"), find_version(client, "champion")
        if not dry_run:
            client.set_registered_model_alias(NAME, "champion", previous.version)
            client.set_registered_model_alias(NAME, "previous", champion.version)
    return {
        "version": str(previous.version),
        "alias": "champion",
        "previous": str(champion.version),
        "dry_run": dry_run,
    }
