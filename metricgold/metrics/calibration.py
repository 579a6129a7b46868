"""Whether an uncertainty tells where depth is wrong, and by how much.

Uncertainty u is the standard deviation of ln depth. With e = ln p - ln g:

coverage50, 68,      share of pixels with |e| <= z u, z = 0.674, 1, 1.282, 1.960: of a normal distribution as many per
coverage80, 95       cent lie within; less is overconfident (Kuleshov et al., arXiv 1807.00263, section 3)
mean_uncertainty     mean u
ause_abs_rel, _rmse  area between two sparsification curves (Ilg et al., arXiv 1802.07095, section 5; in Poggi et al.'s
                     form, arXiv 2005.06209: steps of 2 %, not divided by the error of all pixels). Each curve is the
                     error of the pixels that stay when a share is removed, the most uncertain first, or, for the
                     oracle, the worst first. 0 is a perfect order. Pixels of equal uncertainty at the limit stay in
                     equal parts, so that the curve depends on no order of pixels; when nothing stays, the error is 0.
"""

from math import erf, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from metricgold.metrics.pairs import Pairs

COVERAGES = {"coverage50": 0.50, "coverage68": erf(sqrt(0.5)), "coverage80": 0.80, "coverage95": 0.95}
CALIBRATION = ("ause_abs_rel", "ause_rmse", *COVERAGES, "mean_uncertainty")
STEPS = 50
CURVE = {f"sparsification/{step / STEPS:g}": step for step in range(0, STEPS, 5)}  # AbsRel of what stays, every 10 %
_BITS_OF_PARTS = 16


class Sparsification(NamedTuple):
    """Errors of what stays, float64 [STEPS] each, with 0, 2, ..., 98 % removed; abs_rel, and metres for rmse."""

    removed: np.ndarray
    abs_rel: np.ndarray
    abs_rel_oracle: np.ndarray
    rmse_m: np.ndarray
    rmse_m_oracle: np.ndarray


def sparsification(
    pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray, uncertainty: np.ndarray
) -> Sparsification:
    """Curves of one image over the share of pixels removed; the module's docstring says what they are.

    pred_m, true_m  [H, W] (or any one shape), planar depth in metres
    valid           bool, same shape; other pixels are not read
    uncertainty     same shape, finite and >= 0, growing with the expected error; its unit does not matter

    Raises ValueError as image_figures does.
    """
    pairs = Pairs(pred_m, true_m, valid)
    return _sparsification(pairs, _checked(uncertainty, valid))


def uncertainty_figures(
    pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray, uncertainty: np.ndarray
) -> dict[str, float]:
    """The figures of CALIBRATION and CURVE of one image; arguments and errors as those of sparsification.

    uncertainty is the standard deviation of ln depth.
    """
    return calibration(Pairs(pred_m, true_m, valid), uncertainty, valid)


def calibration(pairs: Pairs, uncertainty: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The figures of CALIBRATION and CURVE; `uncertainty` and `valid` as the image has them."""
    u = _checked(uncertainty, valid)
    curves = _sparsification(pairs, u)
    e = np.abs(np.log(pairs.pred, dtype=np.float64) - np.log(pairs.true_m, dtype=np.float64))
    figures = {
        "ause_abs_rel": area(curves.abs_rel - curves.abs_rel_oracle),
        "ause_rmse": area(curves.rmse_m - curves.rmse_m_oracle),
    }
    for key, share in COVERAGES.items():
        z = NormalDist().inv_cdf((1 + share) / 2)
        figures[key] = np.count_nonzero(e <= z * u) / u.size
    figures["mean_uncertainty"] = float(u.mean())
    return figures | {key: float(curves.abs_rel[step]) for key, step in CURVE.items()}


def area(between: np.ndarray) -> float:
    """Area by trapezoids of a difference of two curves that meet at both ends."""
    return float(np.trapezoid([*between, 0.0], dx=1 / STEPS))


def _checked(uncertainty: np.ndarray, valid: np.ndarray) -> np.ndarray:
    uncertainty, valid = np.asarray(uncertainty), np.asarray(valid)
    if uncertainty.shape != valid.shape:
        shapes = f"{list(uncertainty.shape)} and {list(valid.shape)}"
        raise ValueError(f"uncertainty and valid mask must have one shape, got {shapes}")
    u = uncertainty[valid]
    wrong = ~(np.isfinite(u) & (u >= 0))
    if wrong.any():
        raise ValueError(
            f"uncertainty must be finite and >= 0 where valid, got {u[wrong][0]} "
            f"at {np.count_nonzero(wrong)} of {wrong.size} pixels"
        )
    return np.asarray(u, np.float64)


def _sparsification(pairs: Pairs, u: np.ndarray) -> Sparsification:
    n = pairs.num_pixels
    stay = n - n * np.arange(STEPS) // STEPS  # at least one pixel
    error_m = np.abs(np.subtract(pairs.pred, pairs.true_m, dtype=np.float64))
    relative, squared = error_m / pairs.true_m, error_m * error_m
    by_u_relative, by_u_squared = _sums_of_least(u, [relative, squared], stay)
    (by_relative,), (by_squared,) = (_sums_of_least(errors, [errors], stay) for errors in (relative, squared))
    return Sparsification(
        np.arange(STEPS) / STEPS,
        by_u_relative / stay,
        by_relative / stay,
        np.sqrt(by_u_squared / stay),
        np.sqrt(by_squared / stay),
    )


def _sums_of_least(keys: np.ndarray, values: list[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
    """Sums of each of `values` over the `numbers` least keys, >= 0; keys equal at a limit count in equal parts.

    The bits of positive floats are in their order. So keys fall into parts by their leading bits, parts are added up,
    and only those in which a limit lies are sorted: several times as fast as sorting all.
    """
    part = (keys + 0.0).view(np.int64)  # + 0.0: the sign of -0.0 is a bit too
    part -= part.min()
    num_bits = min(_BITS_OF_PARTS, keys.size.bit_length() + 2)
    part >>= max(int(part.max()).bit_length() - num_bits, 0)
    sizes = np.bincount(part)
    until = np.cumsum(sizes)
    at = np.searchsorted(until, numbers)
    has_limit = np.zeros(sizes.size, bool)
    has_limit[at] = True
    some = np.flatnonzero(has_limit[part])
    some = some[np.argsort(keys[some])]
    begin = np.searchsorted(part[some], at)
    end = begin + numbers - (until - sizes)[at]
    least, last = (np.searchsorted(keys[some], keys[some[end - 1]], side) for side in ("left", "right"))
    sums = []
    for value in values:
        of_parts = np.concatenate([[0.0], np.cumsum(np.bincount(part, value))])
        of_some = np.concatenate([[0.0], np.cumsum(value[some])])
        tied = (of_some[last] - of_some[least]) / (last - least)
        sums.append(of_parts[at] + of_some[least] - of_some[begin] + (end - least) * tied)
    return sums
