"""The VAE's side of things: images and log depth, as its encoding has it, to latents and back.

Latents are stored as the unscaled mean of the VAE's posterior and scaled on load, so that a cache outlives
a change of scaling (the lesson of EDM2). Depth goes in as three equal channels and comes out as their mean
(Marigold, arXiv 2312.02145, section 3.2). Shapes: B images, H x W pixels, c channels of h x w latents.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

from metricgold.log_depth import LOG, Encoding, LogDepth


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent along each side: 8 for Stable Diffusion."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def rgb_to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 127.5 - 1


def filled_log_depth(log_depth: LogDepth, planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Log depth [..., H, W] with invalid pixels at +1 (far).

    A pixel without depth shows sky or a window far more often than anything near, and far beside far keeps the
    VAE from ringing into valid latents.
    """
    return np.where(valid_mask, log_depth.normalize(planar_depth_m), np.float32(1)).astype(np.float32)


def encode_rgb(vae: AutoencoderKL, rgb: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in [-1, 1] to the unscaled posterior mean [B, c, h, w]."""
    return vae.encode(rgb.to(vae.dtype)).latent_dist.mean.float()


def encode_log_depth(vae: AutoencoderKL, d: torch.Tensor, encoding: Encoding = LOG) -> torch.Tensor:
    """Log depth [B, H, W] in [-1, 1], as the encoding has it, to the unscaled posterior mean [B, c, h, w]."""
    return encode_rgb(vae, encoding.of_log_depth(d).unsqueeze(1).expand(-1, 3, -1, -1))


def decode_log_depth(vae: AutoencoderKL, latent: torch.Tensor, encoding: Encoding = LOG) -> torch.Tensor:
    """Unscaled latents [B, c, h, w] of that encoding to log depth [B, H, W], clipped to [-1, 1]."""
    return encoding.to_log_depth(vae.decode(latent.to(vae.dtype)).sample.float().mean(dim=1))


def latent_valid_mask(valid_mask: np.ndarray, factor: int) -> np.ndarray:
    """Pixel mask [..., H, W] to latent mask [..., h, w]: valid where all factor x factor pixels are."""
    *batch, height, width = valid_mask.shape
    blocks = valid_mask.reshape(*batch, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.all(axis=(-3, -1)))


def default_device() -> str:
    """cuda where torch sees a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_size(vae: AutoencoderKL, size: tuple[int, int]) -> None:
    """Raise ValueError unless height and width of encoded frames are multiples of what the VAE halves."""
    (height, width), factor = size, vae_factor(vae)
    if height % factor or width % factor:
        raise ValueError(
            f"encode.height x encode.width must be multiples of the VAE's {factor}, got {height} x {width}"
        )
