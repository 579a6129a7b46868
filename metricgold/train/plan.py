"""What a training run will cost, before anything starts: parameters, arithmetic, memory, hours, disk.

The U-Net runs forward and backward once on tensors without bytes (torch's FakeTensorMode), so that its operations and
what autograd keeps of them are counted, not guessed, in seconds and without weights, network or GPU. Assumed is only
what no count can know: how much of a card's peak is reached (MFU), and the memory beside the tensors (the margin).

Counted on the CPU's operators, made to cast as autocast does on a GPU: weights in bf16, normalisation in fp32.
Attention is fused, as scaled_dot_product_attention is on every card named here.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from metricgold.model import new_unet, new_vae, vae_factor
from metricgold.params import Backbone, Encode, Params, Train
from metricgold.storage import read_json

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
NUM_PROMPT_TOKENS = 2  # of the empty prompt: start and end

# The publishers' counts of frames; a cache that is there says it better.
NUM_FRAMES = {"hypersim": 74_619, "vkitti2": 42_520, "tartanair": 306_637}

ASSUMED_MFU = 0.40
# Beside the tensors: CUDA context and libraries; and of the activations, gradients on their way back, workspaces and
# what the allocator cannot use. On paper, not measured: a run within it of a card's memory may still fail.
CONTEXT_BYTES = GIB
ACTIVATION_MARGIN = 0.15


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet: memory, and dense peak with fp32 accumulation."""

    title: str
    memory_bytes: int
    bf16_flops: float
    fp32_flops: float


CARDS = {
    "rtx3090": Card("GeForce RTX 3090", 24 * GIB, 71.0e12, 35.6e12),
    "rtx4090": Card("GeForce RTX 4090", 24 * GIB, 165.2e12, 82.6e12),
    "a100": Card("A100 SXM 80 GB", 80 * GIB, 312.0e12, 19.5e12),
    "h100": Card("H100 SXM 80 GB", 80 * GIB, 989.4e12, 66.9e12),
}


@dataclass(frozen=True, slots=True)
class DecoderCost:
    """What decoding adds: a frozen VAE for the error of decoded depth or for validation, and for that error what its
    decoder keeps and computes for each sample."""

    weight_bytes: int = 0
    saved_bytes: int = 0
    flops: int = 0


def plan_training(
    params: Params, backbone: Path, latents: Path, *, card: str | None = None, mfu: float = ASSUMED_MFU
) -> dict:
    """Count what `metricgold train` with these params needs, and what each card makes of it.

    backbone: where models/backbone is or will be; latents: data/latents. With `card`, `fits` says whether the run
    fits it, and `advice` names the fewest params that would make it fit (None: nothing does).
    Raises ValueError for an unknown card and for sizes that the VAE cannot halve.
    """
    if card is not None and card not in CARDS:
        raise ValueError(f"no card {card!r}; known: {', '.join(CARDS)}")
    train = params.train
    unet, vae = _configs(params.backbone, Path(backbone))
    shape = _latent_shape(params.encode, vae)
    counts = _parameter_sizes(unet)
    decoder = decoder_cost(train, vae)
    memory = memory_by_part(train, unet, shape, decoder)
    flops = train.batch_size * (flops_per_sample(unet, shape, train.gradient_checkpointing) + decoder.flops)
    num_vae = sum(p.numel() for p in _on_meta(AutoencoderKL, vae).parameters())
    answer: dict[str, Any] = {
        "parameters": {"unet": sum(counts), "vae": num_vae},
        "latents": list(shape),
        "steps": train.num_steps,
        "batch": f"{train.batch_size} samples, {train.micro_batch_size} at once",
        "flops_per_step": flops,
        "memory_bytes": memory,
        "disk_bytes": _disk(params, latents, sum(counts), num_vae, _optimizer_bytes(train, counts), shape),
        "disk_free_bytes": shutil.disk_usage(_existing(latents)).free,
        "assumed_mfu": mfu,
        "cards": {name: _on_card(one, train, flops, memory["total"], mfu) for name, one in CARDS.items()},
    }
    if card is not None:
        fits = answer["cards"][card]["fits"]
        advice = None if fits else advise(train, unet, shape, decoder, CARDS[card].memory_bytes)
        answer |= {"card": card, "fits": fits, "advice": advice}
    return answer


