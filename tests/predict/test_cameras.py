"""Cameras that people state: by options, in cameras.csv, by COLMAP's files; read, found, used and written down."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from metricgold.images import read_depth
from metricgold.params.sections import Predict
from metricgold.predict.cameras import (
    Cameras,
    StatedCamera,
    StatedLine,
    parse_colmap,
    parse_csv,
    read_intrinsics,
    stated_for_all,
)
from metricgold.predict.outputs import SUFFIXES
from metricgold.predict.stage import predict_all
from metricgold.storage import Folder, S3Prefix, open_bucket
from tests.support.pipes import PlainPipe
from tests.support.s3 import s3_bucket, s3_environment  # noqa: F401
from tests.support.workers import sent

PARAMS = Predict(num_inference_steps=1, ensemble_size=2, gallery=5)
SIZE = (24, 32)  # height, width
NAMES = ["a.png", "b.png", "sub/a.png"]


class LensPipe(PlainPipe):
    """Depth is the focal length in units of 100 pixels; of an image without a known camera 1 m."""

    needs_camera = True

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def __call__(self, image, *, intrinsics, **options):
        self.images += len(image)
        predictions = super().__call__(image, **options)
        for prediction, camera in zip(predictions, intrinsics, strict=True):
            prediction.planar_depth_m[:] = 1 if camera is None else camera[0, 0] / 100
        return predictions


def png(exif_35mm: int | None = None) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    if exif_35mm:
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: exif_35mm}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.fixture(params=["folder", "s3"])
def source(request, tmp_path) -> Folder | S3Prefix:
    place = tmp_path / "in" if request.param == "folder" else f"s3://{request.getfixturevalue('s3_bucket')}/in"
    source = open_bucket(str(place), create=True)
    for name in NAMES:
        source.write(name, png())
    return source


def run(source, output: Path, pipe: PlainPipe | None = None, kinds=PARAMS.outputs, **options) -> dict[str, dict]:
    """The rows of the receipt by input."""
    place, params = str(source), PARAMS.model_copy(update={"outputs": kinds})
    predict_all(params, Path("none"), place, str(output), model_name="m", pipe=pipe or LensPipe(), **options)
    rows = map(json.loads, (output / "receipt.jsonl").read_text().splitlines())
    return {row["input"]: row for row in rows}


# What can be stated


def test_ways_to_state_a_camera_agree():
    height, width = SIZE
    same = [
        StatedCamera(focal_px=40),
        StatedCamera(fx=40),
        StatedCamera(fx=80, fy=80, cx=32, cy=24, width=64, height=48),
        StatedCamera(fov_deg=float(np.degrees(2 * np.arctan(16 / 40)))),
        StatedCamera(focal_35mm=40 * np.hypot(36, 24) / np.hypot(*SIZE)),
    ]
    for camera in same:
        np.testing.assert_allclose(camera.intrinsics(height, width), [[40, 0, 16], [0, 40, 12], [0, 0, 1]])
    np.testing.assert_allclose(
        StatedCamera(fx=40, fy=50, cx=10, cy=20).intrinsics(height, width), [[40, 0, 10], [0, 50, 20], [0, 0, 1]]
    )
    with pytest.raises(ValueError, match="64 x 32 pixels, the image has 32 x 24"):
        StatedCamera(fx=80, width=64, height=32).intrinsics(height, width)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "got none"),
        ({"fx": 1, "fov_deg": 60}, "fx and fov_deg"),
        ({"focal_px": 3, "cx": 1, "cy": 1}, "go with fx"),
        ({"fx": 3, "cx": 1}, "together"),
        ({"fx": 3, "width": 1}, "together"),
        ({"fx": -3}, "greater than 0"),
        ({"fx": float("nan")}, "finite|greater"),
        ({"fov_deg": 180}, "less than 180"),
        ({"f": 3}, "Extra"),
    ],
)
def test_what_is_no_camera(values, fault):
    with pytest.raises(ValueError, match=fault):
        StatedCamera(**values)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("3", "expected an object"),
        ("[[1, 2], [3, 4]]", "0, 0, 1"),
        ("[[500, 1, 10], [0, 500, 10], [0, 0, 1]]", "fx, 0, cx"),
        ('{"fx": "wide"}', "fx: .*got 'wide'"),
        ("{", "JSON"),
    ],
)
def test_faults_of_a_file_of_intrinsics(tmp_path, content, fault):
    path = tmp_path / "camera.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=fault) as error:
        read_intrinsics(path)
    assert str(path) in str(error.value)
    path.write_text("[[40, 0, 16], [0, 40, 12], [0, 0, 1]]")
    assert read_intrinsics(path) == StatedCamera(fx=40, fy=40, cx=16, cy=12)


# cameras.csv


def test_the_first_line_that_matches_counts():
    cameras = parse_csv(
        b"\xef\xbb\xbfglob, focal_px,fov_deg\r\nsub/a.png,10,\r\n*.jpg,,60\r\na.png,20,\r\n**,30,\r\nb.png,40,\r\n"
    )
    found = {key: cameras.of_image(key) for key in ("sub/a.png", "other/a.png", "a.png", "x/y.jpg", "b.png")}
    focal = {key: (line.camera.focal_px or line.camera.fov_deg, line.place) for key, line in found.items()}
    assert focal == {
        "sub/a.png": (10, "cameras.csv line 2"),
        "other/a.png": (20, "cameras.csv line 4"),
        "a.png": (20, "cameras.csv line 4"),
        "x/y.jpg": (60, "cameras.csv line 3"),
        "b.png": (30, "cameras.csv line 5"),
    }
    assert parse_csv(b"glob,fx\na.png,3\n").of_image("b.png") is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "line 1: the column glob is missing"),
        (b"glob,fx\n", "no line"),
        (b"name,fx\na,3\n", "line 1: unknown column 'name'"),
        (b"glob,fx\n,3\n", "line 2: glob is empty"),
        (b"glob,fx\na,3,4\n", "line 2: more cells"),
        (b"glob,fx\na,3\nb,wide\n", "line 3: fx: .*'wide'"),
        (b"glob,fx\na,nan\n", "line 2: fx"),
        (b"glob,fx\na,-3\n", "line 2: fx"),
        (b"glob,fx,fov_deg\na,3,60\n", "line 2: expected one of"),
        (b"glob,fx\n\xff,3\n", "UTF-8"),
        (b"glob,fx,fx\na,3,4\n", "line 1: two columns fx"),
        (b"glob,fx\n" + b"a" * 200_000 + b",3\n", "line 2: field larger"),
    ],
)
def test_faults_of_a_table_of_cameras(text, fault):
    with pytest.raises(ValueError, match=fault) as error:
        parse_csv(text)
    assert str(error.value).startswith("cameras.csv")


@pytest.mark.parametrize("glob", [b"x/%06d.png", b"x/%06d*", b"%06d.*"])
def test_a_line_an_image_is_found_at_once(glob):
    cameras = parse_csv(b"glob,fx\n" + b"".join(glob % n + b",%d\n" % (n + 1) for n in range(10_000)))
    started = time.process_time()
    assert all(cameras.of_image(f"x/{n % 20_000:06d}.png") or n % 20_000 >= 10_000 for n in range(100_000))
    assert time.process_time() - started < 10  # a look at every line for every image would take minutes


# COLMAP

COLMAP_CAMERAS = b"""# Camera list with one line of data per camera:
1 PINHOLE 64 48 80 90 32 24
2 OPENCV 32 24 40 40 16 12 0.1 0.01 0 0
"""


def test_cameras_of_colmap():
    images = b"# comment\n1 1 0 0 0 0 0 0 2 my image.png\n\n2 1 0 0 0 0 0 0 1 sub/b.png\n1 2 3 4 5 6\n"
    cameras = parse_colmap(COLMAP_CAMERAS, images)
    _, camera, place = cameras.of_image("sub/b.png")
    assert (camera, place) == (StatedCamera(fx=80, fy=90, cx=32, cy=24, width=64, height=48), "cameras.txt line 2")
    assert cameras.of_image("my image.png").camera.fx == 40
    assert cameras.of_image("other.png") is None
    one = parse_colmap(b"7 SIMPLE_RADIAL 64 48 80 32 24 0.1\n", None)
    assert one.of_image("any/thing.png").camera == StatedCamera(fx=80, cx=32, cy=24, width=64, height=48)


@pytest.mark.parametrize(
    ("cameras", "images", "fault"),
    [
        (COLMAP_CAMERAS, None, "2 cameras, and no images.txt"),
        (b"1 OPENCV_FISHEYE 64 48 80 80 32 24 0 0 0 0\n", None, "cameras.txt line 1"),
        (b"hello\n", None, "cameras.txt line 1"),
        (b"1 PINHOLE 64 48 80\n", None, "cameras.txt line 1"),
        (COLMAP_CAMERAS, b"1 1 0 0 0 0 0 0 9 a.png\n\n", "images.txt line 1: expected an image"),
        (COLMAP_CAMERAS, b"1 1 0 0 0 0 0 0 2 a.png\n2 1 0 0 0 0 0 0 2 b.png\n", "images.txt line 2: expected x, y"),
        (b"1 SIMPLE_RADIAL 64 48 80 32 24\n", None, "cameras.txt line 1"),
    ],
)
def test_faults_of_colmaps_files(cameras, images, fault):
    with pytest.raises(ValueError, match=fault):
        parse_colmap(cameras, images)


def test_names_of_colmap_are_complete_keys_and_no_globs():
    images = b"# comment\n\n1 1 0 0 0 0 0 0 2 a [1].png\n\n2 1 0 0 0 0 0 0 1 a.png\n"
    cameras = parse_colmap(COLMAP_CAMERAS, images)
    assert cameras.of_image("a [1].png").camera.fx == 40
    assert cameras.of_image("a.png").camera.fx == 80
    assert cameras.of_image("other/a.png") is None


def test_distortion_that_is_not_undone_is_a_warning(caplog):
    parse_colmap(b"1 SIMPLE_RADIAL 64 48 80 32 24 0.0\n", None)
    assert not caplog.messages
    parse_colmap(b"1 SIMPLE_RADIAL 64 48 80 32 24 0.1\n", None)
    assert caplog.messages == ["cameras.txt: distortion is not undone, of 1: undistort images of strong lenses"]


# In a job


@pytest.mark.parametrize("option", [{"focal_px": -3.0}, {"fov_deg": 200.0}, {"focal_35mm": float("nan")}])
def test_an_option_that_is_no_camera_is_one_line(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^the camera of all images: {name}: .*, got .*$") as error:
        stated_for_all(**option)
    assert "\n" not in str(error.value)


def test_a_line_that_matches_no_image_is_a_warning(source, tmp_path, caplog):
    source.write("cameras.csv", b"glob,focal_px\nb.png,250\nB.PNG,250\nright/**,250\n")
    run(source, tmp_path / "out")
    assert [text for text in caplog.messages if "cameras.csv" in text] == [
        "no image has the camera of cameras.csv line 3 (and of 1 more)"
    ]


def test_argument_and_csv_of_one_camera_give_equal_files(source, tmp_path):
    by_argument = run(source, tmp_path / "argument", cameras=stated_for_all(focal_px=250))
    source.write("cameras.csv", b"glob,focal_px\n**,250\n")
    by_csv = run(source, tmp_path / "csv")
    assert by_csv.keys() == by_argument.keys() == set(NAMES)  # the table is no image, and no row
    for name in NAMES:
        assert by_csv[name]["sha256"] == by_argument[name]["sha256"]
        for suffix in ("depth.png", "uncertainty.png", "preview.jpg"):
            files = [(tmp_path / way / f"{name}.{suffix}").read_bytes() for way in ("argument", "csv")]
            assert files[0] == files[1]
    row, side_car = by_csv["a.png"], json.loads((tmp_path / "csv" / "a.png.json").read_text())
    said = {"focal_px": 250.0, "focal_from": "csv", "focal_place": "cameras.csv line 2", "scale_assumed": False}
    assert said.items() <= row.items() and said.items() <= side_car.items()
    assert by_argument["a.png"]["focal_from"] == "argument"


def test_exif_argument_and_csv_of_one_camera_give_equal_bytes(tmp_path):
    source, kinds = open_bucket(str(tmp_path / "in"), create=True), list(SUFFIXES)
    source.write("a.png", png(exif_35mm=40))
    rows = {"exif": run(source, tmp_path / "exif", kinds=kinds)["a.png"]}
    camera = {"focal_35mm": 40.0}
    rows["argument"] = run(source, tmp_path / "argument", kinds=kinds, cameras=stated_for_all(**camera))["a.png"]
    source.write("cameras.csv", f"glob,fx,width,height\n*,{2 * rows['exif']['focal_px']!r},64,48\n".encode())
    rows["csv"] = run(source, tmp_path / "csv", kinds=kinds)["a.png"]
    assert {way: row["focal_from"] for way, row in rows.items()} == {way: way for way in rows}
    assert len({row["identity"] for row in rows.values()}) == 3  # a rerun tells them apart
    for kind in set(kinds) - {"json"}:
        assert len({(tmp_path / way / f"a.png{SUFFIXES[kind]}").read_bytes() for way in rows}) == 1, kind
    attributes = read_depth(tmp_path / "csv" / "a.png.depth.png").attributes
    assert float(attributes["focal_px"]) == rows["exif"]["focal_px"] and attributes["scale_assumed"] == "false"


def test_a_rerun_predicts_the_images_whose_camera_changed(source, tmp_path):
    def predicted(table: bytes | None, **options) -> int:
        if table:
            source.write("cameras.csv", table)
        pipe = LensPipe()
        run(source, tmp_path / "out", pipe, **options)
        return pipe.images

    assert predicted(None) == 3
    assert predicted(b"glob,focal_px\nsub/**,250\n") == 1
    assert predicted(b"glob,focal_px\nb.png,99\nsub/**,250\n") == 1
    assert predicted(b"glob,fov_deg,focal_px\nb.png,,99\nsub/**,,250\n") == 0  # the same cameras
    assert predicted(None, cameras=stated_for_all(focal_px=250)) == 2


def test_an_assumed_scale_is_marked(source, tmp_path):
    source.write("cameras.csv", b"glob,focal_px\nb.png,250\n")
    rows = run(source, tmp_path / "out")
    assert {name: row["scale_assumed"] for name, row in rows.items()} == {
        "a.png": True,
        "b.png": False,
        "sub/a.png": True,
    }
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("assumed: no camera is known") == 2


def test_an_image_of_other_proportions_is_a_row_that_says_so(source, tmp_path):
    source.write("cameras.csv", b"glob,fx,width,height\nsub/a.png,100,64,48\na.png,100,64,64\n")
    rows = run(source, tmp_path / "out")
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"a.png"}
    assert "cameras.csv line 3" in rows["a.png"]["reason"] and "64 x 64" in rows["a.png"]["reason"]


def test_a_broken_table_ends_the_job_before_it_writes(source, tmp_path):
    source.write("cameras.csv", b"glob,fx\na.png,wide\n")
    with pytest.raises(ValueError, match=r"cameras\.csv line 2"):
        run(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_cameras_travel_to_workers():
    cameras = Cameras.of_globs("csv", [StatedLine("*.png", StatedCamera(fx=3), "here")])
    assert sent(cameras).of_image("x.png").camera.fx == 3
