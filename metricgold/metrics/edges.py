"""Where depth edges are (Koch et al., arXiv 1805.01328, section 3: depth boundary errors; as iBims-1's own script).

Edges of the prediction, scaled to [0, 1] over the image, are Canny's with sigma sqrt 2 and thresholds 0.1 and 0.2.
DBE_acc is the mean distance of its edge pixels to the nearest true one, of those less than 10 px away; DBE_comp the
mean distance of true edge pixels to the nearest predicted one. Both are 10 px where no predicted edge is that near.
Figures compare only between implementations of Canny's filter that agree: iBims-1's Python script says of itself that
it does not repeat the paper's numbers, which are MATLAB's. Here it is the form of scikit-image, which that script uses,
but for one thing: on either side of a perfect step two pixels are equally steep, and both are edges here, where there
rounding decides.
"""

from typing import NamedTuple

import numpy as np

SIGMA_PX = 2**0.5
LOW, HIGH = 0.1, 0.2
FARTHEST_PX = 10.0
_ROWS_AT_ONCE = 1024
_TIED = 1 + 1e-9


class EdgeDistances(NamedTuple):
    """DBE_acc and DBE_comp in pixels, lower is better; NaN where the truth has no edge."""

    accuracy_px: float
    completeness_px: float


def edge_distances(pred_m: np.ndarray, edges: np.ndarray) -> EdgeDistances:
    """Distances between predicted and true depth edges of one image.

    pred_m  [H, W], planar depth in metres, finite (any scale: it is scaled to [0, 1])
    edges   bool [H, W], true edges

    Raises ValueError when the shapes differ, edges are not bool, or depth is not finite.
    """
    pred_m, edges = np.asarray(pred_m, np.float64), np.asarray(edges)
    if not (pred_m.ndim == 2 and pred_m.shape == edges.shape):
        raise ValueError(f"depth and edges must be [H, W] of one size, got {list(pred_m.shape)}, {list(edges.shape)}")
    if edges.dtype != np.bool_:
        raise ValueError(f"edges must be bool, got {edges.dtype}")
    if not np.isfinite(pred_m).all():
        raise ValueError(f"depth must be finite, got {pred_m[~np.isfinite(pred_m)][0]}")
    if not edges.any():
        return EdgeDistances(np.nan, np.nan)
    predicted = canny((pred_m - pred_m.min()) / (np.ptp(pred_m) or 1.0))
    to_true = distances_px(edges, predicted)
    near = to_true[to_true < FARTHEST_PX]
    if not near.size:
        return EdgeDistances(FARTHEST_PX, FARTHEST_PX)
    return EdgeDistances(float(near.mean()), float(distances_px(predicted, edges).mean()))


def distances_px(to: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Euclidean distance in pixels of each True of `of` to the nearest True of `to`, bool [H, W] each; inf without any.

    The nearest in each column first, then the nearest of the columns.
    """
    rows = np.arange(to.shape[0], dtype=np.float64)[:, None]
    above = np.maximum.accumulate(np.where(to, rows, -np.inf))
    below = np.minimum.accumulate(np.where(to, rows, np.inf)[::-1])[::-1]
    squared = np.minimum(rows - above, below - rows) ** 2
    columns = np.arange(to.shape[1])
    row, column = np.nonzero(of)
    nearest = [
        (squared[row[some]] + (column[some, None] - columns) ** 2).min(axis=1)
        for some in (slice(start, start + _ROWS_AT_ONCE) for start in range(0, row.size, _ROWS_AT_ONCE))
    ]
    return np.concatenate([np.empty(0), *map(np.sqrt, nearest)])


def canny(image: np.ndarray) -> np.ndarray:
    """Edges of an image of 0 to 1, bool [H, W] (Canny, 1986): smoothed, thinned across the gradient, then followed.

    Beside the image there is nothing, and smoothing divides by the weight that is inside. The outermost pixels are no
    edges.
    """
    smooth = _smoothed(image) / (_smoothed(np.ones_like(image)) + np.finfo(float).eps)
    down, right = _slopes(smooth), _slopes(smooth.T).T
    steepness = np.hypot(down, right)
    ridge = _is_ridge(down, right, steepness) & (steepness >= LOW)
    ridge[[0, -1]] = ridge[:, [0, -1]] = False
    return _followed(ridge, ridge & (steepness >= HIGH))


def _smoothed(image: np.ndarray) -> np.ndarray:
    """By a Gaussian of SIGMA_PX, four of them on either side, with zeros beside the image."""
    radius = int(4 * SIGMA_PX + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA_PX) ** 2)
    weights /= weights.sum()
    for _ in range(2):
        padded = np.pad(image, ((radius, radius), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, weights.size, axis=0)
        image = (windows @ weights).T
    return image


def _slopes(image: np.ndarray) -> np.ndarray:
    """Sobel's filter along columns: difference of the rows beside, smoothed by 1 2 1; the border is mirrored."""
    padded = np.pad(image, 1, mode="symmetric")
    change = padded[2:] - padded[:-2]
    return np.asarray(change[:, :-2] + 2 * change[:, 1:-1] + change[:, 2:])


def _is_ridge(down: np.ndarray, right: np.ndarray, steepness: np.ndarray) -> np.ndarray:
    """No flatter than what lies one pixel on along the gradient, either way; between pixels by interpolation."""
    padded = np.pad(steepness, 1)
    height, width = steepness.shape
    rows, columns = np.arange(1, height + 1)[:, None], np.arange(1, width + 1)
    steep_down = np.abs(down) >= np.abs(right)
    larger, smaller = np.where(steep_down, down, right), np.where(steep_down, right, down)
    share = np.abs(smaller) / np.maximum(np.abs(larger), np.finfo(float).tiny)
    step_down, step_right = np.where(down >= 0, 1, -1), np.where(right >= 0, 1, -1)
    ridge = steepness > 0
    for way in (1, -1):
        straight = padded[rows + way * step_down * steep_down, columns + way * step_right * ~steep_down]
        diagonal = padded[rows + way * step_down, columns + way * step_right]
        ridge &= diagonal * share + straight * (1 - share) <= steepness * _TIED
    return ridge


def _followed(ridge: np.ndarray, start: np.ndarray) -> np.ndarray:
    """What of the ridge hangs together with the start, also by corners. The ridge does not touch the border."""
    found, (row, column) = start.copy(), np.nonzero(start)
    while row.size:
        around = [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        reached = np.zeros_like(found)
        for place in around:
            reached[place] = True
        reached &= ridge & ~found
        found |= reached
        row, column = np.nonzero(reached)
    return found
