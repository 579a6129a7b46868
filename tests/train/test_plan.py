"""What the plan counts is what torch does; what it assumes is named, and what cannot fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from metricgold.params.profiles import PROFILES
from metricgold.params.sections import Params, Train, load_params
from metricgold.train.cost import (
    DecoderCost,
    activation_bytes,
    decoder_cost,
    flop_counter,
    flops_per_sample,
    saved_bytes,
)
from metricgold.train.plan import (
    GIB,
    GPUS,
    SD2_UNET,
    SD2_VAE,
    advise,
    describe,
    memory_by_part,
    plan_training,
    refusal,
)

SMALL = {
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
SHAPE = (4, 16, 24)
SD2_SHAPE = (4, 60, 80)
SD2 = SD2_UNET | {"in_channels": 8}


def real_forward(unet, batch=1):
    latents, timesteps, prompt = torch.randn(batch, 8, 16, 24), torch.zeros(batch).long(), torch.randn(batch, 2, 32)
    return unet(latents, timesteps, encoder_hidden_states=prompt).sample


def real_unet(checkpointing):
    unet = UNet2DConditionModel.from_config(SMALL).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def test_stable_diffusion_has_its_published_parameters():
    """865.9 M with four input channels; the four more of the depth latent are 4 x 320 x 3 x 3 weights."""
    with torch.device("meta"):
        unet, wide = (UNet2DConditionModel.from_config(config) for config in (SD2_UNET, SD2))
        vae = AutoencoderKL.from_config(SD2_VAE)

    def count(model) -> int:
        return sum(p.numel() for p in model.parameters())

    assert count(unet) == 865_910_724
    assert count(wide) == 865_910_724 + 4 * 320 * 9
    assert count(vae) == 83_653_863


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_of_a_real_step(checkpointing):
    unet = real_unet(checkpointing)
    with flop_counter() as counter:
        real_forward(unet).sum().backward()
    assert flops_per_sample(SMALL, SHAPE, checkpointing) == counter.get_total_flops()


def test_flops_of_a_convolution_and_of_attention_are_the_textbook_s():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    with flop_counter() as counter:
        conv(torch.randn(2, 3, 8, 8))
    assert counter.get_total_flops() == 2 * 2 * 8 * 8 * 5 * 3 * 9
    query = torch.randn(1, 2, 50, 16)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 2 * (2 * 2 * 50 * 50 * 16)


def test_activations_are_those_that_a_real_forward_keeps():
    """And twice as much of two samples: what the plan multiplies by the micro-batch."""
    unet = real_unet(checkpointing=False)
    kept, _ = saved_bytes(unet, lambda: real_forward(unet))
    twice, _ = saved_bytes(unet, lambda: real_forward(unet, batch=2))
    counted = activation_bytes(SMALL, SHAPE, half=False, checkpointing=False)
    assert counted == kept
    assert twice == pytest.approx(2 * kept, rel=1e-3)


def test_gradient_checkpointing_keeps_less_and_computes_more():
    kept, again = (activation_bytes(SMALL, SHAPE, half=False, checkpointing=value) for value in (False, True))
    assert again < 0.6 * kept
    plain, more = (flops_per_sample(SMALL, SHAPE, value) for value in (False, True))
    assert 1.15 * plain < more < 1.34 * plain


def test_half_precision_halves_what_is_not_normalised():
    """Convolutions and products keep bf16, normalisation and what follows it fp32."""
    full, half = (activation_bytes(SMALL, SHAPE, half=value, checkpointing=False) for value in (False, True))
    assert 0.5 * full < half < 0.8 * full


def test_memory_by_part_adds_up_by_kind_of_optimizer():
    parts = {
        name: memory_by_part(Train(optimizer=name, ema_decay=0.9), SMALL, SHAPE, DecoderCost())
        for name in ("adamw", "adamw8bit")
    }
    with torch.device("meta"):
        sizes = [p.numel() for p in UNet2DConditionModel.from_config(SMALL).parameters()]
    full, eight = parts["adamw"], parts["adamw8bit"]
    assert full["weights"] == full["gradients"] == full["average"] == 4 * sum(sizes)
    assert full["optimizer"] == 8 * sum(sizes)
    assert 2 * sum(sizes) < eight["optimizer"] < 0.33 * full["optimizer"], "small tensors stay in fp32"
    assert all(sum(part.values()) == 2 * part["total"] for part in parts.values())


def test_the_error_of_decoded_depth_costs_a_decoder():
    vae = dict(SD2_VAE) | {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}
    assert decoder_cost(Train(), vae) == DecoderCost()
    small, large = (
        decoder_cost(Train(objective="one-step", decoded_loss_weight=1, decoded_crop=side), vae) for side in (8, 16)
    )
    assert 3.5 * small.saved_bytes < large.saved_bytes < 4.5 * small.saved_bytes
    assert large.flops > 3.5 * small.flops
    assert large.weight_bytes == small.weight_bytes > 0


@pytest.mark.parametrize("name, card", [("rtx3090", "rtx3090"), ("rtx3090-one-step", "rtx3090"), ("h100", "h100")])
def test_a_profile_fits_its_card(name, card, tmp_path):
    answer = plan_training(load_params(PROFILES / f"{name}.yaml"), tmp_path / "backbone", tmp_path, card=card)
    assert answer["fits"] and refusal(answer) is None
    assert answer["parameters"] == {"unet": 865_922_244, "vae": 83_653_863}
    if card == "rtx3090":
        assert answer["memory_bytes"]["total"] <= 22e9, "room to spare"


def test_what_cannot_fit_is_refused_with_advice_that_fits(tmp_path):
    """The usual way, fp32 and everything at once, on the card of the paper."""
    params = load_params(PROFILES / "rtx3090.yaml")
    usual = {"mixed_precision": "no", "gradient_checkpointing": False, "ema_decay": 0.999}
    params = params.model_copy(update={"train": params.train.model_copy(update=usual)})
    answer = plan_training(params, tmp_path / "backbone", tmp_path, card="rtx3090")
    assert answer["fits"] is False
    message = refusal(answer)
    assert message.startswith("GeForce RTX 3090 has 25.77 GB, this run needs about ")
    assert all(f"train.{key}: {json.dumps(value)}" in message for key, value in answer["advice"].items())
    followed = params.train.model_copy(update=answer["advice"])
    assert memory_by_part(followed, SD2, SD2_SHAPE, DecoderCost())["total"] <= GPUS["rtx3090"].memory_bytes
    Train.model_validate(followed.model_dump())
    assert "json" not in describe(answer) and "does not fit" in describe(answer)


def test_advice_is_the_smallest_that_helps():
    """One change where one will do, then the largest micro-batch; what is learnt is left alone if it can be."""
    train = Train(micro_batch_size=32, mixed_precision="bf16")

    def need(params: Train) -> int:
        return memory_by_part(params, SD2, SD2_SHAPE, DecoderCost())["total"]

    def ask(params: Train, room: int) -> dict | None:
        return advise(params, SD2, SD2_SHAPE, DecoderCost(), room)

    checkpointed = train.model_copy(update={"gradient_checkpointing": True})
    assert ask(train, need(checkpointed)) == {"gradient_checkpointing": True}
    assert ask(checkpointed, need(checkpointed.model_copy(update={"micro_batch_size": 8}))) == {"micro_batch_size": 8}
    assert ask(checkpointed, need(checkpointed.model_copy(update={"optimizer": "adamw8bit"}))) == {
        "micro_batch_size": 16
    }
    assert ask(train, 14 * GIB)["optimizer"] == "adamw8bit"
    assert ask(train, 8 * GIB) is None


def test_a_gpu_that_nothing_fits_is_named():
    answer = {"fits": False, "card": "rtx3090", "advice": None, "memory_bytes": {"total": 90 * 10**9}}
    assert "no setting of train makes it fit" in refusal(answer)


def test_hours_follow_from_flops_peak_and_share_of_it(tmp_path):
    params = load_params(PROFILES / "demo.yaml")
    answer = plan_training(params, tmp_path / "backbone", tmp_path, mfu=0.001)
    seconds = answer["flops_per_step"] / (71e12 * 0.001)  # auto is bf16 there
    assert answer["cards"]["rtx3090"]["samples_per_s"] == pytest.approx(16 / seconds, abs=0.01)
    assert answer["cards"]["rtx3090"]["hours"] == pytest.approx(params.train.num_steps * seconds / 3600, abs=0.01)
    assert "fits" not in answer and refusal(answer) is None


def test_disk_knows_caches_that_are_there(tmp_path, tiny, tiny_latents, tiny_backbone):
    answer = plan_training(tiny, tiny_backbone, tiny_latents.parent)
    (name,) = tiny.datasets
    cache = sum(file.stat().st_size for file in (tiny_latents.parent / name).iterdir())
    assert answer["disk_bytes"][f"latents of {name}"] == cache
    estimated = plan_training(tiny, tiny_backbone, tmp_path)["disk_bytes"][f"latents of {name}"]
    assert estimated == 40 * 10 * (2 * 2 * 4 * 16 * 24 + 16 * 24 + 32 * 48 // 80)
    own = tiny.model_copy(update={"datasets": ["mine"]})
    assert plan_training(own, tiny_backbone, tmp_path)["disk_bytes"]["latents of mine"] is None


def test_disk_counts_every_checkpoint_that_is_there_at_once(tmp_path, tiny):
    """Those kept, the one being written, and with validation the best one."""

    def plan_with(**changes) -> dict:
        params = tiny.model_copy(update={"train": Train(**changes)})
        return plan_training(params, tmp_path / "backbone", tmp_path)

    plain, more, best = plan_with(), plan_with(keep_checkpoints=4), plan_with(validation={})
    unet = 4 * plain["parameters"]["unet"]
    state = [one["disk_bytes"]["models/metricgold.state"] for one in (plain, more, best)]
    assert state == [3 * 3 * unet, 5 * 3 * unet, 3 * 3 * unet + unet]


def test_the_backbone_that_is_there_is_counted(tiny_backbone, tmp_path):
    """Whatever its source says: a mirror's name differs."""
    made = json.loads((tiny_backbone / "unet" / "config.json").read_text())
    folder = tmp_path / "backbone"
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_bytes((tiny_backbone / part / "config.json").read_bytes())
    (folder / "backbone.json").write_text('{"source": "a/mirror"}')
    params = Params(datasets=["hypersim"], backbone={"source": "some/model", "revision": "0" * 40})
    with torch.device("meta"):
        expected = sum(p.numel() for p in UNet2DConditionModel.from_config(made).parameters())
    assert plan_training(params, folder, tmp_path)["parameters"]["unet"] == expected


def test_wrong_use_is_named(tmp_path):
    params = Params(datasets=["hypersim"], encode={"height": 66})
    with pytest.raises(ValueError, match="no card 'gtx'; known: rtx3090, rtx4090, a100, h100"):
        plan_training(params, Path("none"), tmp_path, card="gtx")
    with pytest.raises(ValueError, match=r"encode\.height 66 is not a multiple of"):
        plan_training(params, Path("none"), tmp_path)
