"""Whether an image is stored as it is to be seen. A turn that one reader obeys and another ignores parts rgb and depth.

EXIF, XMP and TIFF have an orientation; HEIF and AVIF have properties that turn and mirror what is stored.
"""

from collections.abc import Iterator
from pathlib import Path

from metricgold.datasets.arrays import naming
from metricgold.images import register_heif

ORIENTATION = 0x0112  # TIFF 6.0, and EXIF 2.3
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}  # ISO/IEC 23008-12; bytes before the first box inside


def expect_upright(path: Path) -> None:
    """ValueError naming an image file that says that it is to be turned or mirrored."""
    from PIL import Image, UnidentifiedImageError

    register_heif()
    with naming(path):
        turn = heif_turn(path)
        try:
            with Image.open(path) as image:  # a TIFF turns itself when it is loaded, and forgets the tag
                orientation = image.getexif().get(ORIENTATION, 1)
        except UnidentifiedImageError:
            orientation = tiff_orientation(path)
        if orientation not in (0, 1):
            turn = f"orientation {orientation}"
        if turn:
            raise ValueError(f"its {turn} turns it; expected pixels stored upright, in rgb and depth alike")


def tiff_orientation(path: Path) -> int:
    """Of a TIFF that Pillow does not know, such as one of 64-bit floats."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages.first.tags.get(ORIENTATION)
        return int(tag.value) if tag else 1


def heif_turn(path: Path) -> str:
    """How a HEIF or AVIF file turns or mirrors what it stores; empty where it does not, and for other files."""
    with path.open("rb") as file:
        head = file.read(8)
        data = head + file.read() if head[4:] == b"ftyp" else b""
    for kind, content in _properties(data):
        if kind == b"irot" and content[0] & 3:
            return f"irot of {90 * (content[0] & 3)} degrees"
        if kind == b"imir":
            return "imir"
    return ""


def _properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes in a file's list of properties."""
    start = 0
    while start + 8 <= len(data):
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        end = start + size if size else len(data)
        content = data[start + head : end]
        if kind in _CONTAINERS:
            yield from _properties(content[_CONTAINERS[kind] :])
        elif kind in (b"irot", b"imir"):
            yield kind, content
        start = max(end, start + 8)
