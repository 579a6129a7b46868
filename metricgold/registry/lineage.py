"""Which commit, which DVC hashes and which data sets made a model."""

import subprocess
from pathlib import Path
from typing import Any

from metricgold.params import Params
from metricgold.storage import digest_file, digest_json, read_json, read_yaml


def lineage_tags(params: Params, model: Path) -> dict[str, str]:
    """Where a checkpoint came from: commit, DVC's hashes, what the trainer noted (data-set indexes, backbone)."""
    tags = {"params_digest": digest_json(params.model_dump(mode="json")), **git_tags()}
    lock, notes = Path("dvc.lock"), model / "lineage.json"
    if lock.is_file():
        tags["dvc_lock"] = digest_file(lock)
        tags |= {f"dvc/{path}": md5 for path, md5 in dvc_outputs(lock).items()}
    if notes.is_file():
        tags |= {f"lineage.{key}": str(value) for key, value in flat(read_json(notes)).items()}
    return {key[:250]: value[:5000] for key, value in tags.items()}  # MLflow's limits


def git_tags() -> dict[str, str]:
    """git_commit of the working folder as tags; none outside a checkout."""
    commit = git_commit(Path())
    return {"git_sha": commit[0], "git_dirty": str(commit[1]).lower()} if commit else {}


def git_commit(root: Path) -> tuple[str, bool] | None:
    """The commit of a checkout, and whether tracked files differ from it; None outside one or without git."""
    try:
        sha, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha, bool(changes)


def dvc_outputs(lock: Path) -> dict[str, str]:
    """MD5 of each output that a dvc.lock holds, by its path; empty without the file."""
    if not lock.is_file():
        return {}
    stages = (read_yaml(lock) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def score_tags(scores: dict[str, Any], benchmarks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Digests of the evaluation's ruler, which decides whether two versions compare, and of all figures.

    And whether the model was calibrated to state its standard error.
    """
    return {
        "evaluation_digest": str(scores.get("digest", "")),
        "scores_digest": digest_json([scores, benchmarks]),
        "uncertainty_calibrated": str(bool(scores.get("uncertainty_calibrated"))).lower(),
    }


def flat(values: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested keys joined; lists stay one value."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            joined |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            joined[f"{prefix}{key}"] = value
    return joined
