"""Predicted and true values of the valid pixels of one image, checked, and the sums that fits and figures are made of.

Everything is computed in float64 on blocks of pixels: their arrays stay in the processor's cache and are taken from the
heap again and again, where whole images would be given back to the system and cleared at every step. A block is shorter
than what BLAS shares between threads, so that a sum depends on no number of threads.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np

Kind = Literal["depth_m", "disparity_per_m", "relative_depth", "relative_disparity"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BLOCK = 8192
_NAME_AND_UNIT = {"depth_m": ("predicted depth", "m"), "disparity_per_m": ("predicted disparity", "1/m")}


class Block:
    """Some valid pixels, float64 [N <= BLOCK]; logarithms and inverses are taken once.

    pred    depth in metres, or a relative depth or disparity of any scale and shift
    true_m  planar depth in metres
    """

    def __init__(self, pred: np.ndarray, true_m: np.ndarray) -> None:
        self.pred, self.true_m = pred, true_m

    @cached_property
    def log_pred(self) -> np.ndarray:
        """Natural logarithm of the prediction."""
        return np.asarray(np.log(self.pred))

    @cached_property
    def log_true(self) -> np.ndarray:
        """Natural logarithm of metres."""
        return np.asarray(np.log(self.true_m))

    @cached_property
    def inverse_pred(self) -> np.ndarray:
        """1 / the prediction."""
        return 1 / self.pred

    @cached_property
    def inverse_true(self) -> np.ndarray:
        """1 / metres."""
        return 1 / self.true_m


class Pairs:
    """All valid pixels of one image: prediction and truth as they are stored, [N] each.

    A disparity in 1 / metres becomes depth, so that `pred` is in metres or relative.
    """

    def __init__(self, pred: np.ndarray, true_m: np.ndarray, valid: np.ndarray, kind: Kind = "depth_m") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of prediction is {kind!r}, expected one of {', '.join(KINDS)}")
        self.kind = kind
        self.pred, self.true_m = _valid_values(pred, true_m, valid)
        _check_positive("true depth", "m", self.true_m)
        if self.is_metric:
            _check_positive(*_NAME_AND_UNIT[kind], self.pred)
        else:
            _check_finite(self.pred)
        if kind == "disparity_per_m":
            self.pred = 1 / self.pred.astype(np.float64)

    @property
    def is_metric(self) -> bool:
        """Whether the prediction can be said in metres without the truth."""
        return self.kind in ("depth_m", "disparity_per_m")

    @property
    def num_pixels(self) -> int:
        """How many pixels are valid."""
        return self.true_m.size

    @cached_property
    def median_true_m(self) -> float:
        """Of all valid pixels, metres."""
        return median(self.true_m)

    @cached_property
    def median_pred_m(self) -> float:
        """Of all valid pixels, metres; NaN for a relative prediction."""
        return median(self.pred) if self.is_metric else float("nan")

    def blocks(self) -> Iterator[Block]:
        """All pixels, in order."""
        for start in range(0, self.num_pixels, BLOCK):
            some = slice(start, start + BLOCK)
            yield Block(self.pred[some].astype(np.float64), self.true_m[some].astype(np.float64))


class Moments(NamedTuple):
    """Number, means and sums about the means of x and y along the last axis; those of blocks merge without loss.

    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """

    number: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    sum_xx: np.ndarray
    sum_xy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Moments":
        """Of one block, float64 [..., N] each; the fields are [...]."""
        mean_x, from_x = _centred(x)
        mean_y, from_y = (mean_x, from_x) if y is x else _centred(y)
        number = np.full(mean_x.shape, x.shape[-1])
        return cls(number, mean_x, mean_y, np.vecdot(from_x, from_x), np.vecdot(from_x, from_y))

    @classmethod
    def merged(cls, blocks: list["Moments"]) -> "Moments":
        """Of all blocks."""
        number, mean_x, mean_y, sum_xx, sum_xy = map(np.array, zip(*blocks, strict=True))
        total = number.sum(axis=0)
        x, y = (number * mean_x).sum(axis=0) / total, (number * mean_y).sum(axis=0) / total
        from_x = number * (mean_x - x)
        sum_xx = (sum_xx + from_x * (mean_x - x)).sum(axis=0)
        return cls(total, x, y, sum_xx, (sum_xy + from_x * (mean_y - y)).sum(axis=0))


def _centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(values.sum(axis=-1) / values.shape[-1])
    return mean, values - mean[..., None]


def median(values: np.ndarray) -> float:
    """Median in float64 of [N]. One selection instead of numpy's three, and of stored float32 as they are."""
    middle = values.size // 2
    halves = np.partition(values, middle)
    upper = float(halves[middle])
    return upper if values.size % 2 else (float(halves[:middle].max()) + upper) / 2


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


def _check_positive(name: str, unit: str, values: np.ndarray) -> None:
    if values.min() > 0 and values.max() < np.inf:  # a NaN makes either of them NaN
        return
    wrong = ~(np.isfinite(values) & (values > 0))
    raise ValueError(
        f"{name} must be finite and > 0 {unit} where valid, got {float(values[wrong][0])} "
        f"at {np.count_nonzero(wrong)} of {wrong.size} pixels"
    )


def _check_finite(values: np.ndarray) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ValueError(
            f"relative prediction must be finite where valid, got {float(values[wrong][0])} "
            f"at {np.count_nonzero(wrong)} of {wrong.size} pixels"
        )
