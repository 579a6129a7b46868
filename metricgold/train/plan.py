"""What a training run will cost, before anything starts: parameters, arithmetic, memory, hours, disk.

Operations and bytes are counted (metricgold.train.cost). Assumed is only what cannot be counted: the share of a GPU's
peak that is reached (MFU), and the memory beside the tensors (the margin). Memory is that of the largest samples.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from metricgold.images import TrainingSize
from metricgold.model import new_unet, new_vae, vae_factor
from metricgold.params import Backbone, Params, StandIn, Train
from metricgold.storage import read_json
from metricgold.train.cost import (
    DecoderCost,
    activation_bytes,
    count_once,
    decoder_cost,
    flops_per_sample,
    on_meta,
    parameter_sizes,
)

GIB = 1 << 30

# Stable Diffusion v2's published configs, where they differ from the classes' defaults.
SD2_UNET = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD2_VAE = {
    "sample_size": 768,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}

# The publishers' counts of frames and their height and width, for caches that do not exist yet.
NUM_FRAMES = {"hypersim": 74_619, "vkitti2": 42_520, "tartanair": 306_637}
FRAME_SIZES = {"hypersim": (768, 1024), "vkitti2": (375, 1242), "tartanair": (480, 640)}

ASSUMED_MFU = 0.40
# Beside the tensors: CUDA context and libraries; and as a share of the activations, their gradients, workspaces and
# what the allocator cannot use. An estimate, not measured: a run that fits by less than it may still fail.
CONTEXT_BYTES = GIB
ACTIVATION_MARGIN = 0.15


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet: memory, and dense peak with fp32 accumulation."""

    title: str
    memory_bytes: int
    bf16_flops: float
    fp32_flops: float


GPUS = {
    "rtx3090": Gpu("GeForce RTX 3090", 24 * GIB, 71.0e12, 35.6e12),
    "rtx4090": Gpu("GeForce RTX 4090", 24 * GIB, 165.2e12, 82.6e12),
    "a100": Gpu("A100 SXM 80 GB", 80 * GIB, 312.0e12, 19.5e12),
    "h100": Gpu("H100 SXM 80 GB", 80 * GIB, 989.4e12, 66.9e12),
}


def plan_training(
    params: Params, backbone: Path, latents: Path, *, card: str | None = None, mfu: float = ASSUMED_MFU
) -> dict:
    """Count what `metricgold train` with these params needs, and whether and how fast it runs on each known GPU.

    backbone: where models/backbone is or will be; latents: data/latents. With `card`, the name of a GPU in GPUS, `fits`
    says whether the run fits it, and `advice` names the fewest params that would make it fit (None: nothing does).
    Raises ValueError for an unknown card and for sizes that the VAE cannot halve.
    """
    if card is not None and card not in GPUS:
        raise ValueError(f"no card {card!r}; known: {', '.join(GPUS)}")
    train = params.train
    unet, vae = model_configs(params.backbone, Path(backbone))
    latents = Path(latents).absolute()
    shapes = {name: latent_shape(params, vae, latents, name) for name in params.datasets}
    shape = max(shapes.values(), key=prod)  # the most that a step can need
    counts = parameter_sizes(unet)
    decoder = decoder_cost(train, vae)
    memory = memory_by_part(train, unet, shape, decoder)
    flops = step_flops(params, backbone, latents)
    num_vae = vae_size(vae)[0]
    nearest = next(folder for folder in (latents, *latents.parents) if folder.exists())
    answer: dict[str, Any] = {
        "parameters": {"unet": sum(counts), "vae": num_vae},
        "latents": list(shape),
        "steps": train.num_steps,
        "batch": f"{train.batch_size} samples, {train.micro_batch_size} at once",
        "flops_per_step": flops,
        "memory_bytes": memory,
        "disk_bytes": disk_bytes(params, latents, sum(counts), num_vae, _optimizer_bytes(train, counts), shapes),
        "disk_free_bytes": shutil.disk_usage(nearest).free,
        "assumed_mfu": mfu,
        "cards": {name: _on_gpu(gpu, train, flops, memory["total"], mfu) for name, gpu in GPUS.items()},
    }
    if card is not None:
        fits = answer["cards"][card]["fits"]
        advice = None if fits else advise(train, unet, shape, decoder, GPUS[card].memory_bytes)
        answer |= {"card": card, "fits": fits, "advice": advice}
    return answer


