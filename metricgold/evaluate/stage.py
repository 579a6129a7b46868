"""Measure a checkpoint on held-out scenes, beside what it must beat and what it cannot beat.

For every data set: the model; two baselines that never see the image and do not know the data set it is from (one
best constant, one mean depth map for all); and the VAE floor, the truth through the VAE and back without the
U-Net. One protocol for all four: every frame at its own size, valid pixels with min_m <= truth <= max_m of the
params, no alignment of scale or shift, ten metrics per image, then the mean over images. In the figures on top every
data set weighs the same. Which pixels count, the model has no say in: where its own range ends before, it is wrong.

Held-out frames are read twice in a stream, once for the best constant and once to predict: memory does not grow
with the data set.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.datasets import Frame, FrameRef, evenly_spaced, frame_batches, why_only_measured
from metricgold.download import unedited_frames
from metricgold.evaluate.baselines import Baselines, best_constant, in_range, mean_depth_map
from metricgold.evaluate.depth_ranges import (
    ByDepth,
    cells,
    dress_depth_axis,
    middle_m,
    range_edges_m,
    range_index,
    save_figure,
    write_table,
)
from metricgold.evaluate.methods import Estimate
from metricgold.evaluate.ours import estimate_of, through_vae
from metricgold.evaluate.reliability import mean_reliability, plot_reliability, reliability
from metricgold.evaluate.rows import NUMBERS, ROWS, Row, require_parquet, write_rows_file
from metricgold.evaluate.surfaces import SurfaceCalls
from metricgold.images import COLUMNS, Example, write_panels
from metricgold.metrics import (
    METRICS,
    Interval,
    depth_metrics,
    interval_by_scene,
    mean_interval,
    mean_metrics,
    uncertainty_figures,
)
from metricgold.model import digest_model
from metricgold.params import Evaluate, Inference
from metricgold.storage import digest_json, write_json

if TYPE_CHECKING:
    from metricgold.model import MetricGoldPipeline

log = logging.getLogger(__name__)

NUM_EXAMPLES = 4  # rows of each data set's panel
PROTOCOL = "evaluate"  # as rows name it
NAME_IN_ROWS = {"constant": "best_constant"}  # of methods, as the rows of benchmarks have it
GEOMETRY = "own size"  # of predictions: what decides figures beside frames and ruler, whatever the model
METHODS = ("model", "constant", "mean_map", "vae_floor")  # mean_map only where a data set trains


def evaluate(
    params: Evaluate,
    raw_folders: dict[str, Path],
    model: Path,
    out: Path,
    plots: Path,
    *,
    pipe: "MetricGoldPipeline | None" = None,
) -> dict[str, Any]:
    """Measure the checkpoint folder `model` and write the JSON `out`.

    pipe: the same model where the caller has loaded it, to measure it in several ways; the folder is not read then.

    Up to params.frames_per_dataset frames of each data set's split, evenly spaced over the sorted names. `plots`
    receives evaluate_by_depth.csv, evaluate.png (AbsRel by depth), evaluate_uncertainty.png (how many pixels lie within
    what the model states) and examples/<data set>.png. Beside `out`,
    <stem>.rows.parquet has a row for each frame and method, see metricgold.evaluate.rows.

    The JSON holds the means over data sets, `interval95` of each by scene, `datasets` with every figure and the frames
    left out, min_m and max_m, the params, `model_digest` (empty where `pipe` has no folder), and `digest`, which names
    what was to be measured (frames asked for, split, ruler): two reports compare only where it is equal. Equal inputs
    give equal bytes. The JSON is written last. Raises ValueError naming a data set without a frame to measure, and
    where pyarrow is not installed.
    """
    require_parquet()
    digest = digest_model(model) if (Path(model) / "model_index.json").is_file() else ""
    if pipe is None:
        from metricgold.model import load_pipeline

        pipe = load_pipeline(model, dtype=params.dtype, digest=digest)
    ruler = params.ruler
    asked = {
        name: unedited_frames(name, raw, params.split, params.frames_per_dataset) for name, raw in raw_folders.items()
    }
    measured = {name: Measured(name, ByDepth(range_edges_m(ruler)), refs) for name, refs in asked.items()}
    left_out = {name: of_dataset.left_out for name, of_dataset in measured.items()}
    held_out, constant_m = best_constant(asked, ruler, left_out)
    trains = not all(why_only_measured(name, raw) for name, raw in raw_folders.items())
    if not trains:
        log.warning("mean_map is left out: none of %s trains", ", ".join(raw_folders))
    baselines = Baselines(constant_m, mean_depth_map(raw_folders, ruler) if trains else None)
    for name, refs in held_out.items():
        shown = {refs[i].name for i in evenly_spaced(len(refs), NUM_EXAMPLES)}
        examples: list[Example] = []
        for frames in frame_batches(refs, None, params.batch_size, f"evaluate {name}", left_out[name]):
            scored = score(frames, params, pipe, baselines, measured[name])
            examples += [example for example in scored if example.name in shown]
        write_panels(Path(plots) / "examples" / f"{name}.png", examples, COLUMNS, width_px=1200)
    report = _report(params, constant_m, measured) | {
        "model_digest": digest,
        "uncertainty_calibrated": pipe.uncertainty_scale is not None,
    }
    _plot_by_depth(Path(plots), measured)
    of_model = {name: of_dataset.of("model") for name, of_dataset in measured.items()}
    plot_reliability(Path(plots) / "evaluate_uncertainty.png", of_model)
    write_rows_file(Path(out).with_suffix(ROWS), _rows(params, report["model_digest"], measured))
    write_json(out, report)
    return report


@dataclass(slots=True)
class Measured:
    """What is known of one data set; only `images` grows, by a few numbers per frame and method."""

    dataset: str
    by_depth: ByDepth
    asked: Sequence[FrameRef]
    images: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # frame name -> reason
    surfaces: SurfaceCalls = field(default_factory=SurfaceCalls)

    def add(self, frame: Frame, valid: np.ndarray, maps_m: dict[str, np.ndarray], stated: Estimate) -> None:
        """Score one image by every method, and what the model states of its own error.

        ValueError naming the frame for a prediction that is not a depth map.
        """
        height, width = valid.shape
        image = {"frame": frame.name, "scene": frame.scene, "reason": "", "focal_px": float(frame.intrinsics[0, 0])}
        image |= {"width": width, "height": height, "num_pixels": int(valid.sum())}
        image["median_true_m"] = float(np.median(frame.planar_depth_m[valid]))
        for method, pred_m in maps_m.items():
            try:
                figures = depth_metrics(pred_m, frame.planar_depth_m, valid)
                if method == "model" and stated.uncertainty is not None:
                    figures |= uncertainty_figures(pred_m, frame.planar_depth_m, valid, stated.uncertainty)
            except ValueError as error:
                raise ValueError(f"{frame.name}, {method}: {error}") from error
            self.images.append(image | {"method": method, "median_pred_m": float(np.median(pred_m[valid]))} | figures)
        true_m = frame.planar_depth_m[valid].astype(np.float64)
        model, floor = (np.abs(maps_m[method][valid] - true_m) / true_m for method in ("model", "vae_floor"))
        self.by_depth.add(range_index(true_m, self.by_depth.edges_m), abs_rel=model, vae_floor_abs_rel=floor)

    def of(self, method: str) -> list[Row]:
        """The images as this method has them."""
        return [image for image in self.images if image["method"] == method]

    def without_figures(self) -> Iterator[Row]:
        """What is known of the frames that were left out, by every method that measured others."""
        for ref in self.asked:
            if ref.name in self.left_out:
                image: Row = {"frame": ref.name, "scene": ref.scene, "reason": self.left_out[ref.name]}
                image |= dict.fromkeys(NUMBERS, float("nan"))
                yield from (image | {"method": method} for method in METHODS if self.of(method))

    def means(self, method: str) -> dict[str, float]:
        """METRICS over images."""
        return mean_metrics([{key: image[key] for key in METRICS} for image in self.of(method)])

    def intervals(self) -> dict[str, Interval]:
        """Of the model's METRICS, by scene."""
        images = self.of("model")
        scenes = [image["scene"] for image in images]
        return {key: interval_by_scene([image[key] for image in images], scenes) for key in METRICS}


