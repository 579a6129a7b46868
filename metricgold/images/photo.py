"""Photographs in, pictures of depth out."""

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from math import atan, degrees, floor, hypot, isfinite, log, log10
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFile, ImageFont, TiffImagePlugin

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
    _prepare_pillow()
    _raise_pillow_limit(max_pixels)
    is_path = isinstance(source, str | Path)
    name = name or (str(source) if is_path else "")
    data = Path(source).read_bytes() if is_path else source
    said = f"{name}: " if name else ""
    if not data:
        raise _unreadable(name, data)(f"{said}empty file")
    try:
        with _leniency(False), Image.open(io.BytesIO(data), formats=FORMATS) as image:
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


@cache
def _prepare_pillow() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    # Doubtful EXIF or a large image is no news: what matters becomes an error or does not matter.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff writes its errors to the terminal by itself; Pillow raises them besides.
    with suppress(AttributeError, OSError):  # a build of Pillow that hides libtiff, or has none
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def _raise_pillow_limit(max_pixels: int) -> None:
    # Pillow's own guard is one global; it must not refuse what this call allows. Our check is exact.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


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
_lenient: ContextVar[bool | None] = ContextVar("lenient", default=None)


class _Lenient:
    """Stands for Pillow's LOAD_TRUNCATED_IMAGES: that is one global, while threads here may wish different things.

    Elsewhere in the process it is what it was.
    """

    def __init__(self, elsewhere: bool) -> None:
        self.elsewhere = elsewhere

    def __bool__(self) -> bool:
        wish = _lenient.get()
        return self.elsewhere if wish is None else wish


@contextmanager
def _leniency(wish: bool) -> Iterator[None]:
    if not isinstance(ImageFile.LOAD_TRUNCATED_IMAGES, _Lenient):
        ImageFile.LOAD_TRUNCATED_IMAGES = _Lenient(ImageFile.LOAD_TRUNCATED_IMAGES)
    before = _lenient.set(wish)
    try:
        yield
    finally:
        _lenient.reset(before)


def _read_part(data: bytes) -> Photo:
    # An end mark lets libjpeg give out what it has, also of a progressive JPEG; what is missing is mid-grey (PNG:
    # black). PNG ignores what follows.
    with _leniency(True), Image.open(io.BytesIO(data + b"\xff\xd9"), formats=FORMATS) as image:
        image.load()
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


# The camera, by EXIF


def _exif(image: Image.Image) -> dict[int, Any]:
    known: dict[int, Any] = {}
    with suppress(Exception):  # broken EXIF raises as freely as broken pixels do, and says nothing about them
        exif = image.getexif()
        known[ExifTags.Base.Orientation] = exif.get(ExifTags.Base.Orientation)
        known |= exif.get_ifd(ExifTags.IFD.Exif)
    return known


def _upright(rgb: Image.Image, exif: Mapping[int, Any]) -> Image.Image:
    orientation = exif.get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


_FULL_FRAME_DIAGONAL_MM = hypot(36, 24)
_RESOLUTION_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF 2.3, FocalPlaneResolutionUnit; inch if not said


