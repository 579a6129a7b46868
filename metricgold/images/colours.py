"""Colours of depth and error, and the ticks of their scales: one rule for all pictures."""

import io

import numpy as np

DEPTH_COLOURS = "Spectral"  # near red, far blue, on a logarithmic scale


ERROR_COLOURS = "magma"


WORST_SHOWN = 0.5  # relative error at the bright end


NO_DEPTH = (235, 235, 235)  # light grey: nothing measured here


def colour_range(depth_m: np.ndarray) -> tuple[float, float]:
    """Metres at both ends of the colours: the middle 98 % of the finite pixels, at least a tenth apart."""
    near_m, far_m = np.percentile(depth_m[np.isfinite(depth_m)], [1, 99])
    return float(near_m), float(max(far_m, 1.1 * near_m))


def colour_depth(depth_m: np.ndarray, range_m: tuple[float, float], valid: np.ndarray | None = None) -> np.ndarray:
    """Planar depth [H, W] in metres to uint8 [H, W, 3], logarithmic between range_m; grey where not valid."""
    near_m, far_m = range_m
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.log(depth_m / near_m) / np.log(far_m / near_m)
    return colour_share(share, DEPTH_COLOURS, np.ones_like(depth_m, dtype=bool) if valid is None else valid)


def colour_error(relative_error: np.ndarray) -> np.ndarray:
    """Relative error [H, W] to uint8 [H, W, 3]: dark is right, bright is WORST_SHOWN or more, grey is NaN."""
    return colour_share(relative_error / WORST_SHOWN, ERROR_COLOURS, np.isfinite(relative_error))


def colour_share(share: np.ndarray, colours: str, valid: np.ndarray) -> np.ndarray:
    """Shares 0 to 1 [H, W] to uint8 [H, W, 3] by one of matplotlib's colour maps; grey where not valid."""
    from matplotlib import colormaps

    table = colormaps[colours](np.linspace(0, 1, 256), bytes=True)[:, :3]
    index = np.clip(np.nan_to_num(share) * 255, 0, 255).round().astype(np.uint8)
    return np.where(valid[..., None], table[index], np.array(NO_DEPTH, np.uint8))


def metre_ticks(range_m: tuple[float, float]) -> list[float]:
    """Round metres inside a range (1, 2, 5, 10 ..., finer where those are too few); its ends for a narrow one."""
    near_m, far_m = range_m
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [m for power in range(-3, 5) for step in steps if near_m <= (m := step * 10.0**power) <= far_m]
        if len(inside) >= 3:
            return inside
    return [near_m, far_m]


def png_bytes(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
