"""Folders of predictions: every format, what is stated of them, and one line for whatever does not fit."""

import numpy as np
import pytest
import yaml
from PIL import Image

from metricgold.datasets import list_frames
from metricgold.evaluate import protocols as rules
from metricgold.evaluate.predictions import open_predictions, rank_correlation
from metricgold.evaluate.rows import read_rows_files
from metricgold.images import (
    write_depth_exr,
    write_depth_npz,
    write_depth_tiff,
    write_log_depth_png,
    write_uncertainty_png,
)
from metricgold.log_depth import LogDepth
from tests.evaluate.test_benchmark import SIZE, project, run, without_page  # noqa: F401 - fixtures

RANGE = LogDepth(0.05, 100.0)


@pytest.fixture
def refs(project):  # noqa: F811
    folders, _ = project
    return list_frames("mine", folders.benchmark("mine"), split="test").frames


@pytest.fixture
def truths(project):  # noqa: F811
    """Depth that has a value everywhere."""
    return {name: np.maximum(depth_m, np.float32(0.4)) for name, depth_m in project[1].items()}


def state(folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "predictions.yaml").write_text(yaml.safe_dump(values))


def write_npy(path, numbers):
    path = path.with_name(path.name + ".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, numbers)


def write_folder(folder, numbers_of, write=write_npy):
    for name, numbers in numbers_of.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, numbers)
    return folder


def png(scale):
    return lambda path, numbers: Image.fromarray(np.rint(numbers / scale).astype(np.uint16)).save(f"{path}.png")


