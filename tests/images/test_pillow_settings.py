"""Reading photographs leaves the host's Pillow, warnings, logging and libtiff exactly as they were."""

import ctypes
import io
import logging
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from metricgold.images.photo import as_photo, read_photo, read_rgb


def saved(kind: str, height: int = 40, width: int = 60) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PNG, JPEG, TIFF = saved("PNG"), saved("JPEG"), saved("TIFF")
LIMIT = 10_000
GOOD = {"png": PNG, "jpeg": JPEG, "tiff": TIFF}
BAD = {
    "cut png": PNG[: len(PNG) // 2],
    "cut jpeg": JPEG[: len(JPEG) // 2],
    "cut tiff": TIFF[: len(TIFF) // 2],
    "broken png": PNG[:60] + bytes(40) + PNG[100:],
    "a broken head": PNG[:8] + b"nothing at all",
    "text": b"text",
    "empty": b"",
    "oversized": saved("PNG", 120, 100),
}


def libtiff_handler() -> int | None:
    """Address of the function that libtiff gives its errors to."""
    handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    address = handler(None)
    handler(address)
    return address


def state() -> list[Any]:
    return [
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
        logging.getLogger("PIL").level,
        logging.getLogger("PIL").handlers[:],
        logging.root.level,
        libtiff_handler(),
    ]


@pytest.fixture(params=[(89_478_485, False), (None, True), (100, True), (10**9, False)], ids=str)
def host(request, monkeypatch):
    """Pillow as a notebook or a server may have set it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", request.param[0])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param[1])
    return state()


@pytest.mark.parametrize("name", [*GOOD, *BAD])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_one_image_leaves_all_as_it_was(name, host):
    host = state()  # the mark above is part of it
    for options in ({}, {"allow_truncated": True}, {"max_pixels": 10**10}):
        options = {"max_pixels": LIMIT, **options}
        try:
            read_photo((GOOD | BAD)[name], **options)
        except ValueError:
            assert name in BAD
        assert state() == host
    if name in GOOD:
        read_rgb(GOOD[name], max_pixels=LIMIT)
        if host[0] != 100:
            with Image.open(io.BytesIO(GOOD[name])) as image:
                as_photo(image)
        assert state() == host


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_missing_file_leaves_all_as_it_was(tmp_path, host):
    host = state()
    with pytest.raises(FileNotFoundError):
        read_rgb(tmp_path / "missing.png", max_pixels=LIMIT)
    assert state() == host


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_eight_threads_with_limits_of_their_own_leave_all_as_it_was(host):
    host = state()
    files = list((GOOD | BAD).items())

    def read(number: int) -> None:
        name, data = files[number % len(files)]
        limit = LIMIT if number % 2 else 10**8
        is_readable = name in GOOD or (name == "oversized" and limit > LIMIT)
        try:
            read_photo(data, max_pixels=limit)
        except ValueError:
            assert not is_readable, name
        else:
            assert is_readable, name

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(600)))
    assert state() == host


def test_the_command_line_silences_pillow_and_libtiff(tmp_path):
    (tmp_path / "cut.tiff").write_bytes(BAD["cut tiff"])
    program = (
        "import warnings, sys; from click.testing import CliRunner; from metricgold import read_rgb\n"
        "from metricgold.cli import main\n"
        "before = list(warnings.filters)\n"
        "CliRunner().invoke(main, ['manifest', '--help'])\n"
        "assert warnings.filters != before\n"
        "try: read_rgb(sys.argv[1], max_pixels=10**6)\n"
        "except ValueError: pass\n"
    )
    command = [sys.executable, "-W", "default::UserWarning", "-c", program, str(tmp_path / "cut.tiff")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
