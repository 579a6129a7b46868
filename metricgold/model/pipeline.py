"""The model: image latent and noisy depth latent into the U-Net, depth in metres out.

MetricGoldPipeline is a diffusers pipeline: `save_pretrained` and `from_pretrained` write and read the hub's
folder layout, with near and far in model_index.json. Inference follows MetricGold (arXiv 2411.10886) and
Marigold (arXiv 2312.02145): DDIM from pure noise, several runs merged; the merge is a median in log space,
which keeps metres metres. A model trained for one step (metricgold.train.objective) takes that one, from zeros.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from safetensors import safe_open

from metricgold.images import FOV_DEG, FocalFrom, NetworkGrid, TrainingSize, focal_px_from_fov, pinhole
from metricgold.log_depth import Encoding, LogDepth
from metricgold.model.camera_token import CameraToken
from metricgold.model.configs import naming_the_folder
from metricgold.model.digest import digest_model
from metricgold.model.ensemble import Ensemble, EnsembleOptions, median_and_deviation, standard_error
from metricgold.model.folded_upsampling import fold_upsampling
from metricgold.model.inputs import CalibratedImage, is_batch, read_images, seed_of_each
from metricgold.model.prompt_attention import compute_prompt_once, prompt_computed_once
from metricgold.model.uncertainty import HeldOut, Signs, UncertaintyScale, image_statistics
from metricgold.model.vae import (
    decode_log_depth,
    default_device,
    encode_log_depth,
    encode_rgb,
    rgb_to_tensor,
    vae_factor,
)
from metricgold.model.views import VIEWS
from metricgold.model.windows import Strip
from metricgold.params import CAMERAS, DTYPES, SPACINGS, WINDOWS, Uncertainty, Windows
from metricgold.storage import read_json

# What model_index.json may name: by other names diffusers would import any module.
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "empty_prompt": ["metricgold.model", "EmptyPrompt"],
    "camera_token": ["metricgold.model", "CameraToken"],
}
SATURATED = 1e-3  # log depth so close to -1 or 1 says "at least as near" or "at least as far"
VAE_PIXELS = 1_800_000  # at once: four images at full size keep a GPU busy, more of them only cost memory
NEGLIGIBLE = 0.3  # sqrt(1 - 0.3^2) is 0.95
MAX_PROCESSING_SIDE = 8192
MAX_GRAPHS = 64  # of a compiled U-Net, one for each processing size; beyond, sizes run uncompiled
MAX_FROZEN_BYTES = 4_000_000_000  # of weights in such graphs on a CPU, each of which has its own


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Depth of one image of H x W pixels, as MetricGoldPipeline returns it (MetricGold, arXiv 2411.10886).

    planar_depth_m  float32 [H, W], metres along the optical axis, within log_depth
    uncertainty     float32 [H, W], relative (0.1 is about 10 % of the depth). Calibrated: the standard error of ln
                    depth, within which 68 % of held-out pixels were. Else the median absolute deviation of ln depth
                    over the ensemble's members; NaN with one member, which does not show it. NaN with merged latents
    valid_mask      bool [H, W], False where the model sees no surface, such as sky: from no_surface_from of the far end
                    on; and where one is nearer than log_depth.near_m; planar_depth_m has a value there too
    intrinsics      float64 [3, 3] in pixels of the image, pixel centres at +0.5; None for a file that says that it is a
                    panorama: its depth is not planar
    focal_from      where its focal length comes from: argument, exif, fov_deg, which is an assumption, or none
    log_depth       the range in metres that the model has for this image: with canonical depth its lens decides
    num_members     members that were merged
    uncertainty_calibrated  whether uncertainty is the standard error that the model was calibrated to state
    unlikeness      how unlike held-out frames of the training the image is: 1 for a typical one, at most 20; None where
                    the model does not know
    """

    planar_depth_m: np.ndarray
    uncertainty: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray | None
    focal_from: FocalFrom
    log_depth: LogDepth
    num_members: int = 1
    uncertainty_calibrated: bool = False
    unlikeness: float | None = None


class EmptyPrompt(ModelMixin, ConfigMixin):
    """The text encoder's embedding of "" [num_tokens, width], computed once; it takes the text encoder's place."""

    __module__ = "metricgold.model"  # what every saved model_index.json names: the face, wherever this file moves

    @register_to_config
    def __init__(self, num_tokens: int = 77, width: int = 1024) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(num_tokens, width), requires_grad=False)


