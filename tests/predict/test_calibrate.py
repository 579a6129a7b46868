"""Points with known distances to a file, and that file to corrected depth: whole jobs with a plain model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

from metricgold.cli import main
from metricgold.images.camera import planar_from_ray_distance, rays_from_intrinsics
from metricgold.images.depth_files import read_depth, write_mm_depth_png
from metricgold.log_depth import LogDepth
from metricgold.params.sections import Predict
from metricgold.predict.calibrate import calibrate
from metricgold.predict.calibration import Calibration, apply_calibration, read_calibration
from metricgold.predict.job import BatchJob
from metricgold.predict.outputs import ImageResult
from metricgold.predict.stage import predict_all
from metricgold.storage.files import digest_folder, digest_json
from tests.support.pipes import PlainPipe
from tests.support.workers import sent

HEIGHT, WIDTH = 30, 40
PARAMS = Predict(num_inference_steps=2, ensemble_size=2, num_threads=2, outputs=["log-png", "npz", "json"])
TRUE_SCALE = 0.6


@pytest.fixture
def place(tmp_path):
    """A folder of two pictures, a model's folder, and their predictions."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    for seed, name in enumerate(["a.png", "b.png"]):
        save_picture(tmp_path / "images" / name, seed)
    predict(tmp_path)
    return tmp_path


def save_picture(path: Path, seed: int, width: int = WIDTH, focal_35mm: int | None = None, make: str = "") -> None:
    rgb = np.random.default_rng(seed).integers(20, 240, (HEIGHT, width, 3), np.uint8)
    exif = Image.Exif()
    if focal_35mm:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = focal_35mm
    if make:
        exif[ExifTags.Base.Make] = make
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rgb).save(path, exif=exif)


def predict(place: Path, out: str = "depth", **options) -> dict:
    return predict_all(
        PARAMS, place / "model", str(place / "images"), str(place / out), model_name="m/1", pipe=PlainPipe(), **options
    )


def rows(place: Path, out: str = "depth") -> dict[str, dict]:
    lines = (place / out / "receipt.jsonl").read_text().splitlines()
    return {row["input"]: row for row in map(json.loads, lines)}


def truth(place: Path, image: str, x: int, y: int, scale: float = TRUE_SCALE) -> float:
    return scale * float(read_depth(place / "depth" / f"{image}.depth.npz").planar_depth_m[y, x])


def write_points(place: Path, spots, image: str = "a.png", kind: str = "planar", scale: float = TRUE_SCALE) -> Path:
    path = place / "points.csv"
    lines = [f"{image},{x + 0.5},{y},{truth(place, image, x, y, scale) * factor},{kind}" for x, y, factor in spots]
    path.write_text("\n".join(["image,x,y,metres,kind", *lines]) + "\n")
    return path


SPOTS = [(3, 4, 1.02), (20, 10, 0.97), (35, 2, 1.0), (8, 25, 1.03), (30, 28, 0.98)]


def fitted(place: Path, points: Path | None = None, **options):
    points = points or write_points(place, SPOTS)
    return calibrate(points, place / "c.json", predictions=str(place / "depth"), **options)


def test_points_to_a_file_that_says_by_how_much(place, caplog):
    calibration = fitted(place)
    assert calibration == read_calibration(place / "c.json")
    assert (calibration.kind, calibration.power) == ("scale", 1)
    assert calibration.scale == pytest.approx(TRUE_SCALE, rel=0.02)
    assert calibration.abs_rel.after < 0.04 < 0.6 < calibration.abs_rel.before
    assert calibration.abs_rel.interval_90[0] > 0.5 and calibration.abs_rel.left_out == "point"
    assert "c.json is of 1 images: its error is that of their scenes" in caplog.text
    assert (calibration.num_points, calibration.num_used) == (5, 5)
    assert calibration.model_digest == digest_folder(place / "model")
    assert calibration.camera.relative_focal == pytest.approx(1.0, abs=0.001)  # 60 degrees over 4:3
    assert Image.open(place / "c.png").size == (900, 460)


def test_predicting_the_images_itself_gives_the_same(place):
    points = write_points(place, SPOTS)
    itself = calibrate(
        points,
        place / "itself.json",
        images=str(place / "images"),
        model=place / "model",
        model_name="m/1",
        params=PARAMS,
        pipe=PlainPipe(),
    )
    assert itself.sha256 == fitted(place, points).sha256


def test_a_calibration_of_before_holds_and_keeps_its_digest(place):
    """It called the model's digest model_sha256."""
    calibration = fitted(place)
    values = json.loads((place / "c.json").read_text())
    values["model_sha256"] = values.pop("model_digest")
    assert calibration.sha256 == digest_json({name: value for name, value in values.items() if name != "date"})
    (place / "before.json").write_text(json.dumps(values))
    assert read_calibration(place / "before.json") == calibration


