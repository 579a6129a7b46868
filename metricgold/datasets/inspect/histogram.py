"""Histograms of depth over logarithmic bins: percentiles, and areas to draw as SVG."""

from math import ceil, floor, log, log10

import numpy as np

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BINS_PER_DECADE, DECADES = 200, (-3, 5)  # metres
EDGES_M = np.logspace(*DECADES, (DECADES[1] - DECADES[0]) * BINS_PER_DECADE + 1)
COARSER = 10  # so many bins are drawn as one
TICKS_M = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
EMPTY_RANGE_M = (0.1, 100.0)


def count_depths(depth_m: np.ndarray) -> np.ndarray:
    """How many of these depths are in each bin between two of EDGES_M, int64; what is off both ends counts there."""
    return np.histogram(depth_m.clip(EDGES_M[0], EDGES_M[-1]), EDGES_M)[0]


def percentiles(counts: np.ndarray) -> dict[int, float]:
    """Metres below which so many per cent of the counted pixels are, to the 0.6 % of half a bin; 0 without any."""
    below = np.concatenate([[0], np.cumsum(counts)])
    if not below[-1]:
        return dict.fromkeys(PERCENTILES, 0.0)
    at = np.log(EDGES_M)
    return {share: float(np.exp(np.interp(share / 100 * below[-1], below, at))) for share in PERCENTILES}


def coarse(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles in metres and shares of COARSER bins each, without the empty ones at both ends."""
    shares = counts.reshape(-1, COARSER).sum(axis=1) / max(1, counts.sum())
    middles = np.sqrt(EDGES_M[:-1:COARSER] * EDGES_M[COARSER::COARSER])
    filled = np.flatnonzero(shares)
    held = slice(filled[0], filled[-1] + 1) if filled.size else slice(0)
    return middles[held], shares[held]


class DepthAxis:
    """A logarithmic axis of full decades around everything counted, 1000 units wide."""

    def __init__(self, counts: np.ndarray) -> None:
        filled = np.flatnonzero(counts)
        self.low_m, self.high_m = EMPTY_RANGE_M
        if filled.size:
            low, high = log10(EDGES_M[filled[0]]), log10(EDGES_M[filled[-1] + 1])
            self.low_m, self.high_m = 10.0 ** floor(low + 1e-9), 10.0 ** ceil(high - 1e-9)

    def place(self, depth_m: float) -> float:
        """0 at the low end, 1000 at the high end."""
        return 1000 * log(depth_m / self.low_m) / log(self.high_m / self.low_m)

    def ticks(self) -> list[tuple[float, str]]:
        """(place in per cent, label) of each decade."""
        return [(self.place(tick) / 10, f"{tick:g} m") for tick in TICKS_M if self.low_m <= tick <= self.high_m]

    def area(self, counts: np.ndarray) -> str:
        """SVG path of the area under a histogram, 100 high at its own highest bin; empty without any counts."""
        depths_m, shares = coarse(counts)
        if not depths_m.size:
            return ""
        half = 10 ** (COARSER / BINS_PER_DECADE / 2)
        places = [self.place(depth_m / half) for depth_m in (*depths_m, depths_m[-1] * half**2)]
        heights = 100 - 100 * shares / shares.max()
        steps = "".join(f"V{top:.1f}H{right:.0f}" for top, right in zip(heights, places[1:], strict=True))
        return f"M{places[0]:.0f} 100{steps}V100Z"