class MetricGoldPipeline(DiffusionPipeline):
    """One image to planar depth in metres (MetricGold, arXiv 2411.10886; Marigold, arXiv 2312.02145).

        pipe = MetricGoldPipeline.from_pretrained("models/metricgold")
        prediction = pipe("photo.jpg", num_inference_steps=10, ensemble_size=4)
        prediction.planar_depth_m  # float32 [H, W], metres

    Its parts and numbers, all of them in the checkpoint folder:

    unet                                 eight input channels, of the image's latent and of the noisy depth's
    vae                                  images are only encoded and depth only decoded, so that its decoder may be
                                         one fine-tuned on log depth (metricgold.train.depth_vae)
    scheduler, empty_prompt              noise schedule; embedding of the prompt ""
    camera_token                         makes one more token of the prompt from the lens; of cameras with token only
    near_m, far_m                        range in metres of the log depth that the U-Net was trained on
    processing_height, processing_width  size in pixels the U-Net was trained at; images are scaled to its area
    objective                            what the U-Net was trained for: diffusion or one-step
    camera                               what it is told of an image's lens (metricgold.params.Camera): with canonical
                                         the range is that of depth over the relative focal length
    uncertainty_scale                    UncertaintyScale as a dict, from held-out frames; None: not calibrated
    trained_aspects                      width over height of the narrowest and the widest frames trained on; None: of
                                         the processing size
    no_surface_from                      share of far_m from which on a prediction says that there is no surface
    encoding                             what the VAE sees of log depth (metricgold.log_depth.Encoding)

    Raises ValueError when one of the numbers is missing, unless 0 < near_m < far_m, for another camera or encoding or a
    broken scale, and where there is a camera_token for none or none for one that needs it.
    """

    _optional_components: ClassVar[list[str]] = ["camera_token"]  # folders of before, and of camera none, lack it

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
        camera: str = "none",
        uncertainty_scale: dict[str, Any] | None = None,
        trained_aspects: list[float] | None = None,
        camera_token: CameraToken | None = None,
        no_surface_from: float = 1.0,  # that of folders of earlier versions: only what saturates
        encoding: str = "log",  # folders of before have none, and those of log depth have none now
    ) -> None:
        super().__init__()
        if near_m is None or far_m is None or processing_height is None or processing_width is None:
            raise ValueError("a MetricGold pipeline needs near_m, far_m, processing_height and processing_width")
        Encoding(encoding, near_m, far_m)  # raises where they are none
        sides = processing_height, processing_width
        if not all(isinstance(side, int) and 0 < side <= MAX_PROCESSING_SIDE for side in sides):
            raise ValueError(f"processing_height x processing_width is {processing_height} x {processing_width}")
        if camera not in CAMERAS:
            raise ValueError(f"camera is {camera!r}, expected one of {', '.join(CAMERAS)}")
        if trained_aspects is not None:
            narrowest, widest = trained_aspects
            if not 0 < narrowest <= widest:
                raise ValueError(f"trained_aspects must be two widths over heights, got {trained_aspects}")
        if ("token" in camera) != (camera_token is not None):
            raise ValueError(f"camera {camera} {'needs' if 'token' in camera else 'has no'} part camera_token")
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, empty_prompt=empty_prompt)
        self.register_modules(camera_token=camera_token)
        self.register_to_config(
            near_m=near_m,
            far_m=far_m,
            processing_height=processing_height,
            processing_width=processing_width,
            objective=objective,
            camera=camera,
            uncertainty_scale=uncertainty_scale,
            trained_aspects=trained_aspects,
            no_surface_from=no_surface_from,
            **({} if encoding == "log" else {"encoding": encoding}),
        )
        self.uncertainty_scale = UncertaintyScale.model_validate(uncertainty_scale) if uncertainty_scale else None
        unet.eval(), vae.eval()
        self.is_compiled = self._is_frozen = False

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> "MetricGoldPipeline":
        """Read a checkpoint folder in diffusers' layout; `options` as diffusers takes them. Safetensors only.

        Raises ValueError naming a folder whose files are missing, broken or lack weights (diffusers would draw these
        at random), or whose near_m and far_m are not a range.
        """
        with naming_the_folder(Path(folder), "checkpoint"):
            _check_present(Path(folder), options)
            pipe = super().from_pretrained(folder, **options | {"use_safetensors": True})
            _check_complete(Path(folder), pipe)
        return pipe

    @property
    def log_depth(self) -> LogDepth:
        """Metres of near_m to far_m onto [-1, 1] and back; with canonical depth those of relative focal length 1."""
        return LogDepth(self.config.near_m, self.config.far_m)

    @property
    def encoding(self) -> Encoding:
        """What the VAE sees of log depth; canonical depth or not, it depends on far_m / near_m alone."""
        return Encoding(self.config.get("encoding", "log"), self.config.near_m, self.config.far_m)

    @property
    def needs_camera(self) -> bool:
        """Whether the scale of its depth follows from the focal length: where that is assumed, so is the scale."""
        return "canonical" in self.config.camera

    def log_depth_of(self, relative_focal: float) -> LogDepth:
        """The model's range in metres of an image with that relative focal length."""
        near_m, far_m = self.config.near_m, self.config.far_m
        return LogDepth(near_m * relative_focal, far_m * relative_focal) if self.needs_camera else self.log_depth

    @property
    def no_surface_log_depth(self) -> float:
        """Log depth from which on a pixel shows no surface."""
        limit: float = self.log_depth.normalize(self.config.no_surface_from * self.log_depth.far_m)
        return min(limit, 1 - SATURATED)

    @property
    def max_steps(self) -> int:
        """The largest num_inference_steps: the training's own timesteps."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def is_one_step(self) -> bool:
        """Whether the U-Net was trained for one step from zeros: it takes no more, and its members are views."""
        return self.config.objective == "one-step"

    def compile_unet(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have torch compile the U-Net, at its first call for each processing size; it changes no saved folder.

        Every batch is then filled up to batch_size: choose one that images x members make full. On a CPU each graph
        keeps the weights in the layout that oneDNN multiplies fastest, so that weights, the prompt, dtype and device
        must stay as they are now, and sizes whose graphs hold more than MAX_FROZEN_BYTES run uncompiled. Raises
        ValueError where the C++ compiler is missing that torch needs.
        """
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError("compile needs a C++ compiler: install g++, name one in CXX, or do without") from error
        if backend == "inductor" and self.device.type == "cpu":
            self._compile_frozen()
        else:
            self.unet.compile(backend=backend, dynamic=False, recompile_limit=MAX_GRAPHS)
        self.is_compiled = True

    @torch.no_grad()
    def _compile_frozen(self) -> None:
        """Compile for a CPU, with the weights as constants of the graphs."""
        self._is_frozen = True
        if self.camera_token is None:
            compute_prompt_once(self.unet, self._prompt())  # from now on: its keys and values are constants too
        fold_upsampling(self.unet)
        options = {
            # Of a small U-Net's pass 6 % is Python between 300 kernels, 3 % guards on modules that must not change,
            # 2 % Welford's variance of a group, which sums of up to some thousand numbers do not need.
            "cpp_wrapper": True,
            "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            "cpp.use_two_step_variance_threshold": 1 << 20,
        }
        limit = max(1, min(MAX_GRAPHS, MAX_FROZEN_BYTES // self.unet.get_memory_footprint()))
        # Isolated: without guards, torch would take one pipeline's graph for another pipeline.
        self.unet.compile(dynamic=False, recompile_limit=limit, isolate_recompiles=True, options=options)

    @property
    def training_size(self) -> TrainingSize:
        """The size in pixels that the U-Net was trained at."""
        return TrainingSize(self.config.processing_height, self.config.processing_width, vae_factor(self.vae))

    def grid(self, height: int, width: int) -> NetworkGrid:
        """The pixels in which the U-Net sees an image of that height and width: those in which training saw one."""
        return self.training_size.grid(height, width)

    def relative_focal(self, grid: NetworkGrid, intrinsics: np.ndarray | None) -> float:
        """Of what the U-Net sees in a grid of an image with those intrinsics [3, 3]; None: an image of FOV_DEG."""
        if intrinsics is None:
            height, width = grid.image_height, grid.image_width
            intrinsics = pinhole(focal_px_from_fov(FOV_DEG, max(height, width)), height, width)
        return self.training_size.relative_focal(grid.intrinsics(intrinsics))

    def strip(self, height: int, width: int, windows: Windows = "auto") -> Strip:
        """The windows by which an image of that height and width is seen beside one view of all of it, if any."""
        if windows not in WINDOWS:
            raise ValueError(f"windows must be one of {', '.join(WINDOWS)}, got {windows!r}")
        if windows == "never":
            return Strip.without_windows()
        sides = self.config.processing_height, self.config.processing_width
        narrowest, widest = self.config.trained_aspects or (1.0, 1.0)
        shape = max(sides) / min(sides)
        return Strip.of(height, width, max(shape, widest), max(shape, 1 / narrowest))

    def processing_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which an image of that size goes through the U-Net."""
        return self.grid(height, width).size

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        ensemble_size: int | Literal["auto"] | None = None,
        seed: int | Sequence[int] = 0,
        timestep_spacing: str = "trailing",
        batch_size: int = 16,
        *,
        intrinsics: Any = None,
        focal_px: float | Sequence[float | None] | None = None,
        fov_deg: float | Sequence[float | None] | None = None,
        assumed_fov_deg: float = FOV_DEG,
        merge: str = "depth",
        max_ensemble_size: int = 10,
        uncertainty_target: float = 0.01,
        windows: Windows = "auto",
    ) -> Prediction | list[Prediction]:
        """Predict planar depth in metres of one image, or of each of several of any sizes.

        image                PIL image, uint8 [H, W, 3], path, Photo, or tensor [3, H, W] (uint8, or float from 0 to 1);
                             a list of those or a tensor [B, 3, H, W] gives a list
        num_inference_steps  DDIM steps, 50 as in the paper
        ensemble_size        members of the ensemble, 10 as in the paper, or auto; of a one-step model 1, or so many
                             views of the image, at most 10: as it is, mirrored, and zoomed about its centre
        seed                 of the noise: member k starts from noise drawn from (seed, k)
        timestep_spacing     trailing, leading or linspace, as in diffusers (arXiv 2305.08891)
        batch_size           images x members through the U-Net at once
        intrinsics           [3, 3] in pixels of the image
        focal_px             or the focal length alone, in pixels of the image: its axis meets the middle
        fov_deg              or the field of view over the image's longer side, in degrees
        assumed_fov_deg      of images whose camera is not known
        merge                depth: median of the members' log depth; latent: mean of their latents, decoded once
        max_ensemble_size,   of ensemble_size auto: three members, then two by two, until standard_error of the
        uncertainty_target   image is at most the target (relative), or more of them would hardly lower the uncertainty
                             that a calibrated model states
        windows              auto: images more than 1.25 times as wide or tall in shape as the frames of training are
                             seen by overlapping windows too (metricgold.model.windows); never: as one view

        The camera is stated in one of these three ways at most; for a list of images by a list, with None where it is
        not known. Unless it is stated, a photograph's EXIF has it, or it is not known: then points, and the scale of a
        model whose needs_camera is True, are those of assumed_fov_deg over the longer side, and focal_from is fov_deg.

        One seed serves every image, which keeps depth from flickering over the frames of a video; a list of seeds has
        one for each image. A prediction depends on its image and seed alone, whatever else is in the list. A model
        trained for one step takes one step, and draws no noise.

        Raises ValueError for what is not an image, for options out of range, and for more than one step or merged
        latents of a one-step model; OSError for a path that cannot be opened.
        """
        stated = {"intrinsics": intrinsics, "focal_px": focal_px, "fov_deg": fov_deg}
        images = read_images(image, **stated, assumed_fov_deg=assumed_fov_deg)
        num_steps, ensemble_size = self._policy(num_inference_steps, ensemble_size, timestep_spacing)
        options = EnsembleOptions(ensemble_size, max_ensemble_size, uncertainty_target, merge, batch_size)
        if self.is_one_step and options.most > 1:
            options.check_views(len(VIEWS))
        strips = [self.strip(one.rgb.shape[0], one.rgb.shape[1], windows) for one in images]
        of_image = zip(seed_of_each(seed, len(images)), strips, strict=True)
        seeds = [one for one, strip in of_image for _ in range(strip.num_parts)]
        images = [part for one, strip in zip(images, strips, strict=True) for part in strip.cut(one)]
        scheduler = self.new_scheduler(num_steps, timestep_spacing)
        predictions: dict[int, Prediction] = {}
        for i, ensemble in self.ensembles(images, seeds, options, scheduler):
            predictions[i] = self.merge_members(ensemble.members, images[i], merge, ensemble.statistics)
        in_order = (predictions.pop(i) for i in range(len(images)))
        joined = [strip.join(list(islice(in_order, strip.num_parts))) for strip in strips]
        return joined if is_batch(image) else joined[0]

    @torch.no_grad()
    def ensembles(
        self,
        images: Sequence[CalibratedImage],
        seeds: Sequence[int],
        options: EnsembleOptions,
        scheduler: DDIMScheduler,
    ) -> Iterator[tuple[int, Ensemble]]:
        """The ensemble of each image, of any size, with its index; not in order."""
        grids = [self.grid(*one.rgb.shape[:2]) for one in images]
        of_size = defaultdict(list)
        for index, grid in enumerate(grids):
            of_size[grid.size].append(index)
        with self._attending():
            for indices in of_size.values():
                pairs = [(grids[i], images[i]) for i in indices]
                if self.is_one_step:
                    found = self.run_views(pairs, options, scheduler)
                else:
                    seen = np.stack([grid.see(image.rgb) for grid, image in pairs])
                    prompts = self.prompts([self.known_focal(grid, image) for grid, image in pairs])
                    found = self.run_members(seen, [seeds[i] for i in indices], options, scheduler, prompts)
                yield from zip(indices, found, strict=True)

    def _policy(
        self, num_steps: int | None, ensemble_size: int | Literal["auto"] | None, timestep_spacing: str
    ) -> tuple[int, int | Literal["auto"]]:
        """Steps and members, with this model's defaults."""
        if not self.is_one_step:
            return 50 if num_steps is None else num_steps, 10 if ensemble_size is None else ensemble_size
        if num_steps not in (None, 1) or timestep_spacing != "trailing":
            raise ValueError(
                "this model was trained for one step: it takes num_inference_steps 1 and timestep_spacing trailing, "
                f"got {num_steps} and {timestep_spacing}"
            )
        return 1, 1 if ensemble_size is None else ensemble_size

    def new_scheduler(self, num_steps: int, timestep_spacing: str = "trailing") -> DDIMScheduler:
        """A scheduler for one call, its timesteps set; the pipeline's own stays as it was saved.

        Raises ValueError for a number of steps that the schedule does not have, and for an unknown spacing.
        """
        most = self.scheduler.config.num_train_timesteps
        if not (isinstance(num_steps, Integral) and 1 <= num_steps <= most):
            raise ValueError(f"num_inference_steps must be an integer from 1 to {most}, got {num_steps!r}")
        if timestep_spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing must be one of {', '.join(SPACINGS)}, got {timestep_spacing!r}")
        scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing=timestep_spacing)
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler

    @torch.no_grad()
    def run_members(
        self,
        rgb: np.ndarray,
        seeds: Sequence[int],
        options: EnsembleOptions,
        scheduler: DDIMScheduler,
        prompts: torch.Tensor | None = None,
    ) -> list[Ensemble]:
        """The members of each image before they are merged.

        rgb      uint8 [B, H, W, 3], images as their grids see them
        seeds    one for each image
        prompts  [B, tokens, width], the images' own; None: of images whose camera is not known

        Members are log depth [H, W], or scaled latents [c, h, w] where those are merged.
        """
        prompts = self.prompts([None] * len(rgb)) if prompts is None else prompts
        tensor, scaling = rgb_to_tensor(rgb), self.vae.config.scaling_factor
        parts = tensor.split(max(1, VAE_PIXELS // tensor[0, 0].numel()))
        rgb_latent = torch.cat([encode_rgb(self.vae, part.to(self.device)) for part in parts]) * scaling
        noise = {seed: self.draw_noise(rgb_latent.shape[1:], options.most, seed) for seed in set(seeds)}
        ensembles = [Ensemble([], statistics) for statistics in image_statistics(rgb_latent)]
        for of_round in options.rounds():
            pairs = [(b, k) for b, one in enumerate(ensembles) if not self.is_settled(one, options) for k in of_round]
            for start in range(0, len(pairs), options.batch_size):
                batch = pairs[start : start + options.batch_size]
                # A compiled U-Net has one graph for each processing size: every batch is full.
                full = batch + batch[:1] * (options.batch_size - len(batch)) if self.is_compiled else batch
                drawn = torch.stack([noise[seeds[b]][k] for b, k in full])
                places = [b for b, _ in full]
                latents = self.denoise(rgb_latent[places], drawn, scheduler, prompts[places])[: len(batch)]
                outputs = self.decode(latents) if options.merge == "depth" else latents
                for (b, _), member in zip(batch, outputs, strict=True):
                    ensembles[b].members.append(member)
        return ensembles

    def run_views(
        self, images: Sequence[tuple[NetworkGrid, CalibratedImage]], options: EnsembleOptions, scheduler: DDIMScheduler
    ) -> list[Ensemble]:
        """As run_members, of a model that draws no noise: member k is what it says of VIEWS[k].

        images  each with its grid, all of one size
        """
        alone = replace(options, ensemble_size=1)
        ensembles = [Ensemble() for _ in images]
        for of_round in options.rounds():
            pairs = [(b, k) for b, one in enumerate(ensembles) if not self.is_settled(one, options) for k in of_round]
            if not pairs:
                break
            seen = np.stack([VIEWS[k].see(images[b][0], images[b][1].rgb) for b, k in pairs])
            prompts = self.prompts([self.known_focal(VIEWS[k].grid(images[b][0]), images[b][1]) for b, k in pairs])
            answers = self.run_members(seen, [0] * len(pairs), alone, scheduler, prompts)
            for (b, k), answer in zip(pairs, answers, strict=True):
                if k == 0:
                    ensembles[b].statistics = answer.statistics
                (member,) = answer.members
                grid, image = images[b]
                is_told = self.config.camera == "token" and image.has_known_camera  # then it answers in metres
                ln_range = 0.0 if is_told else self.log_depth.ln_range
                ensembles[b].members.append(VIEWS[k].bring_back(grid, member, ln_range))
        return ensembles

    def is_settled(self, ensemble: Ensemble, options: EnsembleOptions) -> bool:
        """Whether an image has members enough: all of them, or of auto as many as uncertainty_target asks for.

        A calibrated uncertainty is mostly what no number of members takes away. Where the merged members' own error is
        at most NEGLIGIBLE of it, without that error it would be 5 % lower.
        """
        if not ensemble.members or options.ensemble_size != "auto":
            return False
        members, target = torch.stack(ensemble.members), options.uncertainty_target
        if self.uncertainty_scale is not None:
            stated = self._calibrated(members, ensemble.statistics)
            target = max(target, NEGLIGIBLE * stated.median().item())
        return standard_error(members, self.log_depth) <= target

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Scaled latents float32 [B, c, h, w] to log depth [B, H, W]. ValueError where that is NaN or infinite."""
        size = max(1, VAE_PIXELS // (latent[0, 0].numel() * vae_factor(self.vae) ** 2))
        parts = (latent / self.vae.config.scaling_factor).split(size)
        d = torch.cat([decode_log_depth(self.vae, part, self.encoding) for part in parts])
        if not torch.isfinite(d).all():
            raise ValueError(f"the model produced NaN or infinity in {self.unet.dtype}; try bfloat16 or float32")
        return d

    def draw_noise(self, shape: Sequence[int], num_members: int, seed: int) -> torch.Tensor:
        """Where the members of an image start, float32 [E, *shape]: member k's noise from (seed, k).

        Zeros for a one-step model.
        """
        if self.is_one_step:
            return torch.zeros((num_members, *shape), device=self.device)
        draws = []
        for member in range(num_members):
            key = int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)
            draws.append(torch.randn(*shape, generator=torch.Generator().manual_seed(key)))
        return torch.stack(draws).to(self.device)

    def _prompt(self) -> torch.Tensor:
        return self.empty_prompt.embedding[None].to(self.unet.dtype)  # [1, tokens, width]

    def prompts(self, relative_focals: Sequence[float | None]) -> torch.Tensor:
        """The prompt of each image [B, tokens, width]: the empty one, and a token of its lens; None: not known."""
        empty, token = self._prompt(), self.camera_token
        if token is None:
            return empty.expand(len(relative_focals), -1, -1)
        # One by one: an image's token must not depend on how many others are with it.
        return torch.cat([torch.cat([empty, token.of(one).to(empty.dtype)], dim=1) for one in relative_focals])

    def known_focal(self, grid: NetworkGrid, image: CalibratedImage) -> float | None:
        """Relative focal length of what the U-Net sees of an image; None where its camera is not known."""
        return self.relative_focal(grid, image.intrinsics) if image.has_known_camera else None

    def _attending(self) -> AbstractContextManager[None]:
        """Within it keys and values of the prompt are computed once, where it is the same for all images."""
        return prompt_computed_once(self.unet, self._prompt()) if self.camera_token is None else nullcontext()

    def denoise(
        self, rgb_latent: torch.Tensor, noise: torch.Tensor, scheduler: DDIMScheduler, prompt: torch.Tensor
    ) -> torch.Tensor:
        """DDIM from noise to depth latents; scaled latents float32 [B, c, h, w] in and out, prompt as `prompts`."""
        latent, dtype = noise, prompt.dtype  # the U-Net's; asking the U-Net itself goes through all its weights
        # As numbers to the scheduler: its tables are on the CPU, so that a tensor on the GPU would have to be awaited.
        for timestep, number in zip(scheduler.timesteps, scheduler.timesteps.tolist(), strict=True):
            sample = torch.cat([rgb_latent, latent], dim=1).to(dtype)  # [B, 2c, h, w]
            with self._freezing():
                output = self.unet(sample, timestep, encoder_hidden_states=prompt).sample.float()
            stepped = scheduler.step(output, number, latent)
            # The last step's prev_sample is a little off the clean latent, for the first timestep has some noise.
            latent = stepped.pred_original_sample if self.is_one_step else stepped.prev_sample
        return latent

    def _freezing(self) -> AbstractContextManager[None]:
        """Within it torch makes constants of the weights in the graphs of a U-Net that was compiled so."""
        if not self._is_frozen:
            return nullcontext()
        from torch._inductor import config

        return config.patch(freezing=True)

    @torch.no_grad()
    def merge_members(
        self,
        members: Sequence[torch.Tensor],
        image: CalibratedImage,
        merge: str = "depth",
        statistics: torch.Tensor | None = None,
    ) -> Prediction:
        """One prediction at the image's size from its members: log depth [H, W] or, for merge latent, latents.

        statistics: of the image's latent, without which the uncertainty is not calibrated
        """
        stacked = torch.stack(list(members))
        if merge == "latent":
            merged = self.decode(stacked.mean(dim=0, keepdim=True))[0]
        else:
            merged, deviation = median_and_deviation(stacked)
        unlikeness = None
        if self.uncertainty_scale is not None and statistics is not None:
            unlikeness = self.uncertainty_scale.unlikeness(statistics)
        is_calibrated = unlikeness is not None and merge == "depth"
        if is_calibrated:
            uncertainty = self._calibrated(stacked, statistics)
        elif merge == "latent" or len(members) == 1:
            uncertainty = torch.full_like(merged, torch.nan)  # 0 would claim certainty
        else:
            uncertainty = deviation * (self.log_depth.ln_range / 2)
        grid = self.grid(*image.rgb.shape[:2])
        log_depth = self.log_depth_of(self.relative_focal(grid, image.intrinsics))
        d, uncertainty = grid.to_image(torch.stack([merged, uncertainty]))
        return Prediction(
            planar_depth_m=log_depth.denormalize(d).cpu().numpy(),
            uncertainty=uncertainty.cpu().numpy(),
            valid_mask=((d > SATURATED - 1) & (d < self.no_surface_log_depth)).cpu().numpy(),
            intrinsics=image.intrinsics,
            focal_from=image.focal_from,
            log_depth=log_depth,
            num_members=len(members),
            uncertainty_calibrated=is_calibrated,
            unlikeness=unlikeness,
        )

    @torch.no_grad()
    def held_out_errors(
        self, rgbs: list[np.ndarray], intrinsics: list[np.ndarray], true_depths_m: list[np.ndarray], params: Uncertainty
    ) -> Iterator[list[HeldOut]]:
        """How wrong the model is on frames, from which fit_scale makes a calibration: by one member, by two and so on.

        true_depths_m: float32 [H, W] as the images, NaN where there is no truth that counts
        """
        options = EnsembleOptions(params.ensemble_size, batch_size=params.batch_size)
        images = read_images(rgbs, intrinsics=intrinsics)
        scheduler = self.new_scheduler(params.num_inference_steps, "trailing")
        for i, ensemble in self.ensembles(images, [0] * len(images), options, scheduler):
            grid = self.grid(*true_depths_m[i].shape)
            log_depth = self.log_depth_of(self.relative_focal(grid, images[i].intrinsics))
            as_network_m = true_depths_m[i] * np.float32(self.log_depth.near_m / log_depth.near_m)
            true_m = torch.from_numpy(grid.sample(as_network_m)).to(self.device)
            stacked = torch.stack(ensemble.members)
            if true_m.isfinite().any() and ensemble.statistics is not None:
                signs = (self._signs(stacked[:count]) for count in range(1, len(stacked) + 1))
                yield [HeldOut.of(one, true_m, ensemble.statistics) for one in signs]

    def calibrate(self, scale: UncertaintyScale) -> None:
        """State from now on, and in folders saved, the uncertainty of this scale."""
        self.uncertainty_scale = scale
        self.register_to_config(uncertainty_scale=scale.model_dump())

    def _signs(self, members: torch.Tensor) -> Signs:
        return Signs.of(members, median_and_deviation(members)[0], self.log_depth)

    def _calibrated(self, members: torch.Tensor, statistics: torch.Tensor | None) -> torch.Tensor:
        """Standard error of ln depth [H, W] that the model states of members [E, H, W], log depth."""
        assert self.uncertainty_scale is not None and statistics is not None
        return self.uncertainty_scale.standard_error(
            self._signs(members), self.uncertainty_scale.unlikeness(statistics)
        )

    @torch.no_grad()
    def encode_decode_depth(
        self, planar_depth_m: np.ndarray, intrinsics: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """Planar depth float32 [B, H, W] in metres through the VAE and back, without the U-Net; same shape and unit.

        intrinsics: [3, 3] of each; None: not known. What the VAE alone changes is the floor under the error of any
        prediction.
        """
        grid = self.grid(*planar_depth_m.shape[1:])
        cameras = [None] * len(planar_depth_m) if intrinsics is None else intrinsics
        ranges = [self.log_depth_of(self.relative_focal(grid, camera)) for camera in cameras]
        pairs = zip(ranges, planar_depth_m, strict=True)
        seen = np.stack([grid.sample(log_depth.normalize(depth_m)) for log_depth, depth_m in pairs])
        latent = encode_log_depth(self.vae, torch.from_numpy(seen).to(self.device), self.encoding)
        decoded = decode_log_depth(self.vae, latent, self.encoding)
        maps = zip(ranges, grid.to_image(decoded), strict=True)
        return torch.stack([log_depth.denormalize(d) for log_depth, d in maps]).cpu().numpy()


def load_pipeline(
    folder: Path, *, dtype: str = "float32", compile: bool = False, digest: str | None = None
) -> MetricGoldPipeline:
    """Read a checkpoint folder, onto the GPU if there is one.

    dtype    of U-Net and VAE: float32, bfloat16 or float16; the scheduler's arithmetic and log depth stay float32
    compile  the U-Net, see compile_unet
    digest   digest_model of what is meant, by which results will be known

    Raises ValueError naming a folder that is not a checkpoint or that is another than the one meant, for another dtype,
    and where torch cannot compile.
    """
    from diffusers.utils.logging import disable_progress_bar

    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: model_index.json is missing; run `metricgold train`")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    disable_progress_bar()  # of reading four small parts
    dtypes = {"unet": getattr(torch, dtype), "vae": getattr(torch, dtype), "default": torch.float32}
    pipe = MetricGoldPipeline.from_pretrained(folder, dtype=dtypes)
    if (device := default_device()) != "cpu":  # diffusers warns of half precision moved to a CPU
        pipe.to(device)
    if digest is not None and digest_model(folder) != digest:  # after it: a model is replaced at any moment
        raise ValueError(f"{folder} was replaced while it was read; run it again")
    if compile:
        pipe.compile_unet()
    return pipe


def _check_present(folder: Path, given: Container[str]) -> None:
    """Raise ValueError for a local folder's index that names other parts than PARTS, or one that the folder lacks.

    given  parts that the folder need not have
    """
    index = folder / "model_index.json"
    stated = read_json(index) if index.is_file() else {"_class_name": MetricGoldPipeline.__name__}
    if (kind := stated.get("_class_name")) != MetricGoldPipeline.__name__:
        raise ValueError(f"{index}: _class_name is {kind!r:.80}, expected {MetricGoldPipeline.__name__}")
    for name, kind in stated.items():
        is_part = isinstance(kind, list) and all(isinstance(word, str) for word in kind)  # its library and class
        if is_part and kind != PARTS.get(name):
            raise ValueError(f"{index}: {name} is {kind!r:.80}, expected {PARTS.get(name, 'no such part')}")
        if is_part and name not in given and not (folder / name).is_dir():
            raise ValueError(f"{name}/ is missing")


def _check_complete(folder: Path, pipe: MetricGoldPipeline) -> None:
    """Raise ValueError where a local folder's files of weights lack some."""
    for name, part in pipe.components.items():
        paths = list((folder / name).glob("*.safetensors"))
        if isinstance(part, torch.nn.Module) and paths:
            known: set[str] = set()
            for path in paths:
                with safe_open(path, "pt") as file:
                    known |= set(file.keys())
            if missing := sorted(set(part.state_dict()) - known):
                raise ValueError(f"{folder / name} lacks {len(missing)} of its weights, such as {missing[0]}")
