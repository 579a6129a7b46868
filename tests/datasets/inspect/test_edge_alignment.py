"""Depth that lies on its photograph scores above depth that does not, on rendered scenes and real photographs."""

import numpy as np
import pytest
from PIL import Image

from metricgold.datasets.inspect.edge_alignment import MISALIGNED, align, depth_edge_map
from metricgold.datasets.synthetic.render import render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.params.sections import Synthesize
from tests.support import SHARED

SAMPLES = SHARED / "samples"
PARAMS = Synthesize(height=120, width=160, num_train_scenes=6, num_test_scenes=1, frames_per_scene=2)
DATASETS = ("hypersim-synthetic", "vkitti2-synthetic", "tartanair-synthetic")


@pytest.fixture(scope="module")
def frames():
    """(rgb, depth, mask, the same scene's other frame's depth and mask) of rendered scenes."""
    found = []
    for dataset in DATASETS:
        for scene in range(5):
            seen = [
                (f.srgb, f.planar_depth_m, f.planar_depth_m < 600)
                for f in render_scene(RECIPES[dataset], PARAMS, scene)
            ]
            found += [(*seen[0], *seen[1][1:]), (*seen[1], *seen[0][1:])]
    return found


def scores(frames, change):
    """Of all frames that are scored, with depth and mask changed alike."""
    found = [align(rgb, change(depth_m), change(valid)) for rgb, depth_m, valid, *_ in frames]
    return np.array([one.score for one in found if one is not None])


def test_right_depth_is_not_flagged(frames):
    found = scores(frames, lambda image: image)
    assert len(found) >= 0.8 * len(frames)
    assert (found > MISALIGNED).all()
    assert np.median(found) > 2


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda image: np.roll(image, 3, axis=1), 0.9),  # 2 % of the width
        (lambda image: np.roll(image, (4, -8), axis=(0, 1)), 1),
        (lambda image: np.roll(image, 20, axis=0), 1),
        (lambda image: image[:, ::-1], 1),
        (lambda image: image[::-1], 1),
        (lambda image: image[::-1, ::-1], 1),
    ],
    ids=["3 right", "4 down 8 left", "20 down", "mirrored", "upside down", "turned"],
)
def test_displaced_depth_is_flagged(frames, change, share):
    found = scores(frames, change)
    assert (found < MISALIGNED).mean() >= share


def test_says_where_the_depth_belongs(frames):
    found = [align(rgb, np.roll(z, (4, -8), (0, 1)), np.roll(valid, (4, -8), (0, 1))) for rgb, z, valid, *_ in frames]
    moved = np.array([one.shift for one in found if one is not None])
    near = np.abs(moved - np.array([-4, 8])).max(axis=1) <= 1
    assert near.mean() > 0.9
    mirrored = [align(rgb, depth_m[:, ::-1], valid[:, ::-1]) for rgb, depth_m, valid, *_ in frames]
    assert np.mean([one.mirrored for one in mirrored if one is not None]) > 0.9


def test_depth_of_another_frame_scores_lower(frames):
    """The camera may see much the same, so not every one is below the threshold."""
    moved = [one for one in frames if not np.array_equal(one[1], one[3])]  # fog changes no depth
    foreign = [align(rgb, other_m, other) for rgb, _, _, other_m, other in moved]
    right = [align(rgb, depth_m, valid) for rgb, depth_m, valid, *_ in moved]
    pairs = [(one.score, two.score) for one, two in zip(foreign, right, strict=True) if one and two]
    assert np.mean([one < two for one, two in pairs]) > 0.9
    assert np.median([one for one, _ in pairs]) < MISALIGNED


def test_a_slanted_plane_has_no_edges():
    y, x = np.mgrid[:40, :60]
    plane = 1 / (0.02 + 0.004 * x + 0.006 * y)
    assert depth_edge_map(plane, np.ones((40, 60), dtype=bool)).max() == 0
    step = np.where(x < 30, 2.0, 4.0)
    edges = depth_edge_map(step, np.ones((40, 60), dtype=bool))
    assert set(np.flatnonzero(edges.any(axis=0))) == {29, 30}


def test_what_is_not_scored():
    rgb = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    depth_m, everywhere = np.full((60, 80), 3.0, np.float32), np.ones((60, 80), dtype=bool)
    assert align(rgb, depth_m, everywhere) is None  # flat
    assert align(rgb, depth_m, ~everywhere) is None
    sparse = np.random.default_rng(1).random((60, 80)) < 0.2
    assert align(rgb, depth_m, sparse) is None
    bumpy = np.random.default_rng(2).uniform(1, 5, (60, 80)).astype(np.float32)
    assert align(np.zeros((60, 80, 3), np.uint8), bumpy, everywhere) is None  # black
    assert align(rgb[:5, :5], bumpy[:5, :5], everywhere[:5, :5]) is None  # too small


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples lie beside the project, not in it")
@pytest.mark.parametrize(
    ("rgb", "depth"),
    [
        ("nyuv2/metric3d_demo/rgb/rgb_00050.jpg", "nyuv2/metric3d_demo/depth/sync_depth_00050.png"),
        ("nyuv2/unidepth_demo/rgb.png", "nyuv2/unidepth_demo/depth.png"),
        ("redwood_rgbd/color/00000.jpg", "redwood_rgbd/depth/00000.png"),
    ],
)
def test_real_photographs(rgb, depth):
    rgb, depth_m = np.array(Image.open(SAMPLES / rgb)), np.array(Image.open(SAMPLES / depth)) / 1000
    assert align(rgb, depth_m, depth_m > 0).score > 1
    moved = np.roll(depth_m, 19, axis=1)  # 3 % of the width
    assert align(rgb, moved, moved > 0).score < MISALIGNED
    assert align(rgb, depth_m[:, ::-1], depth_m[:, ::-1] > 0).score < MISALIGNED
