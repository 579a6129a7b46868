"""Which data sets train, and which are only measured: benchmarks by their manifest, and own data without training."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from metricgold.datasets.manifest import manifest_paths, read_manifest
from metricgold.datasets.own_data import has_statement
from metricgold.datasets.own_statement import STATEMENT, read_statement

log = logging.getLogger(__name__)

TRAIN = "train"  # the split


def why_only_measured(name: str, raw: Path) -> str:
    """Why a data set never trains; empty if it does. It need not be downloaded."""
    if has_statement(raw):
        return "" if TRAIN in read_statement(raw).splits else f"{raw / STATEMENT} names no split {TRAIN}"
    path = manifest_paths().get(name)
    return f"{path} says role evaluate" if path and read_manifest(path).role == "evaluate" else ""


def require_training(name: str, raw: Path) -> None:
    """ValueError for a data set that never trains."""
    if reason := why_only_measured(name, raw):
        raise ValueError(f"{name} is only measured, never trained on: {reason}")


def refuse_benchmarks(raw_folders: Mapping[str, Path], where: str) -> None:
    """ValueError, led by `where`, for a data set that its manifest keeps for measuring."""
    for name, raw in raw_folders.items():
        reason = "" if has_statement(raw) else why_only_measured(name, raw)
        if reason:
            raise ValueError(f"{where}: {name} is never trained on: {reason}; expected under benchmarks")


def training_sets(raw_folders: Mapping[str, Path], weighted: Iterable[str] = ()) -> dict[str, Path]:
    """Those that train, with their raw folders; of the others a line says why they do not.

    weighted  names to which params give a share of the samples

    Raises ValueError where none trains, and for a name with a share that does not.
    """
    reasons = {name: why_only_measured(name, raw) for name, raw in raw_folders.items()}
    training = {name: raw for name, raw in raw_folders.items() if not reasons[name]}
    for name in reasons.keys() - training.keys():
        if name in weighted:
            raise ValueError(f"train.weights or train.curriculum names {name}, which never trains: {reasons[name]}")
        log.info("%s is only measured: %s", name, reasons[name])
    if not training:
        raise ValueError(f"no data set to train on: {'; '.join(reasons.values())}")
    return training
