"""Depth of one image, 10 members, against diffusers' own MarigoldDepthPipeline with the same weights and noise.

Diffusers' merge aligns members by scipy's BFGS, as affine depth needs and metres must not have; it is left out there by
a merge that returns the first member, so that encoding, denoising and decoding are what is timed. Our side is a whole
call, with its median: members batched, the U-Net compiled, what compiling takes apart. "Default" is diffusers' batch
size of 1, "best" the fastest of its 1, 2, 5 and 10. Members must agree to 1e-3 in log depth in float32 before anything
is timed.

On a GPU both have Stable Diffusion v2's size with random weights, bfloat16. On a CPU the stand-in's size, untrained,
bfloat16 where the processor has instructions for it. 50 steps on either.
"""

import copy
import os
from collections.abc import Callable
from math import lcm
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, UNet2DConditionModel
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from metricgold.model.ensemble import EnsembleOptions
from metricgold.model.parts import SCHEDULE, widen_conv_in
from metricgold.model.pipeline import EmptyPrompt, MetricGoldPipeline
from metricgold.model.stand_in import new_unet, new_vae
from metricgold.model.vae import vae_factor
from metricgold.params.sections import StandIn
from metricgold.params.words import PRESETS
from metricgold.train.cost import NUM_PROMPT_TOKENS, flop_counter
from metricgold.train.plan import SD2_UNET, SD2_VAE, Gpu

from . import least_seconds
from .train import _card

MEMBERS = 10
BATCH_SIZES = (1, 2, 5, 10)  # diffusers' own
AGREEMENT = 1e-3  # log depth, in float32
HALF_AGREEMENT = 2e-2  # where both sides round, at different places
MEMORY_BYTES = 24_000_000_000


class Work(NamedTuple):
    """What both sides do."""

    height: int
    width: int
    num_steps: int
    device: str
    dtype: torch.dtype
    rounds: int


def speedup(folder: Path) -> dict[str, float]:
    """Figures on this machine's GPU, or else its CPU."""
    work = _full() if torch.cuda.is_available() else _small()
    torch.backends.cudnn.allow_tf32 = False  # the comparison of members is in float32 proper
    pipe, photograph = _pipeline(work), _photograph(work)
    theirs = Diffusers(pipe, work)
    _check_agreement(pipe, theirs, photograph)
    for side in (pipe, theirs.pipe):
        for part in (side.unet, side.vae):
            torch.nn.Module.to(part, work.dtype)  # diffusers' own warns of nothing
    largest = _largest_batch(pipe, photograph) if work.device == "cuda" else None
    with patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}):
        pipe.compile_unet()
        ours = _called(pipe, [photograph], work.num_steps, MEMBERS)
        first = _seconds(ours)
        _check_agreement(pipe, theirs, photograph)
        figures = _race(work, pipe, theirs, photograph)
    figures["predict.compile_s"] = first - _seconds(ours)
    if largest is not None:
        figures |= {"predict.largest_batch_24gb": largest} | _on_gpu(work, pipe, photograph)
    return figures


def _full() -> Work:
    return Work(576, 768, 50, "cuda", torch.bfloat16, rounds=1)


def _small() -> Work:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return Work(64, 96, 50, "cpu", torch.bfloat16 if fast else torch.float32, rounds=3)


# Sides