def test_ray_distances_are_converted_with_the_camera(place):
    spots, kind = [(x, y, 1.0) for x, y, _ in SPOTS], "ray distance"
    planar = fitted(place, write_points(place, spots))
    rays = rays_from_intrinsics(np.array(json.loads((place / "depth/a.png.json").read_text())["intrinsics"]), 30, 40)
    cosines = planar_from_ray_distance(np.ones((30, 40)), rays)
    along_rays = [(x, y, 1 / cosines[y, x]) for x, y, _ in spots]
    assert cosines[4, 3] < 0.9
    assert fitted(place, write_points(place, along_rays, kind=kind)).scale == pytest.approx(planar.scale, rel=1e-6)


def test_depth_maps_are_points_too(place):
    names = ["a.png", "b.png"]
    for name in names:
        depth_m = read_depth(place / "depth" / f"{name}.depth.npz").planar_depth_m * np.float32(TRUE_SCALE)
        depth_m[:, :10] = np.nan
        write_mm_depth_png(place / f"{name}.measured.png", depth_m, {})
    points = place / "maps.csv"
    points.write_text("image,depth\n" + "".join(f"{name},{name}.measured.png\n" for name in names))
    calibration = fitted(place, points)
    assert calibration.scale == pytest.approx(TRUE_SCALE, rel=0.001) and calibration.num_points == 200
    assert all(point["x"] >= 10 for point in calibration.points)


@pytest.mark.parametrize("kind", ["planar", "ray distance"])
def test_depth_maps_of_other_programs_are_points_too(kind, place):
    predicted = read_depth(place / "depth" / "a.png.depth.npz").planar_depth_m * TRUE_SCALE
    intrinsics = np.array(json.loads((place / "depth/a.png.json").read_text())["intrinsics"])
    along = planar_from_ray_distance(np.ones((30, 40)), rays_from_intrinsics(intrinsics, 30, 40))
    stored = predicted / (along if kind == "ray distance" else 1.0)
    stored[:, :10] = 0  # nothing was measured
    (place / "maps").mkdir()
    Image.fromarray(np.round(stored * 256).astype(np.uint16)).save(place / "maps" / "kitti.png")
    np.save(place / "maps" / "mm.npy", np.where(stored > 0, stored * 1000, np.nan).astype(np.float32))
    points = place / "maps.csv"
    for line in (f"a.png,maps/kitti.png,{1 / 256},{kind}", f"a.png,maps/mm.npy,0.001,{kind}"):
        points.write_text(f"image,depth,scale,kind\n{line}\n")
        calibration = fitted(place, points)
        assert calibration.scale == pytest.approx(TRUE_SCALE, rel=0.002) and calibration.num_points == 100
        assert all(point["x"] >= 10 for point in calibration.points)


MAP_FAULTS = {
    "a.png,other.png,,planar": "other.png.*column scale says the metres of 1",
    "a.png,other.png,0,planar": "line 2: scale: expected a number above 0, got 0",
    "a.png,other.png,mm,planar": "line 2: scale: expected a number, got 'mm'",
    "a.png,other.png,0.001,": "line 2: kind: say whether",
    "a.png,ours.png,0.001,planar": "ours.png: says itself what its numbers mean",
    "a.png,small.npy,0.001,planar": "small.npy: a depth map of 3 x 2 for an image of 40 x 30",
}


@pytest.mark.parametrize("row", MAP_FAULTS)
def test_faults_of_a_map_are_named(row, place):
    Image.fromarray(np.full((HEIGHT, WIDTH), 2000, np.uint16)).save(place / "other.png")
    write_mm_depth_png(place / "ours.png", np.full((HEIGHT, WIDTH), 2, np.float32), {})
    np.save(place / "small.npy", np.ones((2, 3), np.float32))
    (place / "maps.csv").write_text(f"image,depth,scale,kind\n{row}\n")
    with pytest.raises(ValueError, match=MAP_FAULTS[row]):
        fitted(place, place / "maps.csv")


def test_a_corrected_job_says_so_everywhere_and_its_range_moves_along(place):
    calibration = fitted(place)
    summary = predict(place, "corrected", calibration=calibration)
    assert summary["calibration"]["sha256"] == calibration.sha256
    plain, file = (read_depth(place / out / "a.png.depth.npz") for out in ("depth", "corrected"))
    np.testing.assert_allclose(file.planar_depth_m, plain.planar_depth_m * calibration.scale, rtol=1e-6)
    expected = np.hypot(0.02, calibration.scale_error)
    np.testing.assert_allclose(file.uncertainty, expected, rtol=1e-5)
    png = read_depth(place / "corrected" / "a.png.depth.png")
    assert (png.near_m, png.far_m) == pytest.approx((0.5 * calibration.scale, 80 * calibration.scale))
    np.testing.assert_allclose(png.planar_depth_m, file.planar_depth_m, rtol=1e-4)
    side_car = json.loads((place / "corrected" / "a.png.json").read_text())
    for where in (side_car, rows(place, "corrected")["a.png"]):
        assert where["calibration"] == calibration.facts
    assert json.loads(file.attributes["calibration"])["scale"] == calibration.scale
    assert f"{calibration.scale:.3f}" in (place / "corrected" / "gallery.html").read_text()
    assert "calibration" not in json.loads((place / "depth" / "a.png.json").read_text())


