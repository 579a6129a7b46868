"""`read_depth`: every kind of depth file by its content, one rule for missing depth, one message for other files."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from metricgold import read_depth
from metricgold.images.depth_files import (
    write_depth_exr,
    write_depth_npz,
    write_depth_tiff,
    write_log_depth_png,
    write_mm_depth_png,
    write_normals_png,
    write_uncertainty_png,
)
from metricgold.log_depth import LogDepth

WRITTEN_BEFORE = Path(__file__).with_name("depth_files")  # by the first version of each format
NAN, INF = np.nan, np.inf
DEPTH_M = np.array([[0.5, 1.25, 60.0, 2.0], [NAN, INF, 0.0, -1.0]], np.float32)
READ_M = np.array([[0.5, 1.25, 60.0, 2.0], [NAN] * 4], np.float32)
UNCERTAINTY = np.full(DEPTH_M.shape, 0.05, np.float32)
INTRINSICS = np.array([[500.0, 0, 2], [0, 500, 1], [0, 0, 1]])
TEXTS = {"model": "metricgold/3", "input": "Straße/日本.jpg"}
WRITERS = {
    "log-png": lambda target: write_log_depth_png(target, DEPTH_M, LogDepth(0.5, 80.0), TEXTS),
    "mm-png": lambda target: write_mm_depth_png(target, DEPTH_M, TEXTS),
    "npz": lambda target: write_depth_npz(target, DEPTH_M, UNCERTAINTY, INTRINSICS, TEXTS),
    "tiff": lambda target: write_depth_tiff(target, DEPTH_M, TEXTS),
    "exr": lambda target: write_depth_exr(target, DEPTH_M, TEXTS),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_kind_is_read_under_any_name(kind, tmp_path):
    path = tmp_path / "depth.jpg"
    WRITERS[kind](path)
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        found = read_depth(source)
        assert found.kind == kind
        assert found.planar_depth_m.dtype == np.float32
        np.testing.assert_allclose(found.planar_depth_m, READ_M, rtol=1e-4)
        assert TEXTS.items() <= found.attributes.items() and found.attributes["kind"] == "planar depth"
        assert (found.near_m, found.far_m) == ((0.5, 80.0) if kind == "log-png" else (None, None))
        if kind == "npz":
            np.testing.assert_array_equal(found.uncertainty, UNCERTAINTY)
            np.testing.assert_array_equal(found.intrinsics, INTRINSICS)
        else:
            assert found.uncertainty is None and found.intrinsics is None


@pytest.mark.parametrize("kind", WRITERS)
def test_files_written_by_the_first_version_are_read(kind):
    found = read_depth(next(WRITTEN_BEFORE.glob(f"{kind}.*")))
    assert found.kind == kind
    assert (found.attributes["model"], found.attributes["input"]) == ("metricgold/3", "a b.jpg")
    far_m = NAN if kind == "mm-png" else 80.0  # millimetres end at 65.535 m
    np.testing.assert_allclose(found.planar_depth_m, [[0.5, 1.25, far_m], [NAN, NAN, np.pi]], rtol=2e-4)


def test_an_npz_may_lack_camera_and_uncertainty(tmp_path):
    write_depth_npz(tmp_path / "a.npz", DEPTH_M, None, None, {})
    found = read_depth(tmp_path / "a.npz")
    assert found.uncertainty is None and found.intrinsics is None


def save_plain_png(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1234, np.uint16)).save(path, "PNG")


def save_plain_tiff(path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF")


def save_tiff_of_feet(path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = '{"kind": "planar depth", "unit": "feet"}'
    Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF", tiffinfo=tags)


def save_exr(path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    openexr.File({}, {"Z": np.ones((4, 4), np.float32)}).write(str(path) + ".exr")
    Path(str(path) + ".exr").rename(path)


FOREIGN = {
    "a PNG of codes": (save_plain_png, "a PNG that names neither unit nor kind"),
    "our uncertainty": (lambda path: write_uncertainty_png(path, UNCERTAINTY, {}), "a PNG of uncertainty in relative"),
    "our normals": (lambda path: write_normals_png(path, np.zeros((2, 2, 3)), {}), "a PNG of normals in unit vector"),
    "a TIFF of floats": (save_plain_tiff, "a TIFF of float32 with the description ''"),
    "a TIFF in feet": (save_tiff_of_feet, "a TIFF of float32"),
    "an NPZ of arrays": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "an NPZ of a$"),
    "an NPZ without unit": (lambda path: np.savez(path.open("wb"), planar_depth_m=DEPTH_M), "an NPZ of planar_depth_m"),
    "an NPZ of doubles": (
        lambda path: np.savez(path.open("wb"), planar_depth_m=DEPTH_M.astype(float), unit=np.array("metres")),
        "an NPZ of planar_depth_m, unit",
    ),
    "an EXR": (save_exr, "an OpenEXR image with the channels Z"),
    "text": (lambda path: path.write_text("depth\n"), r"a file that begins with b'depth\\n'"),
    "nothing": (lambda path: path.touch(), "an empty file"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_tool_is_refused_by_name(what, tmp_path):
    save, got = FOREIGN[what]
    path = tmp_path / "depth.png"
    save(path)
    kinds = r"\(log-png, mm-png, npz, tiff or exr\)"
    with pytest.raises(ValueError, match=rf"depth\.png: expected a depth file of MetricGold {kinds}, got {got}"):
        read_depth(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_truncated_file_is_a_value_error_that_names_it(kind, tmp_path):
    whole = io.BytesIO()
    WRITERS[kind](whole)
    path = tmp_path / "cut"
    for length in (4, 40, len(whole.getvalue()) // 2, len(whole.getvalue()) - 30):
        path.write_bytes(whole.getvalue()[:length])
        with pytest.raises(ValueError, match="cut"):
            read_depth(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        read_depth(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        read_depth(tmp_path)


def test_without_the_extra_an_exr_names_it_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(
        ValueError, match=r"^OpenEXR is not installed, which this needs: pip install 'metricgold\[exr\]'$"
    ):
        read_depth(WRITTEN_BEFORE / "exr.exr")
