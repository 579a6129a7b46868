"""Texts of a model's folder, looked at before anything is built by them: what is from elsewhere may state anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metricgold.storage import paths_below, read_json

NAMES = ("model_index.json", "config.json", "scheduler_config.json")
MAX_NUMBER = 1 << 16  # Stable Diffusion's largest is CLIP's vocabulary of 49,408
MAX_REPEATS = 64  # of layers; entries of a list
# By these, libraries run code of the folder, or of packages that a model has no need of.
CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "quantization_config")


@contextmanager
def naming_the_folder(folder: Path, kind: str) -> Iterator[None]:
    """Check the texts of a model's folder, then name it in whatever diffusers raises within.

    Raises ValueError.
    """
    try:
        check_texts(folder)
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is not a complete {kind}: {error}") from error


def check_texts(folder: Path) -> None:
    """Raise ValueError naming a config that has code run or states what no model has, or an index that leaves it."""
    for name in (*NAMES, "*.index.json"):
        for path in sorted([*Path(folder).glob(name), *Path(folder).glob(f"*/{name}")]):
            if name in NAMES:
                _check(path, "", read_json(path))
            else:
                paths_below(path.parent, set(read_json(path)["weight_map"].values()))


def _check(path: Path, key: str, value: Any) -> None:
    """Raise ValueError for a number that no model has: building by it takes all memory, or for ever."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in CODE and inner:
                raise ValueError(f"{path}: {name} has code run, which no model needs here: {inner!r:.80}")
            _check(path, f"{key}.{name}".lstrip("."), inner)
        return
    for inner in value if isinstance(value, list) else ():
        _check(path, key, inner)
    number = len(value) if isinstance(value, list) else value
    limit = MAX_REPEATS if isinstance(value, list) or "layers" in key else MAX_NUMBER
    if isinstance(number, int | float) and not abs(number) <= limit:
        raise ValueError(f"{path}: {key} is {number}, expected {limit} at most")