def refusal(answer: dict[str, Any]) -> str | None:
    """Why a run must not start on the named card and what to change; None when it may."""
    if answer.get("fits", True):
        return None
    card, need = CARDS[answer["card"]], answer["memory_bytes"]["total"]
    head = f"{card.title} has {_gb(card.memory_bytes)}, this run needs about {_gb(need)}"
    if answer["advice"] is None:
        return f"{head}; no setting of train makes it fit: take a smaller encode.height x encode.width or a larger card"
    changes = ", ".join(f"train.{key}: {json.dumps(value)}" for key, value in answer["advice"].items())
    return f"{head}; it fits with {changes}"


# ---------------------------------------------------------------------------------------------------------
# Models


def _configs(params: Backbone, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of U-Net and VAE: of the backbone that is there, else of the source, else Stable Diffusion v2's."""
    if params.source == "stand-in":
        with torch.device("meta"):
            unet, vae = dict(new_unet(params.stand_in).config), dict(new_vae(params.stand_in).config)
    else:
        # Whichever of source and mirrors it came from.
        made = (folder / "backbone.json").is_file() and read_json(folder / "backbone.json")["source"] != "stand-in"
        source = folder if made else Path(params.source)
        unet, vae = (
            read_json(source / part / "config.json") if (source / part / "config.json").is_file() else published
            for part, published in (("unet", SD2_UNET), ("vae", SD2_VAE))
        )
    return unet | {"in_channels": 2 * vae["latent_channels"]}, vae


def _on_meta(kind: type, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return kind.from_config(config)


def _latent_shape(encode: Encode, vae: dict[str, Any]) -> tuple[int, int, int]:
    """Latents [c, h, w] of an encoded image."""
    factor = vae_factor(_on_meta(AutoencoderKL, vae))
    for side in ("height", "width"):
        if (pixels := getattr(encode, side)) % factor:
            raise ValueError(f"encode.{side} {pixels} is no multiple of {factor}, which the VAE needs")
    return vae["latent_channels"], encode.height // factor, encode.width // factor


def _parameter_sizes(unet: dict[str, Any]) -> list[int]:
    return _count_parameters(json.dumps(unet, sort_keys=True))


@lru_cache
def _count_parameters(unet: str) -> list[int]:
    return [p.numel() for p in _on_meta(UNet2DConditionModel, json.loads(unet)).parameters()]


# ---------------------------------------------------------------------------------------------------------
# Counting


def flops_per_sample(unet: dict[str, Any], shape: tuple[int, int, int], gradient_checkpointing: bool) -> int:
    """Floating-point operations of matrix products and convolutions, forward and backward, of one sample.

    What gradient checkpointing computes again is in it.
    """
    return _count_flops(json.dumps(unet, sort_keys=True), shape, gradient_checkpointing)


@lru_cache
def _count_flops(unet: str, shape: tuple[int, int, int], gradient_checkpointing: bool) -> int:
    with FakeTensorMode():
        model = _training_unet(json.loads(unet), gradient_checkpointing)
        with flop_counter() as counter:
            _forward(model, shape).sum().backward()
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention by itself."""
    aten = torch.ops.aten
    forward = lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)  # noqa: E731
    backward = lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)  # noqa: E731
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )


def activation_bytes(unet: dict[str, Any], shape: tuple[int, int, int], *, half: bool, checkpointing: bool) -> int:
    """What one sample leaves in memory on its way forward; with checkpointing, and the largest block once more.

    half: bf16 or fp16 autocast.
    """
    text = json.dumps(unet, sort_keys=True)
    saved, block = _count_saved(text, shape, half, False)
    return _count_saved(text, shape, half, True)[0] + block if checkpointing else saved


@lru_cache
def _count_saved(unet: str, shape: tuple[int, int, int], half: bool, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd saves, weights left out: of all, and of the block that saves most."""
    with FakeTensorMode():
        model = _training_unet(json.loads(unet), checkpointing)
        if half:
            _cast_as_autocast(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return saved_bytes(model, lambda: _forward(model, shape))


def saved_bytes(model: torch.nn.Module, forward: Any) -> tuple[int, int]:
    """Bytes of the storages that autograd keeps of forward(), parameters left out: of all, and of the block that
    keeps most among those that diffusers checkpoints."""
    storages = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: list[torch.Tensor] = []  # alive, so that no storage's address comes up twice
    sizes: list[int] = [0]  # all so far; at a block's end its own is the difference
    blocks: list[int] = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages.add(storage._cdata)
            kept.append(tensor)
            sizes[0] += storage.nbytes()
        return tensor

    handles, begins = [], []
    for block in filter(_is_checkpointed, model.modules()):
        handles.append(block.register_forward_pre_hook(lambda *_: begins.append(sizes[0])))
        handles.append(block.register_forward_hook(lambda *_: blocks.append(sizes[0] - begins.pop())))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for handle in handles:
        handle.remove()
    return sizes[0], max(blocks)


def decoder_cost(train: Train, vae: dict[str, Any]) -> DecoderCost:
    """Decoding a crop of the answer with gradients, and of the truth without; float32.

    What validation decodes, without gradients and few images at once, fits where a step's activations were.
    """
    if not train.decoded_loss_weight:
        size = sum(p.numel() for p in _on_meta(AutoencoderKL, vae).parameters()) if train.validation else 0
        return DecoderCost(weight_bytes=4 * size)
    with FakeTensorMode():
        model = AutoencoderKL.from_config(vae).requires_grad_(False)
        latent = torch.zeros(1, vae["latent_channels"], train.decoded_crop, train.decoded_crop, requires_grad=True)
        saved, _ = saved_bytes(model, lambda: model.decode(latent))
        with flop_counter() as counter:
            model.decode(latent).sample.sum().backward()
            model.decode(latent.detach())
    return DecoderCost(4 * sum(p.numel() for p in model.parameters()), saved, counter.get_total_flops())


def _is_checkpointed(module: torch.nn.Module) -> bool:
    return type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock")


def _training_unet(config: dict[str, Any], gradient_checkpointing: bool) -> UNet2DConditionModel:
    model = UNet2DConditionModel.from_config(config).train()
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _forward(model: UNet2DConditionModel, shape: tuple[int, int, int]) -> torch.Tensor:
    channels, height, width = shape
    sample = torch.zeros(1, 2 * channels, height, width)
    prompt = torch.zeros(1, NUM_PROMPT_TOKENS, model.config.cross_attention_dim)
    timesteps = torch.zeros(1, dtype=torch.long)
    return model(sample, timesteps, encoder_hidden_states=prompt).sample


def _cast_as_autocast(model: torch.nn.Module) -> None:
    """Weights in bf16, as autocast's copies are; normalisation in fp32, as on a GPU but not on a CPU."""
    for module in model.modules():
        if _is_norm(module):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
        else:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.detach().bfloat16()))


def _is_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)


