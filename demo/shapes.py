"""Frames of other shapes and sizes than training's: seen as one, and by windows beside it.

python -m demo.shapes          predicts held-out scenes with models/metricgold, and refreshes the manual's table
python -m demo.shapes --again  refreshes it from metrics/shapes.json, without a model

Scenes are drawn like the demo's test scenes, from another seed: shape, number and overlap of windows were chosen on
those of the demo itself. Frames have another shape, through the lens of training (as long for its area), or with more
of the scene beside it, or only more pixels. Each row has a process of its own, whose peak memory counts. Intervals are
paired by scene.
"""

import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from metricgold.datasets import Frame, frames_through_lens
from metricgold.evaluate import in_range
from metricgold.metrics import Interval, boundary_f1, depth_metrics, paired_interval
from metricgold.model import load_pipeline
from metricgold.params import WINDOWS, Folders, Params, Windows, load_params
from metricgold.storage import fill_between, read_json, write_json

METRICS = Folders().metrics("shapes")
PAGE = Path("docs/prediction-and-batch-jobs.md")
FIGURES = ("abs_rel", "delta1", "boundary_f1")
BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


class Shape(NamedTuple):
    """A frame: its sides in those of training's frames, and its focal length in pixels in that of training's."""

    height: float
    width: float
    focal: float


SHAPES = {
    "as trained": Shape(1, 1, 1),
    "wide": Shape(0.75, 1.625, (0.75 * 1.625) ** 0.5),
    "wide, more extent": Shape(1, 13 / 6, 1),
    "tall": Shape(1.75, 7 / 12, (1.75 * 7 / 12) ** 0.5),
    "tall, more extent": Shape(3, 1, 1),
    "4 x larger": Shape(4, 4, 4),
}


def frames_of_shape(params: Params, shape: Shape) -> Iterator[tuple[str, Frame]]:
    """The first frame of every test scene, with the name of its scene."""
    size = {
        "height": round(shape.height * params.synthesize.height),
        "width": round(shape.width * params.synthesize.width),
        "frames_per_scene": 1,
        "seed": params.synthesize.seed + 1,
    }
    synthesize = params.synthesize.model_copy(update=size)
    for dataset in params.datasets:
        for frame in frames_through_lens(dataset, synthesize, shape.width / shape.focal):
            yield f"{dataset}/{frame.scene}", frame


def measure(params: Params, model: Path, name: str, windows: Windows) -> dict[str, Any]:
    """The row of a shape: figures of every frame, seconds a frame, peak memory in bytes."""
    scenes, frames = zip(*frames_of_shape(params, SHAPES[name]), strict=True)
    pipe = load_pipeline(model)
    policy = {key: getattr(params.evaluate, key) for key in ("num_inference_steps", "ensemble_size")}
    pipe(frames[0].rgb, **policy, windows=windows)  # what is done once only is not counted
    started, figures = time.perf_counter(), []
    predictions = [pipe(frame.rgb, intrinsics=frame.intrinsics, **policy, windows=windows) for frame in frames]
    seconds = (time.perf_counter() - started) / len(frames)
    for frame, prediction in zip(frames, predictions, strict=True):
        maps = prediction.planar_depth_m, frame.planar_depth_m, in_range(frame, params.evaluate.ruler)
        figures.append(depth_metrics(*maps) | {"boundary_f1": boundary_f1(*maps)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
    height, width = frames[0].rgb.shape[:2]
    return {
        "shape": name,
        "size": f"{height} x {width}",
        "windows": windows,
        "parts": pipe.strip(height, width, windows).num_parts,
        "scenes": scenes,
        **{key: [float(one[key]) for one in figures] for key in FIGURES},
        "seconds": seconds,
        "peak_bytes": peak,
    }


def measure_all(params: Params, model: Path) -> list[dict[str, Any]]:
    """A row for each shape and each way to see it."""
    rows = []
    for name in SHAPES:
        for windows in reversed(WINDOWS):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                rows.append(alone.submit(measure, params, model, name, windows).result())
            click.echo(f"{name}, windows {windows}: AbsRel {np.nanmean(rows[-1]['abs_rel']):.3f}")
            if rows[-1]["parts"] == 1 and windows == "auto":
                rows.pop()  # it is seen as one anyway
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each shape seen as one, then by windows, with the difference and its interval."""
    lines = [
        "| frames | pixels | windows | AbsRel ↓ | δ1 ↑ | boundary F1 ↑ | s a frame | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    as_one = {row["shape"]: row for row in rows if row["windows"] == "never"}
    for row in rows:
        cells = [_cell(row, as_one[row["shape"]], key) for key in FIGURES]
        number = "none" if row["parts"] == 1 else str(row["parts"] - 1)
        cost = f"{row['seconds']:.2f} | {row['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {row['shape']} | {row['size']} | {number} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], as_one: dict[str, Any], key: str) -> str:
    mean = f"{np.nanmean(row[key]):.3f}"
    if row is as_one:
        return mean
    change: Interval = paired_interval(row[key], as_one[key], row["scenes"])
    return f"{mean} [{change.low:+.3f}, {change.high:+.3f}]"


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=Folders().model, show_default=True)
@click.option("--again", is_flag=True, help="Make the table from metrics/shapes.json; measure nothing.")
def main(model: Path, again: bool) -> None:
    """Measure every shape in the project's root and refresh the manual's table."""
    try:
        if not again:
            write_json(METRICS, {"rows": measure_all(load_params(), model)})
        fill_between(PAGE, "shapes", table(read_json(METRICS)["rows"]))
    except (ValueError, OSError) as error:  # such as no params, model or figures here
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
