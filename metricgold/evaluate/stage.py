"""Measure a checkpoint on held-out scenes, beside what it must beat and what it cannot beat.

For every data set: the model; two baselines that never look at the image, nor know the data set it is from (one
best constant, one mean depth map for all); and the VAE floor, the truth through the VAE and back without the
U-Net. One protocol for all four: every frame at its own size, valid pixels with near_m <= truth <= far_m of the
model, no alignment of scale or shift, ten metrics per image, then the mean over images. Data sets weigh the same
in the figures on top.

Held-out frames are read twice in a stream, once for the best constant and once to predict: memory does not grow
with the data set.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.datasets import Frame, FrameRef, evenly_spaced, frame_batches, list_frames
from metricgold.evaluate.baselines import Blind, _resize_map, best_constant, in_range, mean_depth_map
from metricgold.evaluate.depth_ranges import depth_edges
from metricgold.images import COLUMNS, Example, write_panels
from metricgold.log_depth import LogDepth
from metricgold.metrics import depth_metrics, mean_metrics
from metricgold.params import Evaluate, Inference
from metricgold.storage import digest_json, write_aside, write_json

if TYPE_CHECKING:
    from metricgold.model import MetricGoldPipeline

logger = logging.getLogger(__name__)

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
    """Measure the checkpoint folder `model` (or `pipe`, where already loaded) and write the JSON `out`.

    Up to params.frames_per_dataset frames of each data set's split, evenly spaced over the sorted names. `plots`
    receives evaluate_by_depth.csv, evaluate.png (AbsRel by depth) and examples/<data set>.png. The JSON holds
    the means over data sets, `datasets` with every figure, near_m and far_m, the params, and `digest`, which
    names what was measured (frames, split, range): two reports compare only where it is equal. Equal inputs
    give equal bytes. The JSON is written last. Raises ValueError naming a data set without a frame to measure.
    """
    if pipe is None:
        from metricgold.model import load_pipeline

        pipe = load_pipeline(model, dtype=params.dtype)
    measured = {name: Measured(depth_edges(pipe.log_depth)) for name in raw_folders}
    held_out = {name: _held_out(name, raw, params) for name, raw in raw_folders.items()}
    left_out = {name: found.left_out for name, found in measured.items()}
    held_out, constant_m = best_constant(held_out, pipe.log_depth, left_out)
    blind = Blind(constant_m, mean_depth_map(raw_folders, pipe.log_depth))
    for name, refs in held_out.items():
        _measure(name, refs, params, pipe, blind, measured[name], Path(plots) / "examples")
    report = _report(params, pipe.log_depth, blind, measured)
    _write_by_depth(Path(plots) / "evaluate_by_depth.csv", measured)
    _draw_by_depth(Path(plots) / "evaluate.png", measured)
    write_json(out, report)
    return report


# --- one data set -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Measured:
    """Everything found out about one data set; only `images` and `names` grow, by a few numbers per frame."""

    edges_m: np.ndarray
    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # frame name -> reason
    images: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {method: [] for method in METHODS})
    range_sums: dict[str, np.ndarray] = field(default_factory=dict)  # method -> sum of relative errors by range
    range_pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, method: str, pred_m: np.ndarray, frame: Frame, valid: np.ndarray) -> None:
        """Score one image of one method. ValueError naming the frame for a prediction that is no depth."""
        try:
            self.images[method].append(depth_metrics(pred_m, frame.planar_depth_m, valid))
        except ValueError as error:
            raise ValueError(f"{frame.name}, {method}: {error}") from error
        true_m = frame.planar_depth_m[valid].astype(np.float64)
        sums = np.bincount(
            self._ranges(true_m), weights=np.abs(pred_m[valid] - true_m) / true_m, minlength=len(self.edges_m) - 1
        )
        self.range_sums[method] = self.range_sums.get(method, 0) + sums

    def count(self, frame: Frame, valid: np.ndarray) -> None:
        """Count one image's pixels by range."""
        pixels = np.bincount(self._ranges(frame.planar_depth_m[valid]), minlength=len(self.edges_m) - 1)
        self.range_pixels = pixels if not self.range_pixels.size else self.range_pixels + pixels

    def _ranges(self, true_m: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.edges_m, true_m, side="right") - 1, 0, len(self.edges_m) - 2)

    def by_depth(self) -> list[dict[str, float]]:
        """AbsRel of model and VAE floor for each range of true depth, over all its pixels; empty ranges left out."""
        return [
            {
                "from_m": float(self.edges_m[i]),
                "to_m": float(self.edges_m[i + 1]),
                "abs_rel": float(self.range_sums["model"][i] / pixels),
                "vae_floor_abs_rel": float(self.range_sums["vae_floor"][i] / pixels),
                "num_pixels": int(pixels),
            }
            for i, pixels in enumerate(self.range_pixels)
            if pixels
        ]


def _held_out(name: str, raw: Path, params: Evaluate) -> list[FrameRef]:
    found = list_frames(name, raw, split=params.split).frames
    return [found[i] for i in evenly_spaced(len(found), params.frames_per_dataset)]


