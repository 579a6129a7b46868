"""Whether a model knows where there is no surface, such as sky: what it calls valid against what the data set says."""

from typing import Any

import numpy as np

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # of far_m, from which on a pixel would show no surface


class SurfaceCalls:
    """Pixels of a data set, counted by what they are and by what a model calls them."""

    def __init__(self) -> None:
        self._sums = np.zeros((1 + len(SHARES), 4), np.int64)

    def add(
        self, valid_mask: np.ndarray, share_of_far: np.ndarray, no_surface: np.ndarray, counted: np.ndarray
    ) -> None:
        """Count an image, all [H, W].

        valid_mask    where the model says that there is a surface
        share_of_far  its depth over the far_m of its range
        no_surface    pixels known to show none
        counted       pixels with true depth
        """
        for sums, called in zip(self._sums, (valid_mask, *(share_of_far < share for share in SHARES)), strict=True):
            pixels = (no_surface & called, no_surface, counted & ~called, counted)
            sums += [np.count_nonzero(mask) for mask in pixels]

    def figures(self) -> dict[str, Any]:
        """The two shares called wrongly, and what they would be at other thresholds; None where there is no pixel."""
        figures: list[dict[str, Any]] = [
            {
                "no_surface_called_valid": float(wrong / skies) if skies else None,
                "surface_called_invalid": float(lost / surfaces) if surfaces else None,
            }
            for wrong, skies, lost, surfaces in self._sums
        ]
        of_model, *of_shares = figures
        rows = [{"no_surface_from": share} | row for share, row in zip(SHARES, of_shares, strict=True)]
        return of_model | {"by_no_surface_from": rows}
