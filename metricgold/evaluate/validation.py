"""Validation while training: few held-out frames, always the same, by the protocol of `metricgold evaluate`.

But for the ruler: truth counts within the model's own range. The figures choose among the weights of one run, which
share that range, and a ruler from the params of evaluate would train anew whenever it is changed.
"""

from collections.abc import Callable
from pathlib import Path

from metricgold.datasets import Frame, read_frame
from metricgold.download import unedited_frames
from metricgold.evaluate.baselines import in_range
from metricgold.images import COLUMNS, Example, relative_focal, write_panels
from metricgold.metrics import depth_metrics, mean_metrics
from metricgold.model import MetricGoldPipeline
from metricgold.params import LogDepthRange, Validation


def held_out_validation(
    params: Validation, range_m: LogDepthRange, raw_folders: dict[str, Path], samples: Path
) -> Callable[[MetricGoldPipeline, int], dict[str, float]]:
    """What train() validates with: from pipeline and step to metrics in metres, the mean over data sets.

    Frames are listed and read now, those without depth in range left out; `samples` receives step-NNNNNN.png, a row
    for each data set, before the metrics are returned. Raises ValueError naming a data set without a frame to measure.
    """
    held_out: dict[str, list[Frame]] = {}
    for name, raw in raw_folders.items():
        frames = [read_frame(ref) for ref in unedited_frames(name, raw, params.split, params.frames_per_dataset)]
        held_out[name] = [
            frame
            for frame in frames
            if in_range(frame, range_m.to_log_depth(relative_focal(frame.intrinsics, *frame.valid_mask.shape))).any()
        ]
        if not held_out[name]:
            raise ValueError(f"{name}: no frame of split {params.split} with depth in range to validate on")

    def validate(pipe: MetricGoldPipeline, step: int, /) -> dict[str, float]:
        examples = {name: _predict(pipe, frames, params) for name, frames in held_out.items()}
        first = [of_dataset[0] for of_dataset in examples.values()]
        write_panels(samples / f"step-{step:06d}.png", first, COLUMNS, width_px=1200)
        return mean_metrics(
            [
                mean_metrics([depth_metrics(one.pred_m, one.true_m, one.valid_mask) for one in of_dataset])
                for of_dataset in examples.values()
            ]
        )

    return validate


def _predict(pipe: MetricGoldPipeline, frames: list[Frame], params: Validation) -> list[Example]:
    """Each frame with its prediction: one run, no ensemble."""
    options = {"num_inference_steps": params.num_inference_steps, "ensemble_size": 1, "batch_size": params.batch_size}
    predictions = pipe([one.rgb for one in frames], **options, intrinsics=[one.intrinsics for one in frames])
    return [
        Example(
            frame.name,
            frame.rgb,
            prediction.planar_depth_m,
            frame.planar_depth_m,
            in_range(frame, prediction.log_depth),
        )
        for frame, prediction in zip(frames, predictions, strict=True)
    ]
