"""Run every benchmark, print a table, write reports/bench.json."""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from metricgold.storage.files import write_json

from . import (
    BOUNDS,
    CannotRun,
    batch,
    cache,
    cluster,
    download,
    evaluate,
    export,
    flow,
    frames,
    kept,
    predict,
    s3,
    serve,
    train,
)

REPORT = Path("reports/bench.json")

# A measurement takes an empty folder and answers {name: figure}, also under names that have no bound.
Measure = Callable[[Path], dict[str, float]]
MEASURES: dict[tuple[str, ...], Measure] = {
    ("download.faulty_bytes_ratio",): download.faulty,
    ("download.selective_bytes_ratio",): download.selective,
    ("download.rate_vs_client",): download.rate,
    ("download.rss_growth_mb",): download.rss_growth,
    ("frames.speedup_vs_script", "frames.time_vs_read"): frames.conversion,
    ("cache.samples_per_s_core", "cache.speedup_vs_encode"): cache.reading,
    ("cache.index_open_s",): cache.opening,
    ("train.speedup_vs_usual", "train.data_wait"): train.on_gpu,
    (): train.on_cpu,
    ("predict.speedup_vs_diffusers_default", "predict.speedup_vs_diffusers_best"): predict.speedup,
    ("batch.free_model_images_per_s_core",): batch.free_model,
    ("batch.sync_share",): batch.sync_share,
    ("batch.s3_rate_vs_boto3",): s3.rate,
    ("batch.overhead",): s3.overhead,
    ("batch.rss_growth_mb",): s3.rss_growth,
    ("batch.kept_cpu_s_per_million", "batch.kept_rss_mb_per_million"): kept.rerun,
    ("serve.overhead_ms", "serve.batching_speedup", "serve.rss_growth_mb"): serve.over_http,
    ("serve.mlflow_overhead_ms",): serve.by_mlflow,
    ("export.onnx_speedup",): export.one_graph,
    ("evaluate.speedup_vs_script",): evaluate.speed,
    ("evaluate.rss_growth_mb",): evaluate.rss_growth,
    ("flow.cpu_s_per_stage",): flow.overhead,
    ("dask.speedup_2",): cluster.speedup,
    ("dask.predict_speedup_2",): cluster.predict_speedup,
}
LEFT_OUT: dict[str, str] = {}  # name -> why it is not measured


def run(measures: dict[tuple[str, ...], Measure], left_out: dict[str, str]) -> tuple[dict[str, float], dict[str, str]]:
    """Figures by name, and the reason for every name without one. Prints each line as it is known."""
    figures, missing = {}, dict(left_out)
    for names, measure in measures.items():
        with tempfile.TemporaryDirectory(prefix="metricgold-bench-") as folder:
            try:
                found = measure(Path(folder))
            except CannotRun as reason:
                found, missing = {}, missing | dict.fromkeys(names, str(reason))
        _print_lines(names, found, missing)
        figures |= found
    _print_lines(left_out, {}, left_out)
    return figures, missing


def _print_lines(names: Iterable[str], figures: dict[str, float], missing: dict[str, str]) -> None:
    for name in dict.fromkeys([*names, *figures]):
        if name not in BOUNDS:  # told beside a figure that has a bound
            print(f"{name:40}{figures[name]:12.4g}", flush=True)
        elif name in figures:
            verdict = "ok" if BOUNDS[name].holds(figures[name]) else "MISSED"
            print(f"{name:40}{figures[name]:12.4g}   {BOUNDS[name]!s:9}{verdict}", flush=True)
        else:
            print(f"{name:40}{'-':>12}   {BOUNDS[name]!s:9}left out: {missing[name]}", flush=True)


def write_report(path: Path, figures: dict[str, float], missing: dict[str, str]) -> None:
    """The flat map name -> figure, with what it was measured on under `_meta`."""
    write_json(path, {**figures, "_meta": {**_meta(), "left_out": missing}})


def _meta() -> dict[str, Any]:
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """Of the tree that was measured; `-dirty` where it differs from the commit."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> int:
    figures, missing = run(MEASURES, LEFT_OUT)
    write_report(REPORT, figures, missing)
    print(f"\n{len(figures)} figures in {REPORT}, {len(missing)} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
