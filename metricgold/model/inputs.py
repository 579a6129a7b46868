"""What a caller may pass as image and camera, to rgb and intrinsics."""

from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metricgold.images import ASSUMED, FOV_DEG, FocalFrom, Photo, as_photo, focal_px_from_fov, pinhole, read_photo

MAX_PIXELS = 100_000_000  # of a photograph given as a path


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedImage:
    """rgb uint8 [H, W, 3], intrinsics float64 [3, 3] in its pixels (None: a panorama), and where they come from."""

    rgb: np.ndarray
    intrinsics: np.ndarray | None
    focal_from: FocalFrom

    @property
    def has_known_camera(self) -> bool:
        """Whether somebody or something says what its camera is."""
        return self.focal_from not in ASSUMED


def is_batch(image: Any) -> bool:
    """Whether the caller passed several images: a list, or a tensor [B, 3, H, W]."""
    return isinstance(image, list) or (isinstance(image, torch.Tensor) and image.ndim == 4)


def read_images(
    image: Any,
    *,
    intrinsics: Any = None,
    focal_px: Any = None,
    fov_deg: Any = None,
    assumed_fov_deg: float = FOV_DEG,
) -> list[CalibratedImage]:
    """One image or a batch, with its camera or cameras, as MetricGoldPipeline takes them. Raises as it does."""
    cameras = {"intrinsics": intrinsics, "focal_px": focal_px, "fov_deg": fov_deg}
    given = [name for name, value in cameras.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"a camera is stated in one way, got {' and '.join(given)}")
    kind = given[0] if given else "intrinsics"
    if not is_batch(image):
        return [read_image(image, kind, cameras[kind], assumed_fov_deg)]
    values = cameras[kind]
    if values is None or isinstance(values, Real):  # one number for all images
        values = [values] * len(image)
    if not isinstance(values, list | tuple) or len(values) != len(image):
        got = f"{len(values)} of them" if isinstance(values, list | tuple) else type(values).__name__
        raise ValueError(f"{len(image)} images need a list of as many {kind}, got {got}")
    return [read_image(one, kind, value, assumed_fov_deg) for one, value in zip(image, values, strict=True)]


def read_image(image: Any, kind: str, value: Any, assumed_fov_deg: float) -> CalibratedImage:
    """One image. Its camera is the caller's, else the one in its EXIF, else one of assumed_fov_deg.

    kind, value: intrinsics, focal_px or fov_deg as the caller states it, None where it does not. A panorama by its
    file's metadata has no camera, unless the caller knows one.
    """
    if isinstance(image, Photo):
        photo = image
    elif isinstance(image, Image.Image):
        photo = as_photo(image)
    elif isinstance(image, str | Path):
        photo = read_photo(image, max_pixels=MAX_PIXELS)
    else:
        photo = Photo(rgb_from_tensor(image) if isinstance(image, torch.Tensor) else np.asarray(image))
    rgb = photo.rgb
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if value is None:
        return CalibratedImage(rgb, *photo.camera(assumed_fov_deg))
    return CalibratedImage(rgb, stated_camera(kind, value, *rgb.shape[:2]), "argument")


def stated_camera(kind: str, value: Any, height: int, width: int) -> np.ndarray:
    """Intrinsics [3, 3] of an image of that size, from what the caller calls intrinsics, focal_px or fov_deg.

    Raises ValueError for what is not a camera's.
    """
    if kind == "intrinsics":
        try:
            camera = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"intrinsics must be a [3, 3] of numbers, got {value!r}") from None
        if camera.shape != (3, 3) or not np.isfinite(camera).all() or np.linalg.det(camera) == 0:
            raise ValueError(f"intrinsics must be a finite [3, 3] that can be inverted, got {camera.tolist()}")
        return camera
    limit = 180 if kind == "fov_deg" else np.inf
    if not (isinstance(value, Real) and 0 < float(value) < limit):
        expected = "between 0 and 180" if kind == "fov_deg" else "a positive number of pixels"
        raise ValueError(f"{kind} must be {expected}, got {value!r}")
    focal_px = float(value) if kind == "focal_px" else focal_px_from_fov(float(value), max(height, width))
    return pinhole(focal_px, height, width)


def rgb_from_tensor(image: torch.Tensor) -> np.ndarray:
    """[3, H, W], uint8 or float from 0 to 1, to uint8 [H, W, 3]. ValueError for any other."""
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"an image tensor must be uint8 or float [3, H, W], got {image.dtype} {list(image.shape)}")
    if image.is_floating_point() and image.numel():
        if not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
            raise ValueError(
                f"a float image must have values between 0 and 1, got {image.min().item():g} to {image.max().item():g}"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).cpu().numpy()


def seed_of_each(seed: Any, num_images: int) -> list[int]:
    """A seed for every image, from one for all of them or a list. ValueError for any other."""
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed] * num_images
    if len(seeds) != num_images or not all(isinstance(one, Integral) and int(one) >= 0 for one in seeds):
        raise ValueError(
            f"seed must be an integer from 0, or a list of {num_images} of them, one for each image, got {seed!r}"
        )
    return seeds
