"""Checkpoints of a training run: folders of safetensors with a state.json, either complete or absent.

<state>/step-NNNNNN/  <part>.safetensors, such as unet, optimizer and average; state.json, the run's position
"""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from metricgold.storage import paths_below, read_json, remove, write_aside, write_json

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
BROKEN = (OSError, SafetensorError, ValueError, KeyError, TypeError)


def save_folder(folder: Path, parts: dict[str, Tensors], position: dict[str, Any]) -> bool:
    """Write one checkpoint folder. False, with a log line, where the disk refuses it: the folder stays as it was."""
    try:
        with write_aside(folder, marks=["*.safetensors", "state.json"]) as aside:
            aside.mkdir()
            for name, tensors in parts.items():
                # safetensors knows no other memory format.
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside / f"{name}.safetensors")
            write_json(aside / "state.json", position | {"files": sorted(parts)})
    except (OSError, SafetensorError) as error:
        log.error("%s not saved: %s; earlier checkpoints remain valid, the run continues", folder, error)
        return False
    return True


def save_checkpoint(state: Path, step: int, parts: dict[str, Tensors], position: dict[str, Any], *, keep: int) -> bool:
    """Write step-NNNNNN as save_folder does; then all but the newest `keep` are deleted."""
    saved = save_folder(state / f"step-{step:06d}", parts, position)
    if saved:
        for old in newest_first(state)[keep:]:
            remove(old)
    return saved


def read_position(folder: Path) -> dict[str, Any]:
    """The position that save_folder wrote; raises one of BROKEN where the folder is not complete."""
    position: dict[str, Any] = read_json(folder / "state.json")
    for path in paths_below(folder, [f"{name}.safetensors" for name in position["files"]]):
        with safe_open(path, framework="pt"):
            pass  # compares the header with the length of the file
    return position


def find_checkpoint(state: Path) -> Path | None:
    """The newest complete checkpoint; a broken one, such as after a power cut, is skipped with a warning."""
    for folder in newest_first(state):
        try:
            read_position(folder)
        except BROKEN as error:
            log.warning("%s is broken, using the one before it: %s", folder, error)
        else:
            return folder
    return None


def newest_first(state: Path) -> list[Path]:
    """Checkpoint folders by falling step."""
    return sorted(state.glob("step-*"), key=lambda folder: int(folder.name[5:]), reverse=True)


def flat_state(optimizer: Any) -> tuple[Tensors, dict[str, float]]:
    """An optimiser's state of each parameter, as `<number>.<name>`: tensors, and plain numbers."""
    tensors: Tensors = {}
    numbers: dict[str, float] = {}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for i, parameter in enumerate(parameters):
        # Not from state_dict(), where bitsandbytes hides the quantised moments in a dict of its own.
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                # bitsandbytes shares one table between all parameters, which safetensors refuses.
                tensors[f"{i}.{name}"] = value.clone() if name.startswith("qmap") else value
            else:
                numbers[f"{i}.{name}"] = value
    return tensors, numbers


def load_flat_state(optimizer: Any, flat: dict[str, Any]) -> None:
    """Load into an optimiser what flat_state gave, tensors and numbers in one dictionary."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        i, name = key.split(".", 1)
        state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # Back in the parameter's memory format: another order of summation gives other bytes.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
