"""Photographs: from the bytes of a file to upright pixels in sRGB."""

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from metricgold.images import png
from metricgold.images.camera import focal_px_from_fov, pinhole
from metricgold.images.exif import (
    camera_name_by_exif,
    focal_px_by_exif,
    is_preview,
    panorama_by_metadata,
    read_exif,
    upright,
)
from metricgold.images.jpeg import decode_jpeg
from metricgold.images.pillow_settings import register_heif, settings_for_reading
from metricgold.images.stated_colours import stated_profile

# Photographs only. EPS starts another program, TGA and PCX take almost any bytes for an image.
FORMATS = (
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
    "HEIF",
    "AVIF",
    "GIF",
    "BMP",
    "JPEG2000",
    "PPM",
    "QOI",
)  # MPO is found by JPEG
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".gif", ".bmp"),
    *(".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm", ".qoi"),
)
_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"qoif"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *(b"P%d" % n for n in range(1, 7))),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

_GREY_16BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class NotAnImage(ValueError):
    """Neither the bytes nor the name claim to be an image; nothing is broken."""


FocalFrom = Literal["argument", "csv", "colmap", "exif", "fov_deg", "none"]
ASSUMED: frozenset[FocalFrom] = frozenset({"fov_deg", "none"})  # neither a person nor the file says what the camera is


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photograph as a model takes it: uint8 [H, W, 3] in sRGB, upright, and what its EXIF says of the camera."""

    rgb: np.ndarray
    focal_px: float | None = None  # focal length in pixels of rgb; None where EXIF has none, or an implausible one
    focal_reason: str | None = None  # why it is None
    panorama: str | None = None  # its projection, such as equirectangular; None for a picture through a pinhole
    camera_name: str | None = None  # make and model by EXIF
    truncated: bool = False  # the file ends early or is damaged, and the rest of rgb is blank

    def camera(self, fov_deg: float) -> tuple[np.ndarray | None, FocalFrom]:
        """Intrinsics [3, 3] in pixels of rgb, and where they come from; a panorama has none.

        By EXIF's focal length, else by fov_deg over the longer side.
        """
        height, width = self.rgb.shape[:2]
        if self.panorama:
            return None, "none"
        if self.focal_px is not None:
            return pinhole(self.focal_px, height, width), "exif"
        return pinhole(focal_px_from_fov(fov_deg, max(height, width)), height, width), "fov_deg"


def read_photo(
    source: bytes | str | Path,
    *,
    max_pixels: int,
    max_aspect: float | None = None,
    allow_truncated: bool = False,
    name: str = "",
) -> Photo:
    """Read a photograph: its pixels, uint8 [H, W, 3] in sRGB, and its focal length in pixels by EXIF.

    The rules: the EXIF orientation is applied (unreadable EXIF: none); the first frame of an animation or a
    multi-picture file is taken; transparency is put on white; CMYK, palette, grey and 1-bit become RGB; 16-bit
    grey is divided by 257, 16-bit colour loses its low byte; an embedded colour profile is converted to sRGB, a
    broken one ignored, as are a PNG's gAMA and cHRM and its transparent colour of 2, 4 or 16 bits. `name` stands
    for the file in messages where `source` is bytes. Settings of Pillow, warnings and logging stay as they were.

    Raises ValueError with the reason for what cannot be read: empty, truncated, broken, of a format that is not
    read here (of raw photographs Pillow sees only a preview), float or beyond 16 bits, more than `max_pixels`, or a
    long side of more than `max_aspect` short ones (both checked before decoding). With `allow_truncated` a JPEG or PNG
    that ends early is read as far as it goes. The error is a NotAnImage where neither bytes nor name claim an image.
    Raises OSError where the file cannot be opened. Source: Pillow decodes; EXIF 2.3 gives the camera.
    """
    register_heif()
    if isinstance(source, bytes):
        data = source
    else:
        data, name = Path(source).read_bytes(), name or str(source)
    prefix = f"{name}: " if name else ""
    unreadable = ValueError if claims_image(name, data[:16]) else NotAnImage
    if not data:
        raise unreadable(f"{prefix}empty file")
    try:
        with settings_for_reading(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels, max_aspect)
            try:
                whole = decode_jpeg(image, data) if image.format in ("JPEG", "MPO") else image
                whole.load()
                if image.format == "PNG":
                    png.check_pixels(data)
            except Exception:
                if allow_truncated and image.format in _READ_IN_PART:
                    return read_truncated(data)
                raise
            if codes := png.cicp(data) if image.format == "PNG" else None:
                whole.info["cicp"] = codes
            return as_photo(whole)
    except Image.UnidentifiedImageError as error:
        raise unreadable(f"{prefix}not an image of a known format, or its head is broken") from error
    except Image.DecompressionBombError as error:  # Pillow names a limit of its own
        raise ValueError(f"{prefix}it is more than {max_pixels} pixels, the limit max_pixels") from error
    except Exception as error:
        # Decoders raise almost anything on broken bytes: struct.error, SyntaxError, IndexError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{prefix}cannot be read as an image: {reason}") from error


def read_rgb(source: bytes | str | Path, *, max_pixels: int, name: str = "") -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3] in sRGB, upright, by the rules of read_photo.

    source      path or bytes of the file
    max_pixels  height x width that is decoded at most, in pixels
    name        stands for the file in messages where `source` is its bytes

    Raises ValueError with the reason for a file that cannot be read as a photograph or is larger than max_pixels, and
    OSError where the file cannot be opened.
    """
    return read_photo(source, max_pixels=max_pixels, name=name).rgb


