"""One estimate under one protocol: fitted to the truth, and every figure of the pixels that count."""

from itertools import pairwise

import numpy as np

from metricgold.datasets import Frame
from metricgold.evaluate.methods import Estimate
from metricgold.evaluate.protocols import Protocol
from metricgold.metrics import (
    Planarity,
    align,
    alignments_of,
    boundary_f1,
    edge_distances,
    image_figures,
    planarity,
    range_figures,
    range_sums,
)

NOTHING_COUNTS = "no pixel counts"
EDGES_M = (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # true depth beyond is in the last range
PLANES = ("wall", "floor", "table")


def score(protocol: Protocol, frame: Frame, estimate: Estimate) -> tuple[str, dict[str, float]]:
    """Why there are no figures, or an empty text and all of them by name.

    Raises ValueError where the estimate has no depth at a pixel that counts.
    """
    true_m, counted = protocol.counted(frame)
    if not counted.any():
        return NOTHING_COUNTS, {}
    fitted = fit(protocol, estimate, true_m.shape)
    uncertainty, limits_m = fitted.uncertainty, limits_of(protocol)
    figures = image_figures(fitted.depth, true_m, counted, uncertainty=uncertainty, kind=fitted.kind, limits_m=limits_m)
    if fitted.kind == "depth_m":
        figures |= by_range(fitted.depth, true_m, counted)
        for name in protocol.figures:
            figures |= BESIDES[name](fitted.depth, true_m, counted, frame)
    return "", figures


def fit(protocol: Protocol, estimate: Estimate, size: tuple[int, int]) -> Estimate:
    """An estimate as large as the frame, height and width, and clipped: in metres where its kind has them.

    Of a relative estimate the numbers are fitted as they are; it is clipped when it is aligned. Disparity that is not
    positive is infinitely far.
    """
    if estimate.kind in ("relative_depth", "relative_disparity"):
        return Estimate(protocol.resize_map(estimate.depth, size), estimate.kind)
    depth_m = np.asarray(estimate.depth, np.float32)
    if estimate.kind == "disparity_per_m":
        depth_m = np.divide(1, depth_m, out=np.full_like(depth_m, np.inf), where=~(depth_m <= 0))
    uncertainty = estimate.uncertainty
    if uncertainty is not None:
        uncertainty = protocol.resize_map(uncertainty, size)
    return Estimate(protocol.fit(depth_m, size), "depth_m", uncertainty)


def limits_of(protocol: Protocol) -> tuple[float, float] | None:
    """Metres to which aligned depth is clipped: infinity where the clip has no far end; None without a clip."""
    if protocol.clip_m is None:
        return None
    nearest_m, farthest_m = protocol.clip_m
    return nearest_m, np.inf if farthest_m is None else farthest_m


def in_metres(protocol: Protocol, estimate: Estimate, true_m: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """An estimate as pictures show it, [H, W]: metres, those of the alignment that fits where it is relative."""
    fitted = fit(protocol, estimate, true_m.shape)
    if fitted.kind == "depth_m":
        return fitted.depth
    (alignment,) = alignments_of(fitted.kind)
    return align(fitted.depth, true_m, counted, alignment, kind=fitted.kind, limits_m=limits_of(protocol))


def by_range(pred_m: np.ndarray, true_m: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """AbsRel and number of pixels in each range of true depth; NaN where a range has none. Maps [H, W], metres."""
    sums = range_sums(pred_m, true_m, counted, [*EDGES_M[:-1], np.inf])
    means = range_figures(sums)["abs_rel"]
    figures: dict[str, float] = {}
    for (low, high), mean, count in zip(pairwise(EDGES_M), means.tolist(), sums["num_pixels"].tolist(), strict=True):
        figures |= {f"range/{low:g}-{high:g}/abs_rel": mean, f"range/{low:g}-{high:g}/num_pixels": count}
    return figures


# Figures that only some protocols ask for


def boundaries(pred_m: np.ndarray, true_m: np.ndarray, counted: np.ndarray, frame: Frame) -> dict[str, float]:
    """Depth Pro's F1 of occluding contours."""
    return {"boundary_f1": boundary_f1(pred_m, true_m, counted)}


def planes(pred_m: np.ndarray, true_m: np.ndarray, counted: np.ndarray, frame: Frame) -> dict[str, float]:
    """iBims-1's errors of planes, of each kind and of all, with the number of planes, over which means are taken."""
    masks = {kind: np.where(counted, layer_of(frame, f"mask_{kind}"), 0) for kind in PLANES}
    found = {kind: planarity(pred_m, true_m, mask, frame.intrinsics) for kind, mask in masks.items()}
    some = [one for one in found.values() if one.num_planes]
    if some:
        means = np.average([one[:2] for one in some], axis=0, weights=[one.num_planes for one in some])
        found["all"] = Planarity(float(means[0]), float(means[1]), sum(one.num_planes for one in some))
    return {
        f"planarity/{kind}_{name}": float(value)
        for kind, one in found.items()
        for name, value in zip(("cm", "deg", "num_planes"), one, strict=True)
    }


def edges(pred_m: np.ndarray, true_m: np.ndarray, counted: np.ndarray, frame: Frame) -> dict[str, float]:
    """iBims-1's distances between predicted and true depth edges."""
    found = edge_distances(pred_m, layer_of(frame, "edges"))
    return {"edges/accuracy_px": found.accuracy_px, "edges/completeness_px": found.completeness_px}


def layer_of(frame: Frame, name: str) -> np.ndarray:
    """A layer [H, W]. ValueError for one that the frame does not have."""
    if name not in frame.layers:
        raise ValueError(f"the frame has no layer {name!r}, which this protocol measures by")
    return frame.layers[name]


BESIDES = {"boundary": boundaries, "planarity": planes, "edges": edges}
