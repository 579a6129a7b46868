"""The benchmark stage on miniature data: figures by hand, one estimate for all protocols, resuming, equal bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets import write_ledger
from metricgold.evaluate import protocols as rules
from metricgold.evaluate.benchmark_stage import benchmark
from metricgold.evaluate.methods import Estimate
from metricgold.evaluate.rows import read_rows_files
from metricgold.evaluate.summary import BenchmarkOutputs, rebuild_report
from metricgold.metrics import depth_metrics, image_figures
from metricgold.params import Benchmark, Folders
from metricgold.storage import digest_json

SIZE = (24, 32)
PARAMS = Benchmark(batch_size=2)
STATEMENT = """\
depth: {unit: metre, kind: planar, invalid: 0, far: null}
intrinsics: {first_pixel: 0.5, fx: 40.0, fy: 40.0, cx: 16.0, cy: 12.0}
splits: {test: ["*"]}
"""


def write_frames(raw: Path, scenes=("hall", "room"), per_scene=3) -> dict[str, np.ndarray]:
    """A team's own data with nothing but a test split; red is the frame's number. Returns true depth by frame."""
    raw.mkdir(parents=True)
    (raw / "dataset.yaml").write_text(STATEMENT)
    truths = {}
    for number in range(len(scenes) * per_scene):
        scene = scenes[number // per_scene]
        name = f"{scene}/{number}"
        depth_m = np.random.default_rng(number).uniform(0.5, 20, SIZE).astype(np.float32)
        depth_m[:2] = 0
        for kind in ("rgb", "depth"):
            (raw / scene / kind).mkdir(parents=True, exist_ok=True)
        rgb = np.zeros((*SIZE, 3), np.uint8)
        rgb[..., 0] = number % 256
        Image.fromarray(rgb).save(raw / scene / "rgb" / f"{number}.png")
        np.save(raw / scene / "depth" / f"{number}.npy", depth_m)
        truths[name] = depth_m
    return truths


class Fake:
    """Truth times a factor that depends on the frame."""

    takes_camera = False

    def __init__(self, truths, name="fake", factor=1.2, kind="depth_m", uncertainty=None):
        self.truths, self.name, self.factor, self.kind = list(truths.values()), name, factor, kind
        self.uncertainty, self.asked = uncertainty, []
        self.digest = digest_json([name, factor, kind])

    def estimate(self, rgbs, intrinsics):
        self.asked += [int(rgb[0, 0, 0]) for rgb in rgbs]
        return [self.answer(int(rgb[0, 0, 0]), rgb.shape[:2]) for rgb in rgbs]

    def unload(self):
        pass

    def answer(self, number, size):
        depth_m = np.maximum(self.truths[number], 0.1) * np.float32(self.factor + 0.01 * number)
        depth_m = depth_m[-size[0] :, -size[1] :]
        if self.kind != "depth_m":
            return Estimate(1 / depth_m, self.kind)
        return Estimate(depth_m, "depth_m", None if self.uncertainty is None else np.full(size, self.uncertainty))


@pytest.fixture(autouse=True)
def without_page(request, monkeypatch):
    """Drawing the page takes most of a tiny run's time: only a test of the page does."""
    if "page" not in request.node.name:
        monkeypatch.setattr("metricgold.evaluate.summary.write_report", lambda rows, pictures, *outs: None)


@pytest.fixture
def project(tmp_path):
    folders = Folders(tmp_path)
    truths = write_frames(folders.benchmark("mine"))
    return folders, truths


def run(project, *methods, params=PARAMS, **options):
    folders, _ = project
    out = BenchmarkOutputs.of(folders, "mine")
    return benchmark(params, "mine", folders.benchmark("mine"), out, methods=methods, **options), out


def test_rows_hold_the_figures_of_each_image_and_the_summary_their_mean(project):
    _, truths = project
    summary, out = run(project, Fake(truths, uncertainty=0.1))
    rows = read_rows_files([out.rows])
    assert set(rows.unique("method")) == {"fake", "best_constant"} and rows.unique("protocol") == ["whole"]
    ours = rows.where(method="fake")
    assert ours["frame"].tolist() == sorted(truths) and set(ours["scene"]) == {"hall", "room"}
    by_hand = []
    for index, frame in enumerate(ours["frame"]):
        number = int(frame.rpartition("/")[2])
        valid = truths[frame] > 0
        pred_m = np.maximum(truths[frame], 0.1) * np.float32(1.2 + 0.01 * number)
        figures = image_figures(pred_m, truths[frame], valid, uncertainty=np.full(SIZE, 0.1))
        for key, value in figures.items():
            np.testing.assert_allclose(ours[key][index], value, rtol=1e-6 if key == "mean_uncertainty" else 0)
        by_hand.append(depth_metrics(pred_m, truths[frame], valid)["abs_rel"])
        near = valid & (truths[frame] >= 4) & (truths[frame] < 8)
        error = np.mean(np.abs(pred_m[near] / truths[frame][near].astype(np.float64) - 1))
        assert ours["range/4-8/abs_rel"][index] == pytest.approx(error, rel=1e-12)
        assert ours["range/4-8/num_pixels"][index] == near.sum()
        assert ours["focal_px"][index] == 40 and ours["width"][index] == SIZE[1]
    assert summary["abs_rel"] == pytest.approx(np.mean(by_hand))
    assert summary["abs_rel_low"] <= summary["abs_rel"] <= summary["abs_rel_high"]
    assert summary["num_frames"] == 6 and summary["protocol"] == "whole"
    assert summary["ruler_digest"] == ours["ruler_digest"][0]
    assert summary == json.loads(out.metrics.read_text()) and not any(isinstance(v, dict) for v in summary.values())
    assert out.plot.read_text().startswith("protocol,method,range")


