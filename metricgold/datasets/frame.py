"""The form in which the images of every data set leave their reader."""

from dataclasses import dataclass, replace

import numpy as np

from metricgold.images import NetworkGrid, mirror_intrinsics


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image with its depth, the form in which every data set's reader returns it. The constructor checks it.

    rgb             uint8   [H, W, 3]
    planar_depth_m  float32 [H, W], metres along the optical axis; finite and > 0 where valid, 0 elsewhere
    valid_mask      bool    [H, W]
    intrinsics      float64 [3, 3], pixels of this rgb, pixel centres at +0.5
    scene, name     the scene it belongs to; its own name, unique within the data set

    Raises ValueError naming the frame and what is wrong with it.
    """

    rgb: np.ndarray
    planar_depth_m: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray
    scene: str
    name: str

    def __post_init__(self) -> None:
        size = self.rgb.shape[:2]
        self._expect("rgb", np.uint8, (*size, 3))
        self._expect("planar_depth_m", np.float32, size)
        self._expect("valid_mask", np.bool_, size)
        self._expect("intrinsics", np.float64, (3, 3))
        depth_m = self.planar_depth_m[self.valid_mask]
        if not (np.isfinite(depth_m).all() and (depth_m > 0).all()):
            raise ValueError(f"frame {self.name}: valid depth must be finite and > 0 m")
        if not np.isfinite(self.planar_depth_m).all() or self.planar_depth_m[~self.valid_mask].any():
            raise ValueError(f"frame {self.name}: invalid depth must be stored as 0")

    @classmethod
    def from_arrays(
        cls,
        rgb: np.ndarray,
        planar_depth_m: np.ndarray,
        valid_mask: np.ndarray,
        intrinsics: np.ndarray,
        scene: str,
        name: str,
    ) -> "Frame":
        """Build a frame from raw arrays of the shapes above, of any number type where that loses nothing.

        Depth in metres that is not finite or not positive becomes invalid, and invalid depth 0. Raises as the class.
        """
        depth_m = np.asarray(planar_depth_m, dtype=np.float32)
        valid_mask = np.asarray(valid_mask, dtype=bool) & np.isfinite(depth_m) & (depth_m > 0)
        depth_m = np.where(valid_mask, depth_m, np.float32(0))
        return cls(np.asarray(rgb), depth_m, valid_mask, np.asarray(intrinsics, np.float64), scene, name)

    def _expect(self, field: str, dtype: type, shape: tuple[int, ...]) -> None:
        array = getattr(self, field)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"frame {self.name}: {field} must be {np.dtype(dtype)} {list(shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )


def fit_frame(frame: Frame, grid: NetworkGrid) -> Frame:
    """A frame in the pixels in which the network sees it; intrinsics go along, depth stays in metres.

    Colours are averaged, depth and mask are those of the nearest pixel. In the grid's padding they continue as at the
    frame's edge, the mask too: what is learnt there is that copies of an edge are as far away as the edge.
    """
    return replace(
        frame,
        rgb=grid.see(frame.rgb),
        planar_depth_m=grid.sample(frame.planar_depth_m),
        valid_mask=grid.sample(frame.valid_mask),
        intrinsics=grid.intrinsics(frame.intrinsics),
    )


def mirror_frame(frame: Frame) -> Frame:
    """Left to right; intrinsics go along."""
    return replace(
        frame,
        rgb=np.ascontiguousarray(frame.rgb[:, ::-1]),
        planar_depth_m=np.ascontiguousarray(frame.planar_depth_m[:, ::-1]),
        valid_mask=np.ascontiguousarray(frame.valid_mask[:, ::-1]),
        intrinsics=mirror_intrinsics(frame.intrinsics, frame.rgb.shape[1]),
    )
