"""Frames much wider or taller than those a network was trained on, seen by overlapping windows of a shape it knows.

Scaled to the area of training, such a frame has too few pixels along its short side, and a shape that training never
showed. So it is seen whole, which gives the metres, and by windows along its long side, which give the detail, each
with its own camera. Windows are joined in ln depth: a shift of each, by least squares, brings it close to its
neighbours and to the whole frame; then they fade into one another, and what they say otherwise than the whole does of
areas half as high as the strip is taken back. (Without that, windows through a lens longer than those of training bent
wide frames: on the demo's scenes AbsRel rose by .018, and falls by .003 with it. Averaging latents at every step
instead, as MultiDiffusion does, arXiv 2302.08113, was no better in trials, and serves no model of one step.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from metricgold.images import crop_intrinsics
from metricgold.model.inputs import CalibratedImage

if TYPE_CHECKING:
    from metricgold.model.pipeline import Prediction

BEYOND = 1.25  # times the shape that training showed: nearer to it windows gain little for their time
OVERLAP = 0.25  # of two neighbours at least, as a share of their length
MOST_WINDOWS = 16  # a strip that needs more is seen as one
WHOLE_WEIGHT = 1.0  # of a window's agreement with the whole frame, beside that with its neighbours
LARGE = 2  # along a strip's short side lie so many of the areas whose depth is the whole's
SAMPLE = 100_000  # pixels are enough for the median of an overlap


@dataclass(frozen=True, slots=True)
class Strip:
    """Windows of `length` pixels along an image's long side, over all of its short side; none where starts is empty.

    is_tall  whether they lie one below the other, and not side by side
    starts   their first rows or columns
    """

    is_tall: bool
    length: int
    starts: tuple[int, ...]

    @classmethod
    def without_windows(cls) -> "Strip":
        """An image seen as one."""
        return cls(False, 0, ())

    @classmethod
    def of(cls, height: int, width: int, widest: float, tallest: float) -> "Strip":
        """Those of an image, by how much longer than high, and than wide, the frames are that training showed."""
        is_tall = height > width
        short, long, shape = (width, height, tallest) if is_tall else (height, width, widest)
        length = max(1, round(short * shape))
        if long <= BEYOND * shape * short:
            return cls.without_windows()
        count = 1 + ceil((long - length) / (length * (1 - OVERLAP)))
        if count > MOST_WINDOWS:
            return cls.without_windows()
        return cls(is_tall, length, tuple(round(i * (long - length) / (count - 1)) for i in range(count)))

    @property
    def num_parts(self) -> int:
        """Views of an image: all of it, and its windows."""
        return 1 + len(self.starts)

    def cut(self, image: CalibratedImage) -> list[CalibratedImage]:
        """The image, then its windows, each with its camera."""
        return [image, *(self._window(image, start) for start in self.starts)]

    def _window(self, image: CalibratedImage, start: int) -> CalibratedImage:
        part = slice(start, start + self.length)
        rgb = np.ascontiguousarray(image.rgb[part] if self.is_tall else image.rgb[:, part])
        left, top = (0, start) if self.is_tall else (start, 0)
        camera = image.intrinsics
        return replace(image, rgb=rgb, intrinsics=None if camera is None else crop_intrinsics(camera, left, top))

    def join(self, parts: Sequence["Prediction"]) -> "Prediction":
        """The prediction of the image from those of what `cut` returned, in its order."""
        whole, *windows = parts
        if not windows:
            return whole
        shifts = self._shifts(parts)
        size = whole.planar_depth_m.shape
        ln_depth = self._fade(size, (np.log(one.planar_depth_m) + by for one, by in zip(windows, shifts, strict=True)))
        ln_depth -= _of_large_areas(ln_depth - np.log(whole.planar_depth_m))
        depth_m = np.exp(ln_depth, out=ln_depth)
        uncertainty = self._fade(size, (one.uncertainty for one in windows))
        return replace(
            whole,
            planar_depth_m=depth_m.clip(whole.log_depth.near_m, whole.log_depth.far_m, out=depth_m),
            uncertainty=np.maximum(uncertainty, whole.uncertainty, out=uncertainty),
            valid_mask=self._fade(size, (one.valid_mask for one in windows)) > 0.5,
            num_members=min(one.num_members for one in parts),
        )

    def _shifts(self, parts: Sequence["Prediction"]) -> np.ndarray:
        """What to add to ln depth of each window [N], by weighted least squares.

        Unknown shifts s: s[i] = difference to the whole frame, s[i + 1] - s[i] = difference of two neighbours. Each
        difference is a median, for where two predictions see different edges their mean says little.
        """
        whole, *windows = (self._upright(one.planar_depth_m) for one in parts)
        count, ends = len(windows), [start + self.length for start in self.starts]
        rows, differences = [], []
        for i, (start, end) in enumerate(zip(self.starts, ends, strict=True)):
            rows.append(WHOLE_WEIGHT * np.eye(count)[i])
            differences.append(WHOLE_WEIGHT * _median_difference(whole[:, start:end], windows[i]))
        for i, (start, end) in enumerate(zip(self.starts[1:], ends[:-1], strict=True)):
            shared = end - start
            rows.append(np.eye(count)[i + 1] - np.eye(count)[i])
            differences.append(_median_difference(windows[i][:, -shared:], windows[i + 1][:, :shared]))
        return np.linalg.lstsq(np.array(rows), np.array(differences), rcond=None)[0].astype(np.float32)

    def _fade(self, size: tuple[int, ...], maps: Iterable[np.ndarray]) -> np.ndarray:
        """Maps of the windows as one of the image, float32 of its size; each weighs less towards its ends.

        Of a large image maps should come one by one: they take gigabytes.
        """
        along = (np.arange(self.length, dtype=np.float32) + 0.5) / self.length
        weights = np.minimum(along, 1 - along)
        total = np.zeros(self.starts[-1] + self.length, np.float32)
        joined = np.zeros(size, np.float32)
        upright = self._upright(joined)  # a view
        for start, values in zip(self.starts, maps, strict=True):
            part = slice(start, start + self.length)
            total[part] += weights
            upright[:, part] += weights * self._upright(values)
        upright /= total
        return joined

    def _upright(self, values: np.ndarray) -> np.ndarray:
        """A map whose windows lie side by side; the same again turns it back."""
        return values.T if self.is_tall else values


def _of_large_areas(values: np.ndarray) -> np.ndarray:
    """What of a map [H, W] is left without its detail: means of LARGE areas along its short side, smoothly joined."""
    height, width = values.shape
    areas = [max(1, round(LARGE * side / min(height, width))) for side in (width, height)]
    means = Image.fromarray(values).resize(areas, Image.Resampling.BOX)
    return np.asarray(means.resize((width, height), Image.Resampling.BICUBIC))


def _median_difference(a_m: np.ndarray, b_m: np.ndarray) -> float:
    """Median of ln a - ln b over two depth maps of one size."""
    step = max(1, round((a_m.size / SAMPLE) ** 0.5))
    a_m, b_m = a_m[::step, ::step], b_m[::step, ::step]
    return float(np.median(np.log(a_m) - np.log(b_m)))
