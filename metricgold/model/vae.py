"""The VAE's side of things: images and log depth to latents and back.

Latents are stored as the unscaled mean of the VAE's posterior and scaled on load, so that a cache outlives
a change of scaling (the lesson of EDM2). Depth goes in as three equal channels and comes out as their mean
(Marigold, arXiv 2312.02145, section 3.2). Shapes: B images, H x W pixels, c channels of h x w latents.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from metricgold.datasets.frame import Frame
from metricgold.images.camera import crop_intrinsics, mirror_intrinsics, resize_intrinsics
from metricgold.log_depth import LogDepth

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """One frame as the trainer sees it.

    rgb_latent, depth_latent  float16 [c, h, w], unscaled VAE means
    latent_mask               bool [h, w]: every pixel below this latent is valid
    intrinsics                float64 [3, 3] of the encoded image, pixels
    valid_mask                bool [H, W] of the encoded image; None when read from a cache, see its valid_mask(i)
    """

    rgb_latent: np.ndarray
    depth_latent: np.ndarray
    latent_mask: np.ndarray
    intrinsics: np.ndarray
    scene: str
    name: str
    valid_mask: np.ndarray | None = None


def vae_factor(vae: "AutoencoderKL") -> int:
    """Pixels per latent along each side: 8 for Stable Diffusion."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def fit_frame(frame: Frame, height: int, width: int) -> Frame:
    """Scale a frame to cover height x width, cut the overhang evenly, and carry the intrinsics along."""
    if frame.rgb.shape[:2] == (height, width):
        return frame
    return cut_frame(frame, height, width, zoom=1.0, place=(0.5, 0.5))


def cut_frame(frame: Frame, height: int, width: int, *, zoom: float, place: tuple[float, float]) -> Frame:
    """A part of a frame, scaled to height x width; intrinsics go along, depth stays in metres.

    zoom: 1 for the largest part of that shape, 2 for one with half its sides; place: where it lies between the top
    (0) and the bottom (1), and between left and right. Colours are averaged, depth and mask are sampled at the nearest
    pixel: a mean of two depths is a surface that does not exist.
    """
    from PIL import Image

    old_height, old_width = frame.rgb.shape[:2]
    scale = max(height / old_height, width / old_width) * zoom
    # The part that survives, in old pixels.
    box_height, box_width = height / scale, width / scale
    top, left = (old_height - box_height) * place[0], (old_width - box_width) * place[1]
    box = (left, top, min(left + box_width, old_width), min(top + box_height, old_height))
    rgb = Image.fromarray(frame.rgb).resize((width, height), Image.Resampling.LANCZOS, box=box)
    rows = np.clip((top + (np.arange(height) + 0.5) / scale).astype(int), 0, old_height - 1)
    columns = np.clip((left + (np.arange(width) + 0.5) / scale).astype(int), 0, old_width - 1)
    return replace(
        frame,
        rgb=np.asarray(rgb),
        planar_depth_m=frame.planar_depth_m[np.ix_(rows, columns)],
        valid_mask=frame.valid_mask[np.ix_(rows, columns)],
        intrinsics=resize_intrinsics(crop_intrinsics(frame.intrinsics, left, top), scale, scale),
    )


def mirror_frame(frame: Frame) -> Frame:
    """Left to right; intrinsics go along."""
    return replace(
        frame,
        rgb=np.ascontiguousarray(frame.rgb[:, ::-1]),
        planar_depth_m=np.ascontiguousarray(frame.planar_depth_m[:, ::-1]),
        valid_mask=np.ascontiguousarray(frame.valid_mask[:, ::-1]),
        intrinsics=mirror_intrinsics(frame.intrinsics, frame.rgb.shape[1]),
    )


def rgb_to_tensor(rgb: np.ndarray) -> "torch.Tensor":
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 127.5 - 1


def filled_log_depth(log_depth: LogDepth, planar_depth_m: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Log depth [..., H, W] with invalid pixels at +1 (far).

    What has no depth is sky or a window far more often than anything near, and far beside far keeps the
    VAE from ringing into valid latents.
    """
    return np.where(valid_mask, log_depth.normalize(planar_depth_m), np.float32(1)).astype(np.float32)


def encode_rgb(vae: "AutoencoderKL", rgb: "torch.Tensor") -> "torch.Tensor":
    """[B, 3, H, W] in [-1, 1] to the unscaled posterior mean [B, c, h, w]."""
    return vae.encode(rgb.to(vae.dtype)).latent_dist.mean.float()


def encode_log_depth(vae: "AutoencoderKL", log_depth: "torch.Tensor") -> "torch.Tensor":
    """[B, H, W] in [-1, 1] to the unscaled posterior mean [B, c, h, w]."""
    return encode_rgb(vae, log_depth.unsqueeze(1).expand(-1, 3, -1, -1))


def decode_log_depth(vae: "AutoencoderKL", latent: "torch.Tensor") -> "torch.Tensor":
    """Unscaled latents [B, c, h, w] to log depth [B, H, W], clipped to [-1, 1]."""
    return vae.decode(latent.to(vae.dtype)).sample.float().mean(dim=1).clamp(-1, 1)


def latent_valid_mask(valid_mask: np.ndarray, factor: int) -> np.ndarray:
    """Pixel mask [..., H, W] to latent mask [..., h, w]: valid where all factor x factor pixels are."""
    *batch, height, width = valid_mask.shape
    blocks = valid_mask.reshape(*batch, height // factor, factor, width // factor, factor)
    return blocks.all(axis=(-3, -1))
