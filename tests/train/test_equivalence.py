"""The trainer against a reference written with diffusers' own schedulers and plain torch, step by step."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file
from torch.nn import functional

from metricgold.datasets.readers import open_dataset
from metricgold.encode.stage import encode
from metricgold.metrics import depth_metrics
from metricgold.model.backbone import load_backbone, prepare_backbone
from metricgold.model.parts import widen_conv_in
from metricgold.model.pipeline import load_pipeline
from metricgold.model.stand_in import new_unet
from metricgold.shards import LatentCache, shard_path, write_index, write_record, write_shard
from metricgold.storage.files import read_rows
from metricgold.train.mixture import Draw, Mixture
from metricgold.train.objective import masked_loss
from metricgold.train.stage import train

# Clipped from the first step on, warm-up and decay both at work within three steps.
STEPS = {"num_steps": 3, "log_every": 1, "warmup_steps": 1, "decay_steps": 3, "max_grad_norm": 0.1, "ema_decay": 0.0}


def run(tiny, latents, backbone, out, **changes):
    params = tiny.train.model_validate(tiny.train.model_dump() | STEPS | changes)
    train(params, tiny.log_depth, {tiny.datasets[0]: latents}, backbone, out)
    rows = read_rows(out.with_name(out.name + ".state") / "metrics.jsonl")
    return params, load_file(out / "unet" / "diffusion_pytorch_model.safetensors"), rows


# -- the reference ----------------------------------------------------------------------------------------


def reference(params, latents, backbone, noises):
    """The same steps in plain torch: the weights, and loss and gradient norm of each step.

    noises: noise and timesteps of each micro-batch, in order; empty: from zeros at the last timestep, one-step.
    """
    parts, cache, noises = load_backbone(backbone), LatentCache(latents), iter(noises)
    unet, figures = parts["unet"].train(), []
    scheduler = DDPMScheduler.from_config(
        parts["scheduler"].config,
        prediction_type=params.prediction_type,
        rescale_betas_zero_snr=params.zero_terminal_snr,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=params.lr)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: marigold_rate(step, params))
    mixture = Mixture([len(cache)], [1.0], params.seed, flip=params.flip)
    for step in range(params.num_steps):
        samples = [sample(cache, draw) for draw in mixture.draw(step, params.batch_size)]
        micro_batches = [
            samples[i : i + params.micro_batch_size] for i in range(0, len(samples), params.micro_batch_size)
        ]
        losses, num_valid = [], sum(valid.sum() for _, _, valid in samples)
        for micro_batch in micro_batches:
            errors = reference_errors(parts, scheduler, params.prediction_type, micro_batch, next(noises, None))
            loss = errors / num_valid
            loss.backward()
            losses.append(loss.item())
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), params.max_grad_norm)
        optimizer.step(), rates.step(), optimizer.zero_grad()
        figures.append((sum(losses), norm.item()))
    return unet.state_dict(), figures


def reference_errors(parts, scheduler, prediction_type, samples, added):
    rgb, depth, valid = (torch.stack(maps) for maps in zip(*samples, strict=True))
    rgb, depth = (latent * parts["vae"].config.scaling_factor for latent in (rgb, depth))
    noise, timesteps = added or (torch.zeros_like(depth), torch.full((len(samples),), 999))
    noisy = scheduler.add_noise(depth, noise, timesteps) if added else noise
    prompt = parts["empty_prompt"].embedding.expand(len(samples), -1, -1)
    output = parts["unet"](torch.cat([rgb, noisy], 1), timesteps, encoder_hidden_states=prompt).sample
    targets = {"v_prediction": scheduler.get_velocity(depth, noise, timesteps), "epsilon": noise, "sample": depth}
    if not added:
        targets["v_prediction"] = -depth
    target = targets[prediction_type]
    return sum(errors_where(*one) for one in zip(output, target, valid, strict=True))


def marigold_rate(step, params):
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    share = (step - params.warmup_steps) / (params.decay_steps - params.warmup_steps)
    return np.exp(min(share, 1) * np.log(params.final_lr_ratio))


def sample(cache, draw):
    frame = cache[draw.frame]
    maps = [torch.tensor(array) for array in (frame.rgb_latent, frame.depth_latent, frame.latent_mask)]
    rgb, depth, valid = (one.flip(-1) if draw.flip else one for one in maps)
    return rgb.float(), depth.float(), valid


def errors_where(output, target, valid):
    """Sum over the valid latents of one sample, of the mean square over their channels."""
    return functional.mse_loss(output[:, valid], target[:, valid], reduction="sum") / len(output)


@pytest.fixture
def noises(monkeypatch):
    """What the trainer's scheduler is asked to add, one entry a micro-batch."""
    added, add_noise = [], DDIMScheduler.add_noise

    def listen(self, original_samples, noise, timesteps):
        added.append((noise.clone(), timesteps.clone()))
        return add_noise(self, original_samples, noise, timesteps)

    monkeypatch.setattr(DDIMScheduler, "add_noise", listen)
    return added


