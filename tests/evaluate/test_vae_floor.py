"""The VAE floor: three encodings by their formulas, what counts, which range wins, what mirroring costs."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from metricgold.datasets.readers import open_dataset
from metricgold.encode.crops import crop_frame
from metricgold.evaluate.depth_ranges import range_edges_m
from metricgold.evaluate.vae_floor import (
    FlipAsymmetry,
    Floor,
    Truth,
    best_range,
    measure_floor,
    measure_vae_floor,
)
from metricgold.images import TrainingSize
from metricgold.log_depth import Encoding, LogDepth
from metricgold.metrics import depth_metrics
from metricgold.model.backbone import load_vae
from metricgold.params.sections import CanonicalRange, Encode, VaeFloor
from metricgold.storage.files import digest_folder

SIZE = (32, 48)
RANGES = [{"near_m": 1.0, "far_m": 40.0}, {"near_m": 0.5, "far_m": 150.0}]
PARAMS = VaeFloor.model_validate({"frames_per_dataset": 3, "batch_size": 2, "ranges_m": RANGES})


def run(tiny, raw, backbone, out, params=PARAMS, size=SIZE):
    arguments = (params, tiny.log_depth, {tiny.datasets[0]: raw}, backbone, out / "vae_floor.json", out / "plots")
    return measure_vae_floor(*arguments, size=size)


@pytest.fixture(scope="module")
def report(tiny, tiny_raw, tiny_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("floor")
    return run(tiny, tiny_raw, tiny_backbone, out), out


@pytest.fixture(scope="module")
def frames(tiny, tiny_raw):
    return list(open_dataset(tiny.datasets[0], tiny_raw, split="test"))


def test_frames_of_several_shapes_are_measured_each_at_its_own(tiny, mixed_raw, tiny_backbone, tmp_path):
    params = PARAMS.model_copy(update={"split": "train", "frames_per_dataset": 8, "batch_size": 4})
    figures = run(tiny, mixed_raw, tiny_backbone, tmp_path, params)
    assert figures[f"{tiny.datasets[0]}/num_frames"] == 8


@pytest.mark.parametrize("views", [1, 4])
def test_the_range_of_canonical_depth_is_by_its_percentiles(tiny, tiny_raw, tiny_backbone, tmp_path, views):
    """Of a lens as long as the root of its image's area both kinds of metres would be the same; here they are not."""
    focals, depths_m = [], []
    for frame in open_dataset(tiny.datasets[0], tiny_raw, split="train"):
        for number in range(views):
            view = crop_frame(frame, number, TrainingSize(*SIZE, 8), 0.5)
            focals.append(TrainingSize(*SIZE, 8).relative_focal(view.intrinsics))
            depths_m.append(view.planar_depth_m[view.valid_mask] / focals[-1])
    expected = np.percentile(np.concatenate(depths_m), [0.5, 99.5])
    assert abs(np.log(focals[0])) > 0.1
    canonical = CanonicalRange(near_m=0.3, far_m=90.0)
    params = PARAMS.model_copy(update={"split": "train", "frames_per_dataset": 100, "ranges_m": PARAMS.ranges_m[:1]})
    shares = Encode(views=views, min_crop=0.5).view_shares
    figures = {}
    for range_m in (tiny.log_depth, canonical):
        out = (tmp_path / "floor.json", tmp_path / "plots")
        of_set = {tiny.datasets[0]: tiny_raw}
        figures[range_m] = measure_vae_floor(
            params, range_m, of_set, tiny_backbone, *out, size=SIZE, view_shares=shares
        )
        found = [figures[range_m][f"canonical_depth/{end}"] for end in ("near_m", "far_m")]
        np.testing.assert_allclose(found, expected, rtol=0.01 if views == 1 else 0.3)  # eight frames' random crops
    name = tiny.datasets[0]
    assert f"{name}/log/0.3-90/abs_rel" in figures[canonical] and f"{name}/log/0.5-80/abs_rel" not in figures[canonical]
    assert figures[tiny.log_depth][f"{name}/log/1-40/abs_rel"] != figures[canonical][f"{name}/log/1-40/abs_rel"]


