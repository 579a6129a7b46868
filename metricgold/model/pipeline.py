"""The model: image latent and noisy depth latent into the U-Net, depth in metres out.

MetricGoldPipeline is a diffusers pipeline: `save_pretrained` and `from_pretrained` write and read the hub's
folder layout, with near and far in model_index.json. Inference follows MetricGold (arXiv 2411.10886) and
Marigold (arXiv 2312.02145): DDIM from pure noise, several runs merged; the merge is a median in log space,
which keeps metres metres. A model trained for one step (metricgold.train.objective) takes that one, from zeros.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import pi, sqrt
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image
from safetensors import safe_open

from metricgold.images import FOV_DEG, as_photo, pinhole_or_assumed, read_photo
from metricgold.log_depth import LogDepth
from metricgold.model.folded_upsampling import fold_upsampling
from metricgold.model.prompt_attention import compute_prompt_once, prompt_computed_once
from metricgold.model.vae import decode_log_depth, encode_log_depth, encode_rgb, rgb_to_tensor, vae_factor

SATURATED = 1e-3  # log depth so close to -1 or 1 says "at least as near" or "at least as far"
VAE_PIXELS = 1_800_000  # at once: four images at full size keep a GPU busy, more of them only cost memory
SPACINGS = ("trailing", "leading", "linspace")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_GRAPHS = 64  # of a compiled U-Net, one for each processing size; beyond, sizes run uncompiled
MAX_FROZEN_BYTES = 4_000_000_000  # of weights in such graphs on a CPU, each of which has its own
MAX_PIXELS = 100_000_000  # of a photograph given as a path

# For normal members: sigma is 1.4826 x MAD, and a median of n of them has sqrt(pi/2) = 1.2533 times the standard error
# of their mean, sigma / sqrt(n).
_SIGMA_OF_MAD = 1.4826
_MEDIAN_OF_MEAN = sqrt(pi / 2)
_LOST_TO_FEW = 1.2  # members; see standard_error


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Depth of one image.

    planar_depth_m  float32 [H, W], metres along the optical axis, at the input's size
    uncertainty     float32 [H, W], relative: median absolute deviation of ln depth over the ensemble; NaN where
                    nothing is known of it, with one member or merged latents
    valid_mask      bool [H, W], False where depth saturates at near_m or far_m
    intrinsics      float64 [3, 3] in pixels of the image
    focal_from      argument, exif, or fov_deg where it had to be assumed
    num_members     runs that were merged
    """

    planar_depth_m: np.ndarray
    uncertainty: np.ndarray
    valid_mask: np.ndarray
    intrinsics: np.ndarray
    focal_from: Literal["argument", "exif", "fov_deg"]
    num_members: int = 1


class EmptyPrompt(ModelMixin, ConfigMixin):
    """The text encoder's answer to "", computed once: all that is left of the text encoder."""

    __module__ = "metricgold.model"  # what every saved model_index.json names: the face, wherever this file moves

    @register_to_config
    def __init__(self, num_tokens: int = 77, width: int = 1024) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(num_tokens, width), requires_grad=False)


