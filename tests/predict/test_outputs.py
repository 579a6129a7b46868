"""The files of one image: every kind read back, and what they say of themselves."""

import hashlib
import io
import json
import typing
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, strategies as st

from metricgold.images import depth_files, read_depth
from metricgold.log_depth import LogDepth
from metricgold.params.sections import Output
from metricgold.predict import outputs
from metricgold.predict.outputs import (
    DEPTH,
    SUFFIXES,
    ImageResult,
    check_kinds,
    depth_figures,
    files_of,
    labels,
    side_car,
    to_ascii,
)

HEIGHT, WIDTH, FOCAL_PX = 6, 8, 10.0


@pytest.fixture
def result() -> ImageResult:
    rng = np.random.default_rng(0)
    depth_m = rng.uniform(1, 40, (HEIGHT, WIDTH)).astype(np.float32)
    valid_mask = np.ones((HEIGHT, WIDTH), bool)
    valid_mask[0] = False
    uncertainty = np.full((HEIGHT, WIDTH), 0.03, np.float32)
    intrinsics = np.array([[FOCAL_PX, 0, WIDTH / 2], [0, FOCAL_PX, HEIGHT / 2], [0, 0, 1]])
    rgb = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    facts = {
        "input": "ä b.jpg",
        "input_tag": "7-1",
        "identity": "e" * 64,
        "model": "metricgold/3",
        "params": {"seed": 0},
    }
    facts |= {"model_digest": "f" * 64} | depth_figures(depth_m, uncertainty, valid_mask)
    return ImageResult(rgb, depth_m, uncertainty, valid_mask, intrinsics, LogDepth(0.5, 80.0), facts)


def test_every_kind_has_a_suffix_of_its_own():
    assert set(SUFFIXES) == set(typing.get_args(Output))
    assert list(SUFFIXES)[-1] == "json"  # written last
    for kind, suffix in SUFFIXES.items():
        assert not any(other.endswith(suffix) for key, other in SUFFIXES.items() if key != kind)


def test_all_kinds_are_read_back(result):
    files = {file.kind: file for file in files_of(result, SUFFIXES)}
    assert list(files) == list(SUFFIXES)
    source = {kind: io.BytesIO(file.data) for kind, file in files.items()}
    about = {}
    for kind, read in {
        "log-png": depth_files.read_log_depth_png,
        "mm-png": depth_files.read_mm_depth_png,
        "tiff": depth_files.read_depth_tiff,
        "exr": depth_files.read_depth_exr,
    }.items():
        depth_m, about[kind] = read(source[kind])
        np.testing.assert_allclose(depth_m[1:], result.planar_depth_m[1:], rtol=1e-3)
    arrays, about["npz"] = depth_files.read_depth_npz(source["npz"])
    np.testing.assert_array_equal(arrays["intrinsics"], result.intrinsics)
    _, about["uncertainty"] = depth_files.read_uncertainty_png(source["uncertainty"])
    normals, about["normals"] = depth_files.read_normals_png(source["normals"])
    assert np.isnan(normals[0]).all()  # where depth saturates there is no surface
    for attributes in about.values():
        assert unquote(attributes["input"]) == "ä b.jpg" and attributes["model"] == "metricgold/3"
        assert json.loads(attributes["params"]) == {"seed": 0}
    assert b"element vertex 40\n" in files["ply"].data  # without the row that saturates
    assert files["glb"].data[:4] == b"glTF"
    assert files["preview"].content_type == "image/jpeg"
    said = json.loads(files["json"].data)
    assert said["sha256"] == files["log-png"].sha256 == hashlib.sha256(files["log-png"].data).hexdigest()
    assert said["intrinsics"] == result.intrinsics.tolist()


