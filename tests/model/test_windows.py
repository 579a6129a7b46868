"""Frames much wider or taller than training's: windows that cover them, joined without a seam and in metres."""

from dataclasses import replace

import numpy as np
import pytest

from metricgold import MetricGoldPipeline
from metricgold.images.camera import pinhole, rays_from_intrinsics
from metricgold.log_depth import LogDepth
from metricgold.model.inputs import CalibratedImage
from metricgold.model.pipeline import Prediction
from metricgold.model.vae import vae_factor
from metricgold.model.windows import BEYOND, MOST_WINDOWS, OVERLAP, Strip

RANGE = LogDepth(0.5, 80.0)
OPTIONS = {"num_inference_steps": 2, "ensemble_size": 3, "seed": 7}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return MetricGoldPipeline.from_pretrained(tiny_model)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def prediction_of(planar_depth_m, camera=None):
    valid = np.ones(planar_depth_m.shape, bool)
    uncertainty = np.full(planar_depth_m.shape, 0.1, np.float32)
    return Prediction(planar_depth_m.astype(np.float32), uncertainty, valid, camera, "argument", RANGE, num_members=3)


def landscape(height, width):
    """Depth with edges, float32 [height, width]."""
    y, x = np.mgrid[:height, :width]
    return np.where((x // 17 + y // 11) % 2, 3.0 + 0.05 * x, 12.0 + 0.1 * y).astype(np.float32)


@pytest.mark.parametrize("size", [(48, 320), (320, 48), (37, 301), (375, 1242), (2268, 1000)])
def test_windows_have_a_shape_that_training_showed_and_cover_the_image(size):
    strip = Strip.of(*size, widest=1.5, tallest=1.5)
    short, long = sorted(size)
    assert strip.is_tall == (size[0] > size[1]) and strip.length == round(1.5 * short)
    assert strip.starts[0] == 0 and strip.starts[-1] + strip.length == long
    steps = np.diff(strip.starts)
    assert (steps > 0).all() and (steps <= (1 - OVERLAP) * strip.length + 1).all()


@pytest.mark.parametrize(
    "size", [(64, 96), (96, 64), (40, 40), (72, 134), (1080, 1920), (1920, 1080), (1, 1), (1, 4000)]
)
def test_shapes_near_those_of_training_and_mere_lines_are_seen_as_one(size):
    assert Strip.of(*size, widest=1.5, tallest=1.5).num_parts == 1


def test_shapes_that_training_showed_need_no_windows():
    assert Strip.of(375, 1242, widest=1.5, tallest=1.5).num_parts > 1
    assert Strip.of(375, 1242, widest=1242 / 375, tallest=1.5).num_parts == 1
    assert Strip.of(1242, 375, widest=1242 / 375, tallest=1.5).num_parts > 1
    assert Strip.of(10, 6000, 1.5, 1.5).num_parts == 1 < Strip.of(10, 150, 1.5, 1.5).num_parts <= MOST_WINDOWS + 1
    assert Strip.of(100, int(100 * 1.5 * BEYOND) + 1, 1.5, 1.5).num_parts == 3


@pytest.mark.parametrize("size", [(40, 200), (200, 40)])
def test_each_window_sees_its_pixels_with_its_own_camera(size):
    height, width = size
    whole = CalibratedImage(image(height, width), pinhole(70.0, height, width), "argument")
    strip = Strip.of(height, width, 1.5, 1.5)
    parts = strip.cut(whole)
    assert parts[0] is whole and len(parts) == strip.num_parts
    rays = rays_from_intrinsics(whole.intrinsics, height, width)
    for start, part in zip(strip.starts, parts[1:], strict=True):
        seen = np.s_[start : start + 60] if strip.is_tall else np.s_[:, start : start + 60]
        np.testing.assert_array_equal(part.rgb, whole.rgb[seen])
        np.testing.assert_allclose(rays_from_intrinsics(part.intrinsics, *part.rgb.shape[:2]), rays[seen], atol=1e-6)
        assert part.focal_from == "argument"
    without_camera = strip.cut(replace(whole, intrinsics=None))
    assert all(part.intrinsics is None for part in without_camera)


@pytest.mark.parametrize("size", [(40, 200), (200, 40)])
def test_windows_of_any_scale_join_to_the_metres_of_the_whole(size):
    depth_m, strip = landscape(*size), Strip.of(*size, 1.5, 1.5)
    windows = []
    for start, scale in zip(strip.starts, (0.7, 1.5, 1.1, 0.9, 1.3), strict=True):
        seen = np.s_[start : start + 60] if strip.is_tall else np.s_[:, start : start + 60]
        windows.append(prediction_of(scale * depth_m[seen]))
    camera = pinhole(70.0, *size)
    joined = strip.join([prediction_of(depth_m, camera), *windows])
    np.testing.assert_allclose(joined.planar_depth_m, depth_m, rtol=1e-5)
    assert joined.intrinsics is camera and joined.valid_mask.all() and joined.valid_mask.shape == size
    np.testing.assert_allclose(joined.uncertainty, 0.1, rtol=1e-6)
    for array in (joined.planar_depth_m, joined.uncertainty):
        assert array.dtype == np.float32 and array.flags.c_contiguous


def test_detail_is_that_of_the_windows_and_large_areas_are_as_the_whole_has_them():
    depth_m, strip = landscape(40, 200), Strip.of(40, 200, 1.5, 1.5)
    waves = np.exp(0.2 * np.sin(np.arange(40) * 2.5))[:, None].astype(np.float32)  # too fine for the whole
    bent = np.linspace(0.6, 1.4, 60, dtype=np.float32)  # as a lens bends depth that training never showed
    windows = [prediction_of(depth_m[:, start : start + 60] * waves * bent) for start in strip.starts]
    joined = strip.join([prediction_of(depth_m), *windows]).planar_depth_m
    inside = np.log(joined / (depth_m * waves))[4:-4, 10:-10]
    assert np.abs(inside).max() < 0.2 and np.abs(inside).mean() < 0.06  # windows alone are off by up to .5


def test_uncertainty_is_no_smaller_than_that_of_the_whole():
    depth_m, strip = landscape(40, 200), Strip.of(40, 200, 1.5, 1.5)
    whole, *windows = [prediction_of(depth_m), *(prediction_of(depth_m[:, at : at + 60]) for at in strip.starts)]
    whole.uncertainty[:, :100] = 0.3
    joined = strip.join([whole, *windows]).uncertainty
    np.testing.assert_allclose(joined[:, :100], 0.3, rtol=1e-6)
    np.testing.assert_allclose(joined[:, 100:], 0.1, rtol=1e-6)


def test_a_pixel_is_valid_where_most_of_what_sees_it_says_so():
    depth_m, strip = landscape(40, 200), Strip.of(40, 200, 1.5, 1.5)
    windows = [prediction_of(depth_m[:, start : start + 60]) for start in strip.starts]
    windows[0].valid_mask[:10] = False
    joined = strip.join([prediction_of(depth_m), *windows])
    assert not joined.valid_mask[:10, :45].any() and joined.valid_mask[10:].all()
    assert joined.valid_mask[:, 60:].all()


def test_the_pipeline_sees_strips_by_windows_and_other_images_as_ever(pipe):
    strip, usual = image(24, 160), image(32, 48)
    both = pipe([strip, usual], **OPTIONS)
    np.testing.assert_allclose(both[1].planar_depth_m, pipe(usual, **OPTIONS).planar_depth_m, rtol=1e-4)
    np.testing.assert_allclose(both[0].planar_depth_m, pipe(strip, **OPTIONS).planar_depth_m, rtol=1e-4)
    as_one = pipe(strip, **OPTIONS, windows="never")
    assert both[0].planar_depth_m.shape == as_one.planar_depth_m.shape == (24, 160)
    assert not np.allclose(both[0].planar_depth_m, as_one.planar_depth_m, rtol=1e-2)
    assert both[0].num_members == 3 and np.isfinite(both[0].uncertainty).all()
    np.testing.assert_array_equal(both[0].intrinsics, as_one.intrinsics)
    assert both[0].planar_depth_m.min() >= 0.5 and both[0].planar_depth_m.max() <= 80


@pytest.mark.parametrize("options", [{"ensemble_size": "auto"}, {"merge": "latent", "ensemble_size": 2}])
def test_windows_go_with_every_way_to_merge(pipe, options):
    joined = pipe(image(24, 160), num_inference_steps=1, **options)
    assert np.isfinite(joined.planar_depth_m).all()
    assert np.isnan(joined.uncertainty).all() == ("merge" in options)


def test_windows_of_one_image_share_batches_and_one_size(pipe, monkeypatch):
    sizes = []
    denoise = MetricGoldPipeline.denoise
    monkeypatch.setattr(
        MetricGoldPipeline,
        "denoise",
        lambda self, latent, *rest: sizes.append(tuple(latent.shape)) or denoise(self, latent, *rest),
    )
    pipe([image(24, 160, seed) for seed in range(2)], num_inference_steps=1, ensemble_size=1, batch_size=4)
    window = tuple(side // vae_factor(pipe.vae) for side in pipe.processing_size(24, 36))
    windows = [size for size in sizes if size[2:] == window]
    assert sum(size[0] for size in windows) == 2 * len(pipe.strip(24, 160).starts)
    assert max(size[0] for size in sizes) <= 4 and len(windows) < 2 * len(pipe.strip(24, 160).starts)


def test_an_unknown_word_for_windows_is_refused(pipe):
    with pytest.raises(ValueError, match="windows must be one of auto, never, got 'always'"):
        pipe(image(24, 160), **OPTIONS, windows="always")


def test_what_training_showed_is_kept_in_the_folder(pipe, tmp_path):
    taught = MetricGoldPipeline(**pipe.components, **_numbers(pipe), trained_aspects=[1.5, 6.6])
    taught.save_pretrained(tmp_path)
    again = MetricGoldPipeline.from_pretrained(tmp_path)
    assert again.strip(24, 160).num_parts == 1 < pipe.strip(24, 160).num_parts


def _numbers(pipe):
    return {name: pipe.config[name] for name in ("near_m", "far_m", "processing_height", "processing_width")}
