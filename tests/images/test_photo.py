import io
import re
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from pillow_heif import register_heif_opener

from metricgold.images.photo import NotAnImage, Photo, as_photo, read_photo, read_rgb
from tests.support import ROOT, SHARED

# pytest sets the filters anew for each test, Pillow is silenced once a process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
ODD = SHARED / "samples" / "odd_images"
ODD_IMAGES = sorted(path.relative_to(ODD).as_posix() for path in ODD.rglob("*") if path.is_file())
REFUSED = {
    "exif/jpg/corrupted.jpg": "damaged",
    "pillow/hopper_bad_exif.jpg": "damaged",  # stripes: all of it went through a conversion of text
    "pillow/broken_data_stream.png": "unrecognized data stream",
    "pillow/decompression_bomb.gif": "bomb",
    "pillow/png_decompression_dos.png": "too large",
    "pillow/truncated_jpeg.jpg": "end early",
    "pngsuite/xcsn0g01.png": "another checksum",
    "pngsuite/xcrn0g04.png": "head is broken",
    "pngsuite/xhdn0g08.png": "head is broken",
}


register_heif_opener()  # so that these tests can write HEIC


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return read_rgb(data, max_pixels=1_000_000)


def photo_of(data: bytes, **options) -> Photo:
    return read_photo(data, **{"max_pixels": 1_000_000, **options})


