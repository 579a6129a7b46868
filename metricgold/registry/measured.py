"""What was measured of a checkpoint: the files that evaluate and benchmark wrote about it, and none about another."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricgold.evaluate import BenchmarkOutputs, read_figures, read_rows_files
from metricgold.params import Folders
from metricgold.registry.gate import ROWS
from metricgold.storage import digest_json, read_json

logger = logging.getLogger(__name__)

OF_THE_VAE = ("vae_floor.json", "depth_vae.json")  # figures of a VAE, whatever the U-Net


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a checkpoint: its evaluation and benchmarks by name, each with the files about it.

    reports  by name of a benchmark, its page and its tables as far as they are here
    """

    scores: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]]
    files: list[Path]
    rows: Path | None
    reports: list[Path]

    @property
    def digest(self) -> str:
        """Of all figures."""
        return digest_json([self.scores, self.benchmarks])


def read_measured(metrics: Path, model_digest: str, backbone_vae: str | None) -> Measured:
    """What lies in and beside the JSON of `metricgold evaluate`, as far as it is of this checkpoint.

    backbone_vae  digest of the VAE that it was trained with, None where that is not known

    ValueError for an evaluation that does not name this checkpoint; other figures that do not are left out with a
    warning.
    """
    scores, benchmarks = read_figures(metrics, model_digest), {}
    rows = rows_beside(metrics, model_digest)
    files = [metrics, *([rows] if rows else [])]
    for path in sorted((metrics.parent / "benchmark").glob("*.json")):
        try:
            benchmarks[path.stem] = read_figures(path, model_digest)
        except ValueError as error:
            logger.warning("not registered: %s", error)
        else:
            files.append(path)
    for path in filter(Path.is_file, (metrics.with_name(name) for name in OF_THE_VAE)):
        if backbone_vae and read_json(path).get("backbone_vae") == backbone_vae:
            files.append(path)
        else:
            logger.warning("not registered: %s does not say that it measured this checkpoint's VAE", path)
    outputs = [BenchmarkOutputs.of(Folders(), name) for name in benchmarks]
    reports = [path for one in outputs for path in (one.html, one.markdown, one.rows) if path.is_file()]
    return Measured(scores, benchmarks, files, rows, reports)


def rows_beside(metrics: Path, model_digest: str) -> Path | None:
    """The file of the frames of an evaluation, None without one. ValueError for that of another checkpoint."""
    path = metrics.with_name(ROWS)
    if not path.is_file():
        logger.warning("%s: no such file; the gate will compare means alone, without their intervals", path)
        return None
    if read_rows_files([path]).where(method="model").unique("method_digest") != [model_digest]:
        raise ValueError(f"{path} is about another checkpoint than {metrics}; `dvc repro evaluate` writes both")
    return path
