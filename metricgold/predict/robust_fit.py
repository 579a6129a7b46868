"""Scale, or scale and power, from predicted to measured depth, where some of the measurements are wrong.

In ln depth both are a line, fitted by an MM-estimate (Yohai, Annals of Statistics 15, 1987): the median, or Siegel's
repeated median (Biometrika 69, 1982), which half of the points cannot move, is refined by Tukey's bisquare, which uses
95 % of what the others say and nothing of what is far off. What a fit is worth is what it does for points that it has
not seen: each image, or each point where there are fewer than three images, is left out in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

Model = Literal["none", "scale", "scale and power"]
MIN_POINTS, MIN_POINTS_OF_POWER = 3, 8
MIN_SPREAD = log(2.0)  # of predicted depth, nearest to farthest: over less, a power is a guess beyond the points
POWERS = 0.5, 2.0  # others say that the points are wrong, or are not of one camera
MAX_LEFT_OUT = 0.25  # of three points that do not agree nobody knows which one is wrong
TUKEY = 4.685  # standard deviations; 95 % efficiency for normal errors
LEAST_DEVIATION = 0.05  # of ln depth: points that happen to agree better do not make others wrong
# For the median absolute deviation of so few points (Croux and Rousseeuw, Time-efficient algorithms for two highly
# robust estimators of scale, 1992).
_SMALL_SAMPLES = (1.0, 1.0, 1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107)
_STARTED_FROM = 500  # points, evenly spaced; of all pairs of them there is a matrix
_MAX_GROUPS = 100  # left out in turn
_NORMAL_95 = 1.6448536269514722


@dataclass(frozen=True, slots=True)
class Line:
    """measured = scale * predicted * (p / pivot_m) ^ (power - 1), p being predicted within near_m to far_m.

    These are the ends of what the points speak of: nearer and farther the ratio stays what it is there.
    """

    scale: float
    power: float
    pivot_m: float
    near_m: float
    far_m: float

    def apply(self, planar_depth_m: np.ndarray) -> np.ndarray:
        """Predicted depth in metres, of any shape, as the points say that it should be; keeps the type."""
        if self.power == 1:
            return planar_depth_m * self.scale
        within = np.clip(planar_depth_m, self.near_m, self.far_m)
        return self.scale * planar_depth_m * (within / self.pivot_m) ** (self.power - 1)


@dataclass(frozen=True, slots=True)
class Fit:
    """A line with what it is worth; errors are AbsRel over the points used.

    model         none where neither of the others lowers the error beyond doubt; line is then the scale that was tried
    used          bool [N]: False for points that are far from where the others would have them
    abs_rel       of each model that was tried, by points that it has not seen
    improvement   of abs_rel over none, mean and ends of its 90 % interval
    scale_error,  standard errors by leaving out, relative and absolute, at pivot_m where they are independent
    power_error
    """

    model: Model
    line: Line
    used: np.ndarray
    abs_rel: dict[Model, float]
    improvement: tuple[float, float, float]
    scale_error: float
    power_error: float
    num_groups: int


def fit_calibration(predicted_m: np.ndarray, measured_m: np.ndarray, groups: Sequence[str]) -> Fit:
    """Choose among none, scale, and scale and power by leave-one-out error, the simpler one while that is in doubt.

    predicted_m, measured_m  planar depth in metres [N], finite and positive
    groups                   the image of each point

    Raises ValueError for fewer than three points, and where more than a quarter of them disagree with the others.
    """
    predicted_m, measured_m = np.asarray(predicted_m, np.float64), np.asarray(measured_m, np.float64)
    if predicted_m.size < MIN_POINTS:
        raise ValueError(f"a calibration needs {MIN_POINTS} points at least, got {predicted_m.size}")
    number = _numbers(groups)
    best = _Candidate("none", predicted_m, measured_m, number)
    tried = {best.model: best}
    models: list[Model] = ["scale"]
    if predicted_m.size >= MIN_POINTS_OF_POWER and np.ptp(np.log(predicted_m)) >= MIN_SPREAD:
        models.append("scale and power")
    for model in models:
        candidate = tried[model] = _Candidate(model, predicted_m, measured_m, number)
        if candidate.is_possible and candidate.improvement(best)[1] > 0:
            best = candidate
    # Judged by the fit that was chosen; by the scale, if none was.
    judge = best if best.model != "none" else tried["scale"]
    if (left_out := np.count_nonzero(~judge.used)) > MAX_LEFT_OUT * predicted_m.size:
        worst = np.exp(np.abs(judge.residuals).max())
        raise ValueError(
            f"the points disagree: {left_out} of {predicted_m.size} are not where the others would have them, "
            f"by a factor of up to {worst:.3g}"
        )
    return Fit(
        model=best.model,
        line=judge.line,
        used=judge.used,
        abs_rel={model: float(one.errors[judge.used].mean()) for model, one in tried.items()},
        improvement=judge.improvement(tried["none"]),
        scale_error=judge.standard_errors[0],
        power_error=judge.standard_errors[1],
        num_groups=int(number.max()) + 1,
    )


class _Candidate:
    """One model fitted to all points, and to all but each group of them."""

    def __init__(self, model: Model, predicted_m: np.ndarray, measured_m: np.ndarray, number: np.ndarray) -> None:
        self.model, self.number = model, number
        self.pivot_m = float(np.exp(np.log(predicted_m).mean()))
        x, ratio = np.log(predicted_m / self.pivot_m), np.log(measured_m / predicted_m)
        at, slope, self.used = _robust_line(x, ratio, model)
        self.residuals = ratio - at - slope * x
        ends = float(predicted_m[self.used].min()), float(predicted_m[self.used].max())
        self.line = Line(float(np.exp(at)), 1 + slope, self.pivot_m, *ends)
        self.errors, left_out = np.empty(x.size), []
        for group in range(number.max() + 1):
            seen = number != group
            unseen_at, unseen_slope, _ = _robust_line(x[seen], ratio[seen], model)
            left_out.append((unseen_at, unseen_slope))
            self.errors[~seen] = np.abs(np.exp(unseen_at + unseen_slope * x - ratio)[~seen] - 1)
        # The jackknife's.
        deviations = np.array(left_out) - np.mean(left_out, axis=0)
        self.standard_errors = np.sqrt((len(left_out) - 1) / len(left_out) * (deviations**2).sum(axis=0)).tolist()

    @property
    def is_possible(self) -> bool:
        return POWERS[0] <= self.line.power <= POWERS[1]

    def improvement(self, other: "_Candidate") -> tuple[float, float, float]:
        """Mean by which its errors are lower than the other's over the points that it uses, and its 90 % interval."""
        gain, number = (other.errors - self.errors)[self.used], self.number[self.used]
        of_group = np.bincount(number, gain)[np.unique(number)] / np.bincount(number)[np.unique(number)]
        mean, count = float(of_group.mean()), of_group.size
        if count < 3:  # two cannot say how much they differ
            return mean, -np.inf, np.inf
        reach = student_t_95(count - 1) * float(of_group.std(ddof=1)) / count**0.5
        return mean, mean - reach, mean + reach