FOREIGN = {
    "npy": (write_npy, {}),
    "npz": (lambda path, numbers: np.savez(f"{path}.npz", other=[1], depth=numbers), {"array": "depth"}),
    "png": (png(0.001), {"scale": 0.001}),
    "tiff": (lambda path, numbers: Image.fromarray(numbers).save(f"{path}.tiff"), {}),
    "exr": (lambda path, numbers: write_depth_exr(f"{path}.exr", numbers, {}), {"array": "Z"}),
    "log-png": (
        lambda path, numbers: write_log_depth_png(f"{path}.png", numbers, RANGE, {}),
        {"coding": "metricgold"},
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_format_gives_the_stated_metres(kind, tmp_path, refs, truths):
    write, stated = FOREIGN[kind]
    folder = write_folder(tmp_path / "theirs", truths, write)
    state(folder, kind="depth_m", **stated)
    predictions = open_predictions(folder, refs)
    assert predictions.name == "theirs" and predictions.files.keys() == truths.keys()
    for name, depth_m in truths.items():
        estimate = predictions.read(name, SIZE)
        assert estimate.kind == "depth_m" and estimate.depth.dtype == np.float32
        np.testing.assert_allclose(estimate.depth, depth_m, rtol=2e-4, atol=6e-4 if kind == "png" else 0)


def test_files_of_predict_need_no_statement_and_bring_their_uncertainty(tmp_path, refs, truths):
    def write(path, depth_m):
        write_log_depth_png(f"{path}.jpg.depth.png", depth_m, RANGE, {})
        write_uncertainty_png(f"{path}.jpg.uncertainty.png", np.full(SIZE, 0.1), {})

    estimate = open_predictions(write_folder(tmp_path / "png", truths, write), refs).read("hall/1", SIZE)
    np.testing.assert_allclose(estimate.depth, truths["hall/1"], rtol=1e-4)
    np.testing.assert_allclose(estimate.uncertainty, 0.14826, atol=1e-4)

    def write_npz(path, depth_m):
        write_depth_npz(f"{path}.depth.npz", depth_m, np.full(SIZE, 0.2, np.float32), None, {})

    estimate = open_predictions(write_folder(tmp_path / "npz", truths, write_npz), refs).read("hall/1", SIZE)
    np.testing.assert_allclose(estimate.uncertainty, 0.29652, rtol=1e-5)
    folder = write_folder(
        tmp_path / "tiff", truths, lambda path, depth_m: write_depth_tiff(f"{path}.tiff", depth_m, {})
    )
    np.testing.assert_array_equal(open_predictions(folder, refs).read("hall/1", SIZE).depth, truths["hall/1"])


def test_where_an_own_file_shows_no_surface_it_is_as_far_as_can_be(tmp_path, refs, truths):
    """Protocols ask for depth at every pixel, and the model had some there: at least far_m of a log-png."""
    maps_m = {name: depth_m.copy() for name, depth_m in truths.items()}
    maps_m["hall/1"][0] = np.inf
    for suffix, farthest_m, write in (
        (".depth.png", 80.0, lambda path, depth_m: write_log_depth_png(path, depth_m, LogDepth(0.1, 80.0), {})),
        (".depth.tiff", truths["hall/1"][1:].max(), lambda path, depth_m: write_depth_tiff(path, depth_m, {})),
    ):
        folder = write_folder(
            tmp_path / suffix[7:], maps_m, lambda path, m, end=suffix, to=write: to(f"{path}{end}", m)
        )
        depth_m = open_predictions(folder, refs).read("hall/1", SIZE).depth
        np.testing.assert_allclose(depth_m[0], farthest_m, rtol=1e-6)
        np.testing.assert_allclose(depth_m[1:], truths["hall/1"][1:], rtol=1e-3)


def test_a_folder_is_measured_as_its_numbers_say(tmp_path, project, truths):  # noqa: F811
    folder = write_folder(tmp_path / "theirs", {name: 1000 / (1.1 * depth_m) for name, depth_m in truths.items()})
    state(folder, kind="disparity_per_m", scale=0.001, name="their net")
    summary, out = run(project, predictions=[folder])
    assert summary["abs_rel"] == pytest.approx(0.1, rel=1e-4)
    rows = read_rows_files([out.rows])
    first = rows.where(method="their net")["method_digest"][0]
    np.save(folder / "hall/0.npy", np.load(folder / "hall/0.npy") * 1.01)
    _, out = run(project, predictions=[folder])
    assert read_rows_files([out.rows]).where(method="their net")["method_digest"][0] != first


def test_disparity_given_as_depth_is_found_by_its_rank_and_its_ratio(tmp_path, refs, truths):
    folder = write_folder(tmp_path / "theirs", {name: 1 / depth_m for name, depth_m in truths.items()})
    for kind in ("depth_m", "relative_depth"):
        state(folder, kind=kind)
        with pytest.raises(
            ValueError, match=rf"{kind} was stated, but these numbers are disparity: .* -1\.00, .* 0\.00[0-9]+"
        ):
            open_predictions(folder, refs)
    folder = write_folder(tmp_path / "other", truths)
    for kind in ("disparity_per_m", "relative_disparity"):
        state(folder, kind=kind)
        with pytest.raises(ValueError, match=rf"{kind} was stated, but these numbers are depth: .* 1\.00"):
            open_predictions(folder, refs)


def test_another_unit_is_said(tmp_path, refs, truths, caplog):
    folder = write_folder(tmp_path / "theirs", {name: 1000 * depth_m for name, depth_m in truths.items()})
    state(folder, kind="depth_m")
    open_predictions(folder, refs)
    assert "another unit" in caplog.text and "1e+03" in caplog.text


def test_a_missing_file_is_named_and_counted(tmp_path, refs, truths):
    folder = write_folder(tmp_path / "theirs", {name: truths[name] for name in list(truths)[:4]})
    state(folder, kind="depth_m")
    with pytest.raises(ValueError, match=r"no prediction for frame room/4 \(2 of 6 frames have none\)"):
        open_predictions(folder, refs)
    with pytest.raises(ValueError, match="no such folder"):
        open_predictions(tmp_path / "nowhere", refs)


def test_two_files_of_a_frame_are_named(tmp_path, refs, truths):
    folder = write_folder(tmp_path / "theirs", truths)
    write_folder(folder, truths, png(0.001))
    state(folder, kind="depth_m")
    with pytest.raises(ValueError, match=r"frame hall/0 has two files, 0\.npy and 0\.png"):
        open_predictions(folder, refs)


def test_another_size_is_refused_unless_stated_and_another_aspect_always(tmp_path, project, truths):  # noqa: F811
    halves = {name: depth_m[::2, ::2] for name, depth_m in truths.items()}
    folder = write_folder(tmp_path / "theirs", halves)
    state(folder, kind="depth_m")
    with pytest.raises(
        ValueError, match=r"hall/0\.npy: a prediction of 16 x 12 for an image of 32 x 24; `resize: true`"
    ):
        run(project, predictions=[folder])
    state(folder, kind="depth_m", resize=True)
    summary, _ = run(project, predictions=[folder])
    assert summary["num_frames"] == 6
    folder = write_folder(tmp_path / "square", {name: depth_m[:, :24] for name, depth_m in truths.items()})
    state(folder, kind="depth_m", resize=True)
    with pytest.raises(ValueError, match=r"hall/0, square, whole: .* aspect"):
        run(project, predictions=[folder])


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"kind": "distance"}, "kind"),
        ({}, "kind"),
        ({"kind": "depth_m", "scale": 0}, "scale"),
        ({"kind": "depth_m", "unit": "mm"}, "unit"),
        ({"kind": "disparity_per_m", "coding": "moge"}, "coding"),
        ([1], "dictionary"),
    ],
)
def test_a_wrong_statement_names_file_and_key(tmp_path, refs, truths, stated, named):
    folder = write_folder(tmp_path / "theirs", truths)
    (folder / "predictions.yaml").write_text(yaml.safe_dump(stated))
    with pytest.raises(ValueError, match=rf"predictions\.yaml: .*{named}"):
        open_predictions(folder, refs)


