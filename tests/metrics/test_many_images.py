"""Figures over many images: intervals by scene, scale over scenes and focal lengths, errors by range of depth."""

from itertools import pairwise

import numpy as np
import pytest

from metricgold.metrics import (
    depth_metrics,
    focal_trend,
    interval_by_scene,
    mean_by_scene,
    paired_interval,
    range_figures,
    range_sums,
    scale_ratio,
    scene_weights,
)

rng = np.random.default_rng(0)


def test_interval_is_that_of_a_plain_bootstrap():
    """Scene by scene, sample by sample; scenes differ in size."""
    scenes = [f"scene{number}" for number in range(12) for _ in range(1 + number % 4)]
    values = rng.normal(0.15, 0.05, len(scenes))
    interval = interval_by_scene(values, scenes, samples=4000)
    names = np.unique(scenes)
    groups = [values[np.array(scenes) == name] for name in names]
    plain = [np.concatenate([groups[k] for k in rng.integers(12, size=12)]).mean() for _ in range(4000)]
    assert interval.mean == pytest.approx(values.mean())
    assert interval[1:] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.002)
    wider = interval_by_scene(values, scenes, level=0.99)
    assert wider.low < interval.low < interval.mean < interval.high < wider.high


def test_intervals_cover_as_often_as_they_say():
    """Of 300 draws of 40 scenes, whose images are alike, the interval holds the true mean in about 95 %."""
    held = 0
    scenes = np.repeat(np.arange(40).astype(str), 5)
    for seed in range(300):
        drawn = np.random.default_rng(seed)
        values = np.repeat(drawn.normal(0, 1, 40), 5) + drawn.normal(0, 0.1, 200)
        interval = interval_by_scene(values, scenes, samples=400, seed=seed)
        held += interval.low <= 0 <= interval.high
    assert 0.91 <= held / 300 <= 0.98


def test_what_two_models_share_cancels_in_a_pair():
    scenes = np.repeat(np.arange(20).astype(str), 3)
    hardness = np.repeat(rng.normal(0.15, 0.05, 20), 3)
    a, b = hardness + rng.normal(0.01, 0.002, 60), hardness + rng.normal(0, 0.002, 60)
    paired = paired_interval(a, b, scenes)
    assert 0 < paired.low < paired.mean < paired.high
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    alone_a, alone_b = interval_by_scene(a, scenes), interval_by_scene(b, scenes)
    assert alone_a.low < alone_b.high  # which alone would tell nothing
    assert paired.high - paired.low < 0.1 * (alone_a.high - alone_a.low)


def test_averages_by_image_pixel_and_scene():
    values, scenes = [0.1, 0.2, 0.6], ["a", "a", "b"]
    assert interval_by_scene(values, scenes).mean == pytest.approx(0.3)
    assert interval_by_scene(values, scenes, weights=[8, 1, 1]).mean == pytest.approx(0.16)
    assert interval_by_scene(values, scenes, weights=scene_weights(scenes)).mean == pytest.approx(0.375)
    assert mean_by_scene(values, scenes) == pytest.approx({"a": 0.15, "b": 0.6})


def test_images_without_the_figure_do_not_count():
    values = [0.1, np.nan, 0.3, np.nan]
    scenes = ["a", "a", "b", "c"]
    assert interval_by_scene(values, scenes) == interval_by_scene([0.1, 0.3], ["a", "b"])
    assert paired_interval(values, [0.0] * 4, scenes).mean == pytest.approx(0.2)
    assert np.isnan(interval_by_scene([np.nan], ["a"])).all()
    assert np.isnan(interval_by_scene([], [])).all()
    assert np.isnan(mean_by_scene(values, scenes)["c"])


def test_one_scene_has_a_mean_and_no_interval():
    interval = interval_by_scene([1.0, 2.0], ["a", "a"])
    assert interval.mean == 1.5
    assert np.isnan(interval[1:]).all()


