"""Depth of one photograph with the model in this folder: python example.py photo.jpg depth.npz

Needs `pip install metricgold`.
"""

import sys
from pathlib import Path

import numpy as np

from metricgold import MetricGoldPipeline


def main(photo: str, out: str) -> None:
    """Write planar depth in metres, its uncertainty and where it is valid; EXIF of the photograph gives the lens."""
    pipe = MetricGoldPipeline.from_pretrained(Path(__file__).parent)
    steps, runs = (1, 1) if pipe.is_one_step else (4, 3)  # 50 and 10 as in the paper, where time does not matter
    prediction = pipe(photo, num_inference_steps=steps, ensemble_size=runs)
    depth_m, valid_mask = prediction.planar_depth_m, prediction.valid_mask
    np.savez(out, planar_depth_m=depth_m, uncertainty=prediction.uncertainty, valid_mask=valid_mask)
    print(f"{out}: median depth {np.median(depth_m[valid_mask]):.2f} m")


if __name__ == "__main__":
    main(*sys.argv[1:3])