def score(
    frames: Sequence[Frame],
    params: Evaluate,
    pipe: "MetricGoldPipeline",
    baselines: Baselines,
    measured: Measured,
) -> Iterator[Example]:
    """Predict a batch and score all four methods; yields the images for the panels."""
    options = params.model_dump(include=set(Inference.model_fields) - {"dtype"})
    predictions = pipe([one.rgb for one in frames], **options, intrinsics=[one.intrinsics for one in frames])
    floors_m = through_vae(pipe, frames)
    for frame, prediction, floor_m in zip(frames, predictions, floors_m, strict=True):
        valid = in_range(frame, params.ruler)
        maps_m = {
            "model": prediction.planar_depth_m,
            **baselines.maps_m(valid.shape),
            "vae_floor": floor_m,
        }
        stated = estimate_of(prediction.planar_depth_m, prediction.uncertainty, prediction.uncertainty_calibrated)
        measured.add(frame, valid, maps_m, stated)
        share_of_far = prediction.planar_depth_m / prediction.log_depth.far_m
        measured.surfaces.add(prediction.valid_mask, share_of_far, frame.no_surface, valid)
        yield Example(frame.name, frame.rgb, prediction.planar_depth_m, frame.planar_depth_m, valid)


def _report(params: Evaluate, constant_m: float, measured: dict[str, Measured]) -> dict[str, Any]:
    """The JSON: means over data sets on top, every figure of each data set below."""
    intervals = {name: of_dataset.intervals() for name, of_dataset in measured.items()}
    beside = [method for method in METHODS[1:] if all(of_dataset.of(method) for of_dataset in measured.values())]
    datasets: dict[str, dict[str, Any]] = {
        name: {
            **of_dataset.means("model"),
            **{method: of_dataset.means(method) for method in beside},
            "interval95": _ends(intervals[name]),
            "by_depth": of_dataset.by_depth.rows(),
            "uncertainty": reliability(of_dataset.of("model")),
            **of_dataset.surfaces.figures(),
            "num_frames": len(of_dataset.of("model")),
            "left_out": of_dataset.left_out,
        }
        for name, of_dataset in measured.items()
    }
    each = list(datasets.values())
    overall = {key: mean_interval([one[key] for one in intervals.values()]) for key in METRICS}
    others = {f"{method}_abs_rel": float(np.mean([one[method]["abs_rel"] for one in each])) for method in beside}
    return {
        **{key: interval.mean for key, interval in overall.items()},
        **others,
        **mean_reliability([one["uncertainty"] for one in each]),
        "interval95": _ends(overall),
        "min_m": params.min_m,
        "max_m": params.max_m,
        "constant_m": constant_m,
        "num_frames": sum(one["num_frames"] for one in each),
        "num_left_out": sum(len(one["left_out"]) for one in each),
        "datasets": datasets,
        "params": params.model_dump(),
        "digest": digest_json({name: _ruler(params, of_dataset) for name, of_dataset in measured.items()}),
    }