class MetricGoldPipeline(DiffusionPipeline):
    """One image to depth in metres.

    vae                                  images are only encoded and depth only decoded, so that its decoder may be
                                         one fine-tuned on log depth (metricgold.train.depth_vae)
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
        self.is_compiled = self._is_frozen = False

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> "MetricGoldPipeline":
        """As diffusers has it, but of safetensors only, and of no folder that is not whole.

        Raises ValueError naming a folder whose files are missing, broken or lack weights, which diffusers would draw
        at random, and a range of depth that is none.
        """
        try:
            pipe = super().from_pretrained(folder, **options | {"use_safetensors": True})
            assert pipe.log_depth
            _check_whole(Path(folder), pipe)
        except (TypeError, KeyError, AttributeError, ValueError, OSError) as error:  # diffusers' ways to say so
            raise ValueError(f"{folder} is no whole checkpoint: {error}") from error
        return pipe

    @property
    def log_depth(self) -> LogDepth:
        return LogDepth(self.config.near_m, self.config.far_m)

    @property
    def max_steps(self) -> int:
        """The largest num_inference_steps: the training's own timesteps."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def is_one_step(self) -> bool:
        return self.config.objective == "one-step"

    def compile_unet(self, backend: str = "inductor") -> None:
        """Have torch compile the U-Net, at its first call for each processing size; saved folders know nothing of it.

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
        self._is_frozen = True
        compute_prompt_once(self.unet, self._prompt())  # for good: its keys and values are constants too
        fold_upsampling(self.unet)
        options = {
            # Of a small U-Net's pass 6 % is Python between 300 kernels, 3 % looking at modules that must not change,
            # 2 % Welford's way to the variance of a group, which sums of up to some thousand numbers do not need.
            "cpp_wrapper": True,
            "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            "cpp.use_two_step_variance_threshold": 1 << 20,
        }
        limit = max(1, min(MAX_GRAPHS, MAX_FROZEN_BYTES // self.unet.get_memory_footprint()))
        # Isolated: unlooked at, the modules of two pipelines would be taken for each other.
        self.unet.compile(dynamic=False, recompile_limit=limit, isolate_recompiles=True, options=options)

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
        ensemble_size: int | Literal["auto"] | None = None,
        seed: int | Sequence[int] = 0,
        timestep_spacing: str = "trailing",
        batch_size: int = 16,
        *,
        intrinsics: Any = None,
        fov_deg: float = FOV_DEG,
        merge: str = "depth",
        max_ensemble_size: int = 10,
        uncertainty_target: float = 0.01,
    ) -> Prediction | list[Prediction]:
        """Predict depth for one image, or for a list of them of any sizes.

        image               PIL, uint8 [H, W, 3], path, or tensor [3, H, W] (uint8, or float from 0 to 1); a list of
                            those or a tensor [B, 3, H, W] gives a list
        intrinsics          [3, 3] in pixels of the image, for a list a list; else what a photograph's EXIF says,
        fov_deg             or a camera with so many degrees over the image's longer side
        batch_size          images x members through the U-Net at once
        merge               depth: median of the members' log depth; latent: mean of their latents, decoded once
        max_ensemble_size,  of ensemble_size auto: three members, then two by two, until standard_error of the image
        uncertainty_target  is at most the target

        Member k starts from noise drawn from (seed, k). One seed serves every image, which keeps depth from flickering
        over the frames of a video; a list of seeds has one for each image. An image's members depend on that image and
        its seed alone: a prediction does not depend on what else is in the list. Without num_inference_steps and
        ensemble_size 50 and 10, as in the paper; 1 and 1 of a model trained for one step, which knows no others and
        draws no noise: every member would be the same.
        Raises ValueError for what is no image, for options out of range, and for more than one step of a one-step
        model; OSError for a path that cannot be opened.
        """
        photos = _photos(image, intrinsics, fov_deg)
        num_steps, ensemble_size = self._policy(num_inference_steps, ensemble_size, timestep_spacing)
        asked = _Asked(ensemble_size, max_ensemble_size, uncertainty_target, merge, batch_size)
        seeds = _seeds(seed, len(photos))
        scheduler = self._timesteps(num_steps, timestep_spacing)
        groups = defaultdict(list)
        for index, photo in enumerate(photos):
            groups[self.processing_size(*photo.rgb.shape[:2])].append(index)
        predictions: list[Prediction | None] = [None] * len(photos)
        with prompt_computed_once(self.unet, self._prompt()):
            for size, indices in groups.items():
                rgb = np.stack([_resize_rgb(photos[i].rgb, *size) for i in indices])
                found = self._members(rgb, [seeds[i] for i in indices], asked, scheduler)
                for i, members in zip(indices, found, strict=True):
                    predictions[i] = self._merge(members, photos[i], asked)
        return predictions if _is_many(image) else predictions[0]

    def _policy(self, num_steps: int | None, ensemble_size: Any, timestep_spacing: str) -> tuple[int, Any]:
        """Steps and members, with what this model does by default."""
        if not self.is_one_step:
            return 50 if num_steps is None else num_steps, 10 if ensemble_size is None else ensemble_size
        if {num_steps, ensemble_size} - {None, 1} or timestep_spacing != "trailing":
            raise ValueError(
                "this model was trained for one step: it takes num_inference_steps 1, ensemble_size 1 and "
                f"timestep_spacing trailing, got {num_steps}, {ensemble_size} and {timestep_spacing}"
            )
        return 1, 1

    def _timesteps(self, num_steps: int, timestep_spacing: str) -> DDIMScheduler:
        """A scheduler for one call; the pipeline's own stays as it was saved."""
        most = self.scheduler.config.num_train_timesteps
        if not _is_count(num_steps) or num_steps > most:
            raise ValueError(f"num_inference_steps must be a whole number from 1 to {most}, got {num_steps!r}")
        if timestep_spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing must be one of {', '.join(SPACINGS)}, got {timestep_spacing!r}")
        scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing=timestep_spacing)
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler

    def _members(
        self, rgb: np.ndarray, seeds: list[int], asked: "_Asked", scheduler: DDIMScheduler
    ) -> list[list[torch.Tensor]]:
        """Of each image uint8 [B, H, W, 3] its members: log depth [H, W], or latents where those are merged."""
        rgb_latent = self._encode(rgb)
        noise = {seed: self._noise(rgb_latent.shape[1:], asked.most, seed) for seed in set(seeds)}
        members: list[list[torch.Tensor]] = [[] for _ in rgb]
        for more in asked.rounds():
            pairs = [(b, e) for b, found in enumerate(members) if self._wants_more(found, asked) for e in more]
            for part in _parts(pairs, asked.batch_size):
                # A compiled U-Net has one graph for each processing size: every batch is full.
                filled = part + part[:1] * (asked.batch_size - len(part)) if self.is_compiled else part
                drawn = torch.stack([noise[seeds[b]][e] for b, e in filled])
                latents = self.denoise(rgb_latent[[b for b, _ in filled]], drawn, scheduler)[: len(part)]
                found = self._decode(latents) if asked.merge == "depth" else latents
                for (image, _), member in zip(part, found, strict=True):
                    members[image].append(member)
        return members

    def _wants_more(self, members: list[torch.Tensor], asked: "_Asked") -> bool:
        if not members:
            return True
        return standard_error(torch.stack(members), self.log_depth) > asked.uncertainty_target

    def _encode(self, rgb: np.ndarray) -> torch.Tensor:
        """uint8 [B, H, W, 3] to scaled latents [B, c, h, w]."""
        tensor = rgb_to_tensor(rgb)
        size = max(1, VAE_PIXELS // tensor[0, 0].numel())
        latents = [encode_rgb(self.vae, part.to(self.device)) for part in tensor.split(size)]
        return torch.cat(latents) * self.vae.config.scaling_factor

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, c, h, w] to log depth [B, H, W]."""
        size = max(1, VAE_PIXELS // (latent[0, 0].numel() * vae_factor(self.vae) ** 2))
        parts = (latent / self.vae.config.scaling_factor).split(size)
        log_depth = torch.cat([decode_log_depth(self.vae, part) for part in parts])
        if not torch.isfinite(log_depth).all():
            raise ValueError(f"the model's answer is no number in {self.unet.dtype}; try bfloat16 or float32")
        return log_depth

    def _noise(self, shape: torch.Size, ensemble_size: int, seed: int) -> torch.Tensor:
        if self.is_one_step:
            return torch.zeros((ensemble_size, *shape), device=self.device)
        draws = []
        for member in range(ensemble_size):
            key = int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)
            draws.append(torch.randn(shape, generator=torch.Generator().manual_seed(key)))
        return torch.stack(draws).to(self.device)

    def _prompt(self) -> torch.Tensor:
        return self.empty_prompt.embedding[None].to(self.unet.dtype)  # [1, tokens, width]

    def denoise(self, rgb_latent: torch.Tensor, noise: torch.Tensor, scheduler: DDIMScheduler) -> torch.Tensor:
        """DDIM from noise to depth latents; scaled latents float32 [B, c, h, w] in and out."""
        prompt = self._prompt().expand(len(noise), -1, -1)
        latent, dtype = noise, prompt.dtype  # the U-Net's, which looks at all its weights to say so
        # To the scheduler as numbers: it keeps its tables on the CPU, where a tensor from the GPU is waited for.
        for timestep, number in zip(scheduler.timesteps, scheduler.timesteps.tolist(), strict=True):
            sample = torch.cat([rgb_latent, latent], dim=1).to(dtype)  # [B, 2c, h, w]
            with self._freezing():
                output = self.unet(sample, timestep, encoder_hidden_states=prompt).sample.float()
            stepped = scheduler.step(output, number, latent)
            # The last step's prev_sample is a little off the clean latent, for the first timestep has some noise.
            latent = stepped.pred_original_sample if self.is_one_step else stepped.prev_sample
        return latent

    def _freezing(self) -> AbstractContextManager[None]:
        """Where torch makes graphs it takes weights for constants, if they are."""
        if not self._is_frozen:
            return nullcontext()
        from torch._inductor import config

        return config.patch(freezing=True)

    def _merge(self, members: list[torch.Tensor], photo: "_Photo", asked: "_Asked") -> Prediction:
        """Members of one image, log depth or latents as asked, to one prediction at the photograph's size."""
        if asked.merge == "latent":
            merged = self._decode(torch.stack(members).mean(dim=0, keepdim=True))[0]
        else:
            merged, deviation = median_and_deviation(torch.stack(members))
        if asked.merge == "latent" or len(members) == 1:
            deviation = torch.full_like(merged, torch.nan)  # 0 would claim certainty
        log_depth, deviation = _resize_maps(torch.stack([merged, deviation]), photo.rgb.shape[:2])
        return Prediction(
            planar_depth_m=self.log_depth.denormalize(log_depth).cpu().numpy(),
            uncertainty=(deviation * (self.log_depth.ln_range / 2)).cpu().numpy(),
            valid_mask=(log_depth.abs() < 1 - SATURATED).cpu().numpy(),
            intrinsics=photo.intrinsics,
            focal_from=photo.focal_from,
            num_members=len(members),
        )

    @torch.no_grad()
    def encode_decode_depth(self, planar_depth_m: np.ndarray) -> np.ndarray:
        """Metres [B, H, W] through the VAE and back, without the U-Net: the floor under any prediction."""
        size = planar_depth_m.shape[1:]
        log_depth = torch.from_numpy(self.log_depth.normalize(planar_depth_m)).to(self.device)
        fitted = torch.nn.functional.interpolate(log_depth[None], self.processing_size(*size), mode="nearest-exact")[0]
        decoded = decode_log_depth(self.vae, encode_log_depth(self.vae, fitted))
        return self.log_depth.denormalize(_resize_maps(decoded, size)).cpu().numpy()


