"""Does a depth map lie on its photograph? Depth edges should lie on brightness edges, and nowhere better than here.

Two edge maps are made and compared at about 256 pixels' width:

    rgb    square root of the luminance gradient, so that one hard contrast does not outvote the rest
    depth  bend of inverse depth, |a - 2 b + c| / max(a, b, c) of neighbours along rows and columns: zero on every
           plane however slanted, large at occlusions, small but not zero at creases; pixels without depth count
           as infinitely far, so that the skyline is an edge

Their correlation is taken at every shift up to a quarter of the image. The score says by how many standard
deviations of those correlations the one in place (within a pixel) exceeds the best of all others: shifts, and the
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


def align(rgb: np.ndarray, planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> Alignment | None:
    """Score uint8 [H, W, 3] against depth [H, W] and its mask; None where there is too little to go by."""
    if valid_mask.mean() < MIN_VALID:
        return None
    step = max(1, max(valid_mask.shape) // SIZE)
    bright, deep = _pool(rgb_edges(rgb), step), _pool(depth_edges(planar_depth_m, valid_mask), step)
    if min(bright.shape) < 2 * REACH or deep.mean() < MIN_EDGES or bright.std() == 0:
        return None
    found, here = _correlations(bright, deep), (bright.shape[0] // REACH, bright.shape[1] // REACH)
    in_place = found[_around(here, 1)].max()
    elsewhere = found.copy()
    elsewhere[_around(here, 2)] = np.nan  # the peak is a few pixels wide
    best = np.unravel_index(np.nanargmax(elsewhere), elsewhere.shape)
    mirrored = max(_near_zero(bright, other) for other in (deep[:, ::-1], deep[::-1], deep[::-1, ::-1]))
    is_mirrored = mirrored > elsewhere[best]
    score = (in_place - max(mirrored, elsewhere[best])) / np.nanstd(elsewhere)
    shift = (0, 0) if is_mirrored else tuple(step * int(at - zero) for at, zero in zip(best, here, strict=True))
    return Alignment(float(score), shift, bool(is_mirrored))


def rgb_edges(rgb: np.ndarray) -> np.ndarray:
    """Square root of the luminance gradient, float32 [H, W]."""
    luminance = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.sqrt(np.hypot(*np.gradient(luminance)))


def depth_edges(planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Bend of inverse depth, float32 [H, W] from 0 to 1; nothing on the image's border."""
    inverse = np.where(valid_mask, 1 / np.where(valid_mask, planar_depth_m, 1), 0).astype(np.float32)
    edges = np.zeros_like(inverse)
    inner = edges[1:-1, 1:-1]
    for before, after in ((inverse[:-2, 1:-1], inverse[2:, 1:-1]), (inverse[1:-1, :-2], inverse[1:-1, 2:])):
        middle = inverse[1:-1, 1:-1]
        largest = np.maximum(np.maximum(before, after), np.maximum(middle, 1e-9))
        np.maximum(inner, np.abs(before - 2 * middle + after) / largest, out=inner)
    return np.clip((edges - BEND[0]) / (BEND[1] - BEND[0]), 0, 1)


def _pool(image: np.ndarray, step: int) -> np.ndarray:
    """Means of step x step pixels; what is left over at the right and below is cut."""
    height, width = (size // step for size in image.shape)
    return image[: height * step, : width * step].reshape(height, step, width, step).mean(axis=(1, 3))


def _normal(edges: np.ndarray) -> np.ndarray:
    edges = edges - edges.mean()
    return edges / np.linalg.norm(edges)


def _correlations(bright: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Correlation for every shift of `deep`, no shift in the middle, [2 h + 1, 2 w + 1] with h, w the reach."""
    size = tuple(2 * length for length in bright.shape)  # room to shift without wrapping round
    product = np.fft.rfft2(_normal(bright), size) * np.conj(np.fft.rfft2(_normal(deep), size))
    reach_y, reach_x = (length // REACH for length in bright.shape)
    rolled = np.roll(np.fft.irfft2(product, size), (reach_y, reach_x), (0, 1))
    return rolled[: 2 * reach_y + 1, : 2 * reach_x + 1]


def _around(place: tuple[int, int], radius: int) -> tuple[slice, slice]:
    return tuple(slice(at - radius, at + radius + 1) for at in place)


def _near_zero(bright: np.ndarray, deep: np.ndarray) -> float:
    """The best correlation within a pixel."""
    bright, deep = _normal(bright), np.pad(_normal(deep), 1)
    height, width = bright.shape
    return max(float((bright * deep[y : y + height, x : x + width]).sum()) for y in range(3) for x in range(3))