def test_no_constant_is_better_than_the_best_one(project):
    _, truths = project
    _, out = run(project)
    rows = read_rows_files([out.rows]).where(method="best_constant")
    found = rows["metric/abs_rel"].mean()
    for constant in np.linspace(0.5, 20, 500):
        errors = [np.mean(np.abs(constant - g[g > 0]) / g[g > 0]) for g in truths.values()]
        assert found <= np.mean(errors) * (1 + 1e-6)


def test_a_relative_method_has_the_figures_of_its_alignment_only(project):
    _, truths = project
    summary, out = run(project, Fake(truths, kind="relative_disparity"))
    rows = read_rows_files([out.rows]).where(method="fake")
    assert np.isnan(rows["metric/abs_rel"]).all() and (rows["affine_disparity/abs_rel"] < 1e-5).all()
    assert "abs_rel" not in summary and summary["affine_disparity_abs_rel"] < 1e-5
    _, out = run(project, Fake(truths, factor=1.0, kind="disparity_per_m"))
    np.testing.assert_allclose(read_rows_files([out.rows]).where(method="fake")["metric/delta1"].min(), 1)


def test_protocols_that_show_the_same_share_one_estimate(project, monkeypatch):
    _, truths = project
    parts = [{}, {"max_m": 10.0}, {"crop": {"window": (12, 16)}}]
    known = [
        rules.Protocol(name=f"p{i}", benchmark="mine", title="", source=["here"], **part)
        for i, part in enumerate(parts)
    ]
    monkeypatch.setattr("metricgold.evaluate.benchmark_stage.protocols_of", lambda name: known)
    fake = Fake(truths)
    summary, out = run(project, fake, protocols=["all"])
    assert fake.asked[:4] == [0, 1, 0, 1]  # two frames, whole and the window: once for p0 and p1, once for p2
    rows = read_rows_files([out.rows])
    assert rows.unique("protocol") == ["p0", "p1", "p2"] and len(set(rows["ruler_digest"])) == 3
    assert summary["protocol"] == "p0" and "p2/fake/abs_rel" in summary
    assert (rows.where(protocol="p2", method="fake")["num_pixels"] == 12 * 16).all()


def test_what_is_measured_is_not_measured_again_and_another_model_is(project):
    _, truths = project
    _, out = run(project, Fake(truths))
    first = out.rows.read_bytes()
    again = Fake(truths)
    run(project, again)
    assert again.asked == [] and out.rows.read_bytes() == first
    other = Fake(truths, factor=1.3)
    run(project, other)
    assert set(other.asked) == set(range(6))
    rows = read_rows_files([out.rows]).where(method="fake")
    assert set(rows["method_digest"]) == {other.digest}


@pytest.mark.parametrize("listed", [False, True])
def test_truth_that_was_changed_in_place_is_measured_again(project, listed):
    """A team's own data have no ledger, or one of before: the old errors stayed, in pictures too."""
    folders, truths = project
    raw = folders.benchmark("mine")
    if listed:
        write_ledger("mine", raw)
    first, _ = run(project, Fake(truths))
    drawn = {path: path.read_bytes() for path in (folders.plots / "benchmark/mine").glob("*/error.jpg")}
    for path in raw.glob("*/depth/*.npy"):
        np.save(path, 2 * np.load(path))
    again, _ = run(project, Fake(truths))
    assert first["abs_rel"] > 0.2 and again["abs_rel"] == pytest.approx(1 - (1 + first["abs_rel"]) / 2, rel=1e-3)
    assert {path.read_bytes() for path in (folders.plots / "benchmark/mine").glob("*/error.jpg")}.isdisjoint(
        drawn.values()
    )
    (raw / "dataset.yaml").write_text(STATEMENT.replace("unit: metre", "unit: 0.5"))
    assert run(project, Fake(truths))[0] != again


def test_other_frames_are_another_ruler(project):
    _, truths = project
    whole, _ = run(project, Fake(truths))
    part, out = run(project, Fake(truths), params=Benchmark(frames=2))
    assert part["num_frames"] == 2 and part["ruler_digest"] != whole["ruler_digest"]
    assert len(read_rows_files([out.rows]).where(method="fake")) == 2


def test_a_frame_that_cannot_be_read_is_left_out_and_said_and_tried_again(project):
    folders, truths = project
    broken = folders.benchmark("mine") / "room/depth/4.npy"
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    summary, out = run(project, Fake(truths))
    rows = read_rows_files([out.rows]).where(method="fake")
    assert summary["num_frames"] == 5
    assert "4.npy" in rows.where(frame="room/4")["reason"][0]
    broken.write_bytes(whole)
    summary, out = run(project, Fake(truths))
    assert summary["num_frames"] == 6 and set(read_rows_files([out.rows])["reason"]) == {""}


