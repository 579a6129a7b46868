"""Twins of the benchmarks through the real download and the real data's readers: exact depth, masks and cameras."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from metricgold.datasets.manifest import load_manifest
from metricgold.datasets.readers import list_frames, read_frame
from metricgold.datasets.synthetic import sensors
from metricgold.datasets.synthetic.benchmark_recipe import take_shots
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES, synthesize_benchmark
from metricgold.download.stage import download
from metricgold.params.sections import SynthesizeBenchmark

PARAMS = SynthesizeBenchmark(seed=2, height=48, num_scenes=6, frames_per_scene=2)
# (half a step of the format in metres, median depth of all frames, share of valid pixels)
TWINS = {
    "nyuv2-synthetic": (0, (2, 5), (0.6, 0.97)),
    "kitti-synthetic": (1 / 512, (5, 20), (0.1, 0.4)),
    "eth3d-synthetic": (0, (3, 15), (0.1, 0.6)),
    "diode-synthetic": (0, (3, 15), (0.5, 0.98)),
    "ibims1-synthetic": (25 / 65535, (2, 8), (0.6, 0.98)),
    "flsea-synthetic": (0, (2, 8), (0.8, 1.0)),
    "night-synthetic": (0, (2, 15), (0.5, 0.98)),
    "aerial-synthetic": (0, (20, 100), (0.8, 1.0)),
}


@pytest.fixture(scope="module", params=TWINS)
def twin(request, tmp_path_factory):
    """Name, frames in the order of their names, and the shots that they were made of."""
    dataset = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(dataset))
        synthesize_benchmark(dataset, PARAMS, Path("data/synthetic") / dataset)
        raw = Path("data/raw") / dataset
        download(load_manifest(dataset), raw)
        listing = list_frames(dataset, raw, split="test")
        assert not listing.gaps
        frames = [read_frame(ref) for ref in listing.frames]
    recipe = BENCHMARK_RECIPES[dataset]
    shots = defaultdict(list)
    for index in range(PARAMS.num_scenes):
        shots[recipe.name_scene(index)] += take_shots(recipe, PARAMS, index)
    assert sorted({frame.scene for frame in frames}) == sorted(shots)
    assert len(frames) == PARAMS.num_scenes * PARAMS.frames_per_scene
    return dataset, [(frame, shots[frame.scene].pop(0)) for frame in frames]


def test_depth_is_the_ray_casters(twin):
    dataset, pairs = twin
    step_m, _, _ = TWINS[dataset]
    for frame, shot in pairs:
        exact_m = shot.frame.planar_depth_m
        if dataset == "kitti-synthetic":  # whose LiDAR sees through the glass of a shelter
            exact_m = shot.depth_behind_glass_m()
        valid = frame.valid_mask
        assert valid.any()
        assert np.abs(frame.planar_depth_m - exact_m.astype(np.float32))[valid].max() <= step_m + 1e-5


def test_the_camera_is_the_one_that_rendered(twin):
    _, pairs = twin
    for frame, shot in pairs:
        pixels = shot.frame.rays @ frame.intrinsics.T
        y, x = np.mgrid[0.5 : frame.rgb.shape[0], 0.5 : frame.rgb.shape[1]]
        assert np.abs(pixels[..., 0] - x).max() < 0.01 and np.abs(pixels[..., 1] - y).max() < 0.01


def test_the_photograph_is_the_one_that_was_rendered(twin):
    dataset, pairs = twin
    for frame, shot in pairs:
        inner = np.s_[1:-1, 1:-1]  # NYU has a white border
        difference = np.abs(frame.rgb.astype(float) - shot.frame.srgb)[inner]
        assert difference.mean() < 6 if dataset == "eth3d-synthetic" else not difference.any()


def test_masks_are_as_drawn(twin):
    dataset, pairs = twin
    for frame, shot in pairs:
        layers, valid, glass = frame.layers, frame.valid_mask, shot.is_glass
        if dataset == "nyuv2-synthetic":
            np.testing.assert_array_equal(valid, sensors.kinect_depth_m(shot) > 0)
            assert (layers["filled_depth_m"] > 0).all()
        elif dataset == "kitti-synthetic":
            assert not valid[: int(0.25 * len(valid))].any() and valid[len(valid) // 2 :].any()
        elif dataset == "eth3d-synthetic":
            leaves = shot.shows([solid.material == "foliage" for solid in shot.world.solids.solids])
            np.testing.assert_array_equal(valid, layers["unmasked"] & ~glass & ~leaves)
        elif dataset in ("diode-synthetic", "night-synthetic", "aerial-synthetic"):
            edges = sensors.depth_edges(shot.frame.planar_depth_m)
            np.testing.assert_array_equal(layers["has_depth"], np.isfinite(shot.depth_behind_glass_m()))
            met = np.isfinite(shot.frame.planar_depth_m) & (shot.frame.planar_depth_m < 350)
            np.testing.assert_array_equal(valid, met & ~glass & ~edges)
        elif dataset == "flsea-synthetic":
            np.testing.assert_array_equal(valid, shot.frame.planar_depth_m < 25)
        else:
            np.testing.assert_array_equal(layers["mask_transp"], ~glass)
            np.testing.assert_array_equal(valid, layers["mask_invalid"] & layers["mask_transp"])
            np.testing.assert_array_equal(layers["edges"], sensors.depth_edges(shot.frame.planar_depth_m))
            for kind, ids in sensors.plane_ids(shot).items():
                np.testing.assert_array_equal(layers[f"mask_{kind}"], ids)


def test_figures_are_those_of_such_places(twin):
    dataset, pairs = twin
    _, median_m, share = TWINS[dataset]
    depths = np.concatenate([frame.planar_depth_m[frame.valid_mask] for frame, _ in pairs])
    assert median_m[0] < np.median(depths) < median_m[1]
    assert share[0] < np.mean([frame.valid_mask.mean() for frame, _ in pairs]) < share[1]


def test_each_habit_occurs():
    """Glass, leaves, edges and planes are not only possible: the twins have them."""
    params = PARAMS.model_copy(update={"num_scenes": 5, "frames_per_scene": 3})
    shots = [shot for i in range(5) for shot in take_shots(BENCHMARK_RECIPES["ibims1-synthetic"], params, i)]
    planes = [sensors.plane_ids(shot) for shot in shots]
    assert sum(shot.is_glass.mean() > 0.01 for shot in shots) >= 4
    assert all(sum(ids[kind].any() for ids in planes) >= 5 for kind in ("wall", "floor", "table"))
    assert max(ids["wall"].max() for ids in planes) >= 2
    assert all(sensors.depth_edges(shot.frame.planar_depth_m).any() for shot in shots)
