"""Photographs in, pictures of depth out."""

import io
import warnings
from functools import cache
from math import floor, log, log10
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
_ORIENTATION_TAG = 0x0112
_GREY_16BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class NotAnImage(ValueError):
    """Neither the bytes nor the name speak of an image; there was nothing to break."""


def read_rgb(source: bytes | Path, *, max_pixels: int, name: str = "") -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3], upright.

    The rules: the EXIF orientation is applied (unreadable EXIF: as it lies); the first frame of an animation or
    a multi-picture file is taken; transparency lies on white; CMYK, palette, grey and 1-bit become RGB; 16-bit
    grey is divided by 257, 16-bit colour loses its low byte; colour profiles are not applied. `name` stands
    for the file in messages where `source` is bytes.

    Raises ValueError with the reason for what cannot be read: empty, truncated, broken, of a format that is not
    read here, float or beyond 16 bits, more than `max_pixels` (found before decoding). It is a NotAnImage where
    neither bytes nor name claim an image. Raises OSError where the file itself cannot be opened.
    """
    _prepare_pillow()
    _raise_pillow_limit(max_pixels)
    name = name or (str(source) if isinstance(source, Path) else "")
    data = source.read_bytes() if isinstance(source, Path) else source
    said = f"{name}: " if name else ""
    if not data:
        raise _unreadable(name, data)(f"{said}empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image.size, max_pixels)
            image.load()
            _check_jpeg_whole(image, data)
            return np.array(_upright(_as_rgb(image), image))
    except Image.UnidentifiedImageError as error:
        # Pillow's own text is the address of a buffer.
        raise _unreadable(name, data)(f"{said}not an image of a known format, or its head is broken") from error
    except Exception as error:
        # Decoders raise almost anything on broken bytes: struct.error, SyntaxError, IndexError, bomb errors.
        raise ValueError(f"{said}cannot be read as an image: {error or type(error).__name__}") from error


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


def _raise_pillow_limit(max_pixels: int) -> None:
    # Pillow's own guard is one global; it must not refuse what this call allows. Our check is exact.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} is more than {max_pixels} pixels")


def _check_jpeg_whole(image: Image.Image, data: bytes) -> None:
    # libjpeg fills what is missing with mid-grey and tells nobody. A picture may end in that grey by itself: then
    # further data after its last block change nothing.
    width, height = image.size
    corner = image.crop((max(0, width - 8), max(0, height - 8), width, height))
    if image.format != "JPEG" or (np.asarray(corner) != 128).any():
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


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _GREY_16BIT:
        return _from_grey_16bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it as 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_grey_16bit(image: Image.Image) -> Image.Image:
    # Pillow's own convert("RGB") would clip at 255.
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values {grey.min()} to {grey.max()} do not fit 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken EXIF raises as freely as broken pixels do, and says nothing about them
        orientation = None
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


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