def load_pipeline(folder: Path, *, dtype: str = "float32", compile: bool = False) -> MetricGoldPipeline:
    """Read a checkpoint folder onto the GPU if there is one.

    dtype    of U-Net and VAE: float32, bfloat16 or float16; the scheduler's arithmetic and log depth stay float32
    compile  the U-Net, see compile_unet

    Raises ValueError naming a folder that is no checkpoint, and where nothing can be compiled.
    """
    from diffusers.utils.logging import disable_progress_bar

    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: model_index.json is missing; run `metricgold train`")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    disable_progress_bar()  # of reading four small parts: noise in every log
    dtypes = {"unet": DTYPES[dtype], "vae": DTYPES[dtype], "default": torch.float32}
    pipe = MetricGoldPipeline.from_pretrained(folder, dtype=dtypes)
    if torch.cuda.is_available():
        pipe.to("cuda")
    if compile:
        pipe.compile_unet()
    return pipe


def _check_whole(folder: Path, pipe: MetricGoldPipeline) -> None:
    """ValueError where a local folder's files of weights lack some."""
    for name, part in pipe.components.items():
        paths = list((folder / name).glob("*.safetensors"))
        if isinstance(part, torch.nn.Module) and paths:
            known: set[str] = set()
            for path in paths:
                with safe_open(path, "pt") as file:
                    known |= set(file.keys())
            if missing := sorted(set(part.state_dict()) - known):
                raise ValueError(f"{folder / name} lacks {len(missing)} of its weights, such as {missing[0]}")