def step_flops(params: Params, backbone: Path, latents: Path) -> int:
    """Operations of an optimiser step, as plan_training counts them."""
    unet, vae = model_configs(params.backbone, Path(backbone))
    shapes = {name: latent_shape(params, vae, Path(latents), name) for name in params.datasets}
    return params.train.batch_size * (mean_flops(params.train, unet, shapes) + decoder_cost(params.train, vae).flops)


def refusal(answer: dict[str, Any]) -> str | None:
    """Why a run must not start on the named card and what to change; None when it may."""
    if answer.get("fits", True):
        return None
    gpu, need = GPUS[answer["card"]], answer["memory_bytes"]["total"]
    head = f"{gpu.title} has {_gb(gpu.memory_bytes)}, this run needs about {_gb(need)}"
    if answer["advice"] is None:
        return f"{head}; no setting of train makes it fit: take a smaller encode.height x encode.width or a larger card"
    changes = ", ".join(f"train.{key}: {json.dumps(value)}" for key, value in answer["advice"].items())
    return f"{head}; it fits with {changes}"


def mean_flops(train: Train, unet: dict[str, Any], shapes: dict[str, tuple[int, int, int]]) -> int:
    """flops_per_sample over the data sets, each with its share of samples in train.weights."""
    weights = {name: train.weights.get(name, 1.0) for name in shapes}
    of_each = {name: flops_per_sample(unet, shape, train.gradient_checkpointing) for name, shape in shapes.items()}
    return round(sum(weights[name] * of_each[name] for name in shapes) / sum(weights.values()))


# --- models ---


