"""Depth maps without holes, for what can only look at whole ones."""

import numpy as np


def fill_holes(depth_m: np.ndarray) -> np.ndarray:
    """Depth [H, W], 0 where there is none, with every hole as far as the nearest pixel of its row that has depth.

    A row without any is as far as the nearest row that has some. Without any depth at all it stays as it is.
    """
    has_depth: np.ndarray = np.asarray(depth_m > 0)
    if not has_depth.any():
        return depth_m
    rows: np.ndarray = np.any(has_depth, axis=1)
    filled = np.take_along_axis(depth_m, nearest(has_depth), axis=1)
    whole: np.ndarray = filled[nearest(rows[None])[0]]
    return whole


def nearest(chosen: np.ndarray) -> np.ndarray:
    """For each place in the rows of bool [N, M] the index of the nearest that is true, the lower one of two.

    Any index, where a row has none.
    """
    places = np.arange(chosen.shape[1])
    before = np.maximum.accumulate(np.where(chosen, places, -2 * len(places)), axis=1)
    after = np.minimum.accumulate(np.where(chosen, places, 3 * len(places))[:, ::-1], axis=1)[:, ::-1]
    index: np.ndarray = np.clip(np.where(places - before <= after - places, before, after), 0, len(places) - 1)
    return index