def noise(height: int = 64, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


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
@pytest.mark.parametrize("name", REFUSED)
def test_odd_image_that_ends_early_is_read_in_part_if_so_wished(name):
    if not name.endswith((".jpg", "broken_data_stream.png", "xcsn0g01.png")):
        with pytest.raises(ValueError, match=REFUSED[name]):
            read_photo(ODD / name, max_pixels=20_000_000, allow_truncated=True)
        return
    photo = read_photo(ODD / name, max_pixels=20_000_000, allow_truncated=True)
    assert photo.truncated
    assert len(np.unique(photo.rgb)) > (1 if name.endswith("xcsn0g01.png") else 50)  # that one is black and white


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
def test_odd_images_leave_nothing_on_the_terminal():
    program = (
        "import sys; from pathlib import Path; from metricgold.images import quieten_image_libraries, read_rgb\n"
        "quieten_image_libraries()\n"
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


# How each orientation stores an upright picture, by the EXIF standard's table of rows and columns.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_undone_once(orientation, kind):
    upright = np.kron(CORNERS, np.ones((32, 32, 1), np.uint8))  # what HEIF turns by itself is not turned again
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = saved(stored, kind, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as opened:  # and not loaded yet
        for rgb in (read(data), as_photo(opened).rgb):
            assert rgb.shape == upright.shape
            assert np.abs(rgb.astype(int) - upright).mean() < 8


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
    for low, high in ((0, 65536), (-1, 9)):
        with pytest.raises(ValueError, match=f"{low} to {high} do not fit 16 bits"):
            read(saved(Image.fromarray(np.array([[low, high]], np.int32)), "TIFF"))


def grey_tiff(data: bytes, photometric: int, *bits: int, alpha: int | None = None, subfile: int = 0) -> bytes:
    """Two pixels in a row by the TIFF specification; of up to two samples, for those lie in the directory itself."""
    packed = sum(value << 16 * n for n, value in enumerate(bits))
    tags = {254: subfile, 256: 2, 257: 1, 258: packed, 259: 1, 262: photometric, 273: 200, 277: len(bits), 278: 1}
    tags |= {279: len(data)}
    tags |= {} if alpha is None else {338: alpha}
    counts = {258: len(bits)}
    directory = b"".join(struct.pack("<HHII", tag, 3, counts.get(tag, 1), value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory).ljust(200, b"\0") + data


def test_grey_tiff_is_scaled_by_its_own_white():
    assert read(grey_tiff(bytes([0xFF, 0xF8, 0x00]), 1, 12))[0, :, 0].tolist() == [255, 128]  # 4095 is white
    assert read(grey_tiff(struct.pack("<2H", 65535, 257), 0, 16))[0, :, 0].tolist() == [0, 254]  # 0 is white


def test_grey_with_premultiplied_alpha_lies_on_white():
    assert read(grey_tiff(bytes([50, 100, 0, 0]), 1, 8, 8, alpha=1))[0, :, 0].tolist() == [205, 255]


def test_the_preview_of_a_raw_photograph_does_not_stand_for_it():
    assert read(grey_tiff(bytes([7, 9]), 1, 8))[0, :, 0].tolist() == [7, 9]
    with pytest.raises(ValueError, match="small preview, as in raw photographs"):
        read(grey_tiff(bytes([7, 9]), 1, 8, subfile=1))


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        read(saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "HEIF", "GIF"])
def test_first_frame_of_each_moving_format(kind):
    red, blue = Image.new("RGB", (32, 32), (250, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 250))
    rgb = read(saved(red, kind, save_all=True, append_images=[blue]))
    assert rgb.shape == (32, 32, 3)
    assert np.abs(rgb.astype(int) - [250, 0, 0]).max() < 12


def test_cmyk_and_one_bit():
    cmyk = Image.merge("CMYK", [Image.new("L", (8, 8), value) for value in (255, 0, 0, 0)])
    assert np.abs(read(saved(cmyk, "TIFF"))[0, 0].astype(int) - [0, 255, 255]).max() < 3
    bits = Image.fromarray(np.array([[True, False]]))
    assert read(saved(bits))[0, :, 2].tolist() == [255, 0]


def test_cielab_colours_are_those_of_srgb():
    lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (138, 209, 198)])
    # Red is L* 54.3, a* 80.8, b* 69.9 by D50; kept as L* x 2.55, and a* and b* + 128.
    np.testing.assert_allclose(read(saved(lab, "TIFF"))[0, 0].astype(int), [255, 0, 0], atol=6)


def test_too_many_pixels_are_refused_before_decoding():
    # The body is missing altogether: only its head can have been read.
    head = saved(Image.new("L", (3000, 3000)))[:60]
    with pytest.raises(ValueError, match="3000x3000 is more than 1000000 pixels"):
        read(head)
    # A head that Pillow refuses by itself, naming a limit of its own.
    huge = (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    )
    with pytest.raises(ValueError, match="name: it is more than 1000000 pixels"):
        read_photo(huge + b"\x08" + bytes(60), max_pixels=1_000_000, name="name")


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


@pytest.mark.parametrize("inks", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_data_missing_in_the_midst_of_inks_or_of_a_first_frame(kind, inks):
    picture, grey = noise().convert("CMYK" if inks else "RGB"), Image.new("CMYK" if inks else "RGB", (64, 64), 128)
    grey.paste(picture.crop((0, 0, 64, 16)))
    several = {"save_all": True, "append_images": [picture]} if kind == "MPO" else {}
    assert read(saved(grey, kind, **several)).shape == (64, 64, 3)  # its own grey is not a loss
    data, length = saved(picture, kind, **several), len(saved(picture, "JPEG"))
    broken = data[: length // 2] + b"\xff\xd9" + data[length // 2 + 2 :]
    with pytest.raises(ValueError, match="damaged or end early"):
        read(broken)
    assert photo_of(broken, allow_truncated=True).truncated


def test_an_opened_image_that_ends_early_is_a_value_error():
    for kind in ("JPEG", "PNG", "BMP"):
        data = saved(noise(), kind)
        with (
            Image.open(io.BytesIO(data[: len(data) // 2])) as image,
            pytest.raises(ValueError, match=r"decoded: .*trunc"),
        ):
            as_photo(image)


def test_a_path_may_be_text(tmp_path):
    noise().save(tmp_path / "a.png")
    assert (read_rgb(str(tmp_path / "a.png"), max_pixels=10**6) == np.asarray(noise())).all()
    with pytest.raises(FileNotFoundError):
        read_rgb(str(tmp_path / "b.png"), max_pixels=10**6)


def test_a_reason_is_one_line():
    with pytest.raises(ValueError, match="cannot be read") as refused:
        photo_of(saved(noise(), "HEIF")[:-100], name="a.heic")
    assert "\n" not in str(refused.value)


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


# The camera


def with_camera(values: dict, size=(400, 300), kind="JPEG", orientation=1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(values)
    return saved(Image.new("RGB", size), kind, exif=exif.tobytes())


MM, FILM_MM, DENSITY_X, DENSITY_Y, DENSITY_UNIT, STORED_X, STORED_Y = (
    *(0x920A, 0xA405, 0xA20E, 0xA20F, 0xA210),
    *(0xA002, 0xA003),
)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_focal_length_by_the_diagonal_of_full_frame(kind, orientation):
    # 36 x 24 mm has a diagonal of 43.27 mm, 80 x 60 pixels one of 100.
    photo = photo_of(with_camera({FILM_MM: 26, MM: 4.2}, (80, 60), kind, orientation))
    assert photo.focal_px == pytest.approx(26 / 43.2666 * 100, rel=1e-5)
    assert photo.rgb.shape == ((80, 60, 3) if orientation > 4 else (60, 80, 3))


@pytest.mark.parametrize(("unit", "per_mm"), [(2, 25.4), (3, 10), (4, 1), (5, 0.001), (None, 25.4)])
def test_focal_length_by_the_sensor_is_reduced_as_the_image_is(unit, per_mm):
    values = {MM: 6.0, DENSITY_X: 400 * per_mm, STORED_X: 1600, STORED_Y: 1200}
    values |= {} if unit is None else {DENSITY_UNIT: unit}
    assert photo_of(with_camera(values)).focal_px == pytest.approx(6.0 * 400 / 4)
    assert photo_of(with_camera(values, (300, 400))).focal_px == pytest.approx(600)  # turned by another program
    values[DENSITY_Y] = values.pop(DENSITY_X)
    assert photo_of(with_camera(values)).focal_px == pytest.approx(600)


def test_where_one_camera_is_not_to_be_believed_the_other_is_taken():
    values = {FILM_MM: 3000, MM: 6.0, DENSITY_X: 400 * 25.4, STORED_X: 1600, STORED_Y: 1200}
    assert photo_of(with_camera(values)).focal_px == pytest.approx(600)


NOTHING = TiffImagePlugin.IFDRational(0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {MM: 4.2},
        {MM: 4.2, DENSITY_X: 4000.0},  # of how many pixels?
        {MM: 4.2, DENSITY_X: 4000.0, STORED_X: 400, DENSITY_UNIT: 9},
        {MM: NOTHING, DENSITY_X: 4000.0, STORED_X: 400},
        {MM: 4.2, DENSITY_X: NOTHING, STORED_X: 400},
        {MM: TiffImagePlugin.IFDRational(-42, 10), DENSITY_X: 4000.0, STORED_X: 400},
        {MM: "wide", DENSITY_X: "4000", STORED_X: "x"},
        {FILM_MM: 0},
        {MM: 4.0, DENSITY_X: 20 * 25.4, STORED_X: 400},  # 136 degrees along the long side
        {FILM_MM: 3000},
        {FILM_MM: "normal"},
    ],
)
def test_a_camera_that_is_not_known_or_not_to_be_believed_is_none(values):
    assert photo_of(with_camera(values)).focal_px is None


PLAUSIBLE = {MM: 5.8, DENSITY_X: 1805.3, STORED_X: 400}  # a sensor of 5.6 mm: 52 degrees
ZOOM = 0xA404


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({FILM_MM: 1}, "35 mm equivalent: a field of view of 173 degrees"),
        ({FILM_MM: 300}, "a field of view of 6.6 degrees"),  # no lens speaks for it
        ({FILM_MM: 177, MM: 3.99}, "35 mm equivalent: a sensor of 0.78"),
        ({FILM_MM: 26, MM: 99}, "35 mm equivalent: a sensor of 1.. mm"),
        ({MM: 3.82, DENSITY_X: 640.0, STORED_X: 400}, "focal plane: a field of view of 12. degrees"),
        ({FILM_MM: 1, **PLAUSIBLE, MM: 0.01}, "35 mm equivalent: a sensor of 0.346 mm; focal plane: .* of 180 degrees"),
        ({FILM_MM: 80, **PLAUSIBLE}, "contradicts itself: 925 px by 35 mm equivalent, 412 px by focal plane"),
        ({MM: 4.2}, "EXIF has no focal length"),
    ],
)
def test_a_camera_that_cannot_be_is_not_known_and_the_reason_is_told(values, reason):
    photo = photo_of(with_camera(values))
    assert photo.focal_px is None
    assert re.search(reason, photo.focal_reason)


def test_plausible_cameras_from_fisheye_to_telephoto_are_known():
    cameras = [(3.0, 15), (4.25, 26), (10.0, 10), (400.0, 400), (800.0, 800), (357.0, 2000)]
    for mm, film_mm in cameras:
        photo = photo_of(with_camera({MM: mm, FILM_MM: film_mm}))
        assert photo.focal_px == pytest.approx(film_mm / 43.2666 * 500)
        assert photo.focal_reason is None


def test_digital_zoom_enlarges_what_the_sensor_says_and_is_in_the_35_mm_equivalent():
    assert photo_of(with_camera({**PLAUSIBLE, ZOOM: 2.0})).focal_px == pytest.approx(2 * 5.8 * 1805.3 / 25.4)
    assert photo_of(with_camera({**PLAUSIBLE, ZOOM: 0.0})).focal_px == pytest.approx(5.8 * 1805.3 / 25.4)  # not used
    assert photo_of(with_camera({FILM_MM: 71, **PLAUSIBLE, ZOOM: 2.0})).focal_px == pytest.approx(71 / 43.2666 * 500)
    assert photo_of(with_camera({FILM_MM: 208, MM: 4.2, ZOOM: 8.0})).focal_px == pytest.approx(208 / 43.2666 * 500)


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {}'
SPHERE = XMP.format('GPano:ProjectionType="equirectangular"/></x:xmpmeta>').encode()
CYLINDER = XMP.format("><GPano:ProjectionType>Cylindrical</GPano:ProjectionType></x:xmpmeta>").encode()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF"])
@pytest.mark.parametrize(("xmp", "projection"), [(SPHERE, "equirectangular"), (CYLINDER, "cylindrical")])
def test_a_panorama_by_xmp_has_no_camera(kind, xmp, projection):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[FILM_MM] = 26
    said = {"pnginfo": PngInfo()} if kind == "PNG" else {"tiffinfo": {700: xmp}} if kind == "TIFF" else {"xmp": xmp}
    if kind == "PNG":
        said["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif kind != "TIFF":
        said["exif"] = exif.tobytes()
    photo = photo_of(saved(Image.new("RGB", (80, 40)), kind, **said))
    assert (photo.panorama, photo.focal_px, photo.focal_reason) == (projection, None, f"{projection} panorama")


def test_a_panorama_by_exif_has_no_camera_and_other_renderings_have_one():
    photo = photo_of(with_camera({FILM_MM: 26, MM: 4.25, 0xA401: 6}, (80, 32)))
    assert (photo.panorama, photo.focal_px) == ("stitched", None)
    for rendered in (0, 1, 3, 8):  # as it is, custom, and a telephone's HDR and portrait
        photo = photo_of(with_camera({FILM_MM: 26, MM: 4.25, 0xA401: rendered}, (80, 60)))
        assert photo.panorama is None
        assert photo.focal_px > 0


def test_a_panorama_has_no_camera():
    assert photo_of(with_camera({FILM_MM: 26}, (301, 100))).focal_px is None
    assert photo_of(with_camera({FILM_MM: 26}, (300, 100))).focal_px > 0


def test_a_crop_has_no_camera_but_what_was_scaled_or_turned_has():
    values = {FILM_MM: 26, STORED_X: 4032, STORED_Y: 3024}
    focal_px = 26 / 43.2666 * 100
    for size in ((80, 60), (60, 80), (80, 59), (79, 60)):
        assert photo_of(with_camera(values, size)).focal_px == pytest.approx(focal_px, rel=0.02)
    for size in ((60, 60), (80, 45), (60, 50)):
        assert photo_of(with_camera(values, size)).focal_px is None
    with Image.open(io.BytesIO(with_camera(values, (80, 60)))) as image:  # a crop keeps the whole's EXIF
        assert as_photo(image.convert("RGB")).focal_px == pytest.approx(focal_px, rel=1e-4)
        assert as_photo(image.crop((0, 0, 60, 60))).focal_px is None


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
def test_cameras_of_real_photographs():
    # A Nikon Coolpix at "112 mm" in 640 x 480, a Canon PowerShot S40 by its sensor; a Canon 40D whose sides were
    # rewritten to those of the thumbnail, which would make it a telescope.
    expected = {"exif/jpg/gps/DSCN0010.jpg": 112 / 43.2666 * 800, "pillow/flower.webp": 1438.4}
    for name, focal_px in expected.items():
        assert read_photo(ODD / name, max_pixels=10**6).focal_px == pytest.approx(focal_px, rel=1e-3)
    assert read_photo(ODD / "exif/jpg/Canon_40D.jpg", max_pixels=10**6).focal_px is None


# Colour profiles

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
D50 = (0.9642, 1.0, 0.8249)
ADOBE_PRIMARIES = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB_PRIMARIES = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def icc_profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2.4 by its specification (ICC.1:2001-04, 6)."""
    tags = {b"desc": text(b"desc"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(D50), **tags}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s4x", place + len(body), 0x02400000, kind, space, connection, b"acsp")
    head = head.ljust(68, b"\0") + b"".join(fixed(v) for v in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def text(name: bytes) -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(primaries: np.ndarray = ADOBE_PRIMARIES, power: float = 2.2) -> bytes:
    colours = {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True)}
    curves = {name + b"TRC": gamma(power) for name in (b"r", b"g", b"b")}
    return icc_profile(b"RGB ", b"XYZ ", b"mntr", colours | curves)


def grey_profile(power: float = 1.5) -> bytes:
    return icc_profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": gamma(power)})


def cmyk_profile() -> bytes:
    """Ink of which each kind takes away half the lightness: one table over the 16 corners, neutral in Lab."""
    ink = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4).sum(1)
    lab = np.stack([255 * np.maximum(0, 1 - ink / 2), np.full(16, 128), np.full(16, 128)], -1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = b"".join(fixed(v) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    return icc_profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})


def as_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def as_linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_wide_profile_become_those_of_srgb(kind):
    stored = np.random.default_rng(0).integers(60, 200, (16, 16, 3), np.uint8)  # colours that sRGB has
    linear = (stored / 255) ** (round(2.2 * 256) / 256) @ (np.linalg.inv(SRGB_PRIMARIES) @ ADOBE_PRIMARIES).T
    inside = ((linear > 0.001) & (linear < 1)).all(axis=-1)
    options = {"lossless": True} if kind == "WEBP" else {}
    rgb = read(saved(Image.fromarray(stored), kind, icc_profile=rgb_profile(), **options))
    assert inside.mean() > 0.5
    assert np.abs(rgb - as_srgb(linear))[inside].max() <= 2
    assert np.abs(rgb - stored.astype(int)).max() > 10


def test_grey_and_cmyk_profiles_are_applied():
    grey = np.arange(256, dtype=np.uint8)[None]
    rgb = read(saved(Image.fromarray(grey), "PNG", icc_profile=grey_profile()))
    assert np.abs(rgb[0] - as_srgb((grey[0, :, None] / 255) ** 1.5))[8:].max() <= 2
    white, black, half = (Image.new("CMYK", (8, 8), (ink * 255,) * 4) for ink in (0, 1, 0))
    half.paste((0, 0, 0, 255), (0, 0, 8, 8))
    # White stays white and the darkest ink becomes black: relative, with black point compensation.
    for image, low, high in ((white, 255, 255), (black, 0, 1), (half, 90, 125)):
        rgb = read(saved(image, "TIFF", icc_profile=cmyk_profile()))
        assert low <= rgb.min() <= rgb.max() <= high
        assert np.ptp(rgb[0, 0]) <= 1


def test_grey_pixels_under_a_profile_of_colours():
    grey = np.arange(256, dtype=np.uint8)[None]
    rgb = read(saved(Image.fromarray(grey), "PNG", icc_profile=rgb_profile(power=1.0)))
    assert np.abs(rgb[0] - as_srgb(grey[0, :, None] / 255)).max() <= 2


P3_PRIMARIES = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
COLOURS = np.random.default_rng(0).integers(60, 200, (16, 16, 3), np.uint8)  # such that sRGB has them


def adobe_rgb(**options) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: "R03", 2: b"0100"}})  # uncalibrated; DCF's option file
    return saved(Image.fromarray(COLOURS), exif=exif.tobytes(), **options)


def check_converted(data: bytes, linear: np.ndarray, primaries: np.ndarray, tolerance: int = 2) -> None:
    linear = linear @ (np.linalg.inv(SRGB_PRIMARIES) @ primaries).T
    inside = ((linear > 0.001) & (linear < 1)).all(axis=-1)
    rgb = read(data)
    assert inside.mean() > 0.5
    assert np.abs(rgb - as_srgb(linear))[inside].max() <= tolerance
    assert np.abs(rgb - COLOURS.astype(int)).max() > 10


def test_adobe_rgb_by_the_mark_of_cameras_is_converted():
    check_converted(adobe_rgb(), (COLOURS / 255) ** (563 / 256), ADOBE_PRIMARIES)
    assert (read(adobe_rgb(icc_profile=SRGB)) == COLOURS).all()  # a profile is more than a mark


def png_with_cicp(*codes: int) -> bytes:
    chunk = b"cICP" + bytes(codes)
    data = saved(Image.fromarray(COLOURS))
    return data[:33] + struct.pack(">I", len(codes)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def test_wide_colours_by_a_code_of_png_are_converted():
    check_converted(png_with_cicp(12, 13, 0, 1), as_linear(COLOURS / 255), P3_PRIMARIES)
    for codes in ((1, 13, 0, 1), (2, 2, 0, 1), (9, 16, 0, 1), (12, 13, 0)):  # sRGB, unknown, high dynamic range, broken
        assert (read(png_with_cicp(*codes)) == COLOURS).all()


def test_wide_colours_by_a_code_of_heic_are_converted():
    def heic(primaries: int) -> np.ndarray:
        plain = Image.new("RGB", (64, 64), (200, 90, 60))
        return read(saved(plain, "HEIF", color_primaries=primaries, transfer_characteristics=13)).astype(int)

    stored = heic(1)[9, 9]
    expected = as_srgb(as_linear(stored / 255) @ (np.linalg.inv(SRGB_PRIMARIES) @ P3_PRIMARIES).T)
    assert np.abs(heic(12)[9, 9] - expected).max() <= 2
    assert np.abs(heic(12)[9, 9] - stored).max() > 10


def test_srgb_by_another_spelling_changes_no_pixel():
    curve = as_linear(np.arange(1024) / 1023)
    table = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.rint(curve * 65535).astype(int))
    primaries = zip((b"rXYZ", b"gXYZ", b"bXYZ"), SRGB_PRIMARIES.T, strict=True)
    tags = {name: xyz(column * 1.003) for name, column in primaries} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), table)
    profile = icc_profile(b"RGB ", b"XYZ ", b"mntr", tags)
    stored = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (read(saved(Image.fromarray(stored), "PNG", icc_profile=profile)) == stored).all()


def test_profile_and_transparency_together():
    stored = np.array([[[120, 90, 200, 255], [120, 90, 200, 0]]], np.uint8)
    rgb = read(saved(Image.fromarray(stored), "PNG", icc_profile=rgb_profile()))
    opaque = read(saved(Image.fromarray(stored[..., :3]), "PNG", icc_profile=rgb_profile()))
    assert rgb[0].tolist() == [opaque[0, 0].tolist(), [255, 255, 255]]


@pytest.mark.parametrize(
    "profile",
    [
        SRGB,
        rgb_profile(SRGB_PRIMARIES)[:100],
        b"\0" * 500,
        b"not a profile",
        rgb_profile()[:-200],
        grey_profile(),  # of another kind of pixels
        cmyk_profile(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
)
def test_srgb_itself_and_broken_or_foreign_profiles_change_nothing(profile):
    stored = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert (read(saved(Image.fromarray(stored), "PNG", icc_profile=profile)) == stored).all()


@pytest.mark.skipif(not ODD_IMAGES, reason="shared/samples/odd_images is not there")
def test_a_telephone_s_wide_colours_are_converted():
    path = ODD / "wild/depthpro_example.jpg"  # Display P3
    with Image.open(path) as image:
        as_stored = np.asarray(image.convert("RGB")).astype(int)
    change = np.abs(read_rgb(path, max_pixels=10**7) - as_stored)
    assert 0.5 < change.mean() < 10


# Sizes and ends


@pytest.mark.parametrize(("size", "told"), [((801, 100), "8.01:1"), ((100, 801), "8.01:1"), ((999, 1), "999:1")])
def test_a_strip_is_refused_before_decoding(size, told):
    data = saved(Image.new("L", size))
    with pytest.raises(ValueError, match=rf"a\.png: .*{size[0]}x{size[1]} is a strip of {told}, longer than 8:1"):
        photo_of(data[:60], max_aspect=8, name="a.png")  # the body is missing altogether
    assert photo_of(data, max_aspect=1000).rgb.shape == (*size[::-1], 3)
    assert photo_of(data).rgb.shape == (*size[::-1], 3)


@pytest.mark.parametrize("size", [(20_000, 2_500), (2_500, 20_000), (1, 1), (1, 8)])
def test_panoramas_and_single_pixels_are_read(size):
    rgb = photo_of(saved(Image.new("L", size, 77), "JPEG"), max_pixels=100_000_000, max_aspect=8.0).rgb
    assert rgb.shape == (*size[::-1], 3)
    assert np.abs(rgb[[0, -1]].astype(int) - 77).max() <= 1


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
def test_a_jpeg_that_ends_early_is_read_as_far_as_it_goes_if_so_wished(options):
    data = saved(noise(), "JPEG", **options)
    whole = photo_of(data, allow_truncated=True)
    part = photo_of(data[: len(data) // 2], allow_truncated=True)
    assert (whole.truncated, part.truncated) == (False, True)
    assert (part.rgb[:12] == whole.rgb[:12]).all()
    assert (part.rgb[-8:] == 128).all()
    with pytest.raises(ValueError, match="end early"):
        photo_of(data[: len(data) // 2])


def test_a_progressive_jpeg_that_ends_early_is_coarse_all_over():
    smooth = noise(4, 4).resize((64, 64), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", progressive=True)
    part = photo_of(data[: len(data) * 2 // 3], allow_truncated=True)
    assert part.truncated
    assert np.abs(part.rgb.astype(int) - np.asarray(smooth)).mean() < 20


def test_a_png_that_ends_early_is_read_as_far_as_it_goes_if_so_wished():
    data = saved(noise(), "PNG")
    part = photo_of(data[: len(data) // 2], allow_truncated=True)
    assert part.truncated
    assert (part.rgb[:28] == np.asarray(noise())[:28]).all()
    assert (part.rgb[-20:] == 0).all()
    with pytest.raises(ValueError, match="truncated"):
        photo_of(data[: len(data) // 2])


def test_a_png_whose_last_rows_are_damaged_is_refused():
    data = saved(noise(16, 16).resize((64, 64), Image.Resampling.BICUBIC).convert("P"))
    end = data.index(b"IEND") - 12  # before the checksum of the pixels' chunk and that of their stream
    changed = 0
    for place in range(end - 40, end):
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with Image.open(io.BytesIO(damaged)) as image, suppress(OSError):
            changed += (np.asarray(image.convert("RGB")) != read(data)).any()  # Pillow says nothing
        with pytest.raises(ValueError, match=r"another checksum|broken"):
            read(damaged)
        assert photo_of(damaged, allow_truncated=True).truncated
    assert changed


def test_where_there_is_nothing_to_take_it_is_refused_all_the_same():
    for kind, share in [("JPEG", 0.12), ("PNG", 0.005), ("TIFF", 0.5), ("WEBP", 0.5), ("BMP", 0.5)]:
        data = saved(noise(), kind)
        with pytest.raises(ValueError):
            photo_of(data[: int(len(data) * share)], allow_truncated=True, name=f"a.{kind.lower()}")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_others_wish_of_pillow_changes_nothing(kind, monkeypatch):
    data = saved(noise(), kind)
    half = data[: len(data) // 2]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match=r"truncated|end early"):
        photo_of(half)
    assert photo_of(half, allow_truncated=True).truncated
    with Image.open(io.BytesIO(half)) as image:
        image.load()  # as they wish


def test_threads_of_different_wishes_do_not_disturb_each_other():
    cut = {kind: saved(noise(), kind) for kind in ("JPEG", "PNG")}

    def try_one(number: int) -> bool:
        data = cut["PNG" if number % 3 else "JPEG"]
        try:
            photo_of(data[: len(data) // 2], allow_truncated=number % 2 == 0)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(try_one, range(400))) == [number % 2 == 0 for number in range(400)]


# The README's table "Odd images": each kind, files of that kind, and what becomes of them: pixels, or a reason.


def grey_ramp(dtype, *values) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def frames(kind: str) -> bytes:
    red, blue = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    return saved(red, kind, save_all=True, append_images=[blue])


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(noise(3, 5), exif=exif)


RED, GREEN, WHITE = [250, 0, 0], [0, 200, 0], [255, 255, 255]
HALF_JPEG, HALF_PNG, HALF_TIFF = (
    data[: len(data) // 2] for data in (saved(noise(), kind) for kind in ("JPEG", "PNG", "TIFF"))
)
ODD_KINDS = {
    "turned or mirrored by EXIF": [(lambda: turned(6), {}, np.rot90(noise(3, 5), -1)), (lambda: turned(99), {}, None)],
    "colour profile (RGB, grey, CMYK)": [
        (lambda: saved(Image.new("RGB", (4, 4), (128,) * 3), icc_profile=rgb_profile(power=1.0)), {}, [188] * 3),
        (lambda: saved(Image.new("RGB", (4, 4), (128,) * 3), icc_profile=b"broken"), {}, [128] * 3),
    ],
    "wide colours without a profile": [(adobe_rgb, {}, None), (lambda: png_with_cicp(9, 16, 0, 1), {}, COLOURS)],
    "transparency": [(lambda: saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0))), {}, WHITE)],
    "palette, grey, 1 bit, CMYK": [
        (lambda: saved(Image.new("RGB", (4, 4), tuple(RED)).convert("P")), {}, None),
        (lambda: saved(Image.new("1", (4, 4), 1)), {}, WHITE),
        (lambda: saved(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "TIFF"), {}, WHITE),
    ],
    "16 bits a channel": [(lambda: saved(grey_ramp(np.uint16, 0, 32768, 65535)), {}, [[[0] * 3, [128] * 3, WHITE]])],
    "float, or integers beyond 16 bits": [
        (lambda: saved(grey_ramp(np.float32, 0.5), "TIFF"), {}, "floating-point"),
        (lambda: saved(grey_ramp(np.int32, 70000), "TIFF"), {}, "do not fit 16 bits"),
    ],
    "animation, several pages, MPO": [(lambda k=k: frames(k), {}, RED) for k in ("GIF", "PNG", "WEBP", "TIFF", "MPO")],
    "HEIC, AVIF, JPEG 2000, QOI, PNM": [
        (lambda k=k: saved(Image.new("RGB", (32, 32), tuple(GREEN)), k), {}, GREEN)
        for k in ("HEIF", "AVIF", "JPEG2000", "QOI", "PPM")
    ],
    "ends early": [
        *((lambda d=d: d, {}, "truncated|end early|broken") for d in (HALF_JPEG, HALF_PNG, HALF_TIFF)),
        *((lambda d=d: d, {"allow_truncated": True}, None) for d in (HALF_JPEG, HALF_PNG)),
        (lambda: HALF_TIFF, {"allow_truncated": True}, "cannot be read"),
    ],
    "JPEG or PNG that lost data in its midst": [
        (lambda: HALF_JPEG + b"\xff\xd9", {}, "damaged"),
        (lambda: HALF_JPEG + b"\xff\xd9", {"allow_truncated": True}, None),
    ],
    "JPEG with junk in its head, or with a trailer in place of its end mark": [
        (lambda: b"\xff\xd8\xff\xfe\0\2junk" + saved(noise(), "JPEG")[2:], {}, None),
        (lambda: saved(noise(), "JPEG")[:-2] + b"SEFH\0\1SEFT", {}, None),
    ],
    "more pixels than `predict.max_pixels` (100 million)": [
        (lambda: saved(Image.new("1", (1001, 1000))), {}, "more than 1000000 pixels, the limit max_pixels")
    ],
    "longer than `predict.max_aspect`": [(lambda: saved(Image.new("1", (81, 10))), {"max_aspect": 8}, "8.1:1")],
    "a single pixel": [(lambda: saved(Image.new("RGB", (1, 1), tuple(GREEN))), {"max_aspect": 8}, GREEN)],
    "another format than its name says": [(lambda: saved(noise(4, 4)), {"name": "a.jpg"}, np.asarray(noise(4, 4)))],
    "empty, or an image by name alone": [
        (lambda: b"", {"name": "a.jpg"}, "a.jpg: empty"),
        (lambda: b"<html>", {"name": "a.jpg"}, "a.jpg: not an image"),
    ],
    "no image by bytes or name": [(lambda: b"a,b\n", {"name": "a.csv"}, NotAnImage)],
}


@pytest.mark.parametrize("kind", ODD_KINDS)
def test_odd_kinds_become_what_the_table_says(kind):
    for make, options, expected in ODD_KINDS[kind]:
        if isinstance(expected, str) or expected is NotAnImage:
            with pytest.raises(ValueError, match=expected if isinstance(expected, str) else "not an image") as refused:
                photo_of(make(), **options)
            assert isinstance(refused.value, NotAnImage) == (expected is NotAnImage)
            continue
        rgb = photo_of(make(), **options).rgb
        assert (rgb.dtype, rgb.shape[2:]) == (np.uint8, (3,))
        assert expected is None or np.abs(rgb - np.asarray(expected, int)).max() <= 12


def test_the_table_of_the_manual_lists_these_kinds():
    page = (ROOT / "docs/prediction-and-batch-jobs.md").read_text()
    section = re.search(r"^#+ Odd images\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    assert section is not None
    rows = re.findall(r"^\| (.+?) \|", section[1], re.M)
    assert rows[1:] == list(ODD_KINDS)
