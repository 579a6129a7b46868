"""An optimiser step from the latent cache, as metricgold.train.run takes it, against the same work the usual way.

The usual way is that of the scripts which this recipe comes from: float32, image and depth through the VAE in every
step, micro-batches of two. Its frames lie decoded in memory, so what decoding costs is left out, which understates the
saving. U-Net, batch, noise, loss, clipping and AdamW are the same on both sides; our AdamW is fused.

On a GPU all has Stable Diffusion v2's size, with random weights; our side is held to the memory of the card that the
paper was trained on, the usual way may use all there is. On a CPU widths, image and batch are smaller, as small says:
what the VAE does per multiplication of the U-Net is about what it is at full size, and both ratios are printed.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from metricgold.model.parts import SCHEDULE
from metricgold.model.pipeline import EmptyPrompt
from metricgold.model.vae import encode_log_depth, encode_rgb
from metricgold.params.sections import Train, load_params
from metricgold.shards import LatentCache, LatentFrame, shard_path, write_index, write_record, write_shard
from metricgold.train.cost import NUM_PROMPT_TOKENS, flop_counter, flops_per_sample
from metricgold.train.noise import multi_resolution_noise
from metricgold.train.plan import ASSUMED_MFU, GPUS, SD2_UNET, SD2_VAE, Gpu
from metricgold.train.resumable import read_ahead
from metricgold.train.run import TrainingRun

from . import CannotRun, least_seconds

FACTOR = 8  # pixels per latent
USUAL_MICRO_BATCH = 2
NUM_SHARDS, FRAMES_PER_SHARD = 100, 4
PROFILE = Path("profiles/rtx3090.yaml")
MEMORY_BYTES = 24_000_000_000  # the process on a GPU
ROUNDS = 3


class Work(NamedTuple):
    """What both sides do in a step."""

    shrink: int  # Stable Diffusion v2's widths over those here
    height: int
    width: int
    train: Train  # our params; the usual side takes the batch size
    device: str


class Side(NamedTuple):
    """One way to take a step: seconds, their share spent waiting for data, peak bytes on the card."""

    seconds: float
    data_wait: float
    peak_bytes: int


def on_gpu(folder: Path) -> dict[str, float]:
    if not torch.cuda.is_available():
        raise CannotRun("the bound is for a GPU; train.cpu_speedup_vs_usual is the same work at a smaller size")
    work, card = _full(), _card(torch.cuda.get_device_name())
    memory_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_BYTES / memory_bytes))
    ours = _alone(lambda: OurStep(work, folder))
    torch.cuda.set_per_process_memory_fraction(1.0)
    usual = _alone(lambda: UsualStep(work))
    _print_table(work, ours, usual, card)
    figures = {
        "train.speedup_vs_usual": usual.seconds / ours.seconds,
        "train.data_wait": ours.data_wait,
        "train.peak_gb": ours.peak_bytes / 1e9,
        "train.samples_per_s": work.train.batch_size / ours.seconds,
        "train.hours": work.train.num_steps * ours.seconds / 3600,
    }
    if card:
        figures["train.mfu"] = _step_flops(work) / ours.seconds / card.bf16_flops
        figures["train.hours_3090"] = figures["train.hours"] * card.bf16_flops / GPUS["rtx3090"].bf16_flops
    return figures


def on_cpu(folder: Path) -> dict[str, float]:
    """Figures without a bound; none where there is a GPU."""
    if torch.cuda.is_available():
        return {}
    work = small()
    contestants = OurStep(work, folder), UsualStep(work)
    seconds = least_seconds(*contestants, rounds=ROUNDS)
    ours, usual = (Side(least, one.data_wait, 0) for least, one in zip(seconds, contestants, strict=True))
    _print_table(work, ours, usual, None)
    return {
        "train.cpu_speedup_vs_usual": usual.seconds / ours.seconds,
        "train.cpu_data_wait": ours.data_wait,
        "train.flops_ratio_vs_usual": 1 + _vae_ratio(_full()),
    }


def _full() -> Work:
    params = load_params(PROFILE)
    return Work(1, params.encode.height, params.encode.width, params.train, "cuda")


def small() -> Work:
    """A CPU's share: what does not fit a GPU's memory fits here, and bf16 only pays with instructions for it."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    changes = {
        "batch_size": 8,
        "micro_batch_size": 8,
        "gradient_checkpointing": False,
        "mixed_precision": "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "no",
    }
    return Work(4, 192, 256, _full().train.model_copy(update=changes), "cpu")


