"""Edges of depth ranges in metres, for tables and plots by depth."""

from math import ceil, log

import numpy as np

from metricgold.log_depth import LogDepth

BIN_NATS = 1e-3  # of the histogram that finds the best constant: its depth is off by 0.05 % at most


def depth_edges(log_depth: LogDepth) -> np.ndarray:
    """Edges in metres of the depth ranges: near_m doubled again and again, and far_m.

    A last range narrower than half a doubling joins the one before.
    """
    doublings = log(log_depth.far_m / log_depth.near_m) / log(2)
    inner = np.arange(1, ceil(doublings - 0.5))
    return np.array([log_depth.near_m, *(log_depth.near_m * 2.0**inner), log_depth.far_m])