def _pipeline(work: Work) -> MetricGoldPipeline:
    """Random weights in float32, made where they are used."""
    torch.manual_seed(0)
    with torch.device(work.device):
        if work.device == "cuda":
            unet, vae = UNet2DConditionModel.from_config(SD2_UNET), AutoencoderKL.from_config(SD2_VAE)
        else:
            unet, vae = new_unet(StandIn()), new_vae(StandIn())
        unet = widen_conv_in(unet, vae.config.latent_channels)
        prompt = EmptyPrompt(NUM_PROMPT_TOKENS, unet.config.cross_attention_dim)
    prompt.embedding.data.normal_()
    scheduler = DDIMScheduler(**SCHEDULE)
    pipe = MetricGoldPipeline(unet, vae, scheduler, prompt, 0.5, 80.0, work.height, work.width).to(work.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Diffusers:
    """MarigoldDepthPipeline with our weights and noise, its merge left out."""

    def __init__(self, pipe: MetricGoldPipeline, work: Work) -> None:
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        # A copy: our U-Net will be compiled.
        parts = {"unet": copy.deepcopy(pipe.unet), "vae": copy.deepcopy(pipe.vae), "scheduler": scheduler}
        nothing = {"text_encoder": None, "tokenizer": None, "prediction_type": "depth"}
        self.pipe = MarigoldDepthPipeline(**parts, **nothing).to(work.device)
        self.pipe.empty_text_embedding = pipe.empty_prompt.embedding[None]
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.ensemble_depth = self._keep
        factor = vae_factor(pipe.vae)
        shape = (pipe.vae.config.latent_channels, work.height // factor, work.width // factor)
        self.noise = pipe.draw_noise(torch.Size(shape), MEMBERS, seed=0)
        self.members: torch.Tensor | None = None

    def _keep(self, members: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        self.members = 2 * members[:, 0] - 1  # [E, H, W], log depth
        return members[:1], None

    def __call__(self, photographs: list[np.ndarray], num_steps: int, num_members: int, batch_size: int) -> None:
        noise = self.noise[:num_members].repeat(len(photographs), 1, 1, 1).to(self.pipe.dtype)
        options = {"num_inference_steps": num_steps, "ensemble_size": num_members, "batch_size": batch_size}
        images = [Image.fromarray(rgb) for rgb in photographs]
        self.pipe(images, latents=noise, processing_resolution=0, **options)


def _called(pipe: MetricGoldPipeline, photographs: list[np.ndarray], num_steps: int, num_members: int) -> Callable:
    return lambda: pipe(photographs, num_steps, num_members, batch_size=MEMBERS)


def _check_agreement(pipe: MetricGoldPipeline, theirs: Diffusers, photograph: np.ndarray) -> None:
    """RuntimeError unless members, before they are merged, are the same: everywhere, in half precision on average."""
    num_steps, half = 3, pipe.unet.dtype != torch.float32
    theirs([photograph], num_steps, MEMBERS, batch_size=1)
    off = (torch.stack(_members(pipe, photograph, num_steps, MEMBERS)) - theirs.members).abs()
    found, limit = (off.mean().item(), HALF_AGREEMENT) if half else (off.max().item(), AGREEMENT)
    if not found <= limit:
        raise RuntimeError(f"members differ from diffusers' by {found:g} in log depth, more than {limit:g}")
    how = f"{pipe.unet.dtype}{', compiled' if pipe.is_compiled else ''}{', mean' if half else ', most'}"
    print(f"difference of members from diffusers' in log depth, {how}: {found:.1e}", flush=True)


@torch.no_grad()
def _members(pipe: MetricGoldPipeline, photograph: np.ndarray, num_steps: int, count: int) -> list[torch.Tensor]:
    options = EnsembleOptions(count, batch_size=count)
    return pipe.run_members(photograph[None], [0], options, pipe.new_scheduler(num_steps))[0].members


def _photograph(work: Work) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (work.height, work.width, 3), dtype=np.uint8)


def _seconds(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


# Figures


def _race(work: Work, pipe: MetricGoldPipeline, theirs: Diffusers, photograph: np.ndarray) -> dict[str, float]:
    """One image x 10 members, then ten images x 1 member of 4 steps, which fill our batch as well."""
    contestants = [
        lambda size=size: theirs([photograph], work.num_steps, MEMBERS, batch_size=size) for size in BATCH_SIZES
    ]
    *others, ours = least_seconds(
        *contestants, _called(pipe, [photograph], work.num_steps, MEMBERS), rounds=work.rounds
    )
    ten = [photograph] * MEMBERS
    one_by_one, together = least_seconds(
        lambda: theirs(ten, 4, 1, batch_size=1), _called(pipe, ten, 4, 1), rounds=work.rounds
    )
    print(f"{work.num_steps} steps x {MEMBERS} members at {work.height} x {work.width}, {work.dtype}, {work.device}")
    for size, seconds in zip(BATCH_SIZES, others, strict=True):
        print(f"  diffusers, batches of {size:<4}{seconds:10.3g} s")
    print(f"  ours, compiled            {ours:10.3g} s", flush=True)
    return {
        "predict.speedup_vs_diffusers_default": others[0] / ours,
        "predict.speedup_vs_diffusers_best": min(others) / ours,
        "predict.speedup_4x1": one_by_one / together,
        "predict.image_s": ours,
    }


def _on_gpu(work: Work, pipe: MetricGoldPipeline, photograph: np.ndarray) -> dict[str, float]:
    """Milliseconds an image of every preset, in batches that its members fill; peak memory; share of the bf16 limit."""
    torch.cuda.reset_peak_memory_stats()
    card, figures = _card(torch.cuda.get_device_name()), {}
    for name, preset in PRESETS.items():
        steps, members = preset["num_inference_steps"], preset["ensemble_size"]
        images = [photograph] * (lcm(MEMBERS, members) // members)
        (seconds,) = least_seconds(_called(pipe, images, steps, members), rounds=work.rounds)
        figures[f"predict.ms_{name}"] = 1e3 * seconds / len(images)
        if name == "paper" and card:
            figures["predict.mfu"] = _share_of_limit(pipe, work, steps * members * len(images) / seconds, card)
    return figures | {"predict.peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def _share_of_limit(pipe: MetricGoldPipeline, work: Work, passes_per_s: float, card: Gpu) -> float:
    return passes_per_s * _unet_flops(pipe, work) / card.bf16_flops


def _unet_flops(pipe: MetricGoldPipeline, work: Work) -> int:
    """Of one pass of one member."""
    config, factor = pipe.unet.config, vae_factor(pipe.vae)
    with FakeTensorMode(), torch.no_grad(), flop_counter() as counter:
        sample = torch.zeros(1, config.in_channels, work.height // factor, work.width // factor)
        prompt = torch.zeros(1, NUM_PROMPT_TOKENS, config.cross_attention_dim)
        UNet2DConditionModel.from_config(config)(sample, torch.zeros(1), encoder_hidden_states=prompt)
    return counter.get_total_flops()


def _largest_batch(pipe: MetricGoldPipeline, photograph: np.ndarray) -> int:
    """Members at once, uncompiled, within the memory of a 24 GB card; both sides' weights are in it."""
    total, fits = torch.cuda.get_device_properties(0).total_memory, 0
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_BYTES / total))
    try:
        for size in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            _members(pipe, photograph, 1, size)
            fits = size
    except torch.cuda.OutOfMemoryError:
        pass
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
    return fits