def _card(name: str) -> Gpu | None:
    """The card of the plan that a device's name means: "NVIDIA H100 80GB HBM3" is h100."""
    return next((card for key, card in GPUS.items() if key in name.lower().replace(" ", "")), None)


def _alone(make: Callable[[], Any]) -> Side:
    """One side with the card for itself: both at once would not fit."""
    torch.cuda.reset_peak_memory_stats()
    step = make()
    (seconds,) = least_seconds(step, rounds=ROUNDS)
    side = Side(seconds, step.data_wait, torch.cuda.max_memory_allocated())
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return side


# Sides


class OurStep:
    """metricgold.train.run's own step: a batch that its thread has read from a cache, and its update."""

    def __init__(self, work: Work, folder: Path) -> None:
        caches = {"noise": _write_cache(folder / "latents", work)}
        accelerator, parts = Accelerator(mixed_precision=work.train.mixed_precision), _backbone(work)
        parts["vae"].cpu()  # asked for its scale alone
        config = {"processing_height": work.height, "processing_width": work.width}
        self.run = TrainingRun(work.train, caches, parts, config, folder / "state", accelerator, None)
        self.batches = read_ahead(self.run.read, range(self.run.num_steps), self.run.num_readers)
        self.waits: list[float] = []  # shares of each step

    def __call__(self) -> None:
        started = perf_counter()
        batch = next(self.batches)
        waited = perf_counter()
        self.run.take_step(batch)
        self.waits.append((waited - started) / (perf_counter() - started))

    @property
    def data_wait(self) -> float:
        return float(np.mean(self.waits[1:]))


class UsualStep:
    """The usual loop in plain torch."""

    data_wait = 0.0

    def __init__(self, work: Work) -> None:
        self.work, self.parts = work, _backbone(work)
        self.optimizer = torch.optim.AdamW(self.parts["unet"].train().parameters(), lr=3e-5)
        self.generator = torch.Generator().manual_seed(0)
        self.rgb = torch.rand(work.train.batch_size, 3, work.height, work.width, generator=self.generator) * 2 - 1
        self.log_depth = torch.rand(work.train.batch_size, work.height, work.width, generator=self.generator) * 2 - 1

    def __call__(self) -> None:
        starts = range(0, self.work.train.batch_size, USUAL_MICRO_BATCH)
        for start in starts:
            part = slice(start, start + USUAL_MICRO_BATCH)
            (self._loss(self.rgb[part], self.log_depth[part]) / len(starts)).backward()
        torch.nn.utils.clip_grad_norm_(self.parts["unet"].parameters(), 1.0).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.work.device == "cuda":
            torch.cuda.synchronize()

    def _loss(self, rgb: torch.Tensor, log_depth: torch.Tensor) -> torch.Tensor:
        unet, vae, scheduler, prompt = (self.parts[name] for name in ("unet", "vae", "scheduler", "empty_prompt"))
        device = self.work.device
        with torch.no_grad():
            latents = encode_rgb(vae, rgb.to(device)), encode_log_depth(vae, log_depth.to(device))
            image, depth = (latent * vae.config.scaling_factor for latent in latents)
        timesteps = torch.randint(1000, (len(rgb),), generator=self.generator)
        noise = multi_resolution_noise(depth.shape, 0.9 * timesteps / 1000, self.generator).to(device)
        timesteps = timesteps.to(device)
        noisy = scheduler.add_noise(depth, noise, timesteps)
        context = prompt.embedding.expand(len(rgb), -1, -1)
        output = unet(torch.cat([image, noisy], dim=1), timesteps, encoder_hidden_states=context).sample
        return torch.nn.functional.mse_loss(output, scheduler.get_velocity(depth, noise, timesteps))


def _backbone(work: Work) -> dict[str, Any]:
    """Random weights, made where they are used."""
    unet, vae = _configs(work)
    with torch.device(work.device):
        parts = {
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(vae).eval(),
            "empty_prompt": EmptyPrompt(NUM_PROMPT_TOKENS, unet["cross_attention_dim"]),
        }
    return parts | {"scheduler": DDIMScheduler(**SCHEDULE)}


