import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from metricgold.images.depth_files import (
    read_depth_exr,
    read_depth_npz,
    read_depth_tiff,
    read_log_depth_png,
    read_mm_depth_png,
    read_normals_png,
    read_uncertainty_png,
    write_depth_exr,
    write_depth_npz,
    write_depth_tiff,
    write_log_depth_png,
    write_mm_depth_png,
    write_normals_png,
    write_uncertainty_png,
)
from metricgold.log_depth import LogDepth

LOG_DEPTH = LogDepth(0.5, 80.0)

metres = st.floats(0.5, 80.0, width=32)


@given(arrays(np.float32, (3, 5), elements=metres))
def test_depth_file_is_exact_to_half_a_step(depth_m):
    file = io.BytesIO()
    write_log_depth_png(file, depth_m, LOG_DEPTH, {"model": "m"})
    back, attributes = read_log_depth_png(io.BytesIO(file.getvalue()))
    half_step = LOG_DEPTH.ln_range / 65533 / 2
    assert np.abs(np.log(back / depth_m)).max() <= half_step * 1.02
    assert attributes["unit"] == "metres"
    assert (float(attributes["near_m"]), float(attributes["far_m"])) == (0.5, 80.0)


def test_depth_file_codes(tmp_path):
    depth_m = np.array([[0.5, 80.0, 0.1, 81.0, np.inf, np.nan, 0.0, -1.0]], np.float32)
    path = tmp_path / "a.depth.png"
    write_log_depth_png(path, depth_m, LOG_DEPTH, {"model": "metricgold/3", "source": "Straße/日本.jpg"})
    with Image.open(path) as image:
        code = np.array(image)
    with Image.open(path) as image:
        image.verify()
    assert code.dtype == np.uint16
    assert code.tolist() == [[1, 65534, 1, 65535, 65535, 0, 0, 0]]
    back, attributes = read_log_depth_png(path)
    np.testing.assert_allclose(back, [[0.5, 80, 0.5, np.inf, np.inf, np.nan, np.nan, np.nan]], rtol=1e-6)
    assert attributes["source"] == "Straße/日本.jpg"
    assert attributes["kind"] == "planar depth"


def test_depth_file_formula_is_true():
    file = io.BytesIO()
    write_log_depth_png(file, np.array([[3.0]], np.float32), LOG_DEPTH, {})
    attributes = read_log_depth_png(file)[1]
    formula = attributes["encoding"].split(" for ")[0].removeprefix("depth = ")
    known = {"code": int(np.array(Image.open(file))[0, 0]), **{k: float(attributes[k]) for k in ("near_m", "far_m")}}
    assert eval(formula, {}, known) == pytest.approx(3.0, rel=1e-4)


@given(arrays(np.float32, (4, 3), elements=st.floats(0, 6.5, width=32)))
def test_uncertainty_file_is_exact_to_half_a_step(uncertainty):
    file = io.BytesIO()
    write_uncertainty_png(file, uncertainty, {})
    back, attributes = read_uncertainty_png(io.BytesIO(file.getvalue()))
    assert np.abs(back - uncertainty).max() <= 0.5e-4 * 1.02
    assert float(attributes["step"]) == 1e-4


def test_uncertainty_file_saturates_and_keeps_no_value(tmp_path):
    write_uncertainty_png(tmp_path / "u.png", np.array([[99.0, np.nan, 0.0]], np.float32), {})
    back, _ = read_uncertainty_png(tmp_path / "u.png")
    np.testing.assert_allclose(back, [[6.5534, np.nan, 0]], rtol=1e-6)


def test_one_kind_is_not_read_as_the_other(tmp_path):
    write_uncertainty_png(tmp_path / "u.png", np.zeros((2, 2), np.float32), {})
    with pytest.raises(ValueError, match=r"u\.png: expected a PNG of planar depth in metres"):
        read_log_depth_png(tmp_path / "u.png")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.png is not a PNG"):
        read_log_depth_png(tmp_path / "x.png")


