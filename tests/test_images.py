import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from metricgold.images import NotAnImage, draw_preview, read_rgb

# pytest sets the filters anew for each test, Pillow is silenced once a process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
ODD = Path(__file__).parents[2] / "shared" / "samples" / "odd_images"
ODD_IMAGES = sorted(path.relative_to(ODD).as_posix() for path in ODD.rglob("*") if path.is_file())
REFUSED = {
    "exif/jpg/corrupted.jpg": "damaged",
    "pillow/broken_data_stream.png": "unrecognized data stream",
    "pillow/decompression_bomb.gif": "bomb",
    "pillow/png_decompression_dos.png": "too large",
    "pillow/truncated_jpeg.jpg": "truncated",
    "pngsuite/xcrn0g04.png": "head is broken",
    "pngsuite/xhdn0g08.png": "head is broken",
}


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return read_rgb(data, max_pixels=1_000_000)


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_image_is_read_or_refused_with_a_reason(name):
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            read_rgb(ODD / name, max_pixels=20_000_000)
        return
    rgb = read_rgb(ODD / name, max_pixels=20_000_000)
    with Image.open(ODD / name) as image:
        turned = name.endswith(("landscape_6.jpg", "portrait_8.jpg"))
        assert rgb.shape == ((*image.size, 3) if turned else (*image.size[::-1], 3))
    assert rgb.dtype == np.uint8
    assert np.ptp(rgb) > 0


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
def test_odd_images_leave_nothing_on_the_terminal():
    program = (
        "import sys; from pathlib import Path; from metricgold.images import read_rgb\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: read_rgb(path, max_pixels=2_000_000)\n"
        "    except ValueError: pass\n"
    )
    command = [sys.executable, "-W", "default::UserWarning", "-c", program, *(str(ODD / name) for name in ODD_IMAGES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
def test_orientations_of_one_photograph_agree():
    folder = ODD / "exif/jpg/orientation"
    one, eight = (read_rgb(folder / f"portrait_{n}.jpg", max_pixels=10**6).astype(int) for n in (1, 8))
    assert one.shape == eight.shape
    assert np.abs(one - eight).mean() < np.abs(one - eight[::-1, ::-1]).mean() / 2  # two shots, one way up


CORNERS = np.array([[[250, 10, 10], [10, 250, 10], [9, 9, 9]], [[10, 10, 250], [250, 250, 10], [99, 9, 99]]], np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation):
    # How each orientation stores an upright picture, by the EXIF standard's table of rows and columns.
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.swapaxes(0, 1),
        6: np.rot90(CORNERS, 1),
        7: CORNERS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(CORNERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read(saved(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)) == CORNERS).all()


def test_transparency_lies_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]
    assert read(saved(Image.fromarray(rgba)))[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    grey = np.array([[[0, 255], [0, 0]]], np.uint8)
    assert read(saved(Image.fromarray(grey, "LA")))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 32768, 65535, 300]], np.uint16)
    assert read(saved(Image.fromarray(grey), kind))[0, :, 1].tolist() == [0, 1, 128, 255, 1]


def test_grey_of_32_bits_is_read_within_16_and_refused_beyond():
    assert read(saved(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ValueError, match="0 to 65536 do not fit 16 bits"):
        read(saved(Image.fromarray(np.array([[0, 65536]], np.int32)), "TIFF"))


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        read(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "HEIF", "GIF"])
def test_first_frame_of_each_moving_format(kind):
    from pillow_heif import register_heif_opener

    register_heif_opener()
    red, blue = Image.new("RGB", (32, 32), (250, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 250))
    rgb = read(saved(red, kind, save_all=True, append_images=[blue]))
    assert rgb.shape == (32, 32, 3)
    assert np.abs(rgb.astype(int) - [250, 0, 0]).max() < 12


def test_cmyk_and_one_bit():
    cmyk = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (255, 0, 0, 0)])
    assert np.abs(read(saved(cmyk, "TIFF"))[0, 0].astype(int) - [0, 255, 255]).max() < 3
    bits = Image.fromarray(np.array([[True, False]]))
    assert read(saved(bits))[0, :, 2].tolist() == [255, 0]


def test_too_many_pixels_are_refused_before_decoding():
    # The body is missing altogether: only its head can have been read.
    head = saved(Image.new("L", (3000, 3000)))[:60]
    with pytest.raises(ValueError, match="3000x3000 is more than 1000000 pixels"):
        read(head)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_truncated_is_refused(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    with pytest.raises(ValueError):
        read_rgb(data[: int(len(data) * share)], max_pixels=10**6, name=f"a.{kind.lower()}")


def test_jpeg_whose_data_stop_early_is_refused_but_a_grey_one_is_not():
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[:24] = np.random.default_rng(0).integers(0, 256, (24, 64, 3))
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert (read(saved(Image.fromarray(picture), "JPEG", **options))[-8:] == 128).all()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, "JPEG")
    with pytest.raises(ValueError, match="end early"):
        read(data[: len(data) // 2] + b"\xff\xd9")


def test_empty_and_foreign_files_name_themselves_and_the_reason():
    with pytest.raises(ValueError, match=r"a\.jpg: empty file") as empty:
        read_rgb(b"", max_pixels=10, name="a.jpg")
    assert not isinstance(empty.value, NotAnImage)  # its name says that there should be a picture
    for name in ("notes.txt", "table.csv", "README"):
        with pytest.raises(NotAnImage, match=f"{name}: not an image"):
            read_rgb(b"a,b,c\n1,2,3\n", max_pixels=10, name=name)
    with pytest.raises(ValueError, match=r"head is broken") as named:
        read_rgb(b"a,b,c\n", max_pixels=10, name="a.png")
    assert not isinstance(named.value, NotAnImage)


@given(data=st.binary(max_size=200), magic=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0"]))
def test_any_bytes_are_read_or_refused(data, magic):
    try:
        assert read(magic + data).dtype == np.uint8
    except ValueError as error:
        assert str(error)


def test_preview_is_red_near_and_blue_far_and_holds_a_scale():
    depth_m = np.geomspace(1, 50, 300 * 400).reshape(300, 400).astype(np.float32)
    depth_m[100:110, 100:110] = np.nan
    sheet = np.asarray(draw_preview(depth_m)).astype(int)
    near, far, nothing = sheet[2, 200], sheet[297, 200], sheet[105, 105]
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50
    assert nothing.tolist() == [128, 128, 128]
    panel = sheet[:, 400:]
    assert panel.shape[1] > 40
    assert (panel.max(axis=2) < 100).sum() > 30  # ink of ticks and figures


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2000, 3), (64, 96), (1500, 2000)])
@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0, 1e-3, 1e5])
def test_preview_of_any_depth(shape, value):
    sheet = draw_preview(np.full(shape, value, np.float32))
    assert max(sheet.size) < 1500