def test_a_frame_of_which_no_pixel_counts_has_a_row_that_says_so(project):
    folders, truths = project
    np.save(folders.benchmark("mine") / "room/depth/4.npy", np.zeros(SIZE, np.float32))
    summary, out = run(project, Fake(truths))
    rows = read_rows_files([out.rows]).where(method="fake")
    assert summary["num_frames"] == 5 and rows.where(frame="room/4")["reason"][0] == "no pixel counts"


def test_the_page_is_rebuilt_from_rows_byte_by_byte(project):
    _, truths = project
    _, out = run(project, Fake(truths, uncertainty=0.1))
    pages = [path.read_bytes() for path in (out.html, out.markdown)]
    out.html.unlink(), out.markdown.unlink()
    answer = rebuild_report([out.rows], out.pictures)
    assert answer["html"] == str(out.html)
    assert [path.read_bytes() for path in (out.html, out.markdown)] == pages


def test_a_prediction_without_depth_where_a_pixel_counts_names_frame_and_method(project):
    _, truths = project
    fake = Fake(truths)
    fake.truths[3] = np.full(SIZE, np.nan, np.float32)
    with pytest.raises(ValueError, match=r"room/3, fake, whole: predicted depth must be finite"):
        run(project, fake)


def test_pictures_are_those_of_this_run_and_are_not_drawn_twice(project):
    folders, truths = project
    run(project, Fake(truths))
    drawn = set((folders.plots / "benchmark/mine").glob("*/error.jpg"))
    times = {path: path.stat().st_mtime_ns for path in drawn}
    assert len(drawn) == 3  # best, median and worst
    run(project, Fake(truths))
    assert {path: path.stat().st_mtime_ns for path in drawn} == times
    run(project, Fake(truths, factor=1.4))
    now = set((folders.plots / "benchmark/mine").glob("*/error.jpg"))
    assert len(now) == 3 and not now & drawn


def test_how_many_frames_are_measured_changes_no_row_of_a_checkpoint(tmp_path):
    from metricgold.evaluate.ours import OurModel

    (tmp_path / "weights").write_bytes(b"1")
    models = [
        OurModel(tmp_path, "ours", Benchmark(frames=frames, batch_size=size)) for frames, size in ((None, 8), (5, 2))
    ]
    assert len({model.digest for model in models}) == 1
    assert OurModel(tmp_path, "ours", Benchmark(ensemble_size=3)).digest != models[0].digest


def test_frames_that_a_protocol_names_and_that_are_not_there_are_one_line(project, monkeypatch):
    _, truths = project
    pinned = rules.Protocol(name="p", benchmark="mine", title="", source=["here"], frames={"count": 9})
    monkeypatch.setattr("metricgold.evaluate.benchmark_stage.protocols_of", lambda name: [pinned])
    fake = Fake(truths)
    with pytest.raises(ValueError, match=r"protocol p measures 9 frames of mine .* but there are 6"):
        run(project, fake)
    assert fake.asked == []


def test_unknown_protocols_and_missing_frames_are_one_line(project):
    _, truths = project
    with pytest.raises(ValueError, match="mine has no protocol 'nyuv2-eigen'; it has whole"):
        run(project, Fake(truths), protocols=["nyuv2-eigen"])
    folders, _ = project
    (folders.benchmark("mine") / "dataset.yaml").write_text(STATEMENT.replace("test:", "train:"))
    with pytest.raises(ValueError, match="has no 'test'"):
        run(project, Fake(truths))


KILLED = """
import sys, time
from pathlib import Path
from tests.evaluate.test_benchmark import Fake, SIZE, run
from metricgold.params import Folders
import numpy as np

class Slow(Fake):
    def estimate(self, rgbs, intrinsics):
        time.sleep(0.3)
        return super().estimate(rgbs, intrinsics)

folders = Folders(Path(sys.argv[1]))
truths = {name: np.load(folders.benchmark("mine") / name) for name in sys.argv[2:]}
run((folders, truths), Slow(truths))
"""


def test_a_run_that_is_killed_resumes_by_its_rows(project):
    folders, truths = project
    files = [f"{name.replace('/', '/depth/')}.npy" for name in truths]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folders.root), *files])
    journals = BenchmarkOutputs.of(folders, "mine").rows.parent
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in journals.glob(".mine.*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (journal,) = journals.glob(".mine.*.jsonl")
    begun = {json.loads(line)["frame"] for line in journal.read_text().splitlines()}
    assert 0 < len(begun) < 6
    fake = Fake(truths)
    _, out = run(project, fake)
    measured = fake.asked[: 6 - len(begun)]
    assert {f"{name.rpartition('/')[2]}" for name in truths.keys() - begun} == {str(number) for number in measured}
    resumed = out.rows.read_bytes()
    journal.unlink()
    run(project, Fake(truths))
    assert out.rows.read_bytes() == resumed