def test_integers_without_a_scale_are_refused_and_files_without_a_statement(tmp_path, refs, truths):
    folder = write_folder(tmp_path / "theirs", truths, png(0.001))
    with pytest.raises(
        ValueError, match=r"0\.png: expected a depth file of MetricGold.*; for other files say in predict"
    ):
        open_predictions(folder, refs)
    state(folder, kind="depth_m")
    with pytest.raises(ValueError, match=r"0\.png: holds integers; predictions\.yaml has to say their scale"):
        open_predictions(folder, refs)


def test_our_own_png_with_numbers_stated_otherwise_is_refused(tmp_path, refs, truths):
    """Its codes are logarithms: taken as numbers they would look like depth."""
    folder = write_folder(tmp_path / "ours", truths, FOREIGN["log-png"][0])
    state(folder, kind="depth_m", scale=0.001)
    with pytest.raises(ValueError, match=r"0\.png: .*coding: metricgold"):
        open_predictions(folder, refs)


def test_ranks_are_spearmans():
    a, b = np.array([1.0, 2, 2, 5, 9]), np.array([3.0, 1, 4, 4, 8])
    assert rank_correlation(a, b) == pytest.approx(7.25 / 9.5)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a, np.ones(5)))


def test_files_are_of_whole_images_whatever_the_protocol_shows(tmp_path, project, truths, monkeypatch):  # noqa: F811
    crop = rules.Crop(window=(22, 31))
    protocol = rules.Protocol(name="p", benchmark="mine", title="", source=["here"], crop=crop)
    monkeypatch.setattr("metricgold.evaluate.benchmark_stage.protocols_of", lambda name: [protocol])
    errors = {}
    for size, resize in (((24, 32), False), ((48, 64), True), ((22, 31), True)):
        window = size == (22, 31)
        maps = {
            name: one[2:, :31] if window else one.repeat(size[0] // 24, 0).repeat(size[0] // 24, 1)
            for name, one in truths.items()
        }
        folder = write_folder(tmp_path / f"theirs{size[0]}", maps)
        state(folder, kind="depth_m", resize=resize)
        errors[size], _ = run(project, predictions=[folder])
    assert errors[24, 32]["abs_rel"] == errors[22, 31]["abs_rel"] == 0
    assert errors[48, 64]["abs_rel"] < 0.5


def test_a_folder_that_is_named_twice_keeps_its_first_name_and_is_told(tmp_path, project, truths, caplog):  # noqa: F811
    folder = write_folder(tmp_path / "theirs", truths)
    state(folder, kind="depth_m")
    other = write_folder(tmp_path / "other", truths)
    state(other, kind="depth_m")
    summary, out = run(project, predictions=[folder, other, folder])
    assert set(read_rows_files([out.rows]).unique("method")) == {"theirs", "best_constant"}
    assert "whole/theirs/abs_rel" in summary
    assert [one.message for one in caplog.records if "same" in one.message] == [
        "other is the same as theirs, and measured once, under that name"
    ]