def test_formula_of_uncertainty_and_millimetres_is_true():
    for write, read, value in [(write_mm_depth_png, read_mm_depth_png, 3.21), (write_uncertainty_png, None, 0.0421)]:
        file = io.BytesIO()
        write(file, np.array([[value]], np.float32), {})
        image = Image.open(file)
        formula = image.text["encoding"].split(" metres")[0].split(" for ")[0].split(" = ")[1]
        known = {"code": int(np.array(image)[0, 0]), "step": float(image.text.get("step", 0))}
        assert eval(formula, {}, known) == pytest.approx(value, rel=1e-3)
        assert read is None or read(file)[0][0, 0] == pytest.approx(value, rel=1e-6)


@given(arrays(np.float32, (3, 5), elements=st.floats(2**-10, 65.5, width=32)))
def test_millimetres_are_exact_to_half_of_one(depth_m):
    file = io.BytesIO()
    write_mm_depth_png(file, depth_m, {"model": "m"})
    back, attributes = read_mm_depth_png(file)
    assert np.abs(back - depth_m).max() <= 0.5e-3 * 1.01
    assert (attributes["unit"], attributes["kind"], attributes["model"]) == ("millimetres", "planar depth", "m")


def test_millimetres_never_wrap_around():
    depth_m = np.array([[65.535, 65.5354, 65.536, 65.6, 131.0, 1e9, np.inf, np.nan, 0, -1, 1e-5]], np.float32)
    file = io.BytesIO()
    write_mm_depth_png(file, depth_m, {})
    assert np.array(Image.open(file)).tolist() == [[65535, 65535, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
    np.testing.assert_allclose(read_mm_depth_png(file)[0][0, [0, 2, 10]], [65.535, np.nan, 1e-3], rtol=1e-6)


ODD_DEPTH_M = np.array([[0.5, 80.0, np.inf, np.nan], [0.0, -1.0, -np.inf, 3.14159265]], np.float32)
AS_FLOATS = np.array([[0.5, 80.0, np.inf, np.nan], [np.nan, np.nan, np.nan, 3.14159265]], np.float32)
ATTRIBUTES = {"model": "metricgold/3", "source": "Straße/日本\n.jpg"}
CAMERA = np.array([[500.0, 0, 2], [0, 500, 1], [0, 0, 1]])


def write_npz_of_depth(target, depth_m, attributes):
    write_depth_npz(target, depth_m, None, None, attributes)


def read_npz_of_depth(source):
    arrays_, attributes = read_depth_npz(source)
    return arrays_["planar_depth_m"], attributes


FLOATS = {
    "npz": (write_npz_of_depth, read_npz_of_depth),
    "tiff": (write_depth_tiff, read_depth_tiff),
    "exr": (write_depth_exr, read_depth_exr),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_kept_to_the_bit_with_their_attributes(kind, tmp_path):
    write, read = FLOATS[kind]
    file = io.BytesIO()
    write(file, ODD_DEPTH_M, ATTRIBUTES)
    write(tmp_path / "a", ODD_DEPTH_M, ATTRIBUTES)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == file.getvalue()  # equal values, equal bytes
    for source in (tmp_path / "a", io.BytesIO(file.getvalue())):
        back, attributes = read(source)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, AS_FLOATS)
        assert ATTRIBUTES.items() <= attributes.items()
        assert (attributes["unit"], attributes["kind"]) == ("metres", "planar depth")
        assert "NaN = no depth" in attributes["encoding"]


def test_npz_is_read_without_pickle_and_holds_camera_and_uncertainty(tmp_path):
    uncertainty = np.full((2, 4), 0.05, np.float32)
    write_depth_npz(tmp_path / "a.npz", ODD_DEPTH_M, uncertainty, CAMERA, ATTRIBUTES)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as npz:
        assert str(npz["unit"]) == "metres"
        assert npz["uncertainty"].dtype == np.float32
        np.testing.assert_array_equal(npz["intrinsics"], CAMERA)
        np.testing.assert_array_equal(npz["planar_depth_m"], AS_FLOATS)
    stored, _ = read_depth_npz(tmp_path / "a.npz")
    assert list(stored) == ["planar_depth_m", "uncertainty", "intrinsics"]


def test_tiff_and_exr_are_read_by_their_own_libraries(tmp_path):
    write_depth_tiff(tmp_path / "a.tiff", ODD_DEPTH_M, ATTRIBUTES)
    with Image.open(tmp_path / "a.tiff") as image:
        assert image.mode == "F"
        np.testing.assert_array_equal(np.array(image), AS_FLOATS)
    openexr = pytest.importorskip("OpenEXR")
    write_depth_exr(tmp_path / "a.exr", ODD_DEPTH_M, ATTRIBUTES)
    exr = openexr.File(str(tmp_path / "a.exr"))
    assert sorted(exr.channels()) == ["Y", "Z"]
    for channel in exr.channels().values():
        np.testing.assert_array_equal(channel.pixels, AS_FLOATS)
    assert exr.header()["unit"] == "metres"


def test_opencv_reads_exr_and_not_zeros(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCV_IO_ENABLE_OPENEXR", "1")
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("OpenEXR")
    if re.search(r"OpenEXR: +NO", cv2.getBuildInformation()):
        pytest.skip("this OpenCV is built without OpenEXR")
    path = tmp_path / "a.exr"
    write_depth_exr(path, ODD_DEPTH_M, ATTRIBUTES)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), AS_FLOATS)


def test_opencv_reads_the_same_codes_and_metres(tmp_path):
    cv2 = pytest.importorskip("cv2")
    depth_m = np.geomspace(0.5, 60, 24 * 32).reshape(24, 32).astype(np.float32)
    write_mm_depth_png(tmp_path / "mm.png", depth_m, ATTRIBUTES)
    mm = cv2.imread(str(tmp_path / "mm.png"), cv2.IMREAD_UNCHANGED)
    assert mm.dtype == np.uint16
    assert np.abs(mm / 1000 - depth_m).max() <= 0.5e-3 * 1.01
    write_log_depth_png(tmp_path / "log.png", depth_m, LOG_DEPTH, ATTRIBUTES)
    code = cv2.imread(str(tmp_path / "log.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(0.5 * 160 ** ((code - 1.0) / 65533), depth_m, rtol=1e-4)
    write_depth_tiff(tmp_path / "a.tiff", depth_m, ATTRIBUTES)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.tiff"), cv2.IMREAD_UNCHANGED), depth_m)
    normals = np.zeros((24, 32, 3), np.float32)
    normals[...] = [0.6, 0, -0.8]
    write_normals_png(tmp_path / "n.png", normals, ATTRIBUTES)
    rgb = cv2.imread(str(tmp_path / "n.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_allclose(rgb / 255 * 2 - 1, normals, atol=0.5 / 127.5 * 1.01)


def test_without_the_package_exr_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ValueError, match=r"pip install 'metricgold\[exr\]'"):
        write_depth_exr(tmp_path / "a.exr", ODD_DEPTH_M, {})
    with pytest.raises(ValueError, match="OpenEXR is not installed"):
        read_depth_exr(io.BytesIO(b""))
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 2**32 - 1))
def test_normals_are_exact_to_half_a_step_and_unit(seed):
    normals = np.random.default_rng(seed).normal(size=(4, 5, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[1, 2] = np.nan
    file = io.BytesIO()
    write_normals_png(file, normals, {})
    code = np.array(Image.open(file))
    assert code[1, 2].tolist() == [0, 0, 0]
    known = np.isfinite(normals)
    assert np.abs(code / 255 * 2 - 1 - normals)[known].max() <= 0.5 / 127.5 * 1.001
    back, attributes = read_normals_png(file)
    assert np.isnan(back[1, 2]).all()
    np.testing.assert_allclose(np.linalg.norm(back, axis=2)[known[..., 0]], 1, rtol=1e-6)
    assert np.abs(back - normals)[known].max() < 0.01
    assert "x right, y down, z forward" in attributes["encoding"]


ALL = {
    "log": (lambda target, depth_m, texts: write_log_depth_png(target, depth_m, LOG_DEPTH, texts), read_log_depth_png),
    "mm": (write_mm_depth_png, read_mm_depth_png),
    "uncertainty": (write_uncertainty_png, read_uncertainty_png),
    "normals": (lambda target, z, texts: write_normals_png(target, np.stack([z] * 3, -1), texts), read_normals_png),
    **FLOATS,
}


@pytest.mark.parametrize("kind", ALL)
def test_what_is_foreign_cut_or_taken_is_a_value_error_that_names_it(kind, tmp_path):
    write, read = ALL[kind]
    depth_m = np.random.default_rng(0).uniform(0.2, 0.6, (40, 40)).astype(np.float32)
    whole = io.BytesIO()
    write(whole, depth_m, {})
    data = whole.getvalue()
    for bad in (b"", b"nothing", data[: len(data) // 2], data[:-200]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ValueError, match="bad"):
            read(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"\['kind'\]"):
        write(tmp_path / "new", depth_m, {"kind": "mine"})
    with pytest.raises(ValueError, match=r"got \[40"):
        write(tmp_path / "new", depth_m[0], {})
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("kind", ALL)
def test_names_and_texts_that_not_every_format_holds_are_refused(kind, tmp_path):
    write, read = ALL[kind]
    depth_m = np.full((4, 4), 0.57735, np.float32)
    for name in ("größe", "日本", "a b", "", "k" * 80, "k\nl", "../k"):
        with pytest.raises(ValueError, match="name of an attribute must be 1 to 79 of"):
            write(tmp_path / "a", depth_m, {name: "text"})
    for text in ("a\0b", "a\0", "\udcff", 5, None):
        with pytest.raises(ValueError, match="attribute k must be text"):
            write(tmp_path / "a", depth_m, {"k": text})
    assert not list(tmp_path.iterdir())
    longest = {"k" * 79: "", "A_1.b:c-d": " Straße\r\n日本 "}
    write(str(tmp_path / "a"), depth_m, longest)
    assert longest.items() <= read(str(tmp_path / "a"))[1].items()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["file", "allow_pickle"])
def test_arguments_of_savez_are_no_attributes(name):
    with pytest.raises(ValueError, match=rf"\['{name}'\] are set by the file format"):
        write_npz_of_depth(io.BytesIO(), ODD_DEPTH_M, {name: "text"})


@pytest.mark.parametrize("kind", ["log", "uncertainty"])
def test_a_file_without_the_numbers_that_explain_it_is_refused(kind):
    write, read = ALL[kind]
    whole, bare = io.BytesIO(), io.BytesIO()
    write(whole, np.full((4, 4), 2.0, np.float32), {})
    with Image.open(whole) as image:
        texts = PngInfo()
        for name in ("unit", "kind"):
            texts.add_text(name, image.text[name])
        image.save(bare, "PNG", pnginfo=texts)
    with pytest.raises(ValueError, match=r"is not a .* PNG with its"):
        read(bare)


@pytest.mark.parametrize("kind", ["log", "mm", "uncertainty", "normals", "tiff"])
def test_a_file_of_more_pixels_than_pillow_opens_is_a_value_error(kind, monkeypatch):
    write, read = ALL[kind]
    file = io.BytesIO()
    write(file, np.full((4, 4), 0.57735, np.float32), {})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(ValueError, match=r"16 pixels.* exceeds limit"):
        read(file)


@pytest.mark.parametrize("kind", ALL)
def test_the_order_in_memory_changes_nothing(kind):
    write = ALL[kind][0]
    depth_m = np.random.default_rng(0).uniform(0.5, 0.6, (5, 7)).astype(np.float32)
    as_it_lies, plain = io.BytesIO(), io.BytesIO()
    write(as_it_lies, depth_m.T, {})
    write(plain, depth_m.T.copy(order="C"), {})
    assert as_it_lies.getvalue() == plain.getvalue()


@pytest.mark.parametrize("kind", ALL)
def test_each_reader_refuses_the_files_of_the_others(kind):
    for other, (write, _) in ALL.items():
        file = io.BytesIO()
        write(file, np.full((4, 4), 0.57735, np.float32), {})
        if other != kind:
            with pytest.raises(ValueError):
                ALL[kind][1](io.BytesIO(file.getvalue()))


def test_npz_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", planar_depth_m=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match=r"evil\.npz"):
        read_depth_npz(tmp_path / "evil.npz")
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"plain\.npy"):
        read_depth_npz(tmp_path / "plain.npy")


def test_importing_the_formats_does_not_load_openexr():
    program = "import sys, metricgold.images.depth_files; sys.exit('OpenEXR' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