def _numbers(groups: Sequence[str]) -> np.ndarray:
    """The group of each point by number: images where there are three, else points; _MAX_GROUPS at most."""
    number: np.ndarray = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    if number.max() < 2:
        number = np.arange(number.size)
    return number % _MAX_GROUPS


def _robust_line(x: np.ndarray, y: np.ndarray, model: Model) -> tuple[float, float, np.ndarray]:
    """Offset and slope of y over x, and which points they are from."""
    if model == "none":
        return 0.0, 0.0, np.ones(x.size, bool)
    slope = _repeated_median_slope(x, y) if model == "scale and power" else 0.0
    at = float(np.median(y - slope * x))
    limit = TUKEY * _deviation(y - at - slope * x)
    for _ in range(50):
        weights = np.clip(1 - ((y - at - slope * x) / limit) ** 2, 0, None) ** 2
        total, before = weights.sum(), at
        middle = (weights @ x) / total
        if model == "scale and power" and (spread := weights @ (x - middle) ** 2) > 0:
            slope = float((weights * (x - middle)) @ y / spread)
        at = float(weights @ (y - slope * x) / total)
        if abs(at - before) < 1e-7:
            break
    return at, slope, np.abs(y - at - slope * x) < limit


def _repeated_median_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Siegel's: of each point the median slope to all others, and of those the median."""
    chosen = np.unique(np.linspace(0, x.size - 1, _STARTED_FROM).astype(int))
    run, rise = x[chosen] - x[chosen, None], y[chosen] - y[chosen, None]
    slopes = np.divide(rise, run, out=np.full_like(run, np.nan), where=run != 0)
    known = ~np.isnan(slopes).all(axis=1)
    return float(np.median(np.nanmedian(slopes[known], axis=1))) if known.any() else 0.0


def _deviation(residuals: np.ndarray) -> float:
    """Robust standard deviation."""
    count = residuals.size
    factor = _SMALL_SAMPLES[count] if count < len(_SMALL_SAMPLES) else count / (count - 0.8)
    return max(LEAST_DEVIATION, 1.4826 * factor * float(np.median(np.abs(residuals))))


def student_t_95(freedom: int) -> float:
    """The quantile below which Student's t is in 95 % of cases, within 0.3 % from two degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = _NORMAL_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))