def _configs(work: Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """U-Net's and VAE's, every width divided by work.shrink; as many heads, fewer groups where 32 do not fit."""

    def narrow(config: dict[str, Any]) -> list[int]:
        return [channels // work.shrink for channels in config["block_out_channels"]]

    groups = 32 if work.shrink == 1 else 16
    unet = SD2_UNET | {"in_channels": 8, "block_out_channels": narrow(SD2_UNET), "norm_num_groups": groups}
    unet["cross_attention_dim"] //= work.shrink
    return unet, SD2_VAE | {"block_out_channels": narrow(SD2_VAE), "norm_num_groups": groups}


def _write_cache(folder: Path, work: Work) -> LatentCache:
    """Scenes of random latents, more of them than are kept open."""
    rng, size = np.random.default_rng(0), (work.height // FACTOR, work.width // FACTOR)
    records = {}
    for scene in (f"scene{number}" for number in range(NUM_SHARDS)):
        frames = [_noise_frame(rng, scene, f"{row:04d}", size) for row in range(FRAMES_PER_SHARD)]
        records[scene] = write_record(
            folder, scene, {"source": None}, {}, [write_shard(shard_path(folder, scene, 0), frames, [], {})]
        )
    write_index(folder, {}, records)
    return LatentCache(folder)


def _noise_frame(rng: np.random.Generator, scene: str, name: str, size: tuple[int, int]) -> LatentFrame:
    rgb, depth = rng.normal(0, 4, (2, 4, *size)).astype(np.float16)
    pixels = np.ones([FACTOR * side for side in size], bool)
    return LatentFrame(rgb, depth, rng.random(size) > 0.1, np.eye(3), scene, name, pixels)


# Arithmetic and the table


def _step_flops(work: Work, *, gradient_checkpointing: bool = False) -> float:
    """Of a step: the U-Net forward and backward; what gradient checkpointing computes again only if asked for."""
    shape = (4, work.height // FACTOR, work.width // FACTOR)
    return work.train.batch_size * flops_per_sample(_configs(work)[0], shape, gradient_checkpointing)


def _vae_ratio(work: Work) -> float:
    """Arithmetic of encoding image and depth over the U-Net's, forward and backward."""
    with FakeTensorMode(), torch.no_grad(), flop_counter() as counter:
        AutoencoderKL.from_config(_configs(work)[1]).encode(torch.zeros(2, 3, work.height, work.width))
    return counter.get_total_flops() * work.train.batch_size / _step_flops(work)


def _print_table(work: Work, ours: Side, usual: Side, card: Gpu | None) -> None:
    print(
        f"\n{work.height} x {work.width}, batch {work.train.batch_size}, U-Net and VAE 1/{work.shrink} as wide as SD2's"
        f"; VAE over U-Net {_vae_ratio(work):.2f} by FLOPs, at full size {_vae_ratio(_full()):.2f}"
    )
    precision = "fp32" if work.train.mixed_precision == "no" else work.train.mixed_precision
    sides = {
        f"from the cache, {precision}, micro-batch {work.train.micro_batch_size}": ours,
        f"usual, fp32, VAE in the loop, micro-batch {USUAL_MICRO_BATCH}": usual,
    }
    print(f"{'':46}{'s/step':>8}{'samples/s':>11}{'GFLOP/s':>9}{'MFU':>7}{'peak GB':>9}{'data wait':>11}")
    for name, side in sides.items():
        rate = _step_flops(work) / side.seconds
        mfu = f"{rate / card.bf16_flops:.1%}" if card else "-"
        peak_gb = f"{side.peak_bytes / 1e9:.1f}" if side.peak_bytes else "-"
        wait = f"{side.data_wait:.2%}" if side.data_wait else "-"
        speed = f"{side.seconds:8.3g}{work.train.batch_size / side.seconds:11.3g}{rate / 1e9:9.0f}"
        print(f"{name:46}{speed}{mfu:>7}{peak_gb:>9}{wait:>11}")
    print(_estimate(), flush=True)


def _estimate() -> str:
    """As `metricgold plan` has it."""
    work, card = _full(), GPUS["rtx3090"]
    flops = _step_flops(work, gradient_checkpointing=work.train.gradient_checkpointing)
    hours = work.train.num_steps * flops / (ASSUMED_MFU * card.bf16_flops) / 3600
    return (
        f"{work.train.num_steps} steps of {work.train.batch_size} at full size on a {card.title}: {hours:.0f} h, an "
        f"estimate from FLOPs at {ASSUMED_MFU:.0%} of its bf16 peak, assumed"
    )
