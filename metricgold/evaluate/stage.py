"""Measure a checkpoint on held-out scenes, beside what it must beat and what it cannot beat.

For every data set: the model; two baselines that never see the image and do not know the data set it is from (one
best constant, one mean depth map for all); and the VAE floor, the truth through the VAE and back without the
U-Net. One protocol for all four: every frame at its own size, valid pixels with near_m <= truth <= far_m of the
model, no alignment of scale or shift, ten metrics per image, then the mean over images. In the figures on top every
data set weighs the same.

Held-out frames are read twice in a stream, once for the best constant and once to predict: memory does not grow
with the data set.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.datasets import Frame, evenly_spaced, frame_batches
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
from metricgold.images import COLUMNS, Example, write_panels
from metricgold.log_depth import LogDepth
from metricgold.metrics import depth_metrics, mean_metrics
from metricgold.params import Evaluate, Inference
from metricgold.storage import digest_json, write_json

if TYPE_CHECKING:
    from metricgold.model import MetricGoldPipeline

log = logging.getLogger(__name__)

NUM_EXAMPLES = 4  # rows of each data set's panel
METHODS = ("model", "constant", "mean_map", "vae_floor")


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
    receives evaluate_by_depth.csv, evaluate.png (AbsRel by depth) and examples/<data set>.png. The JSON holds
    the means over data sets, `datasets` with every figure, near_m and far_m, the params, and `digest`, which
    names what was measured (frames, split, range): two reports compare only where it is equal. Equal inputs
    give equal bytes. The JSON is written last. Raises ValueError naming a data set without a frame to measure.
    """
    if pipe is None:
        from metricgold.model import load_pipeline

        pipe = load_pipeline(model, dtype=params.dtype)
    measured = {name: Measured(ByDepth(range_edges_m(pipe.log_depth))) for name in raw_folders}
    left_out = {name: of_dataset.left_out for name, of_dataset in measured.items()}
    held_out = {
        name: unedited_frames(name, raw, params.split, params.frames_per_dataset) for name, raw in raw_folders.items()
    }
    held_out, constant_m = best_constant(held_out, pipe.log_depth, left_out)
    baselines = Baselines(constant_m, mean_depth_map(raw_folders, pipe.log_depth))
    for name, refs in held_out.items():
        shown = {refs[i].name for i in evenly_spaced(len(refs), NUM_EXAMPLES)}
        examples: list[Example] = []
        for frames in frame_batches(refs, None, params.batch_size, f"evaluate {name}", left_out[name]):
            scored = score(frames, params, pipe, baselines, measured[name])
            examples += [example for example in scored if example.name in shown]
        write_panels(Path(plots) / "examples" / f"{name}.png", examples, COLUMNS, width_px=1200)
    report = _report(params, pipe.log_depth, constant_m, measured)
    _plot_by_depth(Path(plots), measured)
    write_json(out, report)
    return report


@dataclass(slots=True)
class Measured:
    """What is known of one data set; only `images` and `names` grow, by a few numbers per frame."""

    by_depth: ByDepth
    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # frame name -> reason
    images: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {method: [] for method in METHODS})

    def add(self, frame: Frame, valid: np.ndarray, maps_m: dict[str, np.ndarray]) -> None:
        """Score one image by every method. ValueError naming the frame for a prediction that is not a depth map."""
        for method, pred_m in maps_m.items():
            try:
                self.images[method].append(depth_metrics(pred_m, frame.planar_depth_m, valid))
            except ValueError as error:
                raise ValueError(f"{frame.name}, {method}: {error}") from error
        self.names.append(frame.name)
        true_m = frame.planar_depth_m[valid].astype(np.float64)
        model, floor = (np.abs(maps_m[method][valid] - true_m) / true_m for method in ("model", "vae_floor"))
        self.by_depth.add(range_index(true_m, self.by_depth.edges_m), abs_rel=model, vae_floor_abs_rel=floor)


def score(
    frames: Sequence[Frame],
    params: Evaluate,
    pipe: "MetricGoldPipeline",
    baselines: Baselines,
    measured: Measured,
) -> Iterator[Example]:
    """Predict a batch and score all four methods; yields the images for the panels."""
    options = params.model_dump(include=set(Inference.model_fields) - {"dtype"})
    predictions = pipe([frame.rgb for frame in frames], **options)
    floors_m = through_vae(pipe, frames)
    for frame, prediction, floor_m in zip(frames, predictions, floors_m, strict=True):
        valid = in_range(frame, pipe.log_depth)
        maps_m = {
            "model": prediction.planar_depth_m,
            "constant": np.full(valid.shape, baselines.constant_m),
            "mean_map": baselines.resized_mean_map_m(valid.shape),
            "vae_floor": floor_m,
        }
        measured.add(frame, valid, maps_m)
        yield Example(frame.name, frame.rgb, prediction.planar_depth_m, frame.planar_depth_m, valid)


def through_vae(pipe: "MetricGoldPipeline", frames: Sequence[Frame]) -> list[np.ndarray]:
    """Each frame's true depth through the VAE and back, metres [H, W]; invalid pixels are filled with far_m."""
    filled_m = [np.where(frame.valid_mask, frame.planar_depth_m, np.float32(pipe.log_depth.far_m)) for frame in frames]
    if len({depth_m.shape for depth_m in filled_m}) == 1:
        return list(pipe.encode_decode_depth(np.stack(filled_m)))
    return [pipe.encode_decode_depth(depth_m[None])[0] for depth_m in filled_m]


def _report(params: Evaluate, log_depth: LogDepth, constant_m: float, measured: dict[str, Measured]) -> dict[str, Any]:
    """The JSON: means over data sets on top, every figure of each data set below."""
    datasets: dict[str, dict[str, Any]] = {}
    for name, of_dataset in measured.items():
        means = {method: mean_metrics(images) for method, images in of_dataset.images.items()}
        datasets[name] = {
            **means["model"],
            **{method: means[method] for method in METHODS[1:]},
            "by_depth": of_dataset.by_depth.rows(),
            "num_frames": len(of_dataset.names),
            "left_out": of_dataset.left_out,
        }
    each = list(datasets.values())
    of_model = mean_metrics([{key: one[key] for key in one["constant"]} for one in each])
    others = {f"{method}_abs_rel": float(np.mean([one[method]["abs_rel"] for one in each])) for method in METHODS[1:]}
    frames = {name: of_dataset.names for name, of_dataset in measured.items()}
    of_range = {"near_m": log_depth.near_m, "far_m": log_depth.far_m}
    return {
        **of_model,
        **others,
        **of_range,
        "constant_m": constant_m,
        "num_frames": sum(one["num_frames"] for one in each),
        "datasets": datasets,
        "params": params.model_dump(),
        "digest": digest_json({"frames": frames, "split": params.split, **of_range}),
    }


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
