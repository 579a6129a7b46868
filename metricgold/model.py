"""The model: image latent and noisy depth latent into the U-Net, depth in metres out.

MetricGoldPipeline is a diffusers pipeline: `save_pretrained` and `from_pretrained` write and read the hub's
folder layout, with near and far in model_index.json. Inference follows MetricGold (arXiv 2411.10886) and
Marigold (arXiv 2312.02145): DDIM from pure noise, several runs merged; the merge is a median in log space,
which keeps metres metres. A model trained for one step (metricgold.objective) takes that one, from zeros.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image

from metricgold.latents import decode_log_depth, encode_log_depth, encode_rgb, rgb_to_tensor, vae_factor
from metricgold.log_depth import LogDepth


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Depth of one image.

    planar_depth_m  float32 [H, W], metres along the optical axis, at the input's size
    uncertainty     float32 [H, W], relative: median absolute deviation of ln depth over the ensemble
    """

    planar_depth_m: np.ndarray
    uncertainty: np.ndarray


class EmptyPrompt(ModelMixin, ConfigMixin):
    """The text encoder's answer to "", computed once: all that is left of the text encoder."""

    @register_to_config
    def __init__(self, num_tokens: int = 77, width: int = 1024) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(num_tokens, width), requires_grad=False)


class MetricGoldPipeline(DiffusionPipeline):
    """One image to depth in metres.

    vae                                  images are only encoded and depth only decoded, so that its decoder may be
                                         one fine-tuned on log depth (metricgold.depth_vae)
    near_m, far_m                        range of the log depth that the U-Net was trained on
    processing_height, processing_width  size the U-Net was trained at; inputs are scaled to its area
    objective                            what the U-Net was trained for: diffusion or one-step
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
        empty_prompt: EmptyPrompt,
        near_m: float | None = None,  # diffusers takes arguments without a default for modules
        far_m: float | None = None,
        processing_height: int | None = None,
        processing_width: int | None = None,
        objective: str = "diffusion",
    ) -> None:
        super().__init__()
        if None in (near_m, far_m, processing_height, processing_width):
            raise ValueError("a MetricGold pipeline needs near_m, far_m, processing_height and processing_width")
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, empty_prompt=empty_prompt)
        self.register_to_config(
            near_m=near_m,
            far_m=far_m,
            processing_height=processing_height,
            processing_width=processing_width,
            objective=objective,
        )
        unet.eval(), vae.eval()

    @property
    def log_depth(self) -> LogDepth:
        return LogDepth(self.config.near_m, self.config.far_m)

    @property
    def is_one_step(self) -> bool:
        return self.config.objective == "one-step"

    def processing_size(self, height: int, width: int) -> tuple[int, int]:
        """Size at which an image goes through the U-Net: the trained area at the image's own aspect ratio,
        in whole multiples of what VAE and U-Net halve."""
        multiple = vae_factor(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)
        scale = (self.config.processing_height * self.config.processing_width / (height * width)) ** 0.5
        fit = lambda side: max(1, round(side * scale / multiple)) * multiple  # noqa: E731
        return fit(height), fit(width)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        ensemble_size: int | None = None,
        seed: int = 0,
        timestep_spacing: str = "trailing",
        batch_size: int = 16,
    ) -> Prediction | list[Prediction]:
        """Predict depth for one image or a list of them (PIL or uint8 [H, W, 3], any sizes).

        Member k of the ensemble starts from noise drawn from (seed, k), the same for every image: a
        prediction does not depend on what else is in the list. `batch_size` counts images x members. Without
        num_inference_steps and ensemble_size 50 and 10, as in the paper; 1 and 1 of a model trained for one step,
        which knows no others and draws no noise: every member would be the same.
        Raises ValueError for an array that is no uint8 [H, W, 3], and for more than one step of a one-step model.
        """
        if not isinstance(image, list):
            options = (num_inference_steps, ensemble_size, seed, timestep_spacing, batch_size)
            return self([image], *options)[0]
        images = [_as_rgb(item) for item in image]
        num_inference_steps, ensemble_size = self._policy(num_inference_steps, ensemble_size, timestep_spacing)
        self.scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing=timestep_spacing)
        self.scheduler.set_timesteps(num_inference_steps)
        groups = defaultdict(list)
        for index, rgb in enumerate(images):
            groups[self.processing_size(*rgb.shape[:2])].append(index)
        predictions: list[Prediction | None] = [None] * len(images)
        for (height, width), indices in groups.items():
            rgb = np.stack([_resize_rgb(images[i], height, width) for i in indices])
            members = self._log_depth_members(rgb, ensemble_size, seed, batch_size)  # [B, E, H, W]
            for i, member in zip(indices, members, strict=True):
                predictions[i] = self._merge(member, images[i].shape[:2])
        return predictions

    def _policy(self, num_steps: int | None, ensemble_size: int | None, timestep_spacing: str) -> tuple[int, int]:
        """Steps and members, with what this model does by default."""
        if not self.is_one_step:
            return num_steps or 50, ensemble_size or 10
        if (num_steps or 1, ensemble_size or 1, timestep_spacing) != (1, 1, "trailing"):
            raise ValueError(
                "this model was trained for one step: it takes num_inference_steps 1, ensemble_size 1 and "
                f"timestep_spacing trailing, got {num_steps}, {ensemble_size} and {timestep_spacing}"
            )
        return 1, 1

    def _log_depth_members(self, rgb: np.ndarray, ensemble_size: int, seed: int, batch_size: int) -> torch.Tensor:
        """uint8 [B, H, W, 3] to log depth of each member [B, E, H, W]."""
        tensor = rgb_to_tensor(rgb).to(self.device)
        scaling = self.vae.config.scaling_factor
        rgb_latent = torch.cat([encode_rgb(self.vae, part) for part in tensor.split(batch_size)]) * scaling
        noise = self._noise(rgb_latent.shape[1:], ensemble_size, seed)  # [E, c, h, w]
        pairs = [(b, e) for b in range(len(rgb)) for e in range(ensemble_size)]
        decoded = []
        for start in range(0, len(pairs), batch_size):
            b, e = zip(*pairs[start : start + batch_size], strict=True)
            latent = self.denoise(rgb_latent[list(b)], noise[list(e)])
            decoded.append(decode_log_depth(self.vae, latent / scaling))
        return torch.cat(decoded).unflatten(0, (len(rgb), ensemble_size))

    def _noise(self, shape: torch.Size, ensemble_size: int, seed: int) -> torch.Tensor:
        if self.is_one_step:
            return torch.zeros((ensemble_size, *shape), device=self.device)
        draws = []
        for member in range(ensemble_size):
            key = int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)
            draws.append(torch.randn(shape, generator=torch.Generator().manual_seed(key)))
        return torch.stack(draws).to(self.device)

    def denoise(self, rgb_latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """DDIM from noise to depth latents; scaled latents [B, c, h, w] in and out."""
        prompt = self.empty_prompt.embedding.to(self.unet.dtype).expand(len(noise), -1, -1)
        latent = noise
        for timestep in self.scheduler.timesteps:
            sample = torch.cat([rgb_latent, latent], dim=1).to(self.unet.dtype)  # [B, 2c, h, w]
            output = self.unet(sample, timestep, encoder_hidden_states=prompt).sample.float()
            stepped = self.scheduler.step(output, timestep, latent)
            # The last step's prev_sample is a little off the clean latent, for the first timestep has some noise.
            latent = stepped.pred_original_sample if self.is_one_step else stepped.prev_sample
        return latent

    def _merge(self, members: torch.Tensor, size: tuple[int, int]) -> Prediction:
        """Log depth of one image's members [E, H, W] to one prediction at `size`."""
        median = members.quantile(0.5, dim=0)
        deviation = (members - median).abs().quantile(0.5, dim=0) * (self.log_depth.ln_range / 2)
        maps = _resize_maps(torch.stack([median, deviation]), size)
        depth_m = self.log_depth.denormalize(maps[0])
        return Prediction(depth_m.cpu().numpy(), maps[1].cpu().numpy())

    @torch.no_grad()
    def encode_decode_depth(self, planar_depth_m: np.ndarray) -> np.ndarray:
        """Metres [B, H, W] through the VAE and back, without the U-Net: the floor under any prediction."""
        size = planar_depth_m.shape[1:]
        log_depth = torch.from_numpy(self.log_depth.normalize(planar_depth_m)).to(self.device)
        fitted = torch.nn.functional.interpolate(log_depth[None], self.processing_size(*size), mode="nearest-exact")[0]
        decoded = decode_log_depth(self.vae, encode_log_depth(self.vae, fitted))
        return self.log_depth.denormalize(_resize_maps(decoded, size)).cpu().numpy()


def load_pipeline(folder: Path) -> MetricGoldPipeline:
    """Read a checkpoint folder onto the GPU if there is one. ValueError names a folder that is no checkpoint."""
    from diffusers.utils.logging import disable_progress_bar

    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: model_index.json is missing; run `metricgold train`")
    disable_progress_bar()  # of reading four small parts: noise in every log
    return MetricGoldPipeline.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")


def _as_rgb(image: Any) -> np.ndarray:
    rgb = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    return rgb


def _resize_rgb(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))


def _resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of [N, H, W]; log depth and its deviation, never metres."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=False)[0]