# -- what counts ------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics_module(frames):
    """Per image and then the mean, over valid pixels between the outer edges."""
    edges_m = range_edges_m(LogDepth(2.0, 30.0))
    truth, floor = Truth(frames, edges_m), Floor(edges_m)
    pred_m = truth.depth_m * np.random.default_rng(0).uniform(0.7, 1.4, truth.depth_m.shape)
    floor.add(pred_m, truth)
    images = []
    for frame, p in zip(frames, pred_m, strict=True):
        counted = frame.valid_mask & (frame.planar_depth_m >= 2) & (frame.planar_depth_m <= 30)
        images.append(depth_metrics(p, frame.planar_depth_m, counted))
    assert floor.abs_rel == pytest.approx(np.mean([one["abs_rel"] for one in images]))
    assert floor.delta1 == pytest.approx(np.mean([one["delta1"] for one in images]))
    by_depth = floor.by_depth.rows()
    assert sum(one["num_pixels"] for one in by_depth) == truth.counted.sum()
    first = (truth.depth_m >= 2) & (truth.depth_m < 4) & truth.valid
    error = np.abs(pred_m - truth.depth_m)[first] / truth.depth_m[first]
    assert by_depth[0]["abs_rel"] == pytest.approx(error.mean())


def test_a_narrow_range_pays_for_what_it_clips(report, frames, tiny_backbone):
    """Every range is measured on the same pixels; beyond its end it is wrong by at least 1 - end/z."""
    rows = list(csv.DictReader((report[1] / "plots" / "vae_floor.csv").open()))
    pixels = {(row["encoding"], row["range"]): 0 for row in rows}
    for row in rows:
        pixels[row["encoding"], row["range"]] += int(row["num_pixels"])
    assert len(pixels) == 12 and len(set(pixels.values())) == 1
    narrow, edges_m = Encoding("log", 0.5, 5.0), np.array([0.5, 5.0, 10.0, 80.0])
    floor = measure_floor(load_vae(tiny_backbone), iter([frames]), [narrow], edges_m)[narrow]
    by_depth = {one["from_m"]: one for one in floor.by_depth.rows()}
    assert by_depth[10.0]["abs_rel"] > 0.5 and by_depth[10.0]["delta1"] == 0


def test_the_best_range_has_the_smallest_abs_rel_of_log_depth():
    def floor(abs_rel):
        found = Floor(np.array([1.0, 2.0]))
        found.images = [(abs_rel, 1.0)]
        return found

    wide, narrow, other = Encoding("log", 0.5, 80.0), Encoding("log", 1.0, 40.0), Encoding("inverse", 0.5, 80.0)
    measured = {
        "a": {wide: floor(0.04), narrow: floor(0.02), other: floor(0.001)},
        "b": {wide: floor(0.04), narrow: floor(0.09), other: floor(0.001)},
    }
    assert best_range(measured, "log") == wide, "the mean over data sets decides, among encodings of log depth"
    measured["b"][narrow] = floor(0.06)
    assert best_range(measured, "log") == wide, "of equals the first: the range in use"
    measured["b"][narrow] = floor(0.05)
    assert best_range(measured, "log") == narrow
    assert best_range(measured, "inverse") == other


def test_an_image_without_depth_in_range_is_left_out(frames, tiny_backbone):
    edges_m = np.array([500.0, 600.0])
    with pytest.raises(ValueError, match="no frame with valid depth between 500 and 600 m"):
        measure_floor(load_vae(tiny_backbone), iter([frames]), [Encoding("log", 0.5, 80.0)], edges_m)


# -- mirroring --------------------------------------------------------------------------------------------


def test_a_symmetric_vae_has_no_flip_asymmetry(frames, tiny_backbone):
    """Kernels made symmetric: what is left is rounding. Half of the pixels per latent do not line up otherwise."""
    edges_m = range_edges_m(LogDepth(0.5, 80.0))
    vae = load_vae(tiny_backbone).eval()
    as_it_is = asymmetry(vae, frames, edges_m)
    assert 0.01 < as_it_is["depth_rms"] < 2 and as_it_is["image_rms"] > 0.01
    with torch.no_grad():
        for weight in vae.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.flip(-1)) / 2)
        for down in vae.encoder.down_blocks:
            for sampler in down.downsamplers or ():
                # Padded on the right and below only: the kernel's two left columns see a latent's own pixels.
                kernel = sampler.conv.weight
                kernel[..., 2] = 0
                kernel[..., 1] = kernel[..., 0]
    symmetric = asymmetry(vae, frames, edges_m)
    assert symmetric["image_rms"] < 1e-4 and symmetric["depth_rms"] < 1e-4


