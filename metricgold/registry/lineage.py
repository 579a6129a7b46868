"""lineage.json of a version: which code, params, data and weights made a model; and what of it is a tag."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metricgold.datasets import manifest_paths, raw_folder, read_manifest
from metricgold.download import archives_of
from metricgold.params import Folders, Params
from metricgold.registry.measured import Measured
from metricgold.registry.mlflow_client import LINEAGE
from metricgold.storage import digest_file, digest_json, git_commit, read_json, read_rows, read_yaml
from metricgold.train import SESSIONS, state_of_model

FORMAT = 1
PACKAGES = ("metricgold", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
UNSTATED = "unstated"  # licence of a team's own data


def collect_lineage(
    params: Params, model: Path, model_digest: str, measured: Measured, run_tags: dict[str, str]
) -> dict[str, Any]:
    """All that is known of where a checkpoint came from, as far back as the files here say.

    run_tags  of the run that trained it, whose commit counts where the training has left no state here

    `code` is that of the training, None where nothing says it; `registered` that of this call. `datasets` are the
    sets that trained, by their caches, and those that measured; an archive's digest is that of its members, as in the
    ledger. Keys of the trainer's own lineage.json keep their names but for the caches.
    """
    notes = notes_of(model)
    caches = {name: {"digest": one["index"], "num_frames": one["num_frames"]} for name, one in _of(notes, "latents")}
    roles = dict.fromkeys(measured.benchmarks, "benchmark") | dict.fromkeys(
        measured.scores.get("datasets", {}), "evaluate"
    )
    roles |= dict.fromkeys(caches, "train")
    training = training_of(model, model_digest)
    return {
        "format": FORMAT,
        "model": {"digest": model_digest, "checkpoint": str(model), "step": notes.get("step")},
        "code": code_of(training, run_tags),
        "training": {
            "seconds": round(sum(row["seconds"] for row in training), 1) if training else None,
            "hardware": list(dict.fromkeys(row["hardware"] for row in training)),
        },
        "params": params_of(params, notes),
        "caches": caches,
        "datasets": {name: describe_dataset(name, role) for name, role in sorted(roles.items())},
        "backbone": notes.get("backbone"),
        "depth_vae": notes.get("depth_vae"),
        "metrics": {str(file): digest_file(file) for file in measured.files},
        "dvc": dvc_outputs(Path("dvc.lock")),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: version(name) for name in PACKAGES},
        },
        "registered": dict(zip(("commit", "dirty"), git_commit(Path()) or (None, None), strict=True)),
    }


def notes_of(model: Path) -> dict[str, Any]:
    """What the trainer wrote into a checkpoint; empty for one without."""
    path = model / LINEAGE
    return read_json(path) if path.is_file() else {}


def params_of(params: Params, notes: dict[str, Any]) -> dict[str, Any]:
    """The params, those of the training as the trainer noted them: params.yaml may have changed since."""
    noted = {"train": notes["train"]} if "train" in notes else {}
    if range_m := notes.get("log_depth"):
        noted["canonical_depth" if range_m.get("canonical") else "log_depth"] = range_m
    return params.model_dump(mode="json") | noted


def _of(notes: dict[str, Any], key: str) -> Any:
    return (notes.get(key) or {}).items()


def training_of(model: Path, digest: str) -> list[dict[str, Any]]:
    """The rows of sessions.jsonl of the training that made a checkpoint; none where it was trained elsewhere."""
    state = state_of_model(model, digest)
    return read_rows(state / SESSIONS) if state else []


def code_of(training: list[dict[str, Any]], run_tags: dict[str, str]) -> dict[str, Any]:
    """The commit by which a training ended, whether tracked files ever differed, and the commits before, if others."""
    if not training:
        return {"commit": run_tags.get("commit"), "dirty": run_tags["dirty"] == "true" if "dirty" in run_tags else None}
    commit = training[-1]["commit"]
    earlier = [one for one in dict.fromkeys(row["commit"] for row in training) if one != commit]
    code = {"commit": commit, "dirty": any(row["dirty"] for row in training) if commit else None}
    return code | ({"earlier": earlier} if earlier else {})


def describe_dataset(name: str, role: str) -> dict[str, Any]:
    """Manifest, archives and licence of a data set; what its ledger says comes before what a manifest says by now."""
    raw, path = raw_folder(name, Folders()), manifest_paths().get(name)
    ledger = read_json(raw / "ledger.json") if (raw / "ledger.json").is_file() else {}
    statement = raw / "dataset.yaml"
    stated = path if path is not None else statement if statement.is_file() else None
    manifest = ledger.get("manifest_sha256") or (digest_file(stated) if stated else None)
    archives = {archive: entry["members_sha256"] for archive, entry in archives_of(raw).items()}
    licence = read_manifest(path).licence.name if path else UNSTATED
    return {"manifest": manifest, "archives": archives, "licence": licence, "role": role}


def tags_of(lineage: dict[str, Any], measured: Measured) -> dict[str, str]:
    """What people look for in a list of versions; everything else is in lineage.json, whose digest is here."""
    code, training = lineage["code"], lineage["training"]
    used = {one["licence"] for one in lineage["datasets"].values() if one["role"] == "train"}
    tags = {
        "model_digest": lineage["model"]["digest"],
        "evaluation_digest": str(measured.scores.get("digest", "")),  # of the ruler: whether two versions compare
        "scores_digest": measured.digest,
        "params_digest": digest_json(lineage["params"]),
        "lineage_digest": digest_json(lineage),
        "licences": ", ".join(sorted(used)),
        "commit": code["commit"],
        "dirty": None if code["dirty"] is None else str(code["dirty"]).lower(),
        "training_seconds": training["seconds"],
        "hardware": ", ".join(training["hardware"]),
    }
    return {key: str(value)[:5000] for key, value in tags.items() if value not in (None, "")}  # 5000: MLflow's limit


def dvc_outputs(lock: Path) -> dict[str, str]:
    """MD5 of each output that a dvc.lock holds, by its path; empty without the file."""
    if not lock.is_file():
        return {}
    stages = (read_yaml(lock) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def flat(values: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested keys joined; lists stay one value."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            joined |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            joined[f"{prefix}{key}"] = value
    return joined
