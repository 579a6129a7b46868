"""Which commit, which DVC hashes and which data sets made a model."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from metricgold.params import Params
from metricgold.storage import digest_file, digest_json, read_json


def _lineage(params: Params, model: Path) -> dict[str, str]:
    """Where a checkpoint came from: commit, DVC's hashes, what the trainer noted (data-set indexes, backbone)."""
    tags = {"params_digest": digest_json(params.model_dump(mode="json")), **_git_tags()}
    if Path("dvc.lock").is_file():
        tags["dvc_lock"] = digest_file(Path("dvc.lock"))
        for stage in (yaml.safe_load(Path("dvc.lock").read_text()) or {}).get("stages", {}).values():
            tags |= {f"dvc/{out['path']}": out["md5"] for out in stage.get("outs", []) if "md5" in out}
    if (model / "lineage.json").is_file():
        tags |= {f"lineage.{key}": str(value) for key, value in _flat(read_json(model / "lineage.json")).items()}
    return {key[:250]: value[:5000] for key, value in tags.items()}  # MLflow's limits


def _git_tags() -> dict[str, str]:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        sha, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:  # no git on this machine
        return {}
    return {"git_sha": sha, "git_dirty": str(bool(changes)).lower()} if sha else {}


def _score_tags(scores: dict[str, Any]) -> dict[str, str]:
    """What was measured, which decides whether two versions compare, and what came out."""
    return {"evaluation_digest": str(scores.get("digest", "")), "scores_digest": digest_json(scores)}


def _flat(values: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested keys joined; lists stay one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