def model_configs(params: Backbone, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of U-Net and VAE: of the backbone if it exists, else of the source, else Stable Diffusion v2's."""
    if params.source == "stand-in":
        unet, vae = stand_in_configs(params.stand_in.model_dump())
    else:
        # A backbone that exists, whichever of source and mirrors it came from.
        exists = (folder / "backbone.json").is_file() and read_json(folder / "backbone.json")["source"] != "stand-in"
        source = folder if exists else Path(params.source)
        unet, vae = (
            read_json(source / part / "config.json") if (source / part / "config.json").is_file() else published
            for part, published in (("unet", SD2_UNET), ("vae", SD2_VAE))
        )
    return unet | {"in_channels": 2 * vae["latent_channels"]}, vae


@count_once
def stand_in_configs(stand_in: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of the stand-in's U-Net and VAE."""
    params = StandIn.model_validate(stand_in)
    with torch.device("meta"):
        return dict(new_unet(params).config), dict(new_vae(params).config)


@count_once
def vae_size(vae: dict[str, Any]) -> tuple[int, int]:
    """Numbers in a VAE's parameters, and pixels per latent along each side."""
    model = on_meta(AutoencoderKL, vae)
    return sum(p.numel() for p in model.parameters()), vae_factor(model)


def latent_shape(params: Params, vae: dict[str, Any], latents: Path, name: str) -> tuple[int, int, int]:
    """Latents [c, h, w] of a data set's largest frames: measured in its cache if that exists, else of published sizes.

    Frames of a data set of which neither is known are taken to be shaped like encode.height x encode.width.
    """
    encode, factor = params.encode, vae_size(vae)[1]
    for side in ("height", "width"):
        if (pixels := getattr(encode, side)) % factor:
            raise ValueError(f"encode.{side} {pixels} is not a multiple of {factor}, which the VAE needs")
    index = latents / name / "index.json"
    sizes = [tuple(map(int, size.split("x"))) for size in read_json(index).get("sizes", ())] if index.is_file() else []
    if not sizes:
        of_frames = FRAME_SIZES.get(name, (encode.height, encode.width))
        if name.endswith("-synthetic"):
            of_frames = (params.synthesize.height, params.synthesize.width)
        sizes = [TrainingSize(encode.height, encode.width, factor).grid(*of_frames).size]
    height, width = max(sizes, key=prod)
    return vae["latent_channels"], height // factor, width // factor


# --- memory ---


def memory_by_part(
    train: Train, unet: dict[str, Any], shape: tuple[int, int, int], decoder: DecoderCost
) -> dict[str, int]:
    """Bytes on the GPU at the peak of a step, by part, and their total."""
    sizes = parameter_sizes(unet)
    half = train.mixed_precision != "no"
    sample = activation_bytes(unet, shape, half=half, checkpointing=train.gradient_checkpointing)
    activations = train.micro_batch_size * (sample + decoder.saved_bytes)
    parts = {
        "weights": 4 * sum(sizes),
        "weights in half": 2 * sum(sizes) if half else 0,  # autocast's copies, held until the backward pass is done
        "gradients": 4 * sum(sizes),
        "optimizer": _optimizer_bytes(train, sizes),
        "average": 4 * sum(sizes) if train.ema_decay else 0,
        "decoder": decoder.weight_bytes,
        "activations": activations,
        "margin": CONTEXT_BYTES + int(ACTIVATION_MARGIN * activations),
    }
    return parts | {"total": sum(parts.values())}


def _optimizer_bytes(train: Train, sizes: list[int]) -> int:
    """AdamW's two moments in fp32; in 8 bits with a scale a block of 256, tensors below 4096 numbers left in fp32."""
    if train.optimizer == "adamw":
        return 8 * sum(sizes)
    return sum(8 * size if size < 4096 else 2 * (size + 4 * -(-size // 256)) for size in sizes)


def advise(
    train: Train, unet: dict[str, Any], shape: tuple[int, int, int], decoder: DecoderCost, memory_bytes: int
) -> dict[str, Any] | None:
    """The fewest changes of train that make it fit, found by trying all; of equally few, the largest micro-batch.

    Changes of the moments or the average, which change what is learnt, only where nothing else helps.
    """

    def needed(changes: dict[str, Any]) -> int:
        return memory_by_part(train.model_copy(update=changes), unet, shape, decoder)["total"]

    def preference(changes: dict[str, Any]) -> tuple[int, int, int]:
        learnt = len(changes.keys() & {"optimizer", "ema_decay"})
        return learnt, len(changes), -changes.get("micro_batch_size", train.micro_batch_size)

    fitting = [changes for changes in _changes(train) if needed(changes) <= memory_bytes]
    return min(fitting, key=preference, default=None)


def _changes(train: Train) -> Iterator[dict[str, Any]]:
    """Every combination of settings that save memory."""
    smaller = [size for size in range(1, train.micro_batch_size) if train.batch_size % size == 0]
    options: dict[str, list[Any]] = {
        "mixed_precision": ["bf16"] if train.mixed_precision == "no" else [],
        "gradient_checkpointing": [True] if not train.gradient_checkpointing else [],
        "micro_batch_size": smaller,
        "optimizer": ["adamw8bit"] if train.optimizer == "adamw" else [],
        "ema_decay": [0.0] if train.ema_decay else [],
    }
    for values in product(*([None, *choices] for choices in options.values())):
        yield {key: value for key, value in zip(options, values, strict=True) if value is not None}


# --- time and disk ---


def _on_gpu(gpu: Gpu, train: Train, flops: int, need: int, mfu: float) -> dict[str, Any]:
    """Whether a run of so many FLOPs a step and bytes fits a GPU, and how long it takes there."""
    peak = gpu.fp32_flops if train.mixed_precision == "no" else gpu.bf16_flops
    seconds = flops / (peak * mfu)
    return {
        "title": gpu.title,
        "memory_bytes": gpu.memory_bytes,
        "fits": need <= gpu.memory_bytes,
        "samples_per_s": round(train.batch_size / seconds, 2),
        "hours": round(seconds * train.num_steps / 3600, 2),
    }


def disk_bytes(
    params: Params,
    latents: Path,
    num_unet: int,
    num_vae: int,
    optimizer: int,
    shapes: dict[str, tuple[int, int, int]],
) -> dict[str, int | None]:
    """Bytes that the run will have written: latent caches (None where the number of frames is unknown) and models."""
    average = 4 * num_unet if params.train.ema_decay else 0
    best = 4 * num_unet if params.train.validation else 0
    pipeline = 4 * (num_unet + num_vae)
    caches = {f"latents of {name}": cache_bytes(params, latents, name, shapes[name]) for name in params.datasets}
    return caches | {
        "models/backbone": pipeline,
        "models/depth-vae": 4 * num_vae,
        # One more than is kept, while it is written.
        "models/metricgold.state": (params.train.keep_checkpoints + 1) * (4 * num_unet + optimizer + average) + best,
        "models/metricgold": pipeline,
    }


def cache_bytes(params: Params, latents: Path, name: str, shape: tuple[int, int, int]) -> int | None:
    """Bytes of a data set's latent cache: measured if it exists, else estimated; None for an unknown data set."""
    folder = Path(latents) / name
    if (folder / "index.json").is_file():
        return sum(file.stat().st_size for file in folder.iterdir())
    num_frames = num_training_frames(params, name)
    channels, height, width = shape
    # Two latents in float16, their mask, and the mask in pixels, whose bits deflate to about a tenth.
    mask = params.encode.height * params.encode.width // 80
    frame = 2 * 2 * channels * height * width + height * width + mask
    return None if num_frames is None else num_frames * params.encode.views * frame


def num_training_frames(params: Params, name: str) -> int | None:
    """Frames of a data set's split train, by its publisher; None for an unknown data set."""
    if name.endswith("-synthetic"):
        return params.synthesize.num_train_scenes * params.synthesize.frames_per_scene
    return NUM_FRAMES.get(name)


# --- for people ---


def describe(answer: dict[str, Any]) -> str:
    """The plan as a page of text."""
    parameters, disk = answer["parameters"], answer["disk_bytes"]
    lines = [
        f"parameters        U-Net {parameters['unet'] / 1e6:.1f} M, VAE {parameters['vae'] / 1e6:.1f} M",
        f"a step            {answer['batch']}; {answer['flops_per_step'] / 1e12:.4g} TFLOP; {answer['steps']} steps",
        "memory on the card",
        *(f"  {part:<16}{_gb(size):>10}" for part, size in answer["memory_bytes"].items() if size),
        f"  counted but for the margin, an estimate: {ACTIVATION_MARGIN:.0%} of activations and {_gb(CONTEXT_BYTES)}",
        f"time at {answer['assumed_mfu']:.0%} of peak, assumed; half the share is twice the hours",
    ]
    for name, card in answer["cards"].items():
        verdict = "fits" if card["fits"] else "does not fit"
        speed = f"{card['samples_per_s']:.4g} samples/s, {card['hours']:.3g} h"
        lines.append(f"  {name:<16}{_gb(card['memory_bytes']):>10}  {verdict:<14}{speed}")
    lines.append("disk")
    lines += [f"  {what:<32}{'not known' if size is None else _gb(size):>10}" for what, size in disk.items()]
    total = sum(size for size in disk.values() if size)
    lines.append(f"  {'in all':<32}{_gb(total):>10}, {_gb(answer['disk_free_bytes'])} free")
    return "\n".join(lines)


def _gb(size: int) -> str:
    """Bytes as decimal gigabytes."""
    return f"{size / 1e9:.2f} GB"
