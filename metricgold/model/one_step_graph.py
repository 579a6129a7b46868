"""A one-step model as one function of tensors, from an image as the U-Net sees it to metres: what can be exported."""

import torch

from metricgold.model.pipeline import SATURATED, MetricGoldPipeline
from metricgold.model.uncertainty import MOST_UNLIKE, Signs, image_statistics
from metricgold.model.vae import decode_log_depth, encode_rgb


class OneStepGraph(torch.nn.Module):
    """MetricGoldPipeline's own steps for one image that its grid leaves as it is, of a known camera, by one member.

    Raises ValueError for a model that was trained for several steps.
    """

    def __init__(self, pipe: MetricGoldPipeline) -> None:
        super().__init__()
        if not pipe.is_one_step:
            raise ValueError("the model was trained for many steps, expected one-step (train.objective)")
        self.pipe = [pipe]  # a list: its parts are registered below, the rest is no module
        self.unet, self.vae, self.camera_token = pipe.unet, pipe.vae, pipe.camera_token
        self.prompt = pipe.empty_prompt.embedding
        self.scheduler = pipe.new_scheduler(1)
        height, width = pipe.config.processing_height, pipe.config.processing_width
        self.root_area = (height * width) ** 0.5
        if pipe.uncertainty_scale is not None:
            self.register_buffer("typical", torch.tensor(pipe.uncertainty_scale.mean))
            self.register_buffer("whitening", torch.tensor(pipe.uncertainty_scale.whitening))

    def forward(self, image: torch.Tensor, focal_px: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Depth in metres and relative uncertainty, float32 [H, W], and valid mask, bool [H, W].

        image     uint8 [H, W, 3], sides multiples of what the VAE halves
        focal_px  float32 [], in pixels of that image
        """
        pipe = self.pipe[0]
        relative_focal = focal_px / self.root_area
        rgb_latent = encode_rgb(self.vae, image.permute(2, 0, 1)[None].float() / 127.5 - 1)
        scaled = rgb_latent * self.vae.config.scaling_factor
        latent = pipe.denoise(scaled, torch.zeros_like(scaled), self.scheduler, self._prompt(relative_focal))
        d = decode_log_depth(self.vae, latent / self.vae.config.scaling_factor, pipe.encoding)[0]
        signs = Signs.of(d[None], d, pipe.log_depth)
        # Not d once more: of two equal clips of one value torch's exporter loses a bound.
        depth_m = signs.ln_depth.exp() * (relative_focal if pipe.needs_camera else 1.0)
        valid_mask = (d > SATURATED - 1) & (d < pipe.no_surface_log_depth)
        return depth_m, self._uncertainty(signs, scaled), valid_mask

    def _prompt(self, relative_focal: torch.Tensor) -> torch.Tensor:
        prompt = self.prompt[None]
        if self.camera_token is not None:
            known = torch.ones(1, dtype=torch.bool)
            prompt = torch.cat([prompt, self.camera_token(relative_focal.log()[None], known)], dim=1)
        return prompt.to(self.unet.dtype)

    def _uncertainty(self, signs: Signs, rgb_latent: torch.Tensor) -> torch.Tensor:
        """Of ln depth [H, W]; NaN of a model that was not calibrated, as one member does not show it."""
        scale = self.pipe[0].uncertainty_scale
        if scale is None:
            return torch.full_like(signs.ln_depth, torch.nan)
        off = self.whitening @ (image_statistics(rgb_latent)[0] - self.typical)
        unlikeness = off.square().mean().clamp(1.0, MOST_UNLIKE)
        return scale.standard_error(signs, unlikeness)
