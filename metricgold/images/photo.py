"""Photographs: from the bytes of a file to upright pixels in sRGB."""

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from metricgold.images.exif import _NEW_SUBFILE_TYPE, _REDUCED, _exif, _focal_px, _upright
from metricgold.images.pillow_settings import register_heif, settings_for_reading

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
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"qoif")
_MAGIC += (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *(b"P%d" % n for n in range(1, 7)))
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

_GREY_16BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class NotAnImage(ValueError):
    """Neither the bytes nor the name speak of an image; there was nothing to break."""


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photograph as a model wants it: uint8 [H, W, 3] in sRGB, upright, and what its EXIF says of the camera."""

    rgb: np.ndarray
    focal_px: float | None = None  # focal length in pixels of rgb; None where EXIF says nothing that can be believed
    truncated: bool = False  # the file ends early or breaks off, and the rest of rgb is blank


def read_photo(
    source: bytes | str | Path,
    *,
    max_pixels: int,
    max_aspect: float | None = None,
    allow_truncated: bool = False,
    name: str = "",
) -> Photo:
    """Read a photograph.

    The rules: the EXIF orientation is applied (unreadable EXIF: as it lies); the first frame of an animation or
    a multi-picture file is taken; transparency lies on white; CMYK, palette, grey and 1-bit become RGB; 16-bit
    grey is divided by 257, 16-bit colour loses its low byte; an embedded colour profile is converted to sRGB, a
    broken one ignored, as are a PNG's gAMA and cHRM and its transparent colour of 2, 4 or 16 bits. `name` stands
    for the file in messages where `source` is bytes.

    Raises ValueError with the reason for what cannot be read: empty, truncated, broken, of a format that is not
    read here (of raw photographs Pillow sees but a preview), float or beyond 16 bits, more than `max_pixels` or with
    a long side of more than `max_aspect` short ones (both found before decoding). With `allow_truncated` a JPEG or
    PNG that ends early is read as far as it goes. It is a NotAnImage where neither bytes nor name claim an image.
    Raises OSError where the file itself cannot be opened.
    """
    register_heif()
    is_path = isinstance(source, str | Path)
    name = name or (str(source) if is_path else "")
    data = Path(source).read_bytes() if is_path else source
    said = f"{name}: " if name else ""
    if not data:
        raise _unreadable(name, data)(f"{said}empty file")
    try:
        with settings_for_reading(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels, max_aspect)
            return _whole_or_part(image, data, allow_truncated)
    except Image.UnidentifiedImageError as error:
        # Pillow's own text is the address of a buffer.
        raise _unreadable(name, data)(f"{said}not an image of a known format, or its head is broken") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{said}it is more than {max_pixels} pixels") from error  # Pillow names a limit of its own
    except Exception as error:
        # Decoders raise almost anything on broken bytes: struct.error, SyntaxError, IndexError, bomb errors.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{said}cannot be read as an image: {reason}") from error


def read_rgb(source: bytes | str | Path, *, max_pixels: int, name: str = "") -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3], upright, by the rules and with the errors of read_photo."""
    return read_photo(source, max_pixels=max_pixels, name=name).rgb


def _whole_or_part(image: Image.Image, data: bytes, allow_truncated: bool) -> Photo:
    try:
        image.load()
        _check_jpeg_whole(image, data)
    except Exception:
        if allow_truncated and image.format in _READ_IN_PART:
            return _read_part(data)
        raise
    return as_photo(image)


def as_photo(image: Image.Image, *, truncated: bool = False) -> Photo:
    """An opened image by the rules of read_photo: upright, on white, in sRGB.

    Raises ValueError for pixels that cannot be decoded or have no white. What a JPEG lacks in its midst is grey.
    """
    try:
        image.load()
    except Exception as error:  # as freely as read_photo sees them
        raise ValueError(f"the image cannot be decoded: {error or type(error).__name__}") from error
    exif = _exif(image)  # after a TIFF turned itself, which it does when it is loaded
    if getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE) == _REDUCED:
        raise ValueError(
            "its first page is a small preview, as in raw photographs, which are not read; develop it first"
        )
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no other way out of premultiplied grey
    return Photo(np.array(_upright(_as_rgb(image), exif)), _focal_px(exif, image.size), truncated)


def claims_image(name: str, head: bytes) -> bool:
    """Whether the file's suffix or its first 16 bytes say that it is an image of a format read here."""
    brand = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return name.lower().endswith(SUFFIXES) or head.startswith(_MAGIC) or brand or webp


def _unreadable(name: str, data: bytes) -> type[ValueError]:
    return ValueError if claims_image(name, data[:16]) else NotAnImage


