"""How wrong a model is on held-out frames, which it then states as its uncertainty: the calibration after training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from metricgold.datasets import frame_batches
from metricgold.download import unedited_frames
from metricgold.evaluate.baselines import in_range
from metricgold.log_depth import LogDepth
from metricgold.model import MetricGoldPipeline, UncertaintyScale, fit_scale
from metricgold.params import Uncertainty

MIN_FRAMES = 4  # whose statistics have a spread; a calibration to rely on takes some hundred of many scenes


def held_out_calibration(
    params: Uncertainty, raw_folders: dict[str, Path]
) -> Callable[[MetricGoldPipeline], UncertaintyScale]:
    """What train() calibrates its result with. Frames are listed now, and read when it is called.

    Raises ValueError naming a data set without a frame of the split; the function, where fewer than MIN_FRAMES have
    depth in range.
    """
    held_out = {
        name: unedited_frames(name, raw, params.split, params.frames_per_dataset) for name, raw in raw_folders.items()
    }
    ruler = LogDepth(params.min_m, params.max_m)
    images_at_once = max(1, params.batch_size // params.ensemble_size)

    def calibrate(pipe: MetricGoldPipeline) -> UncertaintyScale:
        of_frames = []
        for name, refs in held_out.items():
            for frames in frame_batches(refs, None, images_at_once, f"calibrate {name}"):
                true_m = [np.where(in_range(one, ruler), one.planar_depth_m, np.float32(np.nan)) for one in frames]
                rgbs, cameras = [one.rgb for one in frames], [one.intrinsics for one in frames]
                of_frames += pipe.held_out_errors(rgbs, cameras, true_m, params)
        if len(of_frames) < MIN_FRAMES:
            raise ValueError(
                f"train.uncertainty needs {MIN_FRAMES} frames of split {params.split} with depth from {params.min_m:g} "
                f"to {params.max_m:g} m, got {len(of_frames)}"
            )
        return fit_scale(list(zip(*of_frames, strict=True)))

    return calibrate