# Members


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options of a call that say which members are computed, and how they are merged."""

    ensemble_size: int | str
    max_ensemble_size: int
    uncertainty_target: float
    merge: str
    batch_size: int

    def __post_init__(self) -> None:
        if self.merge not in ("depth", "latent"):
            raise ValueError(f"merge must be depth or latent, got {self.merge!r}")
        counts = {"max_ensemble_size": self.max_ensemble_size, "batch_size": self.batch_size}
        if self.ensemble_size == "auto":
            if self.merge != "depth":
                raise ValueError("ensemble_size auto needs merge depth: only decoded members show their uncertainty")
            if not (isinstance(self.uncertainty_target, Real) and self.uncertainty_target > 0):
                raise ValueError(f"uncertainty_target must be positive, got {self.uncertainty_target!r}")
        else:
            counts["ensemble_size"] = self.ensemble_size
        for name, value in counts.items():
            if not _is_count(value):
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")

    @property
    def most(self) -> int:
        return self.max_ensemble_size if self.ensemble_size == "auto" else self.ensemble_size

    def rounds(self) -> Iterator[range]:
        """Members in the order in which they are added: all at once, or three, then two by two."""
        starts = [0, *range(3, self.most, 2)] if self.ensemble_size == "auto" else [0]
        for start, end in zip(starts, [*starts[1:], self.most], strict=True):
            yield range(start, end)


def _seeds(seed: Any, num_images: int) -> list[int]:
    """One for each image."""
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed] * num_images
    if len(seeds) != num_images or not all(isinstance(one, Integral) and one >= 0 for one in seeds):
        raise ValueError(
            f"seed must be a whole number from 0, or a list of {num_images} of them, one for each image, got {seed!r}"
        )
    return seeds


def median_and_deviation(members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median over members [E, H, W] and median absolute deviation from it, [H, W] each."""
    median = members.quantile(0.5, dim=0)
    return median, (members - median).abs().quantile(0.5, dim=0)


