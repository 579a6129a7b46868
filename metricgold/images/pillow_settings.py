"""Pillow's settings are global to the process. Reading a photograph leaves them as they were."""

import ctypes
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock

from PIL import Image, ImageFile

# Pillow's pieces of an image. The system's malloc keeps pieces of up to 32 MiB for the thread that frees them; larger
# ones go back to the system.
BLOCK_BYTES = 64 << 20

_lock = Lock()
_limits: list[int] = []  # max_pixels of every read under way
# Before the first of them: MAX_IMAGE_PIXELS, LOAD_TRUNCATED_IMAGES, the size of a piece.
_host: tuple[int | None, bool, int] = (None, False, BLOCK_BYTES)


@contextmanager
def settings_for_reading(max_pixels: int) -> Iterator[None]:
    """Pillow opens at least max_pixels, refuses truncated images and keeps no memory; afterwards it does as before.

    Threads may read at once: the first sets, the last puts back. In between the limit is the largest of theirs, so
    each caller checks its own max_pixels.
    """
    global _host
    with _lock:
        if not _limits:
            _host = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.core.get_block_size()
        _limits.append(max_pixels)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(max_pixels)
            _apply()


def _apply() -> None:
    host_limit, host_leniency, host_block_bytes = _host
    Image.MAX_IMAGE_PIXELS = host_limit if host_limit is None else max([host_limit, *_limits])
    ImageFile.LOAD_TRUNCATED_IMAGES = host_leniency and not _limits
    Image.core.set_block_size(BLOCK_BYTES if _limits else host_block_bytes)


@cache
def register_heif() -> None:
    """Add HEIC and HEIF to the formats that Pillow opens."""
    from pillow_heif import register_heif_opener

    register_heif_opener()


def quieten_image_libraries() -> None:
    """Silence Pillow and libtiff for this process; for the command line and the processes it starts.

    They write about doubtful EXIF and broken tags. What matters of it is raised as an error besides.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(AttributeError, OSError):  # a build of Pillow that hides libtiff, or has none
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
