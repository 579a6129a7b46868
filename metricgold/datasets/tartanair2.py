"""TartanAir v2, front left pinhole: depth is float32 metres whose four bytes are stored in an 8-bit RGBA PNG.

The sky is found as in the first version, by its gap and by a limit; its distance differs between environments.
A PNG without alpha has lost the exponents and is refused.
"""

from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing
from metricgold.datasets.tartanair import frame_from, list_trajectories


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of <Env>/Data_<easy|hard>/P*/{image,depth}_lcam_front; the environment is the scene."""
    return list_trajectories(dataset, raw, ("Data_easy", "Data_hard"), "lcam_front", ".png")


def read_frame(ref: FrameRef) -> Frame:
    """Zero and very large values (sky) are invalid. ValueError names a broken member."""
    return frame_from(ref, unpack_depth(read_pixels(ref.depth_path, "RGBA")))


def unpack_depth(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] in Pillow's order to float32 [H, W].

    The bytes of the little-endian float were written as blue, green, red, alpha; Pillow hands out red first.
    """
    return np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]).view("<f4")[..., 0]
