"""What a few known distances are worth on cameras that a model was not trained on.

python -m demo.calibration   predicts the benchmarks' twins and the test scenes through a longer and a wider lens with
                             models/metricgold, calibrates on points of some scenes, measures the others, and refreshes
                             the manual's table

A trial draws images and one pixel in each (or more, where there are more points than images), fits, and measures all
images of scenes that gave no point. Where it is refused, depth stays as it was: every mean is over all trials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from metricgold.datasets import Frame, frames_through_lens, list_frames, read_frame
from metricgold.evaluate import in_range
from metricgold.model import MetricGoldPipeline, load_pipeline
from metricgold.params import Folders, Params, load_params
from metricgold.predict import fit_calibration
from metricgold.storage import fill_between

PAGE = Path("docs/calibration.md")
FACTORS = (0.5, 2.0)  # extent of the image plane: a lens twice as long, and half as long, as training's
FRAME_STEP = 3  # of the frames through a lens every third
# Points, the images that they are from at most, and the share that is wrong by a factor of 2 to 6: feet, another thing.
COLUMNS: dict[str, tuple[int, int, float]] = {
    "3 points": (3, 3, 0.0),
    "5": (5, 5, 0.0),
    "10": (10, 8, 0.0),
    "5, one wrong": (5, 5, 0.2),
    "10, two wrong": (10, 8, 0.2),
    "10 in one image": (10, 1, 0.0),
}
TRIALS = 100
PIXELS = 2000  # of an image, evenly spaced: means over them are those over all within a thousandth


@dataclass(frozen=True, slots=True, eq=False)
class Depths:
    """Predicted and true depth in metres of some valid pixels of one image."""

    scene: str
    predicted_m: np.ndarray
    true_m: np.ndarray


class Trial(NamedTuple):
    """AbsRel of the scenes that gave no point, before and after, and what was kept."""

    before: float
    after: float
    kept: str


def predict_frames(pipe: MetricGoldPipeline, params: Params, frames: Sequence[Frame]) -> list[Depths]:
    """The depths of each frame; those without a valid pixel are left out."""
    policy = {name: getattr(params.benchmark, name) for name in ("num_inference_steps", "ensemble_size")}
    found = []
    for start in range(0, len(frames), params.benchmark.batch_size):
        batch = frames[start : start + params.benchmark.batch_size]
        cameras = [frame.intrinsics for frame in batch]
        predictions = pipe([frame.rgb for frame in batch], intrinsics=cameras, **policy)
        for frame, prediction in zip(batch, predictions, strict=True):
            pixels = np.flatnonzero(in_range(frame, params.evaluate.ruler) & prediction.valid_mask)
            if pixels.size:
                chosen = pixels[np.unique(np.linspace(0, pixels.size - 1, PIXELS).astype(int))]
                found.append(
                    Depths(frame.scene, prediction.planar_depth_m.flat[chosen], frame.planar_depth_m.flat[chosen])
                )
    return found


def run_trial(
    images: Sequence[Depths], num_points: int, num_images: int, wrong: float, rng: np.random.Generator
) -> Trial:
    """Fit to points of some images, measure the others."""
    given = [images[i] for i in rng.choice(len(images), min(num_images, len(images) // 2), replace=False)]
    pairs = np.array([draw_point(given[i % len(given)], rng) for i in range(num_points)])
    spoilt = rng.choice(num_points, round(wrong * num_points), replace=False)
    pairs[spoilt, 1] *= rng.uniform(2, 6, spoilt.size) ** rng.choice([-1, 1], spoilt.size)
    seen = {image.scene for image in given}
    unseen = [image for image in images if image.scene not in seen]
    before = abs_rel(unseen, np.asarray)
    try:
        fit = fit_calibration(pairs[:, 0], pairs[:, 1], [str(i % len(given)) for i in range(num_points)])
    except ValueError:
        return Trial(before, before, "none")
    return Trial(before, before if fit.model == "none" else abs_rel(unseen, fit.line.apply), fit.model)


def draw_point(image: Depths, rng: np.random.Generator) -> tuple[float, float]:
    """Predicted and true depth of one pixel."""
    pixel = rng.integers(image.true_m.size)
    return float(image.predicted_m[pixel]), float(image.true_m[pixel])


def abs_rel(images: Sequence[Depths], apply: Callable[[np.ndarray], np.ndarray]) -> float:
    """The mean over images."""
    return float(np.mean([np.mean(np.abs(apply(one.predicted_m) - one.true_m) / one.true_m) for one in images]))


def sets_of_depths(pipe: MetricGoldPipeline, params: Params) -> Iterator[tuple[str, list[Depths]]]:
    """Each camera by name: the benchmarks' twins, and the test scenes of the training sets through other lenses."""
    for name in params.benchmarks:
        refs = list_frames(name, Folders().benchmark(name)).frames
        yield name.removesuffix("-synthetic"), predict_frames(pipe, params, [read_frame(ref) for ref in refs])
    for factor in FACTORS:
        for name in params.datasets:
            frames = islice(frames_through_lens(name, params.synthesize, factor), 0, None, FRAME_STEP)
            yield f"{name.removesuffix('-synthetic')}, lens {factor:g}", predict_frames(pipe, params, list(frames))


def run_trials(images: Sequence[Depths], seed: int = 0) -> dict[str, list[Trial]]:
    """TRIALS of each column of the table."""
    rng = np.random.default_rng(seed)
    return {column: [run_trial(images, *options, rng) for _ in range(TRIALS)] for column, options in COLUMNS.items()}


def table_of(trials: Mapping[str, Mapping[str, Sequence[Trial]]]) -> str:
    """AbsRel after and the share of trials that were kept, by camera and points, as Markdown."""
    lines = [f"| camera | before | {' | '.join(COLUMNS)} |", f"|---|{'---|' * (len(COLUMNS) + 1)}"]
    for name, columns in trials.items():
        before = np.mean([trial.before for column in columns.values() for trial in column])
        cells = []
        for column in columns.values():
            kept = np.mean([trial.kept != "none" for trial in column])
            cells.append(f"{np.mean([trial.after for trial in column]):.3f} ({100 * kept:.0f} %)")
        lines.append(f"| {name} | {before:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", default=Folders().model, show_default=True, type=click.Path(path_type=Path))
def main(model: Path) -> None:
    """Measure, and refresh the manual's table."""
    params, pipe = load_params(), load_pipeline(model)
    trials = {name: run_trials(images) for name, images in sets_of_depths(pipe, params)}
    fill_between(PAGE, "calibration", table_of(trials))


if __name__ == "__main__":
    main()
