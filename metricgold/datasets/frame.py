"""The one form in which every data set's images leave their reader."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image with its depth. The constructor checks, so nobody else has to.

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
    def checked(cls, rgb, planar_depth_m, valid_mask, intrinsics, scene: str, name: str) -> "Frame":
        """Build a frame from raw arrays: also invalidates what is not finite or not positive, and zeroes it."""
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