def _ruler(params: Evaluate, measured: Measured) -> dict[str, Any]:
    """All that decides which pixels of which frames of a data set are asked for: never what a model can do."""
    range_m = [params.min_m, params.max_m]
    frames = {"dataset": measured.dataset, "split": params.split, "frames": [ref.name for ref in measured.asked]}
    return {**frames, "range_m": range_m, "geometry": GEOMETRY}


def _ends(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float] | None]:
    """low and high by figure; None where there are none, with a single scene."""
    return {key: None if isnan(one.low) else {"low": one.low, "high": one.high} for key, one in intervals.items()}


def _rows(params: Evaluate, model_digest: str, measured: dict[str, Measured]) -> Iterator[Row]:
    """A row for each frame asked for and each method, with the reason where the frame was left out."""
    protocol_digest = digest_json({"range_m": [params.min_m, params.max_m], "geometry": GEOMETRY})
    for name, of_dataset in measured.items():
        common = {"benchmark": name, "protocol": PROTOCOL, "protocol_digest": protocol_digest}
        common["ruler_digest"] = digest_json(_ruler(params, of_dataset))
        for image in (*of_dataset.images, *of_dataset.without_figures()):
            row = {f"metric/{key}" if key in METRICS else key: value for key, value in image.items()}
            method = NAME_IN_ROWS.get(image["method"], image["method"])
            digest = model_digest if method == "model" else digest_json([method, model_digest])
            yield common | row | {"method": method, "method_digest": digest}


def _plot_by_depth(plots: Path, measured: dict[str, Measured]) -> None:
    """AbsRel against true depth as a table and a figure: a line per data set, its VAE floor dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    by_depth = {name: of_dataset.by_depth.rows() for name, of_dataset in measured.items()}
    table = [[name, *cells(row, "abs_rel", "vae_floor_abs_rel")] for name, rows in by_depth.items() for row in rows]
    write_table(plots / "evaluate_by_depth.csv", ["dataset", "range", "depth_m", "abs_rel", "floor"], table)
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    ax = figure.subplots()
    for name, rows in by_depth.items():
        depths_m = [middle_m(row) for row in rows]
        (line,) = ax.plot(depths_m, [row["abs_rel"] for row in rows], "o-", ms=4, label=name)
        ax.plot(depths_m, [row["vae_floor_abs_rel"] for row in rows], "--", color=line.get_color(), lw=1)
    edges_m = next(iter(measured.values())).by_depth.edges_m
    dress_depth_axis(ax, edges_m, ticks_m=edges_m.tolist())
    ax.set(xlabel="true planar depth, m", ylabel="AbsRel")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    ax.legend(frameon=False, title="dashed: VAE floor")
    save_figure(plots / "evaluate.png", figure)
