"""The README's picture and its tables of results, and the manual's table of uncertainty."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from demo.report import (
    PICTURE,
    TRUTH,
    in_domain_abs_rel,
    read_metrics,
    read_predicted,
    read_receipt,
    with_interval,
    zero_shot_row,
)
from metricgold.evaluate import Rows, read_rows_files
from metricgold.images import write_panels
from metricgold.metrics import COVERAGES
from metricgold.params import Folders, load_params
from metricgold.storage import fill_between, read_json


def write_picture(root: Path, names: Sequence[str] = ()) -> Path:
    """Draw PICTURE, 800 px wide: photograph, planar depth with its metres, error; one row per image.

    names: demo images (hypersim-synthetic-00); the first of every data set if none are given. Raises ValueError
    for a name without a prediction and a truth.
    """
    predicted = {Path(row["input"]).stem: row for row in read_receipt(root) if row["status"] == "done"}
    with_truth = [stem for stem in sorted(predicted) if (root / TRUTH / f"{stem}.npz").exists()]
    if not names:
        first = {stem.rpartition("-")[0]: stem for stem in reversed(with_truth)}
        names = sorted(first.values())
    unknown = sorted(set(names) - set(with_truth))
    if unknown or not names:
        raise ValueError(f"no demo image with truth named {', '.join(unknown)}; there are: {', '.join(with_truth)}")
    metrics = read_metrics(root)
    examples = [read_predicted(root, predicted[name], metrics).example for name in names]
    return write_panels(root / PICTURE, examples, ("photograph", "depth", "error"), width_px=800)


def results_table(metrics: dict[str, Any]) -> str:
    """metrics/evaluate.json as a Markdown table: one row per data set, the mean last."""
    lines = [
        "| data set | frames | AbsRel ↓ | δ1 ↑ | RMSE, m ↓ | AbsRel: best constant | mean map | VAE floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores in sorted(metrics["datasets"].items()):
        others = (scores[method]["abs_rel"] for method in ("constant", "mean_map", "vae_floor"))
        lines.append(results_row(name, scores, others))
    others = (metrics[f"{method}_abs_rel"] for method in ("constant", "mean_map", "vae_floor"))
    params = metrics["params"]
    lines += [
        results_row("**mean**", metrics, others),
        "",
        f"Split `{params['split']}`, {params['num_inference_steps']} steps x {params['ensemble_size']} runs, "
        f"truth from {metrics['min_m']:g} to {metrics['max_m']:g} m, no alignment; in brackets the "
        "95 % interval by scene.",
    ]
    return "\n".join(lines)


def results_row(name: str, scores: dict[str, Any], others: Iterable[float]) -> str:
    """One row of the results table; `others` are the AbsRel of both baselines and of the VAE floor."""
    figures = [in_domain_abs_rel(scores), f"{scores['delta1']:.3f}", f"{scores['rmse_m']:.2f}"]
    figures += [f"{abs_rel:.3f}" for abs_rel in others]
    return f"| {name} | {scores['num_frames']} | " + " | ".join(figures) + " |"


def zero_shot_table(benchmarks: Mapping[str, dict[str, Any]]) -> str:
    """metrics/benchmark/*.json, by the benchmark's name, as a Markdown table."""
    lines = [
        "| data set | frames | AbsRel ↓ | δ1 ↑ | AbsRel: best constant | VAE floor |",
        "|---|---|---|---|---|---|",
    ]
    for name, scores in benchmarks.items():
        row = zero_shot_row(scores)
        figures = [
            with_interval(row["abs_rel"], row["abs_rel_low"], row["abs_rel_high"]),
            with_interval(row["delta1"], row["delta1_low"], row["delta1_high"]),
            with_interval(row["constant_abs_rel"]),
            with_interval(row["vae_floor_abs_rel"]),
        ]
        lines.append(f"| {name} | {row['num_frames']} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, "", "Each by its benchmark's default protocol; in brackets the 95 % interval by scene."])


def reliability_table(rows: Rows) -> str:
    """Of each data set in rows of the model: its error, what the model states that it is, and how far that holds."""
    known = rows.where(np.isfinite(rows.column("mean_uncertainty")))
    lines = [
        "| data set | AbsRel | stated error, median | within 50 % | 68 % | 80 % | 95 % | AUSE ↓ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in known.unique("benchmark"):
        own = known.where(benchmark=name)
        own = own.where(protocol=own["protocol"][0])
        figures = [f"{np.mean(own['metric/abs_rel']):.3f}", f"{np.median(own['mean_uncertainty']):.3f}"]
        figures += [f"{np.mean(own[key]):.0%}" for key in COVERAGES] + [f"{np.mean(own['ause_abs_rel']):.3f}"]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def read_benchmarks(root: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of `benchmark` in the project at `root`, by the benchmark's name. ValueError where some are missing."""
    paths = {name: Folders(root).metrics(f"benchmark/{name}") for name in names}
    if missing := [str(path) for path in paths.values() if not path.exists()]:
        raise ValueError(f"{', '.join(missing)}: no such file; `dvc repro benchmark` writes it")
    return {name: read_json(path) for name, path in paths.items()}


def fill_results(readme: Path, metrics: dict[str, Any], benchmarks: Mapping[str, dict[str, Any]]) -> None:
    """Put both tables of results between the README's markers. ValueError where they are missing."""
    fill_between(readme, "results", results_table(metrics))
    fill_between(readme, "zero-shot", zero_shot_table(benchmarks))


@click.group()
def main() -> None:
    """Refresh what the README shows, from the project's root."""


@main.command()
@click.argument("names", nargs=-1)
def picture(names: tuple[str, ...]) -> None:
    """Draw the README's picture from the last demo's images (NAMES, or one of each data set)."""
    click.echo(write_picture(Path(), names))


@main.command()
def results() -> None:
    """Write metrics/evaluate.json and metrics/benchmark/ into the README's tables, and their rows into the manual's."""
    benchmarks = read_benchmarks(Path(), load_params().benchmarks)
    fill_results(Path("README.md"), read_metrics(Path()), benchmarks)
    measured = [Folders().reports / "benchmark" / f"{name}.rows.parquet" for name in benchmarks]
    rows = read_rows_files([Folders().metrics("evaluate").with_suffix(".rows.parquet"), *measured])
    fill_between(Path("docs/evaluation.md"), "reliability", reliability_table(rows))


if __name__ == "__main__":
    main()
