"""By which code, on what and for how long a training was done: `<model>.state/sessions.jsonl`, a row a checkpoint.

Rows beyond the checkpoint from which a run resumes are cut, so that the seconds are those of steps that counted. Once
the model is written, result.json beside them names its digest: the state of one training is not that of another model.
"""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metricgold.model import digest_model
from metricgold.storage import git_commit, read_json, write_json

SESSIONS, RESULT = "sessions.jsonl", "result.json"


def session_facts() -> dict[str, Any]:
    """What the rows of this process have in common: commit and dirty (None outside a checkout), package, hardware."""
    commit, dirty = git_commit(Path()) or (None, None)
    return {"commit": commit, "dirty": dirty, "metricgold": version("metricgold"), "hardware": hardware()}


def hardware() -> str:
    """The devices of this training, such as `2 x NVIDIA H100 80GB HBM3` or `CPU, 16 cores`."""
    import torch

    if torch.cuda.is_available():
        return f"{os.environ.get('WORLD_SIZE', '1')} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores"


def note_result(state: Path, model: Path) -> None:
    """Note which model the training of a state has become."""
    write_json(state / RESULT, {"model_digest": digest_model(model)})


def state_of_model(model: Path, digest: str) -> Path | None:
    """The state of the training of a model with this digest; None where what is there belongs to another.

    A state of before there was result.json belongs to the model beside it.
    """
    state = model.with_name(model.name + ".state")
    result = state / RESULT
    is_other = result.is_file() and read_json(result)["model_digest"] != digest
    return state if state.is_dir() and not is_other else None
