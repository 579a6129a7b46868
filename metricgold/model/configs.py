"""Configs of a model's parts, looked at before anything is built by them: what is from elsewhere may state anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metricgold.storage import read_json

NAMES = ("model_index.json", "config.json", "scheduler_config.json")
MAX_NUMBER = 1 << 16  # Stable Diffusion's largest is CLIP's vocabulary of 49,408
MAX_REPEATS = 64  # of layers; entries of a list


@contextmanager
def naming_the_folder(folder: Path, kind: str) -> Iterator[None]:
    """Check the configs of a model's folder, then name it in whatever diffusers raises within.

    Raises ValueError.
    """
    try:
        for name in NAMES:
            for path in sorted([*Path(folder).glob(name), *Path(folder).glob(f"*/{name}")]):
                _check(path, "", read_json(path))
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not a complete {kind}: {error}") from error


def _check(path: Path, key: str, value: Any) -> None:
    """Raise ValueError for a number that no model has: building by it takes all memory, or for ever."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(path, f"{key}.{name}".lstrip("."), inner)
        return
    for inner in value if isinstance(value, list) else ():
        _check(path, key, inner)
    number = len(value) if isinstance(value, list) else value
    limit = MAX_REPEATS if isinstance(value, list) or "layers" in key else MAX_NUMBER
    if isinstance(number, int | float) and not abs(number) <= limit:
        raise ValueError(f"{path}: {key} is {number}, expected {limit} at most")
