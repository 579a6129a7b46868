"""A tiny one-step pipeline of random weights."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_step_model(tmp_path_factory) -> Path:
    import torch
    from diffusers import DDIMScheduler

    from metricgold.model.parts import SCHEDULE, widen_conv_in
    from metricgold.model.pipeline import EmptyPrompt, MetricGoldPipeline
    from metricgold.model.stand_in import new_unet, new_vae
    from metricgold.params.sections import StandIn

    torch.manual_seed(0)
    sizes = StandIn(vae_channels=[8, 16], unet_channels=[16, 32], text_width=8)
    vae = new_vae(sizes)
    unet = widen_conv_in(new_unet(sizes), vae.config.latent_channels)
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(**SCHEDULE)}
    parts["empty_prompt"] = EmptyPrompt(7, unet.config.cross_attention_dim)
    folder = tmp_path_factory.mktemp("models") / "metricgold"
    MetricGoldPipeline(
        **parts, near_m=0.5, far_m=80.0, processing_height=32, processing_width=48, objective="one-step"
    ).save_pretrained(folder)
    return folder
