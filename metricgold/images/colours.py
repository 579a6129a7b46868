"""Colours of depth and error, and the ticks of their scales: one rule for all pictures.

Depth is coloured by its logarithm, because equal ratios of depth look equally far apart. The scale of a picture ends
at the 1st and the 99th percentile of its depth: a few stray pixels, such as a gap in a hedge, do not stretch it. It
is never narrower than a ratio of 1.21, so that a flat wall is not stretched to a rainbow. A pixel whose depth is not
finite and positive has no depth and is light grey; where it is infinite there is no surface, and it is slate.
"""

import io
from functools import cache
from math import floor, log, log10

import numpy as np

DEPTH_COLOURS = "Spectral"  # near red, far blue, on a logarithmic scale
ERROR_COLOURS = "magma"
WORST_SHOWN = 0.5  # relative error at the bright end
NO_DEPTH = (235, 235, 235)  # light grey
NO_SURFACE = (60, 66, 82)  # slate
RANGE_WITHOUT_DEPTH_M = (1.0, 10.0)

_SAMPLED_PIXELS = 20_000  # percentiles of these differ from those of all by less than one colour
_MIN_HALF_RATIO = 1.1
_NUM_COLOURS = 255  # the 256th is the grey of no depth


def has_depth(depth_m: np.ndarray) -> np.ndarray:
    """Bool [H, W]: finite and positive."""
    known: np.ndarray = np.isfinite(depth_m) & (depth_m > 0)
    return known


def colour_range(depth_m: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """Metres at both ends of the colours of planar depth [H, W]; pixels that are not `valid` do not count.

    Of a large image every n-th row and column is looked at.
    """
    step = max(1, int((depth_m.size / _SAMPLED_PIXELS) ** 0.5))
    for every_nth in (np.s_[step // 2 :: step], np.s_[:]):  # all of a strip, or for a small spot of depth
        sample_m = depth_m[every_nth, every_nth]
        known = has_depth(sample_m) if valid is None else has_depth(sample_m) & valid[every_nth, every_nth]
        if known.any():
            break
    else:
        return RANGE_WITHOUT_DEPTH_M
    near_m, far_m = np.percentile(sample_m[known], [1, 99])
    return widen_range(float(near_m), float(far_m))


def widen_range(near_m: float, far_m: float) -> tuple[float, float]:
    """The same range, or one of a ratio of 1.21 about its middle where it is narrower than that."""
    middle_m = (near_m * far_m) ** 0.5
    return min(near_m, middle_m / _MIN_HALF_RATIO), max(far_m, middle_m * _MIN_HALF_RATIO)


def colour_depth(depth_m: np.ndarray, range_m: tuple[float, float], valid: np.ndarray | None = None) -> np.ndarray:
    """Planar depth [H, W] in metres to uint8 [H, W, 3], logarithmic between range_m; see above for the others."""
    near_m, far_m = range_m
    known = has_depth(depth_m) if valid is None else has_depth(depth_m) & valid
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(depth_m / near_m)
        share *= 1 / log(far_m / near_m)
    colours = colour_share(share, DEPTH_COLOURS, known)
    no_surface = np.isposinf(depth_m) if valid is None else np.isposinf(depth_m) & valid
    colours[no_surface] = NO_SURFACE
    return colours


def colour_error(relative_error: np.ndarray) -> np.ndarray:
    """Relative error [H, W] to uint8 [H, W, 3]: dark is right, bright is WORST_SHOWN or more, grey is NaN."""
    return colour_share(relative_error / WORST_SHOWN, ERROR_COLOURS, np.isfinite(relative_error))


def colour_share(share: np.ndarray, colours: str, valid: np.ndarray) -> np.ndarray:
    """Shares 0 to 1 [H, W] to uint8 [H, W, 3] by one of matplotlib's colour maps; grey where not valid."""
    place = share * (_NUM_COLOURS - 1)
    place += 0.5
    np.clip(place, 0, _NUM_COLOURS - 1, out=place)
    place[~valid] = _NUM_COLOURS
    return np.take(_colour_table(colours), place.astype(np.uint8), axis=0)


@cache
def _colour_table(colours: str) -> np.ndarray:
    """uint8 [256, 3]: the colour map from end to end, then the grey of no depth."""
    from matplotlib import colormaps

    table = colormaps[colours](np.linspace(0, 1, _NUM_COLOURS), bytes=True)[:, :3]
    return np.vstack([table, np.array([NO_DEPTH], np.uint8)])


_DIGITS_OF_TICKS = (
    *(tuple(n / 10 for n in range(10, 100)), tuple(n / 2 for n in range(2, 20))),
    *((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)),
)


def metre_ticks(range_m: tuple[float, float], max_ticks: int = 8) -> list[float]:
    """Round metres inside a range: the densest series of which at most `max_ticks` fall there; else its ends."""
    near_m, far_m = range_m
    decades = range(floor(log10(near_m)) - 1, floor(log10(far_m)) + 2)
    for digits in _DIGITS_OF_TICKS:
        rounded = [float(f"{digit * 10.0**decade:.4g}") for decade in decades for digit in digits]
        inside = [tick_m for tick_m in rounded if near_m <= tick_m <= far_m]
        if len(inside) <= max_ticks:
            break
    inside = inside[:: max(1, -(-len(inside) // max_ticks))]
    return inside if len(inside) >= 2 else [near_m, far_m]


def png_bytes(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