def _check_size(size: tuple[int, int], max_pixels: int, max_aspect: float | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} is more than {max_pixels} pixels")
    aspect = max(size) / max(1, min(size))
    if max_aspect is not None and aspect > max_aspect:
        raise ValueError(f"{width}x{height} is a strip of {aspect:.4g}:1, longer than {max_aspect:g}:1")


def _check_jpeg_whole(image: Image.Image, data: bytes) -> None:
    # libjpeg fills what is missing with mid-grey (of inks: 127) and tells nobody. A picture may end in that grey by
    # itself: then further data after its last block change nothing.
    width, height = image.size
    corner = image.crop((max(0, width - 8), max(0, height - 8), width, height))
    if image.format not in ("JPEG", "MPO") or not np.isin(corner, (127, 128)).all():
        return
    end = data.find(b"\xff\xd9", _start_of_scan(data))
    cut = end if end > 0 else len(data)
    restarts = (bytes([0xFF, 0xD0 + n % 8]) for n in range(16))
    more = (b"\x55" * 64).join([b"", *restarts, b""])
    with Image.open(io.BytesIO(data[:cut] + more + data[cut:]), formats=["JPEG"]) as longer:
        if longer.tobytes() != image.tobytes():
            raise ValueError("its data are damaged or end early, the rest of the picture is blank")


def _start_of_scan(jpeg: bytes) -> int:
    place = 2
    while jpeg[place : place + 2] != b"\xff\xda" and place < len(jpeg):
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])  # marker, length with itself, segment
    return place


# An image that ends early

_READ_IN_PART = ("JPEG", "MPO", "PNG")


def _read_part(data: bytes) -> Photo:
    """The rows of a JPEG or PNG that could be decoded; the rest is mid-grey (JPEG) or black (PNG)."""
    if data.startswith(b"\xff\xd8"):
        # At an end mark libjpeg hands over what it has, also of a progressive JPEG. The first mark may become part of a
        # segment that was cut short; then the second one counts.
        data += 2 * b"\xff\xd9"
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        with suppress(Exception):  # the same that made the whole image unreadable
            image.load()
        image.tile = []  # nothing more to decode: keep the rows that are there
        photo = as_photo(image, truncated=True)
    if (photo.rgb == photo.rgb[0, 0]).all():
        raise ValueError("it ends before its first pixels")
    return photo


# Colours


def _as_rgb(image: Image.Image) -> Image.Image:
    rgb = _in_srgb(_opaque(image), image.info.get("icc_profile"))
    if not image.has_transparency_data or image.mode in _GREY_16BIT:
        return rgb
    sheet = Image.new("RGB", rgb.size, "white")
    sheet.paste(rgb, mask=image.convert("RGBA").getchannel("A"))
    return sheet


def _opaque(image: Image.Image) -> Image.Image:
    """The colours alone, as L, RGB or CMYK of 8 bits, the kinds that profiles speak of."""
    if image.mode in _GREY_16BIT:
        return _from_grey_16bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it as 8 or 16 bits")
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    return _in_mode(image, mode)


def _from_grey_16bit(image: Image.Image) -> Image.Image:
    # Pillow's own convert("RGB") would clip at 255; of a TIFF it keeps 12 bits, and white as 0, as they are.
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    grey = image.convert("I")
    low, high = grey.getextrema()
    if low < 0 or high > white:
        raise ValueError(f"grey values {low} to {high} do not fit 16 bits")
    return grey.point(_grey_table(white, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0), "L")


@cache
def _grey_table(white: int, is_inverted: bool) -> tuple[int, ...]:
    """What 0 to 65535 become in 8 bits."""
    table = tuple((min(value, white) * 255 + white // 2) // white for value in range(65536))
    return tuple(255 - value for value in table) if is_inverted else table


def _in_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    change = _to_srgb(profile, colours.mode) if profile else None
    return change.apply(_in_mode(colours, change.input_mode)) if change else _in_mode(colours, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How colours of this profile become sRGB; None where it is sRGB itself, broken, or of other colours.

    Relative colorimetric with black point compensation: each colour that sRGB has stays what it is, white and
    black stay white and black. A perceptual intent would follow tables that each maker draws by taste.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space == "RGB " and mode == "L":
            mode = "RGB"  # grey pixels under the profile of the camera's colours
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        change = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # broken, or of another kind of pixels
        return None
    return None if mode == "RGB" and _changes_nothing(change) else change


def _changes_nothing(change: ImageCms.ImageCmsTransform) -> bool:
    # sRGB comes in many spellings: compare what they do to colours, up to two steps, not their names.
    steps = np.arange(0, 256, 15, np.uint8)
    probe = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    seen = np.asarray(change.apply(Image.fromarray(probe)))
    return bool(np.abs(seen.astype(int) - probe).max() <= 2)