def standard_error(members: torch.Tensor, log_depth: LogDepth) -> float:
    """Standard error of the median over members, log depth [E, H, W], relative (nats): the median over all pixels.

    sqrt(pi/2) x 1.4826 x MAD / sqrt(E) at each pixel is what holds for many normal members. Of few the MAD says too
    little, of three 0.6 of the truth: E / (E - 1.2), found by simulating normal members, mends that to within 7 %.
    """
    count = len(members)
    _, deviation = median_and_deviation(members)
    typical = deviation.median().item() * log_depth.ln_range / 2
    return _MEDIAN_OF_MEAN * _SIGMA_OF_MAD * typical / sqrt(count) * count / (count - _LOST_TO_FEW)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and value >= 1  # also numpy's


def _parts(pairs: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    return (pairs[start : start + size] for start in range(0, len(pairs), size))


# Photographs


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    """uint8 [H, W, 3], float64 [3, 3], and whose camera that is."""

    rgb: np.ndarray
    intrinsics: np.ndarray
    focal_from: str


def _is_many(image: Any) -> bool:
    return isinstance(image, list) or (isinstance(image, torch.Tensor) and image.ndim == 4)


def _photos(image: Any, intrinsics: Any, fov_deg: float) -> list[_Photo]:
    if not (isinstance(fov_deg, Real) and 0 < fov_deg < 180):
        raise ValueError(f"fov_deg must lie between 0 and 180, got {fov_deg!r}")
    images, cameras = (list(image), intrinsics) if _is_many(image) else ([image], [intrinsics])
    if cameras is None:
        cameras = [None] * len(images)
    if not isinstance(cameras, list) or len(cameras) != len(images):
        raise ValueError(f"{len(images)} images need a list of as many intrinsics, got {_told(cameras)}")
    return [_photo(one, camera, fov_deg) for one, camera in zip(images, cameras, strict=True)]


def _told(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list) else type(value).__name__


def _photo(image: Any, intrinsics: Any, fov_deg: float) -> _Photo:
    rgb, focal_px = _pixels(image)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if intrinsics is not None:
        return _Photo(rgb, _camera(intrinsics), "argument")
    return _Photo(rgb, *pinhole_or_assumed(focal_px, fov_deg, *rgb.shape[:2]))


def _pixels(image: Any) -> tuple[np.ndarray, float | None]:
    """Pixels, and the focal length that EXIF names."""
    if isinstance(image, str | Path | Image.Image):
        is_open = isinstance(image, Image.Image)
        photo = as_photo(image) if is_open else read_photo(Path(image), max_pixels=MAX_PIXELS)
        return photo.rgb, photo.focal_px
    return (_from_tensor(image) if isinstance(image, torch.Tensor) else np.asarray(image)), None


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    """[3, H, W], uint8 or float from 0 to 1, to uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"an image tensor must be uint8 or float [3, H, W], got {image.dtype} {list(image.shape)}")
    if image.is_floating_point() and image.numel():
        if not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
            raise ValueError(
                f"a float image must lie between 0 and 1, got {image.min().item():g} to {image.max().item():g}"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).cpu().numpy()


def _camera(intrinsics: Any) -> np.ndarray:
    camera = np.asarray(intrinsics, np.float64)
    if camera.shape != (3, 3) or not np.isfinite(camera).all() or np.linalg.det(camera) == 0:
        raise ValueError(f"intrinsics must be a finite [3, 3] that can be inverted, got {camera.tolist()}")
    return camera


def _resize_rgb(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))


def _resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of [N, H, W]; log depth and its deviation, never metres."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False, antialias=False)[0]