def test_equal_seeds_give_equal_intervals_however_many_are_drawn_at_once(monkeypatch):
    values, scenes = rng.random(50), np.arange(50).astype(str)
    interval = interval_by_scene(values, scenes)
    assert interval_by_scene(values, scenes) == interval
    assert interval_by_scene(values, scenes, seed=1) != interval
    monkeypatch.setattr("metricgold.metrics.intervals._DRAWN_AT_ONCE", 130)
    assert interval_by_scene(values, scenes) == interval


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0], ["a", "b"]), {}, r"got \[1\] figures, 2 scenes"),
        (([1.0], ["a"]), {"weights": [1, 2]}, r"and \[2\] weights"),
        (([1.0], ["a"]), {"level": 95}, "level must be within .0, 1. and samples >= 1, got 95 and 2000"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        interval_by_scene(*arguments, **options)


# Scale


def test_one_wrong_factor_is_no_inconsistency():
    true_m, scenes = rng.uniform(1, 10, 30), np.repeat(np.arange(10).astype(str), 3)
    ratio = scale_ratio(1.3 * true_m, true_m, scenes)
    assert ratio == pytest.approx((1.3, 0))
    factors = np.exp(np.repeat([-0.2, 0.2], 15))
    assert scale_ratio(factors * true_m, true_m, scenes) == pytest.approx((1, 0.2 * np.sqrt(10 / 9)))
    assert np.isnan(scale_ratio([1.0], [1.0], ["a"]).log_spread)


def test_a_model_blind_to_the_focal_length_has_a_slope_of_minus_one():
    focal_px, scenes = rng.uniform(300, 900, 60), np.repeat(np.arange(20).astype(str), 3)
    true_m = rng.uniform(1, 10, 60)
    noise = np.exp(rng.normal(0, 0.05, 60))
    blind = focal_trend(true_m * noise * 500 / focal_px, true_m, focal_px, scenes)
    assert blind.low < -1 < blind.high
    assert blind.high < -0.8
    seeing = focal_trend(true_m * noise, true_m, focal_px, scenes)
    assert seeing.low < 0 < seeing.high
    expected = np.polyfit(np.log(focal_px), np.log(noise), 1)[0]
    assert seeing.mean == pytest.approx(expected)
    assert np.isnan(focal_trend(true_m, true_m, np.full(60, 500.0), scenes)).all()


# Ranges


def test_ranges_add_up_to_the_figures_of_all_pixels_together():
    images = [(rng.uniform(0.5, 20, (9, 8)), rng.random((9, 8)) < 0.8) for _ in range(5)]
    preds = [true_m * np.exp(rng.normal(0, 0.3, true_m.shape)) for true_m, _ in images]
    edges_m = [0.5, 2, 10, 20]
    parts = [range_sums(pred, *image, edges_m) for pred, image in zip(preds, images, strict=True)]
    sums = {key: sum(part[key] for part in parts) for key in parts[0]}
    valid = np.concatenate([valid.ravel() for _, valid in images])
    p = np.concatenate([pred.ravel() for pred in preds])[valid]
    g = np.concatenate([true_m.ravel() for true_m, _ in images])[valid]
    for number, (near_m, far_m) in enumerate(pairwise(edges_m)):
        within = (near_m <= g) & (g < far_m)
        expected = depth_metrics(p, g, within)
        got = {key: values[number] for key, values in range_figures(sums).items()}
        assert got == pytest.approx({key: expected[key] for key in got})
    total = {key: values.sum(keepdims=True) for key, values in sums.items()}
    assert range_figures(total)["abs_rel"][0] == pytest.approx(depth_metrics(p, g, np.ones(g.shape, bool))["abs_rel"])


def test_ranges_include_their_near_end_and_empty_ones_have_no_figure():
    true_m = np.array([1.0, 2.0, 3.0, 4.0])
    sums = range_sums(true_m, true_m, np.ones(4, bool), [1, 2, 3.5, 4, 9, 10])
    assert sums["num_pixels"].tolist() == [1, 2, 0, 1, 0]
    assert np.isnan(range_figures(sums)["abs_rel"]).tolist() == [False, False, True, False, True]
    with pytest.raises(ValueError, match=r"must be two or more numbers that rise, got \[1, 1\]"):
        range_sums(true_m, true_m, np.ones(4, bool), [1, 1])
