"""The figures once more, straight from their papers' formulas and nothing of ours: long double, many cases at once.

Arrays are [cases, pixels], all pixels valid; figures are [cases].
"""

from itertools import pairwise

import numpy as np

REAL = np.longdouble


def mean(x):
    return x.sum(axis=1) / REAL(x.shape[1])


def figures(p, g, slack=0):
    """Eigen et al. 2014; SILog as KITTI's benchmark, UniDepth (torch.std) and Depth Anything V2 have it.

    slack  widens the thresholds of delta
    """
    n = p.shape[1]
    e = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    of_mean = e - mean(e)[:, None]
    with np.errstate(invalid="ignore"):
        unbiased = (of_mean**2).sum(axis=1) / REAL(n - 1) if n > 1 else np.full(len(p), np.nan)
    return {
        "abs_rel": mean(np.abs(p - g) / g),
        "sq_rel": mean((p - g) ** 2 / g),
        "rmse_m": np.sqrt(mean((p - g) ** 2)),
        "mae_m": mean(np.abs(p - g)),
        "rmse_log": np.sqrt(mean(e**2)),
        "log10": mean(np.abs(np.log10(p) - np.log10(g))),
        "silog": 100 * np.sqrt(mean(of_mean**2)),
        "silog_unidepth": 100 * np.sqrt(unbiased),
        "silog_dav2": np.sqrt(np.maximum(mean(e**2) - mean(e) ** 2 / 2, 0)),
        "delta_half": mean(ratio < np.sqrt(REAL(1.25)) * (1 + slack)),
        "delta1": mean(ratio < 1.25 * (1 + slack)),
        "delta2": mean(ratio < 1.25**2 * (1 + slack)),
        "delta3": mean(ratio < 1.25**3 * (1 + slack)),
    }


def affine(x, y):
    """Normal equations of least squares, solved by Cramer's rule; s = 0 for a constant x."""
    sx, sy, sxx, sxy, n = x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1), REAL(x.shape[1])
    constant = np.ptp(x, axis=1) == 0
    below = np.where(constant, 1, n * sxx - sx * sx)
    s = np.where(constant, 0, (n * sxy - sx * sy) / below)
    return s[:, None] * x + ((sy - s * sx) / n)[:, None]


def middle(x):
    x = np.sort(x, axis=1)
    n = x.shape[1]
    return (x[:, (n - 1) // 2] + x[:, n // 2])[:, None] / 2


def aligned(p, g):
    nearest, farthest = g.min(axis=1, keepdims=True), g.max(axis=1, keepdims=True)
    return {
        "metric": p,
        "scale": p * middle(g) / middle(p),
        "affine_depth": np.maximum(affine(p, g), nearest),
        "affine_disparity": 1 / np.maximum(affine(1 / p, 1 / g), 1 / farthest),
        "affine_log_depth": np.exp(affine(np.log(p), np.log(g))),
    }


def kept_error(errors, order, stay):
    """Mean error of the `stay` pixels of least `order`; equal ones at the limit count in equal parts."""
    limit = np.sort(order, axis=1)[:, stay - 1, None]
    below, tied = order < limit, order == limit
    share = (stay - below.sum(axis=1)) / REAL(1) / tied.sum(axis=1)
    return ((errors * below).sum(axis=1) + share * (errors * tied).sum(axis=1)) / stay


def ause(errors, uncertainty, root):
    """Poggi et al. 2020: trapezoids over 50 steps, 0 at the end, oracle subtracted."""
    n, steps = errors.shape[1], 50
    size = np.sqrt if root else np.asarray
    between = [
        size(kept_error(errors, uncertainty, n - n * step // steps))
        - size(kept_error(errors, errors, n - n * step // steps))
        for step in range(steps)
    ]
    between.append(np.zeros(len(errors)))
    return sum((one + other) / 2 for one, other in pairwise(between)) / steps


def calibration(p, g, u):
    e = np.abs(np.log(p) - np.log(g))
    return {
        "ause_abs_rel": ause(np.abs(p - g) / g, u, root=False),
        "ause_rmse": ause((p - g) ** 2, u, root=True),
        "coverage50": mean(e <= REAL(0.6744897501960817) * u),
        "coverage68": mean(e <= u),
        "coverage80": mean(e <= REAL(1.2815515655446004) * u),
        "coverage95": mean(e <= REAL(1.959963984540054) * u),
        "mean_uncertainty": mean(u),
    }