def test_a_calibration_decides_what_is_fresh(place):
    calibration = fitted(place)
    assert predict(place)["images_kept"] == 2
    assert predict(place, calibration=calibration)["images_kept"] == 0
    assert predict(place, calibration=calibration)["images_kept"] == 2
    other = calibration.model_copy(update={"scale": 0.7})
    assert predict(place, calibration=other)["images_kept"] == 0
    assert predict(place)["images_kept"] == 0


def test_another_model_is_refused_and_other_params_are_named(place, caplog):
    calibration = fitted(place)
    other = calibration.model_copy(update={"params": calibration.params | {"seed": 7}})
    predict(place, "out", calibration=other)
    assert "fitted to predictions with seed 7, these have 0" in caplog.text
    (place / "model" / "weights").write_bytes(b"2")
    with pytest.raises(ValueError, match=r"the calibration is of the model m/1 with digest .*: calibrate again"):
        predict(place, "out", calibration=calibration)


def test_an_image_of_another_camera_fails_by_name(place):
    calibration = fitted(place)
    save_picture(place / "images" / "tele.jpg", 5, focal_35mm=100)
    save_picture(place / "images" / "wide.png", 6, width=60)
    predict(place, "out", calibration=calibration)
    row = rows(place, "out")["tele.jpg"]
    assert row["status"] == "failed" and "another camera's: this one is of relative focal length 3.3" in row["reason"]
    assert {name for name, row in rows(place, "out").items() if row["status"] == "done"} == {"a.png", "b.png"}


def test_a_camera_is_also_its_name_by_exif(place):
    for name in ("c.jpg", "d.jpg"):
        save_picture(place / "images" / name, ord(name[0]), focal_35mm=28, make=f"Maker {name[0]}")
    predict(place)
    assert rows(place)["c.jpg"]["camera_name"] == "Maker c"
    calibration = fitted(place, write_points(place, SPOTS, image="c.jpg"))
    assert calibration.camera.name == "Maker c"
    predict(place, "out", calibration=calibration)
    assert rows(place, "out")["c.jpg"]["status"] == "done"
    assert "this one is Maker d, not Maker c" in rows(place, "out")["d.jpg"]["reason"]


FAULTS = {
    "a.png,40,3,2,planar": r"line 2: \(40, 3\) is outside a.png, which has 40 x 30 pixels",
    "a.png,-1,3,2,planar": "outside",
    "a.png,1,3,2,": "line 2: kind: say whether metres are planar or a ray distance",
    "a.png,1,3,2,feet": "got 'feet'",
    "a.png,1,3,-2,planar": "line 2: metres: expected a number above 0, got -2",
    "a.png,1,3,nan,planar": "line 2: metres: expected a number, got 'nan'",
    "a.png,one,3,2,planar": "line 2: x: expected a number, got 'one'",
    ",1,3,2,planar": "line 2: image: is empty",
    "z.png,1,3,2,planar": "no depth of z.png with its side-car",
    "a.png,1,3,2,planar": "3 points at least, got 1",
}


@pytest.mark.parametrize("row", FAULTS)
def test_faults_of_a_row_are_named(place, row):
    (place / "points.csv").write_text(f"image,x,y,metres,kind\n{row}\n")
    with pytest.raises(ValueError, match=FAULTS[row]):
        fitted(place, place / "points.csv")
    assert not (place / "c.json").exists()


def test_a_point_where_the_model_gives_no_depth_is_refused(place):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    Image.fromarray(image).save(place / "images" / "a.png")

    class Saturating(PlainPipe):
        @staticmethod
        def predict(rgb):
            prediction = PlainPipe.predict(rgb)
            prediction.planar_depth_m[3, 1] = 80.0
            return prediction

    predict_all(PARAMS, place / "model", str(place / "images"), str(place / "depth"), model_name="m", pipe=Saturating())
    (place / "points.csv").write_text("image,x,y,metres,kind\na.png,1,3,2,planar\n")
    with pytest.raises(ValueError, match=r"line 2: at \(1, 3\) of a.png the model gives no depth within its range"):
        fitted(place, place / "points.csv")