# -- steps ------------------------------------------------------------------------------------------------


def compare(ours, rows, theirs, figures, before):
    for row, (loss, norm) in zip(rows, figures, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert all(norm > STEPS["max_grad_norm"] for _, norm in figures), "nothing was clipped"
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0)
    assert max((ours[name] - weight).abs().max() for name, weight in before.items()) > 1e-4, "nothing was learnt"


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(
    ("prediction_type", "zero_terminal_snr"),
    [("v_prediction", True), ("v_prediction", False), ("sample", True), ("sample", False), ("epsilon", False)],
)
def test_steps_equal_a_reference_in_diffusers_and_plain_torch(
    tiny, tiny_latents, tiny_backbone, tmp_path, noises, prediction_type, zero_terminal_snr, num_steps
):
    changes = {"prediction_type": prediction_type, "zero_terminal_snr": zero_terminal_snr, "num_steps": num_steps}
    params, ours, rows = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", **changes)
    fed = list(noises)
    assert len(fed) == num_steps * params.batch_size // params.micro_batch_size
    theirs, figures = reference(params, tiny_latents, tiny_backbone, fed)
    compare(ours, rows, theirs, figures, load_backbone(tiny_backbone)["unet"].state_dict())


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_one_step_regresses_depth_from_zeros_at_the_last_timestep(
    tiny, tiny_latents, tiny_backbone, tmp_path, prediction_type
):
    changes = {"objective": "one-step", "prediction_type": prediction_type}
    params, ours, rows = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", **changes)
    theirs, figures = reference(params, tiny_latents, tiny_backbone, [])
    compare(ours, rows, theirs, figures, load_backbone(tiny_backbone)["unet"].state_dict())


# -- what is invalid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_invalid_latents_change_neither_loss_nor_gradient(kind):
    torch.manual_seed(0)
    output, target, valid = torch.randn(3, 4, 6, 9), torch.randn(3, 4, 6, 9), torch.rand(3, 1, 6, 9) > 0.4
    valid[2] = False
    results = []
    for spoil in (0, 1e4):
        spoilt, wanted = (torch.where(valid, one, one + spoil * torch.randn(3, 4, 6, 9)) for one in (output, target))
        spoilt.requires_grad_()
        loss = masked_loss(spoilt, wanted, valid)
        loss.backward()
        results.append((loss.detach(), spoilt.grad))
    (loss, gradient), (spoilt_loss, spoilt_gradient) = results
    assert torch.equal(loss, spoilt_loss) and torch.equal(gradient, spoilt_gradient)
    assert not gradient[~valid.expand_as(gradient)].any() and gradient[valid.expand_as(gradient)].all()


def test_invalid_depth_changes_no_weight_of_one_step(tiny, tiny_latents, tiny_backbone, tmp_path):
    """There depth is a target only, so what the cache holds where it is invalid must not reach a single bit."""

    def spoil(frame):
        noise = np.random.default_rng(0).normal(0, 100, frame.depth_latent.shape).astype(np.float16)
        assert not frame.latent_mask.all()
        return {"depth_latent": np.where(frame.latent_mask, frame.depth_latent, noise)}

    spoilt = copy_cache(tiny_latents, tmp_path / "spoilt", spoil)
    weights = [
        run(tiny, latents, tiny_backbone, tmp_path / latents.name / "model", objective="one-step")[1]
        for latents in (tiny_latents, spoilt)
    ]
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