def _measure(
    name: str,
    refs: Sequence[FrameRef],
    params: Evaluate,
    pipe: "MetricGoldPipeline",
    blind: Blind,
    measured: Measured,
    examples: Path,
) -> None:
    shown = {refs[i].name for i in evenly_spaced(len(refs), NUM_EXAMPLES)}
    kept: list[Example] = []
    for batch in frame_batches(refs, None, params.batch_size, f"evaluate {name}", measured.left_out):
        for example in _score(batch, params, pipe, blind, measured):
            if example.name in shown:
                kept.append(example)
    write_panels(examples / f"{name}.png", kept, COLUMNS, width_px=1200)


def _score(
    frames: Sequence[Frame], params: Evaluate, pipe: "MetricGoldPipeline", blind: Blind, measured: Measured
) -> Iterator[Example]:
    """Predict a batch, score all four methods, and hand the images on."""
    options = params.model_dump(include=set(Inference.model_fields) - {"dtype"})
    predictions = pipe([frame.rgb for frame in frames], **options)
    floors_m = through_vae(pipe, frames)
    for frame, prediction, floor_m in zip(frames, predictions, floors_m, strict=True):
        valid = in_range(frame, pipe.log_depth)
        measured.names.append(frame.name)
        measured.count(frame, valid)
        measured.add("model", prediction.planar_depth_m, frame, valid)
        measured.add("constant", np.full(valid.shape, blind.constant_m), frame, valid)
        measured.add("mean_map", _resize_map(blind.mean_map_m, valid.shape), frame, valid)
        measured.add("vae_floor", floor_m, frame, valid)
        yield Example(frame.name, frame.rgb, prediction.planar_depth_m, frame.planar_depth_m, valid)


def through_vae(pipe: "MetricGoldPipeline", frames: Sequence[Frame]) -> list[np.ndarray]:
    """Each frame's true depth through the VAE and back, metres [H, W]; what is not valid goes in as far_m."""
    filled_m = [np.where(frame.valid_mask, frame.planar_depth_m, np.float32(pipe.log_depth.far_m)) for frame in frames]
    if len({depth_m.shape for depth_m in filled_m}) == 1:
        return list(pipe.encode_decode_depth(np.stack(filled_m)))
    return [pipe.encode_decode_depth(depth_m[None])[0] for depth_m in filled_m]


# --- what never looks at the image --------------------------------------------------------------------------


# --- reports ------------------------------------------------------------------------------------------------


def _report(params: Evaluate, log_depth: LogDepth, blind: Blind, measured: dict[str, Measured]) -> dict[str, Any]:
    datasets = {name: _dataset_report(found) for name, found in measured.items()}
    each = list(datasets.values())
    of_model = mean_metrics([{key: one[key] for key in one["constant"]} for one in each])
    others = {f"{method}_abs_rel": float(np.mean([one[method]["abs_rel"] for one in each])) for method in METHODS[1:]}
    frames = {name: found.names for name, found in measured.items()}
    of_range = {"near_m": log_depth.near_m, "far_m": log_depth.far_m}
    return {
        **of_model,
        **others,
        **of_range,
        "constant_m": blind.constant_m,
        "num_frames": sum(one["num_frames"] for one in each),
        "datasets": datasets,
        "params": params.model_dump(),
        "digest": digest_json({"frames": frames, "split": params.split, **of_range}),
    }


def _dataset_report(measured: Measured) -> dict[str, Any]:
    means = {method: mean_metrics(images) for method, images in measured.images.items()}
    return {
        **means["model"],
        **{method: means[method] for method in METHODS[1:]},
        "by_depth": measured.by_depth(),
        "num_frames": len(measured.names),
        "left_out": measured.left_out,
    }


def _write_by_depth(path: Path, measured: dict[str, Measured]) -> None:
    """data set, range, its middle (geometric), AbsRel of model and of the VAE floor: a plot for DVC."""
    with write_aside(path) as aside, aside.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["dataset", "range", "depth_m", "abs_rel", "floor"])
        for name, found in measured.items():
            for one in found.by_depth():
                middle_m = (one["from_m"] * one["to_m"]) ** 0.5
                label = f"{one['from_m']:g}-{one['to_m']:g} m"
                figures = (f"{value:.6g}" for value in (middle_m, one["abs_rel"], one["vae_floor_abs_rel"]))
                rows.writerow([name, label, *figures])


def _draw_by_depth(path: Path, measured: dict[str, Measured]) -> None:
    """AbsRel against true depth: a line per data set, its VAE floor dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    ax = figure.subplots()
    for name, found in measured.items():
        ranges = found.by_depth()
        middle_m = [(one["from_m"] * one["to_m"]) ** 0.5 for one in ranges]
        (line,) = ax.plot(middle_m, [one["abs_rel"] for one in ranges], "o-", ms=4, label=name)
        ax.plot(middle_m, [one["vae_floor_abs_rel"] for one in ranges], "--", color=line.get_color(), lw=1)
    edges_m = next(iter(measured.values())).edges_m
    ax.set(xscale="log", xlim=(edges_m[0], edges_m[-1]), xlabel="true planar depth, m", ylabel="AbsRel")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(FixedLocator(edges_m))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, title="dashed: VAE floor")
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
