"""EXIF and XMP of a photograph: which way is up, the camera's focal length, and whether it is a panorama."""

import re
from collections.abc import Mapping
from contextlib import suppress
from math import atan, degrees, isfinite
from typing import Any

from PIL import ExifTags, Image

from metricgold.images.camera import focal_px_from_35mm

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
    """Orientation, camera and interoperability by tag; what cannot be read is left out."""
    known: dict[int, Any] = {}
    with suppress(Exception):  # broken EXIF raises almost anything, and does not mean broken pixels
        exif = image.getexif()
        of_image = ExifTags.Base.Orientation, ExifTags.Base.Make, ExifTags.Base.Model
        known |= {tag: exif.get(tag) for tag in of_image}
        known |= exif.get_ifd(ExifTags.IFD.Exif)
        known[ExifTags.Interop.InteropIndex] = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    return known


def upright(rgb: Image.Image, exif: Mapping[int, Any]) -> Image.Image:
    """The image turned and mirrored as its EXIF orientation states."""
    orientation = exif.get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


# The camera

_RESOLUTION_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF 2.3, FocalPlaneResolutionUnit; inch if not given
_FOV_DEG = 10, 125  # over the long side; beyond are fisheyes, which are no pinholes (10 mm on full frame: 122)
_LENS_FOV_DEG = 0.5, 125  # where the lens in millimetres speaks for a telephoto (3000 mm on full frame: 0.7)
_SENSOR_MM = 1, 100  # long side: endoscopes to large format
_AGREE = 1.5  # ratio of the two rules: far more than rounding, less than what a wrong tag makes


def camera_name_by_exif(exif: Mapping[int, Any]) -> str | None:
    """Make and model in one line; None where neither is text."""
    texts = (exif.get(tag) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    name = " ".join(" ".join(text.split()) for text in texts if isinstance(text, str))
    return "".join(c for c in name if c.isprintable())[:100].strip() or None


def focal_px_by_exif(exif: Mapping[int, Any], size: tuple[int, int]) -> tuple[float | None, str | None]:
    """Focal length in pixels, the same for both axes and whichever side is up; else None and the reason.

    From the 35 mm equivalent by the diagonal (CIPA DCG-001), else from the focal length and the pixels per
    millimetre of the sensor, reduced as the image is and enlarged by the digital zoom, which a 35 mm equivalent
    includes (as ExifTool reads both). Not believed are a field of view, or a sensor, that no camera has, and two
    rules that contradict each other. None also for a strip beyond 3:1 (a panorama keeps the EXIF of one of its
    shots), and for an image whose proportions differ from those in EXIF: it was cropped at an unknown place.
    """
    if max(size) > 3 * min(size):
        return None, "a strip beyond 3:1 may be a panorama"
    if is_cropped(exif, size):
        return None, "it was cropped: its proportions are not those that EXIF names"
    zoom = max(1.0, _positive(exif, ExifTags.Base.DigitalZoomRatio) or 1.0)
    by_sensor = focal_px_by_sensor(exif, size)
    rules = {"35 mm equivalent": focal_px_by_35mm(exif, size), "focal plane": by_sensor and by_sensor * zoom}
    lens_mm = (_positive(exif, ExifTags.Base.FocalLength) or 0) * zoom
    doubts = {name: _doubt(focal_px, max(size), lens_mm) for name, focal_px in rules.items() if focal_px}
    believed = [focal_px for name, focal_px in rules.items() if focal_px and doubts[name] is None]
    if not believed:
        said = "; ".join(f"{name}: {doubt}" for name, doubt in doubts.items())
        return None, f"EXIF is not plausible: {said}" if said else "EXIF has no focal length"
    if max(believed) > _AGREE * min(believed):
        by_35mm, by_plane = believed
        return None, f"EXIF contradicts itself: {by_35mm:.0f} px by 35 mm equivalent, {by_plane:.0f} px by focal plane"
    return believed[0], None


def _doubt(focal_px: float, long_px: int, lens_mm: float) -> str | None:
    """What speaks against this focal length in pixels; lens_mm is 0 where the lens is not known."""
    sensor_mm, fov_deg = lens_mm * long_px / focal_px, degrees(2 * atan(long_px / 2 / focal_px))
    if lens_mm and not _SENSOR_MM[0] <= sensor_mm <= _SENSOR_MM[1]:
        return f"a sensor of {sensor_mm:.3g} mm"
    least, most = _LENS_FOV_DEG if lens_mm else _FOV_DEG
    return None if least <= fov_deg <= most else f"a field of view of {fov_deg:.3g} degrees"


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
    return focal_35mm and focal_px_from_35mm(focal_35mm, size[1], size[0])


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


# Panoramas

_CUSTOM_RENDERED, _PANORAMA = 0xA401, 6  # telephones mark what they stitch; EXIF itself knows 0 and 1
_XMP_TAG = 700  # of TIFF
_PROJECTION = re.compile(rb"""\bProjectionType\s*(?:=\s*["']|>)\s*(\w+)""")


def panorama_by_metadata(image: Image.Image, exif: Mapping[int, Any]) -> str | None:
    """How a panorama was projected, such as equirectangular; stitched where only EXIF names it; None for a photograph.

    By XMP's GPano (Google's Photo Sphere metadata), else by EXIF's CustomRendered.
    """
    xmp = image.info.get("xmp") or getattr(image, "tag_v2", {}).get(_XMP_TAG) or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp)
    found = _PROJECTION.search(xmp) if b"//ns.google.com/photos/1.0/panorama/" in xmp else None
    if found:
        return found[1].decode().lower()
    return "stitched" if exif.get(_CUSTOM_RENDERED) == _PANORAMA else None
