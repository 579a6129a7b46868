"""Baselines that never see the image: the best constant depth and the mean depth map."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from metricgold.datasets import Frame, FrameRef, evenly_spaced, list_frames, readable_frames, why_only_measured
from metricgold.download import refuse_edited
from metricgold.log_depth import LogDepth

BIN_NATS = 1e-3  # of the histogram that finds the best constant: its depth is off by 0.05 % at most
MEAN_MAP_FRAMES = 200  # training frames in the mean depth map
MEAN_MAP_GRID = (24, 32)  # its cells, rows and columns


@dataclass(frozen=True, slots=True)
class Baselines:
    """The two baselines: one constant in metres, and one map of metres on MEAN_MAP_GRID, None where nothing trains."""

    constant_m: float
    mean_map_m: np.ndarray | None

    def maps_m(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Their depth for an image of this size, [H, W], by name."""
        maps_m = {"constant": np.full(size, self.constant_m)}
        return maps_m if self.mean_map_m is None else maps_m | {"mean_map": stretched(self.mean_map_m, size)}


def stretched(map_m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth map at an image's size [H, W], bilinear in log depth."""
    from PIL import Image

    ln = Image.fromarray(np.log(map_m).astype(np.float32))
    return np.exp(np.asarray(ln.resize((size[1], size[0]), Image.Resampling.BILINEAR)))


def in_range(frame: Frame, ruler: LogDepth) -> np.ndarray:
    """Pixels that count, bool [H, W]: valid, and true depth between the ends of the ruler, which count too."""
    depth_m = frame.planar_depth_m
    return frame.valid_mask & (depth_m >= ruler.near_m) & (depth_m <= ruler.far_m)


def best_constant(
    held_out: dict[str, list[FrameRef]], ruler: LogDepth, left_out: dict[str, dict[str, str]]
) -> tuple[dict[str, list[FrameRef]], float]:
    """The frames that can be measured, and the one depth in metres that gives them the lowest AbsRel.

    No constant does better on these very frames, so no constant baseline is stronger. AbsRel of a constant c,
    sum w |c - g| with w = 1/(g, pixels of its image, images of its data set), is least at the median of g
    weighted by w; it is found in a histogram of ln g with bins of BIN_NATS. Frames that cannot be read, or have
    no depth in range, go into `left_out` with the reason. ValueError names a data set with no frame left.
    """
    usable: dict[str, list[FrameRef]] = {}
    weights = np.zeros(num_bins(ruler))
    for name, refs in held_out.items():
        usable[name], of_dataset = [], np.zeros(num_bins(ruler))
        for ref, frame in readable_frames(refs, left_out[name]):
            true_m = frame.planar_depth_m[in_range(frame, ruler)].astype(np.float64)
            if not true_m.size:
                left_out[name][ref.name] = f"no valid depth between {ruler.near_m:g} and {ruler.far_m:g} m"
                continue
            of_dataset += constant_weights(true_m, ruler)
            usable[name].append(ref)
        if not usable[name]:
            reasons = "; ".join(sorted(set(left_out[name].values())))
            raise ValueError(f"{name}: no frame with depth in range to measure: {reasons}")
        weights += of_dataset / len(usable[name])
    return usable, constant_m(weights, ruler)


def num_bins(searched: LogDepth) -> int:
    """Of the histogram of ln depth over a range."""
    return ceil(searched.ln_range / BIN_NATS)


def constant_weights(true_m: np.ndarray, searched: LogDepth) -> np.ndarray:
    """What the counted pixels [N] of an image weigh in the search, by bin of ln depth: 1 / (g, pixels of its image)."""
    bins = (np.log(true_m / searched.near_m) / BIN_NATS).astype(int).clip(0, num_bins(searched) - 1)
    return np.bincount(bins, weights=1 / (true_m * true_m.size), minlength=num_bins(searched))


def constant_m(weights: np.ndarray, searched: LogDepth) -> float:
    """The best constant in metres: the median of the histogram to which these weights add up."""
    median = int(np.searchsorted(np.cumsum(weights), weights.sum() / 2))
    return float(searched.near_m * np.exp((median + 0.5) * BIN_NATS))


def mean_depth_map(raw_folders: dict[str, Path], ruler: LogDepth) -> np.ndarray:
    """Geometric mean of planar depth over training frames on a small grid, metres MEAN_MAP_GRID.

    MEAN_MAP_FRAMES frames of each data set that trains, evenly spaced. A cell that no frame fills gets the mean of all.
    Raises ValueError when no data set has a training frame with depth in range.
    """
    rows, columns = MEAN_MAP_GRID
    sums, counts = np.zeros(rows * columns), np.zeros(rows * columns)
    for name, raw in raw_folders.items():
        if why_only_measured(name, raw):
            continue
        refs = list_frames(name, raw, split="train").frames
        sample = [refs[i] for i in evenly_spaced(len(refs), MEAN_MAP_FRAMES)]
        refuse_edited(raw, sample)
        for _, frame in readable_frames(sample, {}):
            valid = in_range(frame, ruler)
            y, x = np.nonzero(valid)
            cells = y * rows // valid.shape[0] * columns + x * columns // valid.shape[1]
            sums += np.bincount(cells, weights=np.log(frame.planar_depth_m[valid]), minlength=sums.size)
            counts += np.bincount(cells, minlength=sums.size)
    if not counts.any():
        raise ValueError(f"no training frame with depth in range for the mean depth map in {list(raw_folders)}")
    overall = sums.sum() / counts.sum()
    mean_ln = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    return np.exp(mean_ln).reshape(rows, columns)