def test_what_does_not_help_is_not_kept_and_a_picture_shows_it(place):
    (place / "c.json").write_text("of before")
    spots = [(x, y, factor) for (x, y, _), factor in zip(SPOTS, (1.1, 0.9, 1.05, 0.92, 1.02), strict=True)]
    with pytest.raises(ValueError, match=r"nothing to calibrate: AbsRel of 5 points is 0.0\d+ as predicted and"):
        fitted(place, write_points(place, spots, scale=1.0))
    assert (place / "c.json").read_text() == "of before" and (place / "c.png").exists()


def test_images_of_two_cameras_or_calibrated_ones_are_refused(place):
    calibration = fitted(place)
    save_picture(place / "images" / "tele.jpg", 5, focal_35mm=100)
    predict(place)
    points = write_points(place, SPOTS)
    points.write_text(points.read_text() + "tele.jpg,3,3,2,planar\n")
    with pytest.raises(ValueError, match=r"tele.jpg is of another camera than a.png: of relative focal length 3.3"):
        fitted(place, points)
    (place / "images" / "tele.jpg").unlink()
    predict(place, calibration=calibration)
    with pytest.raises(ValueError, match="calibrated already; predict it without --calibration"):
        fitted(place)


def test_in_python_a_power_bends_depth_and_its_range():
    """4 m at a pivot of 2 m and a power of 1/2: half of 4 times (4 / 2) ^ -1/2."""
    facts = {"model": "m", "model_digest": "0", "params": {}, "date": "2026-01-01", "points": [], "num_points": 9}
    abs_rel = dict(left_out="point", before=0.5, after=0.1, improvement=0.4, interval_90=(0.3, 0.5), models={})
    numbers = dict(scale=0.5, scale_error=0.1, power=0.5, power_error=0.2, pivot_m=2.0, near_m=1.0, far_m=9.0)
    calibration = Calibration(
        **facts, **numbers, camera={"relative_focal": 1.0}, kind="scale and power", abs_rel=abs_rel, num_used=9
    )
    depth_m = np.full((2, 3), 4.0, np.float32)
    intrinsics = np.diag([6**0.5, 6**0.5, 1])
    result = ImageResult(
        *(None, depth_m, np.full_like(depth_m, 0.3), depth_m > 0, intrinsics), log_depth=LogDepth(0.5, 80.0), facts={}
    )
    corrected = apply_calibration(calibration, result)
    np.testing.assert_allclose(corrected.planar_depth_m, 0.5 * 4 * 2**-0.5, rtol=1e-6)
    assert corrected.planar_depth_m.dtype == corrected.uncertainty.dtype == np.float32
    spread = np.sqrt((0.5 * 0.3) ** 2 + 0.1**2 + (0.2 * np.log(2)) ** 2)
    np.testing.assert_allclose(corrected.uncertainty, spread, rtol=1e-6)
    assert corrected.log_depth.near_m == pytest.approx(0.5 * 0.5 * 0.5**-0.5)  # nearer than the points, as at 1 m
    with pytest.raises(ValueError, match=r"of relative focal length 2.000, not 1.000"):
        apply_calibration(calibration, replace(result, intrinsics=np.diag([24**0.5, 24**0.5, 1])))
    with pytest.raises(ValueError, match="no pinhole camera"):
        apply_calibration(calibration, replace(result, intrinsics=None))


def test_the_command(place):
    write_points(place, SPOTS, kind="")
    words = ["calibrate", str(place / "points.csv"), "--predictions", str(place / "depth")]
    words += ["--out", str(place / "c.json")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1 and "kind: say whether" in refused.output and "Traceback" not in refused.output
    kept = CliRunner().invoke(main, [*words, "--kind", "planar", "--json"])
    assert kept.exit_code == 0, kept.output
    assert json.loads(kept.stdout)["points_used"] == "5 of 5"
    neither = CliRunner().invoke(main, ["calibrate", str(place / "points.csv"), "--out", "c.json"])
    assert neither.exit_code == 2 and "either --predictions or --images" in neither.output


def test_a_broken_file_is_named(place):
    fitted(place)
    values = json.loads((place / "c.json").read_text())
    (place / "c.json").write_text(json.dumps(values | {"scale": -1}))
    with pytest.raises(ValueError, match=r"c.json: scale: Input should be greater than 0, got -1"):
        read_calibration(place / "c.json")


def test_a_job_takes_its_calibration_to_other_machines(place):
    calibration = fitted(place)
    job = BatchJob(PARAMS, "in", "out", place / "model", "m/1", digest_folder(place / "model"), calibration=calibration)
    there = sent(job.elsewhere())
    assert there.calibration == calibration and there.identity == job.identity
    assert job.identity != replace(job, calibration=None).identity
