"""The form in which the images of every data set leave their reader."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from metricgold.images import NetworkGrid, mirror_intrinsics

NO_SURFACE = "no_surface"  # the layer bool of pixels known to show none, such as sky


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image with its depth, the form in which every data set's reader returns it. The constructor checks it.

    rgb             uint8   [H, W, 3]
    planar_depth_m  float32 [H, W], metres along the optical axis; finite and > 0 where valid, 0 elsewhere
    valid_mask      bool    [H, W]
    intrinsics      float64 [3, 3], pixels of this rgb, pixel centres at +0.5
    scene, name     the scene it belongs to; its own name, unique within the data set
    layers          what else is known of the image, by name, each [H, W]: bool or integers for masks and
                    ids of instances, float32 for another map of depth in metres, finite and 0 where it has none

    Raises ValueError naming the frame and what is wrong with it.
    """

    rgb: np.ndarray
    planar_depth_m: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray
    scene: str
    name: str
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)

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
        for name, layer in self.layers.items():
            if layer.shape != size or (layer.dtype.kind not in "biu" and layer.dtype != np.float32):
                raise ValueError(
                    f"frame {self.name}: layer {name} must be bool, integers or float32 {list(size)}, "
                    f"got {layer.dtype} {list(layer.shape)}"
                )
            if layer.dtype == np.float32 and not (np.isfinite(layer).all() and (layer >= 0).all()):
                raise ValueError(f"frame {self.name}: depth of layer {name} must be finite and > 0 m, or 0 for none")

    @classmethod
    def from_arrays(
        cls,
        rgb: np.ndarray,
        planar_depth_m: np.ndarray,
        valid_mask: np.ndarray,
        intrinsics: np.ndarray,
        scene: str,
        name: str,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> "Frame":
        """Build a frame from raw arrays of the shapes above, of any number type where that loses nothing.

        Depth in metres that is not finite or not positive becomes invalid, and invalid depth 0; so does that of
        layers of floating point numbers. Raises as the class.
        """
        depth_m = np.where(np.asarray(valid_mask, dtype=bool), _depth_or_0(planar_depth_m), np.float32(0))
        arrays = {key: np.asarray(layer) for key, layer in (layers or {}).items()}
        layers = {key: _depth_or_0(array) if array.dtype.kind == "f" else array for key, array in arrays.items()}
        return cls(np.asarray(rgb), depth_m, depth_m > 0, np.asarray(intrinsics, np.float64), scene, name, layers)

    @property
    def no_surface(self) -> np.ndarray:
        """Pixels without depth that are known to show no surface, bool [H, W]; none where the data set does not say."""
        no_surface: np.ndarray = self.layers.get(NO_SURFACE, np.zeros_like(self.valid_mask)) & ~self.valid_mask
        return no_surface

    def _expect(self, field: str, dtype: type, shape: tuple[int, ...]) -> None:
        array = getattr(self, field)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"frame {self.name}: {field} must be {np.dtype(dtype)} {list(shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )


def _depth_or_0(depth_m: np.ndarray) -> np.ndarray:
    """float32, and 0 for what is no depth."""
    depth_m = np.asarray(depth_m, dtype=np.float32)
    return np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.float32(0))


def fit_frame(frame: Frame, grid: NetworkGrid) -> Frame:
    """A frame in the pixels in which the network sees it; intrinsics go along, depth stays in metres.

    Colours are averaged; depth, mask and layers are those of the nearest pixel. In the grid's padding they continue as
    at the frame's edge, the mask too: what is learnt there is that copies of an edge are as far away as the edge.
    """
    return replace(
        frame,
        rgb=grid.see(frame.rgb),
        planar_depth_m=grid.sample(frame.planar_depth_m),
        valid_mask=grid.sample(frame.valid_mask),
        intrinsics=grid.intrinsics(frame.intrinsics),
        layers={name: grid.sample(layer) for name, layer in frame.layers.items()},
    )


def mirror_frame(frame: Frame) -> Frame:
    """Left to right; intrinsics go along."""
    return replace(
        frame,
        rgb=np.ascontiguousarray(frame.rgb[:, ::-1]),
        planar_depth_m=np.ascontiguousarray(frame.planar_depth_m[:, ::-1]),
        valid_mask=np.ascontiguousarray(frame.valid_mask[:, ::-1]),
        intrinsics=mirror_intrinsics(frame.intrinsics, frame.rgb.shape[1]),
        layers={name: np.ascontiguousarray(layer[:, ::-1]) for name, layer in frame.layers.items()},
    )