def pixels_by_head(data: bytes, *, max_pixels: int) -> int:
    """Height x width that the head of a photograph states; 0 where read_photo will decode nothing."""
    register_heif()
    try:
        with settings_for_reading(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels, None)
            return image.width * image.height
    except Exception:  # almost anything, see read_photo
        return 0


def as_photo(image: Image.Image, *, truncated: bool = False) -> Photo:
    """An opened image by the rules of read_photo: upright, on white, in sRGB.

    Raises ValueError for pixels that cannot be decoded or have no white. Missing parts of a JPEG are grey.
    """
    try:
        image.load()
    except Exception as error:  # almost anything, see read_photo
        raise ValueError(f"the image cannot be decoded: {error or type(error).__name__}") from error
    exif = read_exif(image)  # after a TIFF turned itself, which it does when it is loaded
    if is_preview(image):
        raise ValueError(
            "its first page is a small preview, as in raw photographs, which are not read; develop it first"
        )
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has for premultiplied grey
    panorama = panorama_by_metadata(image, exif)
    focal_px, reason = (None, f"{panorama} panorama") if panorama else focal_px_by_exif(exif, image.size)
    name = camera_name_by_exif(exif)
    return Photo(np.array(upright(_as_rgb(image, exif), exif)), focal_px, reason, panorama, name, truncated)


def claims_image(name: str, head: bytes) -> bool:
    """Whether the file's suffix or its first 16 bytes are those of an image format that is read here."""
    brand = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return name.lower().endswith(SUFFIXES) or head.startswith(_MAGIC) or brand or webp


def _check_size(size: tuple[int, int], max_pixels: int, max_aspect: float | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} is more than {max_pixels} pixels, the limit max_pixels")
    aspect = max(size) / max(1, min(size))
    if max_aspect is not None and aspect > max_aspect:
        raise ValueError(
            f"{width}x{height} is a strip of {aspect:.4g}:1, longer than {max_aspect:g}:1, the limit max_aspect"
        )


# An image that ends early

_READ_IN_PART = ("JPEG", "MPO", "PNG")


def read_truncated(data: bytes) -> Photo:
    """The rows of a JPEG or PNG that could be decoded; the rest is mid-grey (JPEG) or black (PNG)."""
    if data.startswith(b"\xff\xd8"):
        # At an end mark libjpeg hands over what it has, also of a progressive JPEG. The first mark may become part of a
        # segment that was cut short; then the second one counts.
        data += 2 * b"\xff\xd9"
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        with suppress(Exception):  # the same that made the image unreadable
            image.load()
        image.tile = []  # nothing more to decode: keep the rows that are there
        photo = as_photo(image, truncated=True)
    if (photo.rgb == photo.rgb[0, 0]).all():
        raise ValueError("it ends before its first pixels")
    return photo


# Colours


def _as_rgb(image: Image.Image, exif: Mapping[int, Any]) -> Image.Image:
    """The image as RGB in sRGB, on white where it is transparent."""
    colours, profile = _opaque(image), image.info.get("icc_profile") or stated_profile(image, exif)
    transform = srgb_transform(profile, colours.mode) if profile else None
    rgb = transform.apply(_in_mode(colours, transform.input_mode)) if transform else _in_mode(colours, "RGB")
    if not image.has_transparency_data or image.mode in _GREY_16BIT:
        return rgb
    sheet = Image.new("RGB", rgb.size, "white")
    sheet.paste(rgb, mask=image.convert("RGBA").getchannel("A"))
    return sheet


def _opaque(image: Image.Image) -> Image.Image:
    """The colours without transparency, as L, RGB or CMYK of 8 bits, the modes that colour profiles describe."""
    if image.mode in _GREY_16BIT:
        return grey_8bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it as 8 or 16 bits")
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    return _in_mode(image, mode)


def grey_8bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits. Pillow's own convert would clip at 255, and ignore a TIFF's 12 bits or white as 0."""
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    grey = image.convert("I")
    low, high = cast(tuple[int, int], grey.getextrema())  # of a single band
    if low < 0 or high > white:
        raise ValueError(f"grey values {low} to {high} do not fit 16 bits")
    return grey.point(_grey_table(white, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0), "L")


@cache
def _grey_table(white: int, is_inverted: bool) -> tuple[int, ...]:
    """The 8-bit values of 0 to 65535."""
    table = tuple((min(value, white) * 255 + white // 2) // white for value in range(65536))
    return tuple(255 - value for value in table) if is_inverted else table


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy


@lru_cache(maxsize=16)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from this profile to sRGB; None where it is sRGB itself, broken, or of another kind of pixels.

    Relative colorimetric with black point compensation: each colour that sRGB contains is kept, white and black stay
    white and black. A perceptual intent would follow tables that differ from maker to maker.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space == "RGB " and mode == "L":
            mode = "RGB"  # grey pixels under the profile of the camera's colours
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # broken, or of another kind of pixels
        return None
    if mode == "RGB":
        # sRGB is stored in many ways: compare what they do to colours, up to two steps, not their names.
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
        if np.abs(np.asarray(transform.apply(Image.fromarray(probe))).astype(int) - probe).max() <= 2:
            return None
    return transform
