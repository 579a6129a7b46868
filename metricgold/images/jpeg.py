"""JPEG, decoded strictly: lost data are an error, while bytes that belong to no pixel are passed over.

libjpeg fills what is missing with grey, continues behind damage with wrong pixels, and only warns. Pillow drops the
warning; simplejpeg, the same decoder, raises it.
"""

import re

import numpy as np
from PIL import Image

_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # by Pillow's modes


class UnknownProcess(ValueError):
    """A kind of JPEG that simplejpeg does not decode, such as a rare sampling of colours."""


def decode_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    """The first picture of `data`, whose head Pillow has opened as `image`; what that head says goes with it.

    Passed over are junk in the head, zeros before the end mark, and whatever lies behind the pixels of a file
    without an end mark. Raises ValueError with libjpeg's reason where data are missing or damaged.
    """
    try:
        try:
            pixels = _decode(image, data)
        except ValueError:  # a warning, which may be about bytes that belong to no pixel
            pixels = _decode_own_bytes(image, data)
    except UnknownProcess:
        image.load()  # Pillow's own decoder knows it, or says what it does not know
        return image
    except ValueError as error:
        raise ValueError(f"its data are damaged or end early: {error}") from error
    if image.mode == "CMYK":  # stored inverted, as Adobe does
        decoded = Image.frombytes("CMYK", image.size, np.invert(pixels).tobytes())
    else:
        decoded = Image.fromarray(pixels.squeeze(2) if image.mode == "L" else pixels)
    decoded.info = image.info
    return decoded


def _decode(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 [H, W, channels]; ValueError for the first warning, and where the size is not the one of `image`."""
    import simplejpeg  # with the first file: a registered model that is given arrays does without

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError as error:
        raise UnknownProcess(str(error)) from error
    if (width, height) != image.size:
        raise ValueError(f"its head names {image.width}x{image.height} and {width}x{height}")
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, _COLOURS[image.mode])
    return pixels


_END = b"\xff\xd9"
_BEHIND_PIXELS = re.compile(r"(\d+) extraneous bytes before marker 0xd9$")
_FLAT, _PADDING = bytes(8), 16  # a lost sector is longer than the one, what cameras append shorter than the other
_STRAY = 4  # bytes that encoders leave behind the last pixel; of 143 lost places one left as few


def _decode_own_bytes(image: Image.Image, data: bytes) -> np.ndarray:
    """Decode without the bytes that belong to no pixel.

    Bytes between the last pixel and an end mark tell of damage before, which made the decoder lose its place, unless
    they are very few (libjpeg does not count those it has read ahead), or some zeros. Where the end mark is missing,
    they are a trailer. A lost sector, full of zeros, may reach beyond the last pixel in both cases.
    """
    segments, has_end = _segments_of_first_picture(data)
    if not has_end and image.info.get("progressive"):
        raise ValueError("no end mark, so scans may be missing")
    try:
        return _decode(image, segments + _END)
    except ValueError as error:
        behind = _BEHIND_PIXELS.search(str(error))
        if behind is None:
            raise
        pixels, rest = segments[: -int(behind[1])], segments[-int(behind[1]) :]
        is_harmless = not has_end or len(rest) <= _STRAY or (len(rest) <= _PADDING and not any(rest))
        if pixels.endswith(_FLAT) or not is_harmless:
            raise
    return _decode(image, pixels + _END)


_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd9-\xfe])")  # 0 stands for a byte of data, D0 to D8 have no content
_AFTER_SCAN = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_BETWEEN_SCANS = b"\xc4\xcc\xda\xdb\xdc\xdd"  # tables, scans, number of lines, restarts


def _segments_of_first_picture(data: bytes) -> tuple[bytes, bool]:
    """The segments of a JPEG file without junk between them, up to its end mark; and whether there is one."""
    segments, place, marks = [data[:2]], 2, _MARKER
    while found := marks.search(data, place):
        mark, start = found[1], found.end()
        if mark == _END[1:] or (marks is _AFTER_SCAN and mark not in _BETWEEN_SCANS):
            return b"".join(segments), mark == _END[1:]
        place = start + int.from_bytes(data[start : start + 2])  # a length counts itself
        if mark == b"\xda":
            marks = _AFTER_SCAN
            following = marks.search(data, place)
            place = following.start() if following else len(data)
        segments.append(b"\xff" + mark + data[start:place])
    return b"".join(segments), False
