"""Held-out frames looked at while training: few, always the same, measured by the protocol of `metricgold evaluate`."""

from collections.abc import Callable
from pathlib import Path

from metricgold.datasets import Frame, evenly_spaced, list_frames, read_frame
from metricgold.evaluate.baselines import in_range
from metricgold.images import COLUMNS, Example, write_panels
from metricgold.log_depth import LogDepth
from metricgold.metrics import depth_metrics, mean_metrics
from metricgold.model import MetricGoldPipeline
from metricgold.params import LogDepthRange, Validation


def held_out_validation(
    params: Validation, log_depth: LogDepthRange, raw_folders: dict[str, Path], samples: Path
) -> Callable[[MetricGoldPipeline, int], dict[str, float]]:
    """What train() is to validate with: pipeline and step to the mean over data sets of metrics in metres.

    Frames are listed and read now, those without depth in range left out; `samples` receives step-NNNNNN.png, a row
    for each data set. Raises ValueError naming a data set without a frame to measure.
    """
    scale = LogDepth(log_depth.near_m, log_depth.far_m)
    frames = {name: _frames(name, raw, params, scale) for name, raw in raw_folders.items()}

    def validate(pipe: MetricGoldPipeline, step: int) -> dict[str, float]:
        examples = {name: _predict(pipe, of_name, params) for name, of_name in frames.items()}
        write_panels(samples / f"step-{step:06d}.png", [one[0] for one in examples.values()], COLUMNS, width_px=1200)
        return mean_metrics(
            [
                mean_metrics([depth_metrics(one.pred_m, one.true_m, one.valid_mask) for one in of_name])
                for of_name in examples.values()
            ]
        )

    return validate


def _frames(name: str, raw: Path, params: Validation, log_depth: LogDepth) -> list[Frame]:
    found = list_frames(name, raw, split=params.split).frames
    frames = [read_frame(found[i]) for i in evenly_spaced(len(found), params.frames_per_dataset)]
    frames = [frame for frame in frames if in_range(frame, log_depth).any()]
    if not frames:
        raise ValueError(f"{name}: no frame of split {params.split} with depth in range to validate on")
    return frames


def _predict(pipe: MetricGoldPipeline, frames: list[Frame], params: Validation) -> list[Example]:
    """One run for each image, no ensemble."""
    options = {"num_inference_steps": params.num_inference_steps, "ensemble_size": 1, "batch_size": params.batch_size}
    predictions = pipe([frame.rgb for frame in frames], **options)
    examples = []
    for frame, found in zip(frames, predictions, strict=True):
        valid = in_range(frame, pipe.log_depth)
        examples.append(Example(frame.name, frame.rgb, found.planar_depth_m, frame.planar_depth_m, valid))
    return examples
