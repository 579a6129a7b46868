"""Predicted and true values of the valid pixels of one image, checked, and what figures and fits share of them."""

from functools import cached_property
from typing import Literal, get_args

import numpy as np

Kind = Literal["depth_m", "disparity_per_m", "relative_depth", "relative_disparity"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Below the length from which BLAS shares a product between threads: a sum then depends on no number of threads, and
# images measured side by side do not wait for each other.
_BLOCK = 8192


def sum_of_products(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of a b over float64 [N] each."""
    whole = a.size - a.size % _BLOCK
    blocks = np.vecdot(a[:whole].reshape(-1, _BLOCK), b[:whole].reshape(-1, _BLOCK))
    return float(blocks.sum() + a[whole:] @ b[whole:])


def median(values: np.ndarray) -> float:
    """Median in float64 of [N]. One selection instead of numpy's three, and of stored float32 as they are."""
    middle = values.size // 2
    halves = np.partition(values, middle)
    upper = float(halves[middle])
    return upper if values.size % 2 else (float(halves[:middle].max()) + upper) / 2


class Pairs:
    """The N valid pixels of one image, float64; logarithms and inverses are taken once.

    pred       depth in metres, or what `kind` says: a relative depth or disparity of any scale and shift
    true_m     planar depth in metres
    """

    def __init__(self, pred: np.ndarray, true_m: np.ndarray, valid: np.ndarray, kind: Kind = "depth_m") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of prediction is {kind!r}, expected one of {', '.join(KINDS)}")
        self._stored_pred, self._stored_true = _valid_values(pred, true_m, valid)
        self.kind = kind
        self.pred = self._stored_pred.astype(np.float64)
        self.true_m = self._stored_true.astype(np.float64)
        _check_positive("true", self.true_m)
        if self.is_metric:
            _check_positive("predicted", self.pred)
        elif not np.isfinite(self.pred).all():
            wrong = self.pred[~np.isfinite(self.pred)]
            raise ValueError(f"prediction must be finite where valid, got {wrong[0]} at {wrong.size} pixels")
        if kind == "disparity_per_m":
            self.pred = self._stored_pred = 1 / self.pred

    @property
    def is_metric(self) -> bool:
        """Whether the prediction can be said in metres without the truth."""
        return self.kind in ("depth_m", "disparity_per_m")

    @property
    def num_pixels(self) -> int:
        """How many pixels are valid."""
        return self.true_m.size

    @cached_property
    def log_true(self) -> np.ndarray:
        """Natural logarithm of metres."""
        return np.log(self.true_m)

    @cached_property
    def log_pred(self) -> np.ndarray:
        """Natural logarithm of the prediction."""
        return np.log(self.pred)

    @cached_property
    def inverse_pred(self) -> np.ndarray:
        """1 / the prediction."""
        return 1 / self.pred

    @cached_property
    def inverse_true(self) -> np.ndarray:
        """1 / metres."""
        return 1 / self.true_m

    @cached_property
    def median_true_m(self) -> float:
        """Of all valid pixels, metres."""
        return median(self._stored_true)

    @cached_property
    def median_pred_m(self) -> float:
        """Of all valid pixels, metres; NaN for a relative prediction."""
        return median(self._stored_pred) if self.is_metric else float("nan")


def _valid_values(pred: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, true_m, valid = np.asarray(pred), np.asarray(true_m), np.asarray(valid)
    if not pred.shape == true_m.shape == valid.shape:
        shapes = f"{list(pred.shape)}, {list(true_m.shape)}, {list(valid.shape)}"
        raise ValueError(f"prediction, truth and valid mask must have one shape, got {shapes}")
    if valid.dtype != np.bool_:
        raise ValueError(f"valid mask must be bool, got {valid.dtype}")
    where = np.flatnonzero(valid)
    if not where.size:
        raise ValueError("no valid pixel to measure")
    return pred.ravel().take(where), true_m.ravel().take(where)


def _check_positive(name: str, depth: np.ndarray) -> None:
    # The extremes tell: a NaN makes either of them NaN.
    if depth.min() > 0 and depth.max() < np.inf:
        return
    wrong = ~(np.isfinite(depth) & (depth > 0))
    raise ValueError(
        f"{name} depth must be finite and > 0 m where valid, got {depth[wrong][0]} "
        f"at {np.count_nonzero(wrong)} of {wrong.size} pixels"
    )
