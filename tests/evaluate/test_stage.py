"""Evaluation on a miniature TartanAir: known answers, honest baselines, equal bytes."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from metricgold.datasets.readers import list_frames
from metricgold.datasets.sampling import evenly_spaced
from metricgold.evaluate import stage
from metricgold.evaluate.baselines import best_constant, mean_depth_map
from metricgold.evaluate.depth_ranges import range_edges_m
from metricgold.evaluate.ours import through_vae
from metricgold.evaluate.rows import read_rows_files
from metricgold.evaluate.stage import METHODS, evaluate
from metricgold.log_depth import LogDepth
from metricgold.metrics import METRICS, Interval, depth_metrics, interval_by_scene, mean_interval
from metricgold.params.sections import Evaluate
from metricgold.storage import digest_folder

NAME = "tartanair-synthetic"
RANGE = LogDepth(0.5, 80.0)
PARAMS = Evaluate(num_inference_steps=1, ensemble_size=1, batch_size=3)
MANIFEST = {
    "name": NAME,
    "role": "train",
    "title": "miniature",
    "source": "here",
    "licence": {"name": "none", "url": "file:///none", "terms": "none"},
    "citation": "none",
    "depth": {"unit": "m", "kind": "planar", "invalid": "none"},
    "mirrors": ["file:///none/"],
    "archives": [{"path": "a.zip"}],
    "splits": {"scenes": {"train": ["room*"], "test": ["hall*"]}},
}


def write_scene(raw, scene, depths_m):
    """One trajectory; the photograph is black but for red, which tells a fake model the frame's number."""
    for index, depth_m in enumerate(depths_m):
        folder = raw / scene / "Easy" / "P000"
        for kind in ("image_left", "depth_left"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        rgb = np.zeros((*depth_m.shape, 3), dtype=np.uint8)
        rgb[..., 0] = index
        Image.fromarray(rgb).save(folder / "image_left" / f"{index:06d}_left.png")
        np.save(folder / "depth_left" / f"{index:06d}_left_depth.npy", depth_m.astype(np.float32))


def random_depths(seed, count=6, size=(16, 24)):
    """Floors of a few metres, a patch too far for the ruler and one too near."""
    rng = np.random.default_rng(seed)
    depths_m = rng.uniform(1, 20, (count, *size))
    depths_m[:, :3], depths_m[:, 3:5, :4] = 200.0, 0.05
    return depths_m


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw" / NAME
    write_scene(raw, "room_a", random_depths(1))
    write_scene(raw, "hall_b", random_depths(2))
    (raw / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    return raw


class FakeModel:
    """Answers truth times a factor, as the pipeline would; its VAE is off by two per cent."""

    uncertainty_scale = None

    def __init__(self, depths_m, factor=1.0):
        self.log_depth, self.depths_m, self.factor, self.asked = RANGE, depths_m, factor, []

    def __call__(self, images, **options):
        self.asked.append((len(images), options))
        return [self._predict(rgb) for rgb in images]

    def _predict(self, rgb):
        depth_m, known = self._answer(rgb), {"uncertainty": None, "uncertainty_calibrated": False}
        return SimpleNamespace(planar_depth_m=depth_m, valid_mask=depth_m < 80, log_depth=RANGE, **known)

    def _answer(self, rgb):
        return (self.depths_m[rgb[0, 0, 0]] * self.factor).astype(np.float32)

    def encode_decode_depth(self, planar_depth_m, intrinsics):
        assert np.isfinite(planar_depth_m).all()
        assert (planar_depth_m > 0).all(), "invalid depth must be filled before the VAE sees it"
        return planar_depth_m * np.float32(1.02)


def run(raw, tmp_path, pipe, params=PARAMS, place="one"):
    folder = tmp_path / place
    evaluate(params, {NAME: raw}, folder / "none", folder / "metrics/evaluate.json", folder / "plots", pipe=pipe)
    return json.loads((folder / "metrics/evaluate.json").read_text()), folder / "plots"


class CalibratedModel(FakeModel):
    """Too far by a tenth, and says so of the first frames of a scene: of the others it states less."""

    uncertainty_scale = object()

    def _predict(self, rgb):
        stated = np.full(rgb.shape[:2], 0.1 if rgb[0, 0, 0] < 3 else 0.02, np.float32)
        known = (
            vars(super()._predict(rgb))
            | {"log_depth": self.log_depth}
            | {"uncertainty": stated, "uncertainty_calibrated": True}
        )
        return SimpleNamespace(**known)


def test_what_the_model_states_of_its_error_is_measured(raw, tmp_path):
    """|e| is ln 1.1 = 0.095: within 0.1 and 1.28 x 0.1, beyond 0.67 x 0.1 and 1.96 x 0.02."""
    report, plots = run(raw, tmp_path, CalibratedModel(random_depths(2), factor=1.1))
    found = report["datasets"][NAME]["uncertainty"]
    assert [found[f"coverage{level}"] for level in (50, 68, 80, 95)] == [0, 0.5, 0.5, 0.5]
    assert found["ause_abs_rel"] == pytest.approx(0, abs=1e-6) and -1 <= found["spearman_images"] <= 1
    assert found["interval95"]["coverage68"] is None  # one scene
    assert report["uncertainty_calibrated"] and report["coverage68"] == 0.5
    assert (plots / "evaluate_uncertainty.png").stat().st_size > 0
    rows = read_rows_files([tmp_path / "one/metrics/evaluate.rows.parquet"])
    ours = rows.where(method="model")
    np.testing.assert_allclose(ours["mean_uncertainty"], np.where(ours["coverage68"] == 1, 0.1, 0.02), rtol=1e-6)
    assert np.isnan(rows.where(method="best_constant")["coverage68"]).all()


def test_a_model_that_states_nothing_has_no_figures_of_it(raw, tmp_path):
    report, plots = run(raw, tmp_path, FakeModel(random_depths(2)))
    assert not report["uncertainty_calibrated"] and report["datasets"][NAME]["uncertainty"] == {}
    assert "coverage68" not in report and (plots / "evaluate_uncertainty.png").is_file()


@pytest.mark.parametrize(
    ("factor", "called_valid", "called_invalid"), [(1.0, 0.0, 0.0), (0.02, 1.0, 0.0), (9, 0.0, 0.5)]
)
def test_sky_that_is_called_valid_is_counted(tmp_path, factor, called_valid, called_invalid):
    """Sky 2 km away, above a floor of 2 and 20 m; a model calls valid what it sees nearer than 80 m."""
    depths_m = np.full((2, 16, 24), 2000.0)
    depths_m[:, 8:], depths_m[:, 12:] = 2.0, 20.0
    for scene in ("room_a", "hall_b"):
        write_scene(tmp_path, scene, depths_m)
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    report, _ = run(tmp_path, tmp_path, FakeModel(depths_m, factor))
    found = report["datasets"][NAME]
    assert (found["no_surface_called_valid"], found["surface_called_invalid"]) == (called_valid, called_invalid)


def test_known_answers(raw, tmp_path):
    pipe = FakeModel(random_depths(2), factor=1.1)
    report, plots = run(raw, tmp_path, pipe)
    found = report["datasets"][NAME]
    assert report["abs_rel"] == found["abs_rel"] == pytest.approx(0.1, abs=1e-6)
    assert report["delta1"] == 1.0
    assert report["vae_floor_abs_rel"] == found["vae_floor"]["abs_rel"] == pytest.approx(0.02, abs=1e-6)
    assert report["num_frames"] == found["num_frames"] == 6
    assert (report["min_m"], report["max_m"]) == (0.1, 80.0)
    assert set(METRICS) <= set(report)
    assert set(METRICS) == set(found["constant"]) == set(found["mean_map"]) == set(found["vae_floor"])
    for one in found["by_depth"]:
        assert one["abs_rel"] == pytest.approx(0.1, abs=1e-6)
    assert [count for count, _ in pipe.asked] == [3, 3]
    options = dict(pipe.asked[0][1])
    assert [len(camera) for camera in options.pop("intrinsics")] == [3, 3, 3]  # each frame's own
    assert options == {
        "num_inference_steps": 1,
        "timestep_spacing": "trailing",
        "ensemble_size": 1,
        "max_ensemble_size": 10,
        "uncertainty_target": 0.01,
        "merge": "depth",
        "windows": "auto",
        "seed": 0,
    }
    with (plots / "evaluate_by_depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["range"] for row in rows] == ["1-2 m", "2-4 m", "4-8 m", "8-16 m", "16-32 m"]
    assert {row["floor"] for row in rows} == {"0.02"}
    for picture in ("evaluate.png", f"examples/{NAME}.png"):
        with Image.open(plots / picture) as image:
            assert min(image.size) > 200


def test_pixels_out_of_range_never_count(raw, tmp_path):
    """Rows 0 to 2 are at 200 m and a patch at 0.05 m: what is predicted there changes nothing."""
    depths_m = random_depths(2)
    clean, _ = run(raw, tmp_path, FakeModel(depths_m))
    depths_m[:, :3], depths_m[:, 3:5, :4] = 1.0, 60.0
    wrong, _ = run(raw, tmp_path, FakeModel(depths_m), place="two")
    assert clean == wrong
    assert clean["abs_rel"] == pytest.approx(0, abs=1e-7)
    in_range = sum(one["num_pixels"] for one in clean["datasets"][NAME]["by_depth"])
    assert in_range == 6 * (16 * 24 - 3 * 24 - 2 * 4)


def test_no_constant_is_better(raw, tmp_path):
    report, _ = run(raw, tmp_path, FakeModel(random_depths(2)))
    depths_m = random_depths(2)
    valid = (depths_m >= RANGE.near_m) & (depths_m <= RANGE.far_m)

    def abs_rel(constant_m):
        images = (
            depth_metrics(np.full(one.shape, constant_m), one, ok) for one, ok in zip(depths_m, valid, strict=True)
        )
        return np.mean([image["abs_rel"] for image in images])

    found = report["datasets"][NAME]
    assert found["constant"]["abs_rel"] == pytest.approx(abs_rel(report["constant_m"]), rel=1e-6)
    best_of_many = min(abs_rel(constant_m) for constant_m in np.geomspace(0.5, 80, 400))
    assert found["constant"]["abs_rel"] <= best_of_many + 1e-4


def test_best_constant_weighs_images_alike(tmp_path):
    """Nine pixels at 2 m in one image, a single one at 8 m in another: 1/g weights leave 2 m the median."""
    raw = tmp_path / NAME
    few = np.full((3, 3), 200.0)
    few[1, 1] = 8.0
    write_scene(raw, "hall", np.stack([np.full((3, 3), 2.0), few]))
    left_out = {NAME: {}}
    usable, constant_m = best_constant({NAME: list_frames(NAME, raw).frames}, RANGE, left_out)
    assert (len(usable[NAME]), left_out) == (2, {NAME: {}})
    assert constant_m == pytest.approx(2.0, rel=1e-3)


def test_mean_map_is_a_geometric_mean_of_training_frames(tmp_path):
    raw = tmp_path / NAME
    write_scene(raw, "room", np.stack([np.full((48, 64), 2.0), np.full((48, 64), 8.0)]))
    write_scene(raw, "hall", np.full((1, 48, 64), 50.0))
    (raw / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    assert mean_depth_map({NAME: raw}, RANGE) == pytest.approx(np.full((24, 32), 4.0))


def test_mean_map_keeps_its_place_and_fills_gaps(tmp_path):
    raw = tmp_path / NAME
    depth_m = np.full((48, 64), 4.0)
    depth_m[24:], depth_m[:24, :32] = 1.0, 200.0
    write_scene(raw, "room", depth_m[None])
    (raw / "manifest.yaml").write_text(yaml.safe_dump(MANIFEST))
    got = mean_depth_map({NAME: raw}, RANGE)
    assert got[12:] == pytest.approx(np.ones((12, 32)))
    assert got[:12, 16:] == pytest.approx(np.full((12, 16), 4.0))
    assert got[:12, :16] == pytest.approx(np.full((12, 16), 4 ** (1 / 3)))


def test_equal_inputs_equal_bytes(raw, tmp_path):
    for place in ("one", "two"):
        run(raw, tmp_path, FakeModel(random_depths(2), 1.2), place=place)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_digest_names_what_was_measured_not_the_answer(raw, tmp_path):
    depths_m = random_depths(2)
    good, _ = run(raw, tmp_path, FakeModel(depths_m))
    bad, _ = run(raw, tmp_path, FakeModel(depths_m, 2.0))
    fewer, _ = run(raw, tmp_path, FakeModel(depths_m), PARAMS.model_copy(update={"frames_per_dataset": 2}))
    assert good["digest"] == bad["digest"] != fewer["digest"]
    assert fewer["num_frames"] == 2


def test_broken_and_empty_frames_are_left_out_with_their_reason(raw, tmp_path):
    folder = raw / "hall_b" / "Easy" / "P000" / "depth_left"
    (folder / "000001_left_depth.npy").write_bytes(b"not an array")
    np.save(folder / "000004_left_depth.npy", np.full((16, 24), 500, dtype=np.float32))
    report, _ = run(raw, tmp_path, FakeModel(random_depths(2)))
    left_out = report["datasets"][NAME]["left_out"]
    assert report["num_frames"] == 4
    assert set(left_out) == {"hall_b/Easy/P000/000001", "hall_b/Easy/P000/000004"}
    assert left_out["hall_b/Easy/P000/000004"] == "no valid depth between 0.1 and 80 m"


def test_a_model_that_answers_no_depth_is_named(raw, tmp_path):
    depths_m = random_depths(2)
    depths_m[3, 8, 8] = np.nan
    with pytest.raises(ValueError, match="hall_b/Easy/P000/000003, model: predicted depth"):
        run(raw, tmp_path, FakeModel(depths_m))
    assert not (tmp_path / "one" / "metrics").exists()


def test_nothing_to_measure(raw, tmp_path):
    with pytest.raises(ValueError, match="no frame with depth in range"):
        narrow = PARAMS.model_copy(update={"min_m": 30.0, "max_m": 40.0})
        run(raw, tmp_path, FakeModel(random_depths(2)), narrow)


def test_equal_predictions_score_alike_whatever_the_models_range(raw, tmp_path):
    """Truth is from 1 to 20 m: a model that ends at 2 and 10 m is measured on all of it."""
    reports = []
    for near_m, far_m in ((0.5, 80.0), (2.0, 10.0)):
        pipe = FakeModel(random_depths(2), 1.1)
        pipe.log_depth = LogDepth(near_m, far_m)
        reports.append(run(raw, tmp_path, pipe, place=f"{near_m}")[0])
    assert reports[0] == reports[1]


def test_a_prediction_that_saturates_is_wrong_and_counts(raw, tmp_path):
    depths_m = random_depths(2)
    report, _ = run(raw, tmp_path, FakeModel(depths_m.clip(5, 10)))
    counted = (depths_m >= 0.1) & (depths_m <= 80)
    errors = np.abs(depths_m.clip(5, 10) - depths_m) / depths_m
    assert report["abs_rel"] == pytest.approx(errors[counted].reshape(6, -1).mean(axis=1).mean(), rel=1e-6)
    assert report["abs_rel"] > 0.2


def test_the_digest_moves_with_frames_split_and_ruler(raw, tmp_path):
    pipe = FakeModel(random_depths(2))
    digests = [run(raw, tmp_path, pipe, place="all")[0]["digest"]]
    for update in ({"min_m": 0.2}, {"max_m": 70.0}, {"frames_per_dataset": 5}):
        digests.append(run(raw, tmp_path, pipe, PARAMS.model_copy(update=update), f"{update}")[0]["digest"])
    assert len(set(digests)) == len(digests)
    faster = PARAMS.model_copy(update={"num_inference_steps": 4, "batch_size": 1, "seed": 3})
    assert run(raw, tmp_path, pipe, faster, "faster")[0]["digest"] == digests[0]


def test_a_frame_that_cannot_be_read_is_reported_and_leaves_the_digest(raw, tmp_path):
    whole, _ = run(raw, tmp_path, FakeModel(random_depths(2)))
    (raw / "hall_b/Easy/P000/depth_left/000001_left_depth.npy").write_bytes(b"not an array")
    rest, _ = run(raw, tmp_path, FakeModel(random_depths(2)), place="two")
    assert rest["digest"] == whole["digest"]
    assert (whole["num_left_out"], rest["num_left_out"]) == (0, 1)
    assert (whole["num_frames"], rest["num_frames"]) == (6, 5)
    rows = read_rows_files([tmp_path / "two/metrics/evaluate.rows.parquet"])
    broken = rows.where(frame="hall_b/Easy/P000/000001")
    assert sorted(broken["method"]) == ["best_constant", "mean_map", "model", "vae_floor"]
    assert np.isnan(broken["metric/abs_rel"]).all() and broken.unique("scene") == ["hall_b"]
    assert all("000001_left_depth.npy" in reason for reason in broken["reason"])
    paired = read_rows_files([tmp_path / "one/metrics/evaluate.rows.parquet"])
    assert rows.unique("ruler_digest") == paired.unique("ruler_digest")


def test_rows_hold_every_frame_by_every_method(raw, tmp_path):
    report, _ = run(raw, tmp_path, FakeModel(random_depths(2), 1.1))
    rows = read_rows_files([tmp_path / "one/metrics/evaluate.rows.parquet"])
    assert len(rows) == 6 * 4
    for method in METHODS:
        of_method = rows.where(method=method.replace("constant", "best_constant"))
        figures = report["datasets"][NAME] if method == "model" else report["datasets"][NAME][method]
        assert of_method["frame"].tolist() == [f"hall_b/Easy/P000/{i:06d}" for i in range(6)]
        for key in METRICS:
            assert of_method[f"metric/{key}"].mean() == pytest.approx(figures[key], rel=1e-12)
    first = rows.where(method="model", frame="hall_b/Easy/P000/000000")
    true_m = random_depths(2)[0].astype(np.float32)
    counted = true_m[(true_m >= 0.1) & (true_m <= 80)]
    found = [first[name][0] for name in ("width", "height", "focal_px", "num_pixels", "median_true_m")]
    assert found == [24, 16, 12, counted.size, pytest.approx(np.median(counted))]  # TartanAir: 90 degrees
    assert first["median_pred_m"][0] == pytest.approx(1.1 * np.median(counted))
    assert (first["benchmark"][0], first["protocol"][0], first["scene"][0]) == (NAME, "evaluate", "hall_b")


def test_intervals_are_by_scene(raw, tmp_path):
    """One scene has no interval; of two, images of a scene are drawn together."""
    alone, _ = run(raw, tmp_path, FakeModel(random_depths(2), 1.1))
    assert alone["interval95"]["abs_rel"] is None and alone["datasets"][NAME]["interval95"]["abs_rel"] is None
    write_scene(raw, "hall_c", random_depths(3))
    both, _ = run(raw, tmp_path, FakeModel(random_depths(2), 1.1), place="two")
    rows = read_rows_files([tmp_path / "two/metrics/evaluate.rows.parquet"]).where(method="model")
    expected = interval_by_scene(rows["metric/abs_rel"], rows["scene"].tolist())
    ends = both["datasets"][NAME]["interval95"]["abs_rel"]
    assert (both["abs_rel"], ends["low"], ends["high"]) == pytest.approx(expected)
    assert ends["low"] == pytest.approx(0.1) and ends["high"] > 0.3  # the model answers hall_b's depth for hall_c
    assert both["interval95"]["abs_rel"] == pytest.approx(ends)


def test_the_interval_of_a_mean_of_data_sets():
    """Half-widths of 0.3 and 0.4 below, 0.6 and 0.8 above: of the mean of two 0.5 / 2 and 1 / 2."""
    combined = mean_interval([Interval(1.0, 0.7, 1.6), Interval(2.0, 1.6, 2.8)])
    assert combined == pytest.approx((1.5, 1.25, 2.0))


def test_without_training_frames_there_is_no_mean_map_and_a_line_says_so(raw, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stage, "why_only_measured", lambda name, raw: "it is a test of others")
    report, _ = run(raw, tmp_path, FakeModel(random_depths(2)))
    assert "mean_map" not in report["datasets"][NAME] and "mean_map_abs_rel" not in report
    assert report["constant_abs_rel"] > 0 and report["vae_floor_abs_rel"] > 0
    rows = read_rows_files([tmp_path / "one/metrics/evaluate.rows.parquet"])
    assert rows.unique("method") == ["best_constant", "model", "vae_floor"]
    assert f"mean_map is left out: none of {NAME} trains" in caplog.text


def test_without_pyarrow_one_line_names_the_extra_before_anything_is_measured(raw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    pipe = FakeModel(random_depths(2))
    with pytest.raises(ValueError, match=r"^pyarrow is not installed, .*'metricgold\[benchmark\]'$"):
        run(raw, tmp_path, pipe)
    assert not pipe.asked


@pytest.mark.parametrize(("count", "limit"), [(10, None), (10, 10), (10, 99), (10, 3), (1000, 7), (1, 1), (0, 5)])
def test_evenly_spaced(count, limit):
    got = evenly_spaced(count, limit)
    assert len(got) == min(count, limit or count)
    assert got == sorted(set(got))
    assert all(0 <= i < count for i in got)
    if len(got) > 2:
        gaps = np.diff([-1, *got, count])
        assert gaps[1:-1].max() - gaps[1:-1].min() <= 1


def test_range_edges_m():
    assert range_edges_m(LogDepth(0.1, 80)).tolist() == [0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 80]
    assert range_edges_m(LogDepth(0.3, 150)).tolist() == [0.3, 0.5, 1, 2, 4, 8, 16, 32, 64, 150]
    assert range_edges_m(LogDepth(0.5, 80)).tolist() == [0.5, 1, 2, 4, 8, 16, 32, 80]
    assert range_edges_m(LogDepth(1, 64)).tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert range_edges_m(LogDepth(1, 1.2)).tolist() == [1, 1.2]


def test_with_a_trained_pipeline(tiny_raw, tiny_model, tmp_path):
    """The real classes, hardly trained, loaded from their folder: figures are finite, repeatable, and in order."""
    reports = [
        evaluate(PARAMS, {NAME: tiny_raw}, tiny_model, tmp_path / f"{i}.json", tmp_path / "plots") for i in range(2)
    ]
    assert reports[0] == reports[1]
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert reports[0]["num_frames"] == 4
    assert reports[0]["model_digest"] == digest_folder(tiny_model)
    rows = read_rows_files([tmp_path / "0.rows.parquet"])
    assert rows.where(method="model").unique("method_digest") == [digest_folder(tiny_model)]
    assert len(rows.unique("method_digest")) == 4
    assert all(np.isfinite(reports[0][key]) for key in METRICS)


def test_vae_floor_takes_frames_of_any_size(tiny_model):
    from metricgold.model.pipeline import MetricGoldPipeline

    pipe = MetricGoldPipeline.from_pretrained(tiny_model)
    sizes = [(16, 24), (9, 31)]
    frames = [
        SimpleNamespace(planar_depth_m=np.ones(s, np.float32), valid_mask=np.ones(s, bool), intrinsics=np.eye(3))
        for s in sizes
    ]
    assert [one.shape for one in through_vae(pipe, frames)] == sizes