@torch.no_grad()
def asymmetry(vae, frames, edges_m):
    flip = FlipAsymmetry(Encoding("log", 0.5, 80.0), edges_m)
    flip.add(vae, frames, Truth(frames, edges_m))
    return flip.report()


# -- the stage --------------------------------------------------------------------------------------------


def test_the_report_is_flat_and_complete(report, tiny):
    figures, out = report
    assert json.loads((out / "vae_floor.json").read_text()) == figures
    assert all(isinstance(value, int | float) for key, value in figures.items() if key != "backbone_vae")
    for warp in ("log", "linear", "inverse"):
        for range_m in ("0.5-80", "1-40", "0.5-150"):
            for name in (tiny.datasets[0], "mean"):
                assert 0 <= figures[f"{name}/{warp}/{range_m}/delta1"] <= 1
                assert figures[f"{name}/{warp}/{range_m}/abs_rel"] > 0
    assert f"{tiny.datasets[0]}/log/0.5-80/abs_rel/4-8" in figures
    assert figures[f"{tiny.datasets[0]}/num_frames"] == 3
    assert (figures["best/near_m"], figures["best/far_m"]) in {(0.5, 80.0), (1.0, 40.0), (0.5, 150.0)}
    assert Image.open(out / "plots" / "vae_floor.png").size[0] > 300


def test_equal_inputs_equal_bytes(tiny, tiny_raw, tiny_backbone, report, tmp_path):
    run(tiny, tiny_raw, tiny_backbone, tmp_path)
    assert digest_folder(tmp_path) == digest_folder(report[1])


def test_the_floor_is_the_pipeline_s_round_trip(tiny_model, tiny_raw, tiny, tiny_backbone, frames):
    """Where nothing is resized, evaluate's VAE floor is this one."""
    from metricgold import MetricGoldPipeline
    from metricgold.evaluate.ours import through_vae

    pipe = MetricGoldPipeline.from_pretrained(tiny_model)
    edges_m, encoding = range_edges_m(LogDepth(0.5, 80.0)), Encoding("log", 0.5, 80.0)
    truth, floor = Truth(frames, edges_m), Floor(edges_m)
    floor.add(np.stack(through_vae(pipe, frames)), truth)
    measured = measure_floor(load_vae(tiny_backbone), iter([frames]), [encoding], edges_m)[encoding]
    assert measured.abs_rel == pytest.approx(floor.abs_rel, rel=1e-4)


def test_broken_frames_are_left_out_with_a_warning(tiny, tiny_raw, tiny_backbone, tmp_path, caplog):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    (raw / "env101" / "Easy" / "P000" / "image_left" / "000001_left.png").write_bytes(b"no png")
    params = PARAMS.model_copy(update={"frames_per_dataset": 8})
    figures = run(tiny, raw, tiny_backbone, tmp_path / "out", params)
    assert figures[f"{tiny.datasets[0]}/num_frames"] == 7
    assert "000001_left.png" in caplog.text


def test_wrong_use_is_named(tiny, tiny_raw, tiny_backbone, tmp_path):
    raw, out = shutil.copytree(tiny_raw, tmp_path / "raw"), tmp_path / "out"
    shutil.rmtree(raw / "env901")
    with pytest.raises(ValueError, match=r"tartanair-synthetic: .*raw holds no frame of split 'test'"):
        run(tiny, raw, tiny_backbone, out, PARAMS.model_copy(update={"split": "test"}))
    with pytest.raises(ValueError, match="multiples of the VAE's 2, got 31 x 48"):
        run(tiny, tiny_raw, tiny_backbone, out, size=(31, 48))
    assert not out.exists()
    with pytest.raises(ValueError, match=r"near_m 3\.0 must be below far_m 2\.0"):
        VaeFloor(ranges_m=[{"near_m": 3.0, "far_m": 2.0}])
