"""Does a depth map fit its photograph? Depth edges should fall on brightness edges, and nowhere better than here.

Two edge maps are made and compared at about 256 pixels' width:

    rgb    square root of the luminance gradient, so that one hard contrast does not outvote the rest
    depth  bend of inverse depth, |a - 2 b + c| / max(a, b, c) of neighbours along rows and columns: zero on every
           plane however slanted, large at occlusions, small but not zero at creases; pixels without depth count
           as infinitely far, so that the skyline is an edge

Their correlation is taken at every shift up to a quarter of the image. The score says by how many standard
deviations of those correlations the correlation in place (within a pixel) exceeds the best other: shifts, and the
depth mirrored left-right, upside down or turned by 180 degrees. A right map scores above 0, a shifted, mirrored or
foreign one below: the threshold is MISALIGNED. On rendered scenes at 120 x 160 right maps score 0.9 to 7, maps
displaced by 2 % of the width -1.3 to -10 and mirrored ones -2 and less; on real NYUv2, Redwood, SUN RGB-D and
TartanAir frames -0.7 to 5.7, against -1.3 to -12 for a shift of 1 to 3 %.

Not scored: maps with few edges (one flat wall) and sparse ones (LiDAR), where every point is an edge.
"""

from typing import NamedTuple

import numpy as np

SIZE = 256  # pixels of the long side, about; finer edges are noise
REACH = 4  # shifts up to 1 / REACH of the image
MISALIGNED = -1.0
MIN_VALID = 0.3
MIN_EDGES = 0.005  # mean of the depth edges, each from 0 to 1
BEND = (0.02, 0.22)  # bends that begin and end to count


class Alignment(NamedTuple):
    """score as above; the better place of the depth, if it is not here: rows and columns to move it, or mirrored."""

    score: float
    shift: tuple[int, int]  # (rows, columns) in pixels of the photograph; (0, 0) if mirrored fits better
    mirrored: bool

    def describe(self) -> str:
        """Where the depth fits better than in place."""
        if self.mirrored:
            return f"score {self.score:.1f}; correlates better mirrored or turned"
        rows, columns = self.shift
        parts = [f"{abs(rows)} px {'down' if rows > 0 else 'up'}"] if rows else []
        parts += [f"{abs(columns)} px {'right' if columns > 0 else 'left'}"] if columns else []
        return f"score {self.score:.1f}; correlates better moved {' and '.join(parts)}"


def align(rgb: np.ndarray, planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> Alignment | None:
    """Score uint8 [H, W, 3] against depth [H, W] and its mask; None where there is too little to go by."""
    if valid_mask.mean() < MIN_VALID:
        return None
    step = max(1, max(valid_mask.shape) // SIZE)
    bright, deep = (_pool(edges, step) for edges in (rgb_edges(rgb), depth_edge_map(planar_depth_m, valid_mask)))
    if min(bright.shape) < 2 * REACH or deep.mean() < MIN_EDGES or bright.std() == 0:
        return None
    correlations = shift_correlations(bright, deep)
    here_y, here_x = bright.shape[0] // REACH, bright.shape[1] // REACH

    def around_here(radius: int) -> tuple[slice, slice]:
        return slice(here_y - radius, here_y + radius + 1), slice(here_x - radius, here_x + radius + 1)

    in_place = correlations[around_here(1)].max()
    elsewhere = correlations.copy()
    elsewhere[around_here(2)] = np.nan  # the peak is a few pixels wide
    best_y, best_x = np.unravel_index(np.nanargmax(elsewhere), elsewhere.shape)
    best = elsewhere[best_y, best_x]
    mirrored = max(correlation_in_place(bright, other) for other in (deep[:, ::-1], deep[::-1], deep[::-1, ::-1]))
    score = (in_place - max(mirrored, best)) / np.nanstd(elsewhere)
    is_mirrored = bool(mirrored > best)
    shift = (0, 0) if is_mirrored else (step * int(best_y - here_y), step * int(best_x - here_x))
    return Alignment(float(score), shift, is_mirrored)


def rgb_edges(rgb: np.ndarray) -> np.ndarray:
    """Square root of the luminance gradient, float32 [H, W]."""
    luminance = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    down, right = np.gradient(luminance)
    edges: np.ndarray = np.sqrt(np.hypot(down, right))
    return edges


def depth_edge_map(planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Bend of inverse depth, float32 [H, W] from 0 to 1; nothing on the image's border."""
    inverse = np.where(valid_mask, 1 / np.where(valid_mask, planar_depth_m, 1), 0).astype(np.float32)
    edges = np.zeros_like(inverse)
    inner = edges[1:-1, 1:-1]
    for before, after in ((inverse[:-2, 1:-1], inverse[2:, 1:-1]), (inverse[1:-1, :-2], inverse[1:-1, 2:])):
        middle = inverse[1:-1, 1:-1]
        largest = np.maximum(np.maximum(before, after), np.maximum(middle, 1e-9))
        np.maximum(inner, np.abs(before - 2 * middle + after) / largest, out=inner)
    clipped: np.ndarray = np.clip((edges - BEND[0]) / (BEND[1] - BEND[0]), 0, 1)
    return clipped


def shift_correlations(bright: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Correlation for every shift of `deep`, no shift in the middle, [2 h + 1, 2 w + 1] with h, w the reach."""
    height, width = bright.shape
    size = (2 * height, 2 * width)  # room to shift without wrapping round
    product = np.fft.rfft2(_normal(bright), size) * np.conj(np.fft.rfft2(_normal(deep), size))
    reach_y, reach_x = height // REACH, width // REACH
    rolled = np.roll(np.fft.irfft2(product, size), (reach_y, reach_x), (0, 1))
    return rolled[: 2 * reach_y + 1, : 2 * reach_x + 1]


def correlation_in_place(bright: np.ndarray, deep: np.ndarray) -> float:
    """The best correlation within a pixel of no shift."""
    bright, deep = _normal(bright), np.pad(_normal(deep), 1)
    height, width = bright.shape
    return max(float((bright * deep[y : y + height, x : x + width]).sum()) for y in range(3) for x in range(3))


def _pool(image: np.ndarray, step: int) -> np.ndarray:
    """Means of step x step pixels; what is left over at the right and below is cut."""
    height, width = (size // step for size in image.shape)
    means: np.ndarray = image[: height * step, : width * step].reshape(height, step, width, step).mean(axis=(1, 3))
    return means


def _normal(edges: np.ndarray) -> np.ndarray:
    edges = edges - edges.mean()
    normal: np.ndarray = edges / np.linalg.norm(edges)
    return normal