def _focal_px(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    """Focal length in pixels, the same for both axes and whichever side is up; None where it is not known.

    From the 35 mm equivalent by the diagonal (CIPA DCG-001), else from the focal length and the pixels per
    millimetre of the sensor, reduced as the image is. A long side outside 2 to 175 degrees is not believed, nor is
    a strip beyond 3:1 (a panorama keeps the EXIF of one of its shots), nor an image of other proportions than EXIF
    says: it was cropped, nobody knows where.
    """
    if max(size) > 3 * min(size) or _is_cropped(exif, size):
        return None
    for focal_px in (_focal_px_by_35mm(exif, size), _focal_px_by_sensor(exif, size)):
        if focal_px and 2 <= degrees(2 * atan(max(size) / 2 / focal_px)) <= 175:
            return focal_px
    return None


def _is_cropped(exif: Mapping[int, Any], size: tuple[int, int]) -> bool:
    stored = _stored_size(exif)
    if not all(stored):
        return False
    # Long and short sides are compared: a turned picture may keep the sides of the one before.
    short_px = max(size) * min(stored) / max(stored)
    return abs(short_px - min(size)) > max(1.5, 0.02 * min(size))  # rounding, and cameras that count loosely


def _stored_size(exif: Mapping[int, Any]) -> tuple[float, float]:
    """Width and height that EXIF says; 0 where it does not."""
    return _positive(exif, ExifTags.Base.ExifImageWidth) or 0, _positive(exif, ExifTags.Base.ExifImageHeight) or 0


def _focal_px_by_35mm(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
    focal_35mm = _positive(exif, ExifTags.Base.FocalLengthIn35mmFilm)
    return focal_35mm and focal_35mm / _FULL_FRAME_DIAGONAL_MM * hypot(*size)


def _focal_px_by_sensor(exif: Mapping[int, Any], size: tuple[int, int]) -> float | None:
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


# Depth to look at: near red, far blue, with a scale in metres.

_PREVIEW_SHORT_PX, _PREVIEW_LONG_PX = 240, 1280
_PAPER, _INK, _NO_DEPTH_GREY = (255, 255, 255), (40, 40, 40), (128, 128, 128)


def draw_preview(planar_depth_m: np.ndarray) -> Image.Image:
    """Draw planar depth [H, W] in metres as a colour image with a logarithmic scale in metres at its right.

    Colours span the image's own 1st to 99th percentile; pixels without depth are grey. Small images are
    enlarged and large ones reduced, so that the figures can be read.
    """
    height, width = planar_depth_m.shape
    low_m, high_m = _colour_range(planar_depth_m)
    picture = Image.fromarray(_colour(planar_depth_m, low_m, high_m))
    scale = min(max(1.0, _PREVIEW_SHORT_PX / min(height, width)), _PREVIEW_LONG_PX / max(height, width))
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)
    panel = _scale_panel(max(picture.height, 96), low_m, high_m)
    sheet = Image.new("RGB", (picture.width + panel.width, panel.height), _PAPER)
    sheet.paste(picture, (0, (panel.height - picture.height) // 2))
    sheet.paste(panel, (picture.width, 0))
    return sheet


def _colour_range(planar_depth_m: np.ndarray) -> tuple[float, float]:
    step = max(1, int((planar_depth_m.size / 5_000) ** 0.5))  # a sample is as good as all
    sample = planar_depth_m[::step, ::step]
    sample = sample[np.isfinite(sample) & (sample > 0)]
    if not sample.size:
        return 1.0, 10.0
    low_m, high_m = (float(z) for z in np.percentile(sample, [1, 99]))
    middle_m = (low_m * high_m) ** 0.5
    return min(low_m, middle_m / 1.1), max(high_m, middle_m * 1.1)  # a flat wall is not stretched to a rainbow


@cache
def _colours() -> np.ndarray:
    from matplotlib import colormaps

    table = colormaps["Spectral"](np.linspace(0, 1, 255))[:, :3]  # near red, far blue
    return np.vstack([np.uint8(np.round(table * 255)), np.array([_NO_DEPTH_GREY], np.uint8)])


def _colour(planar_depth_m: np.ndarray, low_m: float, high_m: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.log(np.asarray(planar_depth_m, np.float32) / np.float32(low_m))
        index = np.clip(ln * np.float32(254 / log(high_m / low_m)) + 0.5, 0, 254)
        index = np.where(planar_depth_m > 0, index, 255).astype(np.uint8)
    return np.take(_colours(), index, axis=0)  # [H, W, 3]


def _scale_panel(height: int, low_m: float, high_m: float) -> Image.Image:
    font_px = max(11, min(28, height // 22))
    font, pad, bar = _font(font_px), font_px // 2, font_px
    panel = Image.new("RGB", (pad * 2 + bar + font_px * 4, height), _PAPER)
    top, bottom = font_px, height - font_px
    ramp = _colours()[np.linspace(254, 0, bottom - top).round().astype(int)]  # far on top
    panel.paste(Image.fromarray(np.repeat(ramp[:, None], bar, axis=1)), (pad, top))
    draw = ImageDraw.Draw(panel)
    for tick_m in _ticks(low_m, high_m, room=max(2, min(8, (bottom - top) // (font_px * 2)))):
        y = bottom - round(log(tick_m / low_m) / log(high_m / low_m) * (bottom - top))
        draw.line([(pad + bar, y), (pad + bar + pad, y)], fill=_INK)
        draw.text((pad * 2 + bar + 3, y), f"{tick_m:g} m", fill=_INK, font=font, anchor="lm")
    return panel


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _ticks(low_m: float, high_m: float, room: int) -> list[float]:
    """Round metres in [low_m, high_m]: the densest series of which at most `room` fall there."""
    decades = range(floor(log10(low_m)) - 1, floor(log10(high_m)) + 2)
    fine = tuple(n / 10 for n in range(10, 100))
    for digits in (fine, fine[::5], (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = (float(f"{digit * 10.0**decade:.4g}") for decade in decades for digit in digits)
        ticks = [tick for tick in ticks if low_m <= tick <= high_m]
        if len(ticks) <= room:
            break
    return ticks[:: max(1, -(-len(ticks) // room))] or [float(f"{(low_m * high_m) ** 0.5:.2g}")]
