"""The gate of the champion alias: bounds on a version's own figures, and no regression against the champion."""

import logging
from math import isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.evaluate import Rows, read_rows_files
from metricgold.metrics import Interval, mean_interval, paired_interval
from metricgold.params import Predict, Promote
from metricgold.registry.cost import measure_cost
from metricgold.registry.mlflow_client import NAME, read_record
from metricgold.registry.pyfunc import download_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

ROWS = "evaluate.rows.parquet"  # a run's artifact: the frames of its evaluation, one by one
ABS_REL = "metric/abs_rel"
STAND_IN = "Apache-2.0"  # licence of the stand-in's weights: made by this code, from the data sets' images
# Licences, as manifests name them, under which models made from the data may be sold.
COMMERCIAL = frozenset(
    {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0 1.0", "CC0-1.0"}
    | {f"CC {terms} {version}" for terms in ("BY", "BY-SA") for version in ("2.0", "2.5", "3.0", "4.0")}
    | {f"CC-{terms}-{version}" for terms in ("BY", "BY-SA") for version in ("2.0", "2.5", "3.0", "4.0")}
)

Check = dict[str, Any]


def check_gate(
    gate: Promote,
    client: "MlflowClient",
    candidate: "ModelVersion",
    champion: "ModelVersion | None",
    predict: Predict | None = None,
) -> list[Check]:
    """The checks of the gate that have a bound: name, value, bound, passed, and what else is to be known of them.

    predict  the params by which latency and memory are measured, if they have bounds; the defaults if not given

    A value that is missing or not a number fails its check; passed is None of a check that could not be made.
    """

    def check(name: str, value: float | None, bound: float | None, *, at_least: bool = False) -> None:
        if bound is not None:
            passed = value is not None and (value >= bound if at_least else value <= bound)
            checks.append({"name": name, "value": value, "bound": bound, "passed": passed})

    checks: list[Check] = []
    scores = client.get_run(candidate.run_id).data.metrics
    abs_rel = scores.get("abs_rel")
    check("abs_rel", abs_rel, gate.max_abs_rel)
    check("delta1", scores.get("delta1"), gate.min_delta1, at_least=True)
    check("constant_ratio", _ratio(abs_rel, scores.get("constant_abs_rel")), gate.max_constant_ratio)
    check("vae_floor_abs_rel", scores.get("vae_floor_abs_rel"), gate.max_vae_floor_abs_rel)
    for name, bounds in (gate.benchmarks or {}).items():
        of_benchmark = {figure: scores.get(benchmark_metric(name, figure)) for figure in ("abs_rel", "delta1")}
        check(f"{name}/abs_rel", of_benchmark["abs_rel"], bounds.max_abs_rel)
        check(f"{name}/delta1", of_benchmark["delta1"], bounds.min_delta1, at_least=True)
    if champion is not None and champion.version != candidate.version and gate.max_regression is not None:
        checks.append(check_regression(gate.max_regression, client, candidate, champion))
    if gate.licence is not None:
        checks.append(check_licences(gate, client, candidate))
    if gate.max_latency_s is not None or gate.max_memory_gb is not None:
        folder = download_version(client.get_model_version_download_uri(NAME, candidate.version))
        cost = measure_cost(folder, predict or Predict())
        check("latency_s", cost["latency_s"], gate.max_latency_s)
        check("memory_gb", cost["memory_gb"], gate.max_memory_gb)
    return checks


def check_licences(gate: Promote, client: "MlflowClient", candidate: "ModelVersion") -> Check:
    """Whether all that a version was trained on, data and weights, may be used commercially, as far as is known."""
    check: Check = {"name": "licence", "value": None, "bound": gate.licence, "passed": False}
    lineage = read_record(client, candidate)
    if not lineage:
        return check | {"note": f"version {candidate.version} has no lineage.json: register its checkpoint again"}
    source = (lineage.get("backbone") or {}).get("source", "unstated")
    used = {name: one["licence"] for name, one in lineage["datasets"].items() if one["role"] == "train"}
    used["backbone"] = STAND_IN if source == "stand-in" else f"that of {source}"
    barred = {name: one for name, one in used.items() if one not in COMMERCIAL and name not in (gate.cleared or ())}
    named = ", ".join(f"{name} ({licence})" for name, licence in sorted((barred or used).items()))
    return check | {"value": named, "passed": not barred}


def benchmark_metric(name: str, figure: str) -> str:
    """What a figure of a benchmark is called among a run's metrics."""
    return f"benchmark/{name}/{figure}"


def check_regression(
    bound: float, client: "MlflowClient", candidate: "ModelVersion", champion: "ModelVersion"
) -> Check:
    """Whether AbsRel is shown to be worse than the champion's by more than the share `bound`.

    It fails where all of the interval lies above the bound. Where there is no interval, of a single scene or of
    versions without rows, the means decide. It cannot be made where another ruler measured the champion.
    """
    check: Check = {"name": "regression", "value": None, "bound": bound, "passed": None}
    if champion.tags.get("evaluation_digest") != candidate.tags.get("evaluation_digest"):
        note = f"not made: champion {champion.version} was measured by another ruler; evaluate and register it again"
        logger.warning("regression: %s", note)
        return check | {"note": note}
    rows = [rows_of(client, version) for version in (candidate, champion)]
    if rows[0] is not None and rows[1] is not None:
        change = relative_change(rows[0], rows[1])
    else:
        means = [client.get_run(version.run_id).data.metrics.get("abs_rel") for version in (candidate, champion)]
        ratio = _ratio(*means)
        change = Interval(nan if ratio is None else ratio - 1, nan, nan)
    least = change.mean if isnan(change.low) else change.low
    check |= {"value": None if isnan(change.mean) else change.mean, "passed": bool(least <= bound)}
    if isnan(change.low):
        return check | {"note": "means alone: there is no interval, which takes the rows of both and several scenes"}
    return check | {"low": change.low, "high": change.high}


def rows_of(client: "MlflowClient", version: "ModelVersion") -> Rows | None:
    """The frames of a version's evaluation; None of one that was registered without them."""
    if ROWS not in {artifact.path for artifact in client.list_artifacts(version.run_id)}:
        return None
    with TemporaryDirectory(prefix="metricgold-") as folder:
        return read_rows_files([Path(client.download_artifacts(version.run_id, ROWS, folder))])


def relative_change(candidate: Rows, champion: Rows) -> Interval:
    """AbsRel of two evaluations by one ruler: candidate / champion - 1, and its 95 % interval by scene.

    Frames are paired, so that what is hard for both cancels. Means over images, then over data sets, as `evaluate` has
    them; frames that only one has do not count. NaN without a common frame, the ends also with a single scene.
    """
    differences, references = [], []
    for dataset in candidate.unique("benchmark"):
        ours, theirs = (rows.where(benchmark=dataset, method="model") for rows in (candidate, champion))
        of_champion = dict(zip(theirs["frame"], theirs[ABS_REL], strict=True))
        reference = np.array([of_champion.get(frame, nan) for frame in ours["frame"]])
        reference[np.isnan(ours[ABS_REL])] = nan
        differences.append(paired_interval(ours[ABS_REL], reference, ours["scene"].tolist()))
        references.append(float(np.nanmean(reference)) if np.isfinite(reference).any() else nan)
    change, scale = mean_interval(differences), float(np.mean(references))
    return Interval(*(end / scale for end in change)) if scale else Interval(nan, nan, nan)


def _ratio(value: float | None, reference: float | None) -> float | None:
    """value / reference; None where either is missing, or the reference is 0."""
    return None if value is None or not reference else value / reference
