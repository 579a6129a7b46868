"""What a step asks of the U-Net: targets, losses, and a model that takes one step."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError

from metricgold import MetricGoldPipeline
from metricgold.model.backbone import load_backbone
from metricgold.model.vae import decode_log_depth, encode_rgb, rgb_to_tensor
from metricgold.params.sections import Params, Train
from metricgold.storage.files import read_rows
from metricgold.train.objective import (
    Objective,
    masked_loss,
    shifted_timesteps,
    sinkhorn_loss,
    square_crops,
    training_scheduler,
)
from metricgold.train.optimizer import exponential_rate
from metricgold.train.stage import train

# -- mathematics ------------------------------------------------------------------------------------------


def test_invalid_latents_never_count():
    output, target = torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3)
    valid = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    valid[0, 0, 0] = False
    target[0, :, 0] = 1e6
    assert masked_loss(output, target, valid).item() == 1.0


def test_what_is_no_number_does_not_leave_an_invalid_latent():
    output, target = torch.zeros(1, 4, 2, 2, requires_grad=True), torch.ones(1, 4, 2, 2)
    valid = torch.tensor([[[[True, True], [True, False]]]])
    target[..., 1, 1] = float("nan")
    loss = masked_loss(output, target, valid)
    loss.backward()
    assert loss.item() == 1.0 and output.grad.isfinite().all() and (output.grad[..., 1, 1] == 0).all()


def test_invalid_latents_weigh_what_they_are_told_to():
    output, target = torch.zeros(2, 4, 1, 4), torch.ones(2, 4, 1, 4)
    weights = torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(2, 1, 1, 4).clone()
    weights[1] = 0.5  # nothing valid: the sky alone
    target[..., 2:] = 3.0
    one_by_one = zip(output[:, None], target[:, None], weights[:, None], strict=True)
    assert [masked_loss(*one, "l1").item() for one in one_by_one] == pytest.approx([(2 * 1 + 0.5 * 2 * 3) / 3, 2.0])


def test_only_what_is_known_to_show_no_surface_is_taught_as_far(one_step, tiny_backbone):
    """Latents: depth, sky, and one that nobody measured, which says nothing whatever it holds."""
    objective, inputs = draw_of(one_step.model_copy(update={"invalid_weight": 0.5}), tiny_backbone)
    for name in ("valid", "no_surface"):
        inputs[name] = torch.zeros_like(inputs["valid"])
    inputs["valid"][..., 0], inputs["no_surface"][..., 1] = True, True
    output = inputs["depth"].clone()
    output[..., 0] += 1.0
    output[..., 1] += 4.0
    output[..., 2:] += torch.nan
    assert objective.loss(output, inputs).item() == pytest.approx((1 + 0.5 * 4) / 1.5)


def test_errors_count_squared_or_absolute():
    output, target, valid = torch.full((1, 4, 2, 2), 3.0), torch.zeros(1, 4, 2, 2), torch.ones(1, 1, 2, 2).bool()
    assert masked_loss(output, target, valid, "l2").item() == 9 and masked_loss(output, target, valid, "l1").item() == 3


def test_what_is_thin_and_a_pixel_off_is_matched():
    truth, valid = torch.full((1, 1, 10, 10), -1.0), torch.ones(1, 1, 10, 10, dtype=torch.bool)
    truth[..., 2] = truth[..., 6] = 1.0  # two poles, one in each window of five pixels
    shifted, blurred = truth.roll(1, dims=-1), torch.full_like(truth, -0.6)  # the same mean
    assert masked_loss(shifted, truth, valid, "l1").item() == pytest.approx(0.8)
    assert sinkhorn_loss(shifted, truth, valid).item() < 1e-3
    assert sinkhorn_loss(blurred, truth, valid).item() == pytest.approx(0.4 * 0.8 + 1.6 * 0.2)
    assert sinkhorn_loss(truth + 0.3, truth, valid).item() == pytest.approx(0.3, abs=1e-3)


def test_only_valid_pixels_are_matched_and_parts_add_up():
    torch.manual_seed(0)
    output, target = torch.randn(4, 1, 8, 7, requires_grad=True), torch.randn(4, 1, 8, 7)
    valid = torch.rand(4, 1, 8, 7) > 0.5
    valid[1] = False
    target[~valid] = float("nan")
    whole = sinkhorn_loss(output, target, valid)
    whole.backward()
    parts = [sinkhorn_loss(output[i : i + 2], target[i : i + 2], valid[i : i + 2], total=valid.sum()) for i in (0, 2)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)
    assert output.grad.isfinite().all() and (output.grad[~valid] == 0).all() and output.grad[valid].any()
    # Every valid pixel counts as one: of a constant error nothing is lost at borders and holes.
    level = torch.zeros(4, 1, 8, 7)
    assert sinkhorn_loss(level + 0.25, level, valid).item() == pytest.approx(0.25, rel=1e-5)


def test_the_loss_of_a_step_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    output, target = torch.randn(4, 4, 5, 6), torch.randn(4, 4, 5, 6)
    valid = torch.rand(4, 1, 5, 6) > 0.7
    valid[1] = False
    total = valid.sum()
    parts = [masked_loss(output[i : i + 2], target[i : i + 2], valid[i : i + 2], total=total) for i in (0, 2)]
    torch.testing.assert_close(masked_loss(output, target, valid), torch.stack(parts).sum())


@pytest.mark.parametrize("number", [1, 7, 10, 1000])
def test_training_on_few_timesteps_visits_those_that_prediction_takes(number):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    params = Train(num_timesteps=number, timestep_shift=2.0)
    drawn = Objective(params, scheduler, None).draws([(20 * number, 1, 2, 2)], 0)[0]["timesteps"]
    scheduler.set_timesteps(number)
    visited, taken = set(drawn.tolist()), set(scheduler.timesteps.tolist())
    assert visited <= taken and max(visited) == 999 and len(visited) > 0.7 * number


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_a_latent_pulls_alike_whether_its_sample_has_one_or_all(kind):
    """A mean over samples let the only latent of one pull as hard as all 2,400 of another."""
    output, target = torch.zeros(2, 4, 40, 60, requires_grad=True), torch.ones(2, 4, 40, 60)
    valid = torch.ones(2, 1, 40, 60, dtype=torch.bool)
    valid[1] = False
    valid[1, 0, 7, 9] = True
    loss = masked_loss(output, target, valid, kind)
    loss.backward()
    assert loss.item() == pytest.approx(1)
    lonely, among_many = output.grad[1, :, 7, 9], output.grad[0, :, 7, 9]
    torch.testing.assert_close(lonely, among_many)
    assert among_many.abs().max() > 0


def test_samples_without_a_valid_latent_have_no_loss():
    output, valid = torch.zeros(2, 4, 3, 3, requires_grad=True), torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    loss = masked_loss(output, torch.ones(2, 4, 3, 3), valid)
    loss.backward()
    assert loss.item() == 0 and not output.grad.any()


def test_learning_rate_warms_up_and_decays(tiny):
    params = tiny.train.model_copy(update={"lr": 1e-3, "warmup_steps": 10, "decay_steps": 110, "final_lr_ratio": 0.01})
    rates = [exponential_rate(step, params) for step in range(200)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(1e-4) and rates[110] == rates[199] == pytest.approx(1e-5)


def test_zero_terminal_snr_makes_the_last_timestep_pure_noise(tiny):
    schedule = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler = training_scheduler(schedule, tiny.train)
    clean, noise, last = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.tensor([999])
    torch.testing.assert_close(scheduler.add_noise(clean, noise, last), noise)
    # There the velocity is minus the clean latent: one step is a regression.
    torch.testing.assert_close(scheduler.get_velocity(clean, noise, last), -clean)


def test_shifted_timesteps_stay_in_range_and_lean_to_noise():
    uniform = torch.arange(1000)
    assert torch.equal(shifted_timesteps(uniform, 1000, 1.0), uniform)
    shifted = shifted_timesteps(uniform, 1000, 3.0)
    assert shifted.min() >= 0 and shifted.max() == 999 and (shifted.diff() >= 0).all()
    assert shifted[500].item() == 750  # 3/2 over 1 + 2/2


# -- one step ---------------------------------------------------------------------------------------------


@pytest.fixture
def one_step(tiny):
    changes = {"objective": "one-step", "prediction_type": "sample", "loss": "l1", "ema_decay": 0.0}
    return tiny.train.model_validate(tiny.train.model_dump() | changes)


def draw_of(params, backbone, shape=(4, 4, 16, 24), step=3):
    parts = load_backbone(backbone)
    objective = Objective(params, training_scheduler(parts["scheduler"], params), parts["vae"])
    torch.manual_seed(0)
    valid = torch.ones(4, 1, 16, 24).bool()
    inputs = {"rgb": torch.randn(shape), "depth": torch.randn(shape), "valid": valid, "no_surface": ~valid}
    return objective, inputs | objective.draws([shape], step)[0]


def test_one_step_sees_nothing_of_the_depth(one_step, tiny_backbone):
    objective, inputs = draw_of(one_step, tiny_backbone)
    assert (inputs["timesteps"] == 999).all()
    sample = objective.sample(inputs)
    assert torch.equal(sample[:, :4], inputs["rgb"]) and not sample[:, 4:].any()


@pytest.mark.parametrize(("prediction_type", "sign"), [("sample", 1), ("v_prediction", -1)])
def test_one_step_is_a_regression_of_the_clean_latent(one_step, tiny_backbone, prediction_type, sign):
    params = one_step.model_copy(update={"prediction_type": prediction_type})
    objective, inputs = draw_of(params, tiny_backbone)
    assert objective.loss(sign * inputs["depth"], inputs).item() == pytest.approx(0, abs=1e-6)
    assert objective.loss(sign * inputs["depth"] + 0.25, inputs).item() == pytest.approx(0.25)


def test_decoded_depth_counts_in_pixels_of_a_crop(one_step, tiny_backbone):
    params = one_step.model_copy(update={"decoded_loss_weight": 2.0, "decoded_crop": 8})
    objective, inputs = draw_of(params, tiny_backbone)
    assert ((inputs["corners"] >= 0) & (inputs["corners"] <= torch.tensor([8, 16]))).all()
    assert objective.loss(inputs["depth"], inputs).item() == pytest.approx(0, abs=1e-6)
    output = (inputs["depth"] + 0.1 * torch.randn(4, 4, 16, 24)).requires_grad_()
    loss = objective.loss(output, inputs)
    loss.backward()
    latent = masked_loss(output, inputs["depth"], inputs["valid"], "l1")
    with torch.no_grad():
        maps = [objective._decode(square_crops(one, inputs["corners"], 8)) for one in (output, inputs["depth"])]
        assert maps[0].shape == (4, 1, 16, 16)  # the stand-in halves once
        assert loss.item() == pytest.approx((latent + 2 * (maps[0] - maps[1]).abs().mean()).item(), rel=1e-5)
    # Nowhere but where the crop reaches does the gradient differ from the latent loss's.
    alone = torch.autograd.grad(masked_loss(output, inputs["depth"], inputs["valid"], "l1"), output)[0]
    changed = (output.grad != alone).any(dim=1)
    for i, (top, left) in enumerate(inputs["corners"].tolist()):
        assert changed[i, top : top + 8, left : left + 8].all()
        changed[i, top : top + 8, left : left + 8] = False
    assert not changed.any()


def test_a_step_s_draws_are_a_function_of_seed_and_step(tiny, one_step, tiny_backbone):
    for params in (tiny.train, one_step):
        first, again = (draw_of(params, tiny_backbone)[1] for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
    other = draw_of(one_step, tiny_backbone, step=4)[1]
    crops = one_step.model_copy(update={"decoded_crop": 4})
    assert not torch.equal(draw_of(crops, tiny_backbone)[1]["corners"], other["corners"])


@pytest.fixture(scope="module")
def one_step_model(tiny, tiny_latents, tiny_backbone, tmp_path_factory):
    changes = {"objective": "one-step", "prediction_type": "sample", "loss": "l1", "decoded_loss_weight": 0.5}
    params = tiny.train.model_validate(tiny.train.model_dump() | changes)
    out = tmp_path_factory.mktemp("models") / "one-step"
    return train(params, tiny.log_depth, {tiny.datasets[0]: tiny_latents}, tiny_backbone, out)


def test_a_one_step_model_says_so_and_takes_one_step(one_step_model):
    pipe = MetricGoldPipeline.from_pretrained(one_step_model)
    assert json.loads((one_step_model / "model_index.json").read_text())["objective"] == "one-step"
    rgb = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    found = pipe(rgb)
    assert found.num_members == 1 and np.isnan(found.uncertainty).all()
    np.testing.assert_array_equal(found.planar_depth_m, pipe(rgb, 1, 1, seed=9).planar_depth_m)
    for wrong in ({"num_inference_steps": 50}, {"timestep_spacing": "leading"}):
        with pytest.raises(ValueError, match="trained for one step: it takes num_inference_steps 1"):
            pipe(rgb, **wrong)
    for wrong in ({"ensemble_size": 11}, {"ensemble_size": 2, "merge": "latent"}):
        with pytest.raises(ValueError, match=r"one step: its (ensemble_size is at most 10|members are views)"):
            pipe(rgb, **wrong)


def test_members_of_a_one_step_model_are_views_of_the_image(one_step_model):
    pipe = MetricGoldPipeline.from_pretrained(one_step_model)
    images = [
        np.random.default_rng(i).integers(0, 255, (*side, 3), dtype=np.uint8)
        for i, side in enumerate([(32, 48), (50, 70), (32, 48)])
    ]
    found = pipe(images, ensemble_size=2)
    for rgb, one in zip(images, found, strict=True):
        alone, mirrored = (pipe(seen).planar_depth_m for seen in (rgb, np.ascontiguousarray(rgb[:, ::-1])))
        middle = np.sqrt(alone * mirrored[:, ::-1])  # of two, the median of logarithms
        assert one.num_members == 2 and not np.array_equal(one.planar_depth_m, alone)
        if rgb.shape[:2] == (32, 48):  # of other sizes the padding is not as wide on either side
            np.testing.assert_allclose(one.planar_depth_m, middle, rtol=1e-4)
            np.testing.assert_allclose(one.uncertainty, np.abs(np.log(alone / middle)), atol=1e-4)
    zoomed = pipe(images[1], ensemble_size=10)
    assert zoomed.num_members == 10 and np.isfinite(zoomed.planar_depth_m).all()
    assert np.isfinite(zoomed.uncertainty).all() and zoomed.uncertainty.any()
    sure, unsure = (pipe(images[0], ensemble_size="auto", uncertainty_target=by).num_members for by in (9.0, 1e-6))
    assert (sure, unsure) == (3, 10)


def test_a_one_step_prediction_is_the_unet_s_answer_decoded(one_step_model):
    pipe = MetricGoldPipeline.from_pretrained(one_step_model)
    rgb = np.random.default_rng(1).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        latent = encode_rgb(pipe.vae, rgb_to_tensor(rgb[None])) * pipe.vae.config.scaling_factor
        sample = torch.cat([latent, torch.zeros_like(latent)], dim=1)
        output = pipe.unet(sample, 999, encoder_hidden_states=pipe.empty_prompt.embedding[None]).sample
        log_depth = decode_log_depth(pipe.vae, output / pipe.vae.config.scaling_factor)
    np.testing.assert_allclose(pipe(rgb).planar_depth_m, pipe.log_depth.denormalize(log_depth)[0], rtol=1e-5)


def test_one_step_learns_a_few_frames_by_heart(tiny, one_step, tiny_latents, tiny_backbone, tmp_path):
    changes = {"num_steps": 40, "decay_steps": 40, "lr": 4e-3, "objective": "one-step"}
    params = one_step.model_validate(one_step.model_dump() | changes)
    out = train(params, tiny.log_depth, {tiny.datasets[0]: tiny_latents}, tiny_backbone, tmp_path / "model")
    losses = [row["loss"] for row in read_rows(out.with_name("model.state") / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "one-step", "zero_terminal_snr": False}, "needs zero_terminal_snr"),
        ({"objective": "one-step", "prediction_type": "epsilon"}, "epsilon cannot start"),
        ({"decoded_loss_weight": 0.1}, "decoded_loss_weight needs objective one-step"),
        ({"objective": "one-step", "validation": {"num_inference_steps": 4}}, "validation.num_inference_steps 1"),
        ({"curriculum": [{"until_step": 9, "weights": {"a": 1}}] * 2}, r"rising until_step, got \[9, 9\]"),
    ],
)
def test_params_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Train.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"objective": "one-step"}}, "evaluate.num_inference_steps 1, got 50"),
        ({"train": {"curriculum": [{"until_step": 9, "weights": {"b": 1}}]}}, r"curriculum.0.weights names \['b'\]"),
        ({"train": {"curriculum": [{"until_step": 9, "weights": {"a": 0}}]}}, "leaves no data set"),
    ],
)
def test_params_that_contradict_other_sections_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Params.model_validate({"datasets": ["a"]} | changes)