@pytest.mark.parametrize("kinds", [("preview", "json"), ("json", "tiff", "npz"), ("mm-png", "json")])
def test_the_depth_file_is_the_first_that_is_asked_for(result, kinds):
    files = list(files_of(result, kinds))
    assert {file.kind for file in files} == set(kinds)
    depth = [file for file in files if file.sha256]
    assert [file.kind for file in depth] == [kind for kind in DEPTH if kind in kinds][:1]
    assert json.loads(files[-1].data)["sha256"] == (depth[0].sha256 if depth else None)


def test_equal_images_give_equal_bytes(result):
    once, again = ([file.data for file in files_of(result, SUFFIXES)] for _ in range(2))
    assert once == again


def test_kinds_are_tried_before_any_work(monkeypatch):
    check_kinds(SUFFIXES)
    monkeypatch.setattr(outputs, "write_depth_exr", lambda *_: 1 / 0)
    check_kinds(["log-png"])
    with pytest.raises(ZeroDivisionError):
        check_kinds(["log-png", "exr"])


def test_figures_without_depth_are_none():
    nowhere = np.full((2, 3), np.nan, np.float32)
    found = depth_figures(nowhere, nowhere, np.zeros((2, 3), bool))
    assert found == dict.fromkeys(["min_m", "median_m", "max_m", "uncertainty_median"]) | {"saturated": 1.0}


@given(st.text(), st.binary())
def test_ascii_gives_back_what_it_was_given(text, name):
    for key in (text, name.decode("utf-8", "surrogateescape")):
        said = to_ascii(key)
        assert said.isascii() and (not said or said.isprintable()) and " " not in said
        assert unquote(said, errors="surrogateescape") == key


def test_metadata_says_whose_output_it_is(result):
    assert set(labels(result.facts)) == {"input", "input_tag", "identity", "model"}
    assert labels(result.facts)["input"] == "ä b.jpg"


def test_where_there_is_no_surface_files_say_beyond_and_clouds_have_no_point(result):
    """Invalid and far is sky; invalid and near is a surface, nearer than near_m, which the formats store as near_m."""
    depth_m, valid_mask = result.planar_depth_m.copy(), np.ones((HEIGHT, WIDTH), bool)
    valid_mask[0], depth_m[0] = False, 70.0
    valid_mask[1, 0], depth_m[1, 0] = False, 0.5
    files = {
        file.kind: file.data
        for file in files_of(replace(result, planar_depth_m=depth_m, valid_mask=valid_mask), SUFFIXES)
    }
    for kind in ("log-png", "npz", "tiff", "exr", "mm-png"):
        depth = read_depth(io.BytesIO(files[kind]))
        assert np.isnan(depth.planar_depth_m[0]).all() and not np.isnan(depth.planar_depth_m[1:]).any()
        np.testing.assert_array_equal(depth.beyond_mask, np.isnan(depth.planar_depth_m) & (kind != "mm-png"))
        assert depth.planar_depth_m[1, 0] == pytest.approx(0.5, rel=1e-3)
    assert b"element vertex %d\n" % (valid_mask.sum()) in files["ply"]


def test_drop_edges_takes_flying_pixels_out_of_clouds_alone(result):
    depth_m = np.full((HEIGHT, WIDTH), 2, np.float32)
    depth_m[:, WIDTH // 2], depth_m[:, WIDTH // 2 + 1 :] = 4, 8
    whole = replace(result, planar_depth_m=depth_m, valid_mask=np.ones((HEIGHT, WIDTH), bool))
    dropped = replace(whole, facts=whole.facts | {"drop_edges": True})
    assert set(np.unique(whole.points[0][:, 2])) == {2, 4, 8}
    assert len(whole.points[0]) - len(dropped.points[0]) == HEIGHT - 2  # rows at the border have no neighbour to tell
    assert side_car(whole, None) != side_car(dropped, None)
    kinds = [kind for kind in SUFFIXES if kind not in ("ply", "glb", "json")]
    assert [file.data for file in files_of(whole, kinds)] == [file.data for file in files_of(dropped, kinds)]
