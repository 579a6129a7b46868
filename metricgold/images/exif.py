"""EXIF of a photograph: which way is up, and the camera's focal length."""

from collections.abc import Mapping
from contextlib import suppress
from math import atan, degrees, hypot, isfinite
from typing import Any

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_NEW_SUBFILE_TYPE, _REDUCED = 254, 1  # TIFF 6.0, section 8


def is_preview(image: Image.Image) -> bool:
    """Whether the first page of a TIFF is marked as a reduced version of another, as in raw photographs."""
    return bool(getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE) == _REDUCED)


def read_exif(image: Image.Image) -> dict[int, Any]:
    """Orientation and camera by tag; what cannot be read is left out."""
    known: dict[int, Any] = {}
    with suppress(Exception):  # broken EXIF raises almost anything, and does not mean broken pixels
        exif = image.getexif()
        known[ExifTags.Base.Orientation] = exif.get(ExifTags.Base.Orientation)
        known |= exif.get_ifd(ExifTags.IFD.Exif)
    return known


def upright(rgb: Image.Image, exif: Mapping[int, Any]) -> Image.Image:
    """The image turned and mirrored as its EXIF orientation states."""
    orientation = exif.get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


_FULL_FRAME_DIAGONAL_MM = hypot(36, 24)


_RESOLUTION_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF 2.3, FocalPlaneResolutionUnit; inch if not given


def focal_px_by_exif(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """Focal length in pixels, the same for both axes and whichever side is up; None where it is not known.

    From the 35 mm equivalent by the diagonal (CIPA DCG-001), else from the focal length and the pixels per
    millimetre of the sensor, reduced as the image is. None for a field of view outside 2 to 175 degrees, for a strip
    beyond 3:1 (a panorama keeps the EXIF of one of its shots), and for an image whose proportions differ from those in
    EXIF: it was cropped at an unknown place.
    """
    if max(size) > 3 * min(size) or is_cropped(exif, size):
        return None
    for focal_px in (focal_px_by_35mm(exif, size), focal_px_by_sensor(exif, size)):
        if focal_px and 2 <= degrees(2 * atan(max(size) / 2 / focal_px)) <= 175:
            return focal_px
    return None


def is_cropped(exif: Mapping[int, Any], size: tuple[int, int]) -> bool:
    """Whether the proportions differ from those in EXIF by more than rounding."""
    stored = _stored_size(exif)
    if not all(stored):
        return False
    # Long and short sides are compared: a turned picture may keep the sides of the one before.
    short_px = max(size) * min(stored) / max(stored)
    return abs(short_px - min(size)) > max(1.5, 0.02 * min(size))  # rounding, and cameras that count loosely


def _stored_size(exif: Mapping[int, Any]) -> tuple[float, float]:
    """Width and height by EXIF; 0 where it has none."""
    return _positive(exif, ExifTags.Base.ExifImageWidth) or 0, _positive(exif, ExifTags.Base.ExifImageHeight) or 0


def focal_px_by_35mm(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """By the focal length of equal field of view on 35 mm film, measured over the diagonal."""
    focal_35mm = _positive(exif, ExifTags.Base.FocalLengthIn35mmFilm)
    return focal_35mm and focal_35mm / _FULL_FRAME_DIAGONAL_MM * hypot(*size)


def focal_px_by_sensor(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """By the focal length in millimetres and the pixels per unit of the sensor."""
    focal_mm = _positive(exif, ExifTags.Base.FocalLength)
    density = _positive(exif, ExifTags.Base.FocalPlaneXResolution) or _positive(
        exif, ExifTags.Base.FocalPlaneYResolution
    )
    unit_mm = _RESOLUTION_UNIT_MM.get(exif.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    stored = _stored_size(exif)
    if not (focal_mm and density and unit_mm and stored[0]):
        return None
    return focal_mm * density / unit_mm * max(size) / max(stored)


def _positive(exif: Mapping[int, Any], tag: int) -> float | None:
    try:
        value = float(exif.get(tag, 0))
    except (TypeError, ValueError, ArithmeticError):
        return None
    return value if isfinite(value) and value > 0 else None
