"""A frame as the VAE is given it: the whole of it, then random crops that widen a diet of few fields of view.

A latent can be mirrored but neither cropped nor scaled, so this is decided before it is made (DMD, arXiv 2312.13252,
section 3.3). Depth stays in metres: a crop, enlarged, is what a longer lens sees from the same place, and its
intrinsics say so. Nothing here imports torch: these functions run in processes that are to start fast.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context, parent_process
from threading import Thread

import numpy as np

from metricgold.datasets import Frame, FrameRef, cut_frame, fit_frame, kitti_benchmark_crop, mirror_frame, read_frame
from metricgold.images import quieten_image_libraries
from metricgold.params import Encode

MARK = "#"  # between the name of a frame and the number of a view


def read_views(ref: FrameRef, params: Encode) -> list[Frame] | str:
    """Decode a frame and make its views; where it cannot be read, what is wrong with it instead."""
    try:
        frame = read_frame(ref)
        if params.kitti_crop and ref.dataset.startswith("vkitti2"):
            frame = kitti_benchmark_crop(frame)
    except (ValueError, OSError) as error:
        return str(error)
    size = params.height, params.width
    return [view_frame(frame, number, *size, params.min_crop) for number in range(params.views)]


def view_frame(frame: Frame, number: int, height: int, width: int, min_crop: float) -> Frame:
    """View 0 is the whole frame, fitted to height x width; all others are random, a function of name and number.

    A crop has min_crop to 1 times the sides of the whole one, lies anywhere in the frame, and is mirrored or not.
    """
    if number == 0:
        return fit_frame(frame, height, width)
    name = f"{frame.name}{MARK}{number}"
    rng = np.random.default_rng(int.from_bytes(sha256(name.encode()).digest()[:8], "big"))
    share, top, left = rng.uniform(min_crop, 1), *rng.random(2)
    view = cut_frame(replace(frame, name=name), height, width, zoom=1 / share, place=(top, left))
    return mirror_frame(view) if rng.random() < 0.5 else view


def open_processes(num_processes: int) -> ProcessPoolExecutor:
    """Processes for read_views. Spawned: torch's threads do not survive a fork."""
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_follow_parent)


def _follow_parent() -> None:
    """End with the parent, killed or not: left alone, a process of a pool waits for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    quieten_image_libraries()  # as in the parent, which is the command line
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
