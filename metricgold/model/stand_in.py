"""The stand-in for Stable Diffusion: VAE and U-Net of the same classes, small, trained on the data sets' own images."""

import logging
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn import functional

from metricgold.datasets import list_frames, read_frame
from metricgold.log_depth import Encoding, LogDepth
from metricgold.model.identity_vae import identity_vae
from metricgold.model.parts import SCHEDULE, empty_prompt, widen_conv_in
from metricgold.model.pipeline import EmptyPrompt
from metricgold.model.vae import filled_log_depth, rgb_to_tensor
from metricgold.params import StandIn
from metricgold.storage import Progress

log = logging.getLogger(__name__)


def train_stand_in(params: StandIn, log_depth: LogDepth, raw_folders: dict[str, Path]) -> dict[str, Any]:
    """Train the VAE, and the U-Net if it has steps; the parts of a backbone by name. Equal inputs give equal weights.

    Raises ValueError when the data sets' images are smaller than params.vae_crop.
    """
    torch.manual_seed(params.seed)
    images = sample_images(params, log_depth, raw_folders)
    vae = new_vae(params)
    if params.vae == "trained":
        train_vae(vae, images, params)
    scale_latents(vae, images)
    unet = new_unet(params)
    scheduler = DDIMScheduler(**SCHEDULE)
    prompt = empty_prompt(torch.randn(2, params.text_width))
    if params.unet_steps:
        train_unet(unet, vae, scheduler, prompt, images[0::2], params)
    return {
        "unet": widen_conv_in(unet, params.latent_channels),
        "vae": vae,
        "scheduler": scheduler,
        "empty_prompt": prompt,
    }


def new_vae(params: StandIn) -> AutoencoderKL:
    """An untrained VAE of SD2's class, or the identity."""
    if params.vae == "identity":
        return identity_vae()
    levels = len(params.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(params.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=params.latent_channels,
        norm_num_groups=8,
        sample_size=params.vae_crop,
    )


def new_unet(params: StandIn) -> UNet2DConditionModel:
    """An untrained U-Net of SD2's class.

    It has attention at the lowest level only: at the highest it would cost five times the rest on a CPU.
    """
    levels = len(params.unet_channels)
    return UNet2DConditionModel(
        in_channels=params.latent_channels,
        out_channels=params.latent_channels,
        block_out_channels=tuple(params.unet_channels),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        layers_per_block=params.unet_layers,
        cross_attention_dim=params.text_width,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def sample_images(params: StandIn, log_depth: LogDepth, raw_folders: dict[str, Path]) -> torch.Tensor:
    """Photographs and depth maps in turn, float32 [N, 3, H, W] in [-1, 1]: frames spread evenly over the data sets.

    Depth is in one of params.encodings after the other. H x W is the smallest of their heights and widths; larger
    ones lose their borders.
    """
    pictures: list[torch.Tensor] = []
    encodings = cycle(Encoding(name, log_depth.near_m, log_depth.far_m) for name in params.encodings)
    for name, raw in raw_folders.items():
        refs = list_frames(name, raw, split="train").frames
        share = min(len(refs), -(-params.num_frames // len(raw_folders)))
        for i in range(share):
            frame = read_frame(refs[i * len(refs) // share])
            d = torch.from_numpy(filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask))
            e = next(encodings).of_log_depth(d)
            pictures += [rgb_to_tensor(frame.rgb[None])[0], e.expand(3, -1, -1)]
    height, width = (min(picture.shape[i] for picture in pictures) for i in (1, 2))
    if min(height, width) < params.vae_crop:
        raise ValueError(f"backbone.stand_in.vae_crop {params.vae_crop} is larger than the images, {[height, width]}")
    cropped = []
    for picture in pictures:
        top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
        cropped.append(picture[:, top : top + height, left : left + width])
    return torch.stack(cropped)


def train_vae(vae: AutoencoderKL, images: torch.Tensor, params: StandIn) -> None:
    """Teach the VAE random crops of the images [N, 3, H, W]."""
    rng = np.random.default_rng(params.seed)
    crop, (height, width) = params.vae_crop, images.shape[2:]

    def loss_of_step() -> torch.Tensor:
        picks = rng.integers(len(images), size=params.vae_batch_size)
        tops = rng.integers(height - crop + 1, size=len(picks))
        lefts = rng.integers(width - crop + 1, size=len(picks))
        batch = torch.stack(
            [images[i, :, t : t + crop, x : x + crop] for i, t, x in zip(picks, tops, lefts, strict=True)]
        )
        mean = vae.encode(batch).latent_dist.mean
        # A little noise makes the decoder forgive what the U-Net gets slightly wrong; the pull to zero keeps
        # the latents bounded, so that the noise cannot be outgrown.
        decoded = vae.decode(mean + 0.03 * torch.randn_like(mean)).sample
        return functional.l1_loss(decoded, batch) + 1e-3 * mean.square().mean()

    fit("VAE", vae, params.vae_steps, params.vae_lr, loss_of_step)


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Have the VAE's config scale latents of the images [N, 3, H, W] to unit variance."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images[:256].split(32)])
    vae.register_to_config(scaling_factor=1 / latents.std().item())


def train_unet(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    prompt: EmptyPrompt,
    images: torch.Tensor,
    params: StandIn,
) -> None:
    """Teach the U-Net to generate images [N, 3, H, W], as SD2's can: v-prediction of their latents, empty prompt."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    latents = latents * vae.config.scaling_factor
    generator = torch.Generator().manual_seed(params.seed)

    def loss_of_step() -> torch.Tensor:
        clean = latents[torch.randint(len(latents), (16,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(SCHEDULE["num_train_timesteps"], (16,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        context = prompt.embedding.expand(16, -1, -1)
        output = unet(noisy, timesteps, encoder_hidden_states=context).sample
        return functional.mse_loss(output, scheduler.get_velocity(clean, noise, timesteps))

    fit("U-Net", unet, params.unet_steps, params.unet_lr, loss_of_step)


def fit(name: str, model: torch.nn.Module, num_steps: int, lr: float, loss_of_step: Callable[[], torch.Tensor]) -> None:
    """AdamW with a one-cycle learning rate: the most from few steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(num_steps, 1), pct_start=0.1)
    with Progress(f"stand-in {name}", num_steps, "steps") as progress:
        for step in range(num_steps):
            loss = loss_of_step()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == num_steps - 1:
                log.info("stand-in %s: step %d of %d, loss %.4f", name, step, num_steps, loss.item())
            progress.advance()
    model.eval()
