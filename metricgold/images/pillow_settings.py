"""Pillow's settings are global to the process. Reading a photograph leaves them as they were."""

import ctypes
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock

from PIL import Image, ImageFile

_lock = Lock()
_limits: list[int] = []  # max_pixels of every read under way
_host: tuple[int | None, bool] = (None, False)  # MAX_IMAGE_PIXELS and LOAD_TRUNCATED_IMAGES before the first of them


@contextmanager
def settings_for_reading(max_pixels: int) -> Iterator[None]:
    """Pillow opens at least max_pixels and refuses truncated images; afterwards it does what it did before.

    Threads may read at once: the first sets, the last puts back. In between the limit is the largest of theirs, so
    each caller checks its own max_pixels.
    """
    global _host
    with _lock:
        if not _limits:
            _host = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        _limits.append(max_pixels)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(max_pixels)
            _apply()


def _apply() -> None:
    host_limit, host_leniency = _host
    Image.MAX_IMAGE_PIXELS = host_limit if host_limit is None else max([host_limit, *_limits])
    ImageFile.LOAD_TRUNCATED_IMAGES = host_leniency and not _limits


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