# ---------------------------------------------------------------------------------------------------------
# Memory


def memory_by_part(
    train: Train, unet: dict[str, Any], shape: tuple[int, int, int], decoder: DecoderCost
) -> dict[str, int]:
    """Bytes on the card at the peak of a step, by part, and their total."""
    sizes = _parameter_sizes(unet)
    half = train.mixed_precision != "no"
    sample = activation_bytes(unet, shape, half=half, checkpointing=train.gradient_checkpointing)
    activations = train.micro_batch_size * (sample + decoder.saved_bytes)
    parts = {
        "weights": 4 * sum(sizes),
        "weights in half": 2 * sum(sizes) if half else 0,  # autocast's copies, held until the way back is done
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
    """The fewest changes of train that make it fit, found by trying; of as many, the largest micro-batch.

    Other moments or no average only where nothing else helps: they change what is learnt.
    """
    need = lambda changes: memory_by_part(train.model_copy(update=changes), unet, shape, decoder)["total"]  # noqa: E731
    micro = lambda changes: changes.get("micro_batch_size", train.micro_batch_size)  # noqa: E731
    fitting = [changes for changes in _changes(train) if need(changes) <= memory_bytes]
    learnt = lambda changes: len(changes.keys() & {"optimizer", "ema_decay"})  # noqa: E731
    return min(fitting, key=lambda changes: (learnt(changes), len(changes), -micro(changes)), default=None)


def _changes(train: Train) -> Iterator[dict[str, Any]]:
    """Every combination of what saves memory."""
    smaller = [size for size in range(1, train.micro_batch_size) if train.batch_size % size == 0]
    options = {
        "mixed_precision": ["bf16"] if train.mixed_precision == "no" else [],
        "gradient_checkpointing": [True] if not train.gradient_checkpointing else [],
        "micro_batch_size": smaller,
        "optimizer": ["adamw8bit"] if train.optimizer == "adamw" else [],
        "ema_decay": [0.0] if train.ema_decay else [],
    }
    for values in product(*([None, *choices] for choices in options.values())):
        yield {key: value for key, value in zip(options, values, strict=True) if value is not None}


# ---------------------------------------------------------------------------------------------------------
# Time and disk


def _on_card(card: Card, train: Train, flops: int, need: int, mfu: float) -> dict[str, Any]:
    peak = card.fp32_flops if train.mixed_precision == "no" else card.bf16_flops
    seconds = flops / (peak * mfu)
    return {
        "title": card.title,
        "memory_bytes": card.memory_bytes,
        "fits": need <= card.memory_bytes,
        "samples_per_s": round(train.batch_size / seconds, 2),
        "hours": round(seconds * train.num_steps / 3600, 2),
    }


def _disk(
    params: Params, latents: Path, num_unet: int, num_vae: int, optimizer: int, shape: tuple[int, int, int]
) -> dict[str, int | None]:
    """Bytes that the run will have written: latent caches (None: how many frames is not known yet) and models."""
    average = 4 * num_unet if params.train.ema_decay else 0
    best = 4 * num_unet if params.train.validation else 0
    pipeline = 4 * (num_unet + num_vae)
    caches = {f"latents of {name}": _cache_bytes(params, latents, name, shape) for name in params.datasets}
    return caches | {
        "models/backbone": pipeline,
        "models/depth-vae": 4 * num_vae,
        # One more than is kept, while it is written.
        "models/metricgold.state": (params.train.keep_checkpoints + 1) * (4 * num_unet + optimizer + average) + best,
        "models/metricgold": pipeline,
    }


def _cache_bytes(params: Params, latents: Path, name: str, shape: tuple[int, int, int]) -> int | None:
    folder = Path(latents) / name
    if (folder / "index.json").is_file():
        return sum(file.stat().st_size for file in folder.iterdir())
    num_frames = NUM_FRAMES.get(name)
    if name.endswith("-synthetic"):
        num_frames = params.synthesize.num_train_scenes * params.synthesize.frames_per_scene
    channels, height, width = shape
    # Two latents in float16, their mask, and the mask in pixels, of whose bits deflate leaves about a tenth.
    mask = params.encode.height * params.encode.width // 80
    frame = 2 * 2 * channels * height * width + height * width + mask
    return None if num_frames is None else num_frames * params.encode.views * frame


def _existing(path: Path) -> Path:
    """The path or its nearest parent that is there."""
    return next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())


# ---------------------------------------------------------------------------------------------------------
# For people


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
    return f"{size / 1e9:.2f} GB"
