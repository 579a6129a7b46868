"""The same U-Net, trainer and pipeline on pixels: shards that hold the image, a whole run, and its plan."""

import numpy as np
import pytest
import torch

from metricgold import LatentCache, LogDepth, open_dataset
from metricgold.encode.stage import encode
from metricgold.evaluate.vae_floor import measure_floor
from metricgold.export.one_step import export_torch
from metricgold.log_depth import Encoding
from metricgold.model.backbone import load_backbone, load_vae
from metricgold.model.pipeline import load_pipeline
from metricgold.model.vae import filled_log_depth, rgb_to_tensor
from metricgold.params.sections import Train
from metricgold.train.objective import Objective, training_scheduler
from metricgold.train.plan import plan_training
from metricgold.train.stage import train
from tests.conftest import DATASET, HALF_ULP, HEIGHT, PIXELS, TINY, WIDTH


@pytest.fixture(scope="module")
def latents(tmp_path_factory, tiny_raw, pixels_backbone):
    out = tmp_path_factory.mktemp("pixels") / DATASET
    return encode(DATASET, TINY.encode, TINY.log_depth, tiny_raw, pixels_backbone, out).parent


@pytest.fixture(scope="module")
def frames(tiny_raw):
    return {frame.name: frame for frame in open_dataset(DATASET, tiny_raw, split="train")}


def test_a_shard_holds_image_and_log_depth_as_float16_rounds_them(latents, frames):
    log_depth = TINY.log_depth.to_log_depth()
    cache = LatentCache(latents)
    assert len(cache) == len(frames)
    for one in (cache[i] for i in range(len(cache))):
        frame = frames[one.name]
        rgb = rgb_to_tensor(frame.rgb[None])[0].numpy()
        d = filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask)
        assert one.rgb_latent.shape == one.depth_latent.shape == (3, HEIGHT, WIDTH)
        np.testing.assert_allclose(one.rgb_latent, rgb, rtol=0, atol=HALF_ULP + 1e-6)
        np.testing.assert_allclose(one.depth_latent, np.stack([d] * 3), rtol=0, atol=HALF_ULP + 1e-6)
        np.testing.assert_array_equal(one.latent_mask, frame.valid_mask)


def test_the_floor_is_that_of_float16_shards(latents, pixels_backbone, frames):
    """Through the VAE alone nothing is lost; through a shard what float16 rounds, a thousandth of the depth."""
    range_m, encoding = TINY.log_depth, Encoding("log", TINY.log_depth.near_m, TINY.log_depth.far_m)
    floor = measure_floor(load_vae(pixels_backbone).eval(), [list(frames.values())], [encoding], [1.0, 80.0])[encoding]
    assert floor.abs_rel < 1e-5 and floor.delta1 == 1
    log_depth, cache, errors = range_m.to_log_depth(), LatentCache(latents), []
    for one in (cache[i] for i in range(len(cache))):
        frame = frames[one.name]
        truth_m = frame.planar_depth_m[frame.valid_mask].clip(range_m.near_m, range_m.far_m)
        found_m = log_depth.denormalize(one.depth_latent.astype(np.float32).mean(axis=0)[frame.valid_mask])
        errors.append(np.abs(found_m / truth_m - 1))
    most = HALF_ULP * log_depth.ln_range / 2
    assert floor.abs_rel < np.concatenate(errors).mean() < most < 1e-3


@pytest.mark.parametrize("objective", ["diffusion", "one-step"])
def test_a_whole_run(objective, latents, pixels_backbone, tmp_path):
    params = TINY.train.model_copy(update={"objective": objective, "num_steps": 4, "camera": "token"})
    range_m = TINY.log_depth
    out = train(params, range_m, {DATASET: latents}, pixels_backbone, tmp_path / "model")
    pipe = load_pipeline(out)
    steps = 1 if objective == "one-step" else 2
    image = np.random.default_rng(0).integers(0, 255, (47, 81, 3), dtype=np.uint8)  # no side halves
    for windows in ("auto", "never"):
        one = pipe(image, num_inference_steps=steps, ensemble_size=2, focal_px=60.0, windows=windows)
        assert one.planar_depth_m.shape == (47, 81) and np.isfinite(one.planar_depth_m).all()
        assert isinstance(one.log_depth, LogDepth)
        assert one.log_depth.near_m <= one.planar_depth_m.min() <= one.planar_depth_m.max() <= one.log_depth.far_m
    before = load_backbone(pixels_backbone)["unet"].conv_in.weight
    assert not torch.equal(pipe.unet.conv_in.weight, before)
    if objective == "one-step":
        facts = export_torch(out, tmp_path / "graph.pt2")  # it compares the graph with the pipeline
        assert facts["multiple"] == "1" and facts["max_difference"] < 1e-3


def test_one_step_is_plain_regression(pixels_backbone):
    """The U-Net sees the image and zeros, at one timestep; it should say the depth, up to the sign of a velocity."""
    parts = load_backbone(pixels_backbone)
    params = Train(objective="one-step", loss="l1")
    objective = Objective(params, training_scheduler(parts["scheduler"], params), parts["vae"])
    rgb, depth = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    (of_step,) = objective.draws([rgb.shape], step=5)
    inputs = {"rgb": rgb, "depth": depth, "valid": torch.ones(2, 1, 8, 12), **of_step}
    torch.testing.assert_close(objective.sample(inputs), torch.cat([rgb, torch.zeros_like(depth)], dim=1))
    torch.testing.assert_close(objective.target(inputs), -depth)
    assert set(of_step["timesteps"].tolist()) == {999}


def test_the_plan_counts_pixels(tmp_path):
    plans = [
        plan_training(TINY.model_copy(update={"backbone": backbone_params}), tmp_path / "none", tmp_path)
        for backbone_params in (TINY.backbone, PIXELS)
    ]
    assert [plan["latents"] for plan in plans] == [[4, HEIGHT // 2, WIDTH // 2], [3, HEIGHT, WIDTH]]
    of_latents, of_pixels = (plan["flops_per_step"] for plan in plans)
    assert 4 < of_pixels / of_latents < 6  # four pixels to a latent here, and attention grows with the square
    assert plans[1]["memory_bytes"]["activations"] > 3 * plans[0]["memory_bytes"]["activations"]
