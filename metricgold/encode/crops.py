"""A frame as the VAE gets it: all of it, plus random crops that add fields of view the data sets lack.

A latent can be mirrored but neither cropped nor scaled, so frames are cropped before they are encoded (DMD, arXiv
2312.13252, section 3.3). Depth stays in metres: a crop, enlarged, is what a longer lens sees from the same place, and
its intrinsics describe that lens. Nothing here imports torch: these functions run in processes that must start fast.
"""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from hashlib import sha256
from multiprocessing import get_context, parent_process
from threading import Thread

import numpy as np

from metricgold.datasets import Frame, FrameRef, fit_frame, mirror_frame, read_frame
from metricgold.images import TrainingSize, quieten_image_libraries
from metricgold.params import Encode
from metricgold.shards import CROP_MARK


def read_crops(ref: FrameRef, size: TrainingSize, params: Encode) -> list[Frame] | str:
    """Decode a frame and cut its params.views crops; a message instead where it cannot be read."""
    try:
        frame = read_frame(ref)
    except (ValueError, OSError) as error:
        return str(error)
    return [crop_frame(frame, number, size, params.min_crop) for number in range(params.views)]


def crop_frame(frame: Frame, number: int, size: TrainingSize, min_crop: float) -> Frame:
    """Crop 0 is the full frame, as predictions see it; all others are random, a function of name and number.

    A random crop has min_crop to 1 times the sides of crop 0, every lens in between equally likely in steps of its
    focal length, lies anywhere in the frame, and is mirrored or not.
    """
    grid = size.grid(*frame.valid_mask.shape)
    if number == 0:
        return fit_frame(frame, grid)
    name = f"{frame.name}{CROP_MARK}{number}"
    rng = np.random.default_rng(int.from_bytes(sha256(name.encode()).digest()[:8], "big"))
    share, top, left = min_crop ** rng.random(), *rng.random(2)
    crop = fit_frame(replace(frame, name=name), grid.zoomed(1 / share, (top, left)))
    return mirror_frame(crop) if rng.random() < 0.5 else crop


def open_processes(num_processes: int) -> ProcessPoolExecutor:
    """Processes for read_crops. Spawned: torch's threads do not survive a fork."""
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=prepare_reader)


def prepare_reader() -> None:
    """Silence the image libraries, and end when the parent ends, also when it is killed.

    A process of a pool would otherwise wait for work forever.
    """
    quieten_image_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C

    def follow() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=follow, daemon=True).start()