def copy_cache(latents, out, change):
    """All frames of a cache in one shard; change: frame to fields that are others in the copy."""
    cache = LatentCache(latents)
    frames = [replace(cache[i], valid_mask=cache.valid_mask(i), **change(cache[i])) for i in range(len(cache))]
    shard = write_shard(shard_path(out, "all", 0), frames, [], {})
    write_index(out, cache.identity, {"all": write_record(out, "all", {"source": None}, {}, [shard])})
    return out


# -- widening ---------------------------------------------------------------------------------------------


def test_widening_keeps_the_pretrained_output_up_to_rounding(tiny):
    """In double precision, where nothing hides behind it: four channels once, or the same four in both halves."""
    torch.manual_seed(0)
    unet = new_unet(tiny.backbone.stand_in).double().eval()
    latent, context = torch.randn(2, 4, 16, 24).double(), torch.randn(2, 2, 8).double()
    with torch.no_grad():
        before = unet(latent, 500, encoder_hidden_states=context).sample
        wide = widen_conv_in(unet, 4).double()
        after = wide(torch.cat([latent, latent], dim=1), 500, encoder_hidden_states=context).sample
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


# -- by heart ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharp(tiny, tiny_raw, tmp_path_factory):
    """Latents whose masks hide nothing, for the decoder sees the sky too, and a backbone whose VAE keeps depth."""
    folder, name = tmp_path_factory.mktemp("sharp"), tiny.datasets[0]
    stand_in = tiny.backbone.stand_in.model_copy(update={"vae_steps": 700, "vae_crop": 32})
    params = tiny.backbone.model_copy(update={"stand_in": stand_in})
    backbone = prepare_backbone(params, tiny.log_depth, {name: tiny_raw}, folder / "backbone")
    latents = encode(name, tiny.encode, tiny.log_depth, tiny_raw, backbone, folder / name).parent
    return copy_cache(
        latents, folder / "whole", lambda frame: {"latent_mask": np.ones_like(frame.latent_mask)}
    ), backbone


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "excess"), [("diffusion", 0.02), ("one-step", 0.005)])
def test_one_batch_is_learnt_down_to_the_vae_floor(tiny, tiny_raw, sharp, tmp_path, monkeypatch, objective, excess):
    """After 200 steps on four frames, one U-Net evaluation has at most `excess` more AbsRel than the VAE alone."""
    monkeypatch.setattr(Mixture, "draw", lambda _, step, num_samples: [Draw(0, i, False) for i in range(num_samples)])
    changes = {"num_steps": 200, "decay_steps": 200, "warmup_steps": 20, "lr": 4e-3, "timestep_shift": 4.0}
    changes |= {"micro_batch_size": 4, "max_grad_norm": 1.0, "checkpoint_every": 200, "objective": objective}
    run(tiny, *sharp, tmp_path / "model", **changes)
    pipe = load_pipeline(tmp_path / "model")
    frames = list(islice(open_dataset(tiny.datasets[0], tiny_raw, split="train"), 4))
    assert [frame.name for frame in frames] == [LatentCache(sharp[0])[i].name for i in range(4)]
    far_m = tiny.log_depth.far_m
    floor = pipe.encode_decode_depth(np.stack([np.where(f.valid_mask, f.planar_depth_m, far_m) for f in frames]))
    predicted = pipe([frame.rgb for frame in frames], num_inference_steps=1, ensemble_size=1)
    floor, learnt = abs_rel(floor, frames), abs_rel([one.planar_depth_m for one in predicted], frames)
    assert floor < 0.06, "the VAE itself loses too much to tell"
    assert learnt < floor + excess


def abs_rel(maps, frames):
    pairs = zip(maps, frames, strict=True)
    return np.mean([depth_metrics(depth, one.planar_depth_m, one.valid_mask)["abs_rel"] for depth, one in pairs])
