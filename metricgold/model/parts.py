"""What Stable Diffusion's backbone and the stand-in share: schedule, eight input channels, empty prompt."""

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from metricgold.model.pipeline import EmptyPrompt

# SD2's own schedule; the trainer changes prediction type and terminal SNR as its params say.
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")


def empty_prompt(embedding: torch.Tensor) -> EmptyPrompt:
    """The prompt "" as a part of a pipeline, from its embedding float32 [tokens, width]."""
    prompt = EmptyPrompt(*embedding.shape)
    prompt.embedding.data.copy_(embedding)
    return prompt


def widen_conv_in(unet: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """Double the U-Net's input channels, from the depth's latent to the image's and the depth's.

    Weights are repeated and halved, so that two equal latents give the activations that one gave before (Marigold,
    section 3.2). A U-Net that is wide enough stays as it is. Raises ValueError for any other number of channels.
    """
    channels = unet.config.in_channels
    if channels == 2 * latent_channels:
        return unet
    if channels != latent_channels:
        raise ValueError(f"the U-Net takes {channels} channels, expected {latent_channels} or {2 * latent_channels}")
    old = unet.conv_in
    wide = torch.nn.Conv2d(2 * channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    wide.weight.data = old.weight.data.repeat(1, 2, 1, 1) / 2
    wide.bias.data = old.bias.data.clone()
    unet.conv_in = wide
    unet.register_to_config(in_channels=2 * channels)
    return unet


def check_schedule(scheduler: DDIMScheduler) -> None:
    """Raise ValueError when prediction type, terminal SNR and spacing of timesteps contradict each other.

    With a terminal SNR of zero the last timestep is noise alone (arXiv 2305.08891): epsilon says nothing about the
    clean latent there, and sampling has to begin there.
    """
    config = scheduler.config
    kind, spacing = config.prediction_type, config.timestep_spacing
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {kind!r} is not known; expected one of {', '.join(PREDICTION_TYPES)}")
    if config.rescale_betas_zero_snr and kind == "epsilon":
        raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction or sample, got epsilon")
    if config.rescale_betas_zero_snr and spacing == "leading":
        raise ValueError(
            "rescale_betas_zero_snr needs timestep_spacing trailing: leading never visits the last timestep"
        )
