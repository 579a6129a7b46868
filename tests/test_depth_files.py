import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from metricgold.depth_files import read_log_depth_png, read_uncertainty_png, write_log_depth_png, write_uncertainty_png
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
    with pytest.raises(ValueError, match=r"u\.png is no planar depth file"):
        read_log_depth_png(tmp_path / "u.png")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.png is not a PNG"):
        read_log_depth_png(tmp_path / "x.png")
