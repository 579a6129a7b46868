"""The pipeline: metres out of an image, whatever it is batched with; the folder round trip."""

import numpy as np
import pytest
import torch
from PIL import Image

from metricgold import MetricGoldPipeline
from metricgold.log_depth import LogDepth
from metricgold.model import median_and_deviation

OPTIONS = {"num_inference_steps": 2, "ensemble_size": 3, "seed": 7}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return MetricGoldPipeline.from_pretrained(tiny_model)


def image(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_metres_and_uncertainty_at_the_input_s_size(pipe):
    for height, width in [(32, 48), (45, 31), (200, 300), (1, 1), (3, 400)]:
        prediction = pipe(image(height, width), **OPTIONS)
        for array in (prediction.planar_depth_m, prediction.uncertainty):
            assert array.shape == (height, width) and array.dtype == np.float32 and np.isfinite(array).all()
        assert prediction.planar_depth_m.min() >= 0.5 * (1 - 1e-6)
        assert prediction.planar_depth_m.max() <= 80 * (1 + 1e-6)
        assert (prediction.uncertainty >= 0).all()


def test_a_prediction_does_not_depend_on_what_else_is_in_the_list(pipe):
    images = [image(seed=1), image(45, 31, seed=2), image(seed=3)]
    together = pipe(images, **OPTIONS)
    for one, other in zip(images, together, strict=True):
        alone = pipe(one, **OPTIONS)
        np.testing.assert_allclose(alone.planar_depth_m, other.planar_depth_m, rtol=1e-4)
    small = pipe(images, **OPTIONS, batch_size=1)
    np.testing.assert_allclose(small[2].planar_depth_m, together[2].planar_depth_m, rtol=1e-4)


def test_members_differ_and_seeds_repeat(pipe):
    one = image()
    again = pipe(one, **OPTIONS)
    np.testing.assert_array_equal(pipe(one, **OPTIONS).planar_depth_m, again.planar_depth_m)
    assert again.uncertainty.max() > 0
    assert not np.array_equal(pipe(one, **(OPTIONS | {"seed": 8})).planar_depth_m, again.planar_depth_m)
    assert np.isnan(pipe(one, num_inference_steps=2, ensemble_size=1).uncertainty).all()


def test_the_merge_is_the_median_in_log_space_with_its_mad(pipe):
    """Three members at 1, 2 and 8 m: median 2 m, deviations of ln depth 0, ln 2, ln 4, so their median is ln 2."""
    members = torch.from_numpy(LogDepth(0.5, 80.0).normalize(np.float32([1, 2, 8])))
    median, deviation = median_and_deviation(members[:, None, None].expand(3, 4, 5))
    np.testing.assert_allclose(pipe.log_depth.denormalize(median), 2.0, rtol=1e-5)
    np.testing.assert_allclose(deviation * pipe.log_depth.ln_range / 2, np.log(2), rtol=1e-5)


def test_ddim_equals_diffusers_step_by_step(pipe):
    """One member by hand, with a scheduler of its own, against the pipeline's answer."""
    from diffusers import DDIMScheduler

    from metricgold.latents import decode_log_depth, encode_rgb, rgb_to_tensor

    rgb = image(seed=5)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(3)
    assert scheduler.timesteps[0] == 999
    scaling = pipe.vae.config.scaling_factor
    with torch.no_grad():
        rgb_latent = encode_rgb(pipe.vae, rgb_to_tensor(rgb[None])) * scaling
        latent = pipe._noise(rgb_latent.shape[1:], 1, seed=7)
        prompt = pipe.empty_prompt.embedding[None]
        for timestep in scheduler.timesteps:
            output = pipe.unet(torch.cat([rgb_latent, latent], 1), timestep, encoder_hidden_states=prompt).sample
            latent = scheduler.step(output, timestep, latent).prev_sample
        expected_m = pipe.log_depth.denormalize(decode_log_depth(pipe.vae, latent / scaling))[0]
    found = pipe(rgb, num_inference_steps=3, ensemble_size=1, seed=7)
    np.testing.assert_allclose(found.planar_depth_m, expected_m, rtol=1e-5)


def test_the_processing_size_keeps_area_and_aspect(pipe):
    assert pipe.processing_size(32, 48) == (32, 48)
    assert pipe.processing_size(480, 640) == (32, 44)
    assert pipe.processing_size(1, 1000)[0] == 4
    for height, width in [(37, 91), (1080, 1920), (640, 480)]:
        h, w = pipe.processing_size(height, width)
        assert h % 4 == 0 == w % 4 and h * w == pytest.approx(32 * 48, rel=0.2)


def test_pil_images_are_taken_and_other_arrays_refused(pipe):
    rgb = image()
    from_pil = pipe(Image.fromarray(rgb), **OPTIONS)
    np.testing.assert_array_equal(from_pil.planar_depth_m, pipe(rgb, **OPTIONS).planar_depth_m)
    for bad in (rgb.astype(np.float32), rgb[..., 0], rgb[..., :2], rgb[:0]):
        with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got"):
            pipe(bad, **OPTIONS)


def test_save_and_load_give_the_same_depth(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    copy = MetricGoldPipeline.from_pretrained(tmp_path / "copy")
    assert copy.log_depth == LogDepth(0.5, 80.0)
    one = image()
    np.testing.assert_array_equal(copy(one, **OPTIONS).planar_depth_m, pipe(one, **OPTIONS).planar_depth_m)


def test_near_and_far_must_be_known(pipe):
    parts = {name: getattr(pipe, name) for name in ("unet", "vae", "scheduler", "empty_prompt")}
    with pytest.raises(ValueError, match="needs near_m, far_m"):
        MetricGoldPipeline(**parts, near_m=0.5)


def test_the_vae_floor_is_a_round_trip_in_metres(pipe):
    depth_m = np.geomspace(0.6, 70, 32 * 48).reshape(1, 32, 48).astype(np.float32)
    decoded_m = pipe.encode_decode_depth(depth_m)
    assert decoded_m.shape == depth_m.shape and decoded_m.min() >= 0.5 * (1 - 1e-6)
    assert pipe.encode_decode_depth(np.full((2, 50, 60), 3, np.float32)).shape == (2, 50, 60)
