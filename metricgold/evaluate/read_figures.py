"""Figures as evaluate and benchmark wrote them, read for a checkpoint that they are said to be of."""

from pathlib import Path
from typing import Any

from metricgold.storage import read_json


def read_figures(path: Path, model_digest: str) -> dict[str, Any]:
    """The figures in a file, if it says that it measured this checkpoint.

    Raises ValueError for a file without figures, without `model_digest`, and for one that is about another checkpoint.
    """
    figures = read_json(path)
    if not isinstance(figures, dict) or not isinstance(figures.get("abs_rel"), float | int):
        raise ValueError(f"{path}: no number abs_rel in it, expected the figures of `metricgold evaluate`")
    advice = "`dvc repro` measures this one, after a training by hand `metricgold evaluate`"
    if not (measured := figures.get("model_digest")):
        raise ValueError(f"{path} does not say which checkpoint it measured: model_digest is missing; {advice}")
    if measured != model_digest:
        raise ValueError(f"{path} is about another checkpoint, {measured:.12}, not {model_digest:.12}; {advice}")
    return figures
