"""What a training step costs, counted and not guessed: parameters, operations, and the bytes that autograd keeps.

The U-Net runs forward and backward once on tensors without bytes (torch's FakeTensorMode): that takes seconds and needs
neither weights nor network nor GPU.

Counted on the CPU's operators, made to cast as autocast does on a GPU: weights in bf16, normalisation in fp32.
Attention is fused, as scaled_dot_product_attention is on every GPU of metricgold.train.plan.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from metricgold.params import Train

Result = TypeVar("Result")

NUM_PROMPT_TOKENS = 2  # of the empty prompt: start and end
CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")  # by diffusers, with gradient checkpointing


@dataclass(frozen=True, slots=True)
class DecoderCost:
    """What a frozen VAE adds where depth is decoded, for a loss or for validation."""

    weight_bytes: int = 0
    saved_bytes: int = 0  # that its decoder keeps of each sample for the loss
    flops: int = 0  # of each sample for the loss


def on_meta(kind: type, config: dict[str, Any]) -> Any:
    """A model of this config whose weights have shapes and no bytes."""
    with torch.device("meta"):
        return kind.from_config(config)  # type: ignore[attr-defined]


def count_once(count: Callable[..., Result]) -> Callable[..., Result]:
    """Keep what a function counted for equal arguments; configs are dicts, so its key is their JSON."""
    counted: dict[str, Result] = {}

    @wraps(count)
    def look_up(*args: Any, **options: Any) -> Result:
        key = json.dumps([args, options], sort_keys=True)
        if key not in counted:
            counted[key] = count(*args, **options)
        return counted[key]

    return look_up


@count_once
def parameter_sizes(unet: dict[str, Any]) -> list[int]:
    """Numbers in each of a U-Net's parameters."""
    return [p.numel() for p in on_meta(UNet2DConditionModel, unet).parameters()]


@count_once
def flops_per_sample(unet: dict[str, Any], shape: tuple[int, int, int], gradient_checkpointing: bool) -> int:
    """Floating-point operations of matrix products and convolutions, forward and backward, of one sample.

    shape: of a latent, [c, h, w]. Includes what gradient checkpointing computes again.
    """
    with FakeTensorMode():
        model = _training_unet(unet, gradient_checkpointing)
        with flop_counter() as counter:
            _forward(model, shape).sum().backward()
    return counter.get_total_flops()


@count_once
def forward_flops(unet: dict[str, Any], shape: tuple[int, int, int]) -> int:
    """The same of a forward pass alone: a step of prediction."""
    with FakeTensorMode(), torch.no_grad(), flop_counter() as counter:
        _forward(_training_unet(unet, False), shape)
    return counter.get_total_flops()


@count_once
def vae_flops(vae: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Operations of a VAE's encoder and of its decoder for an image of so many pixels."""
    with FakeTensorMode(), torch.no_grad():
        model = AutoencoderKL.from_config(vae)
        with flop_counter() as counter:
            latent = model.encode(torch.zeros(1, 3, height, width)).latent_dist.mean
            encoding = counter.get_total_flops()
            model.decode(latent)
    return encoding, counter.get_total_flops() - encoding


def measured_flops_per_s(unet: dict[str, Any], shape: tuple[int, int, int], train: Train) -> float:
    """Operations of training steps that this machine does in a second: the fastest of three micro-batches."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = train.mixed_precision in ("bf16", "fp16")
    model = _training_unet(unet, train.gradient_checkpointing).to(device)
    channels, height, width = shape
    sample = torch.zeros(train.micro_batch_size, 2 * channels, height, width, device=device)
    prompt = torch.zeros(len(sample), NUM_PROMPT_TOKENS, model.config.cross_attention_dim, device=device)
    seconds = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            output = model(sample, 0, encoder_hidden_states=prompt).sample
        output.float().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return len(sample) * flops_per_sample(unet, shape, train.gradient_checkpointing) / min(seconds[1:])


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention by itself."""
    aten = torch.ops.aten

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )


def activation_bytes(unet: dict[str, Any], shape: tuple[int, int, int], *, half: bool, checkpointing: bool) -> int:
    """Bytes that the forward pass of one sample keeps; with checkpointing, and of the largest block once more.

    shape: of a latent, [c, h, w]; half: bf16 or fp16 autocast.
    """
    saved, block = _count_saved(unet, shape, half, False)
    return _count_saved(unet, shape, half, True)[0] + block if checkpointing else saved


@count_once
def _count_saved(unet: dict[str, Any], shape: tuple[int, int, int], half: bool, checkpointing: bool) -> tuple[int, int]:
    """saved_bytes of a training U-Net's forward pass of one sample."""
    with FakeTensorMode():
        model = _training_unet(unet, checkpointing)
        if half:
            cast_as_autocast(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return saved_bytes(model, lambda: _forward(model, shape))


def saved_bytes(model: torch.nn.Module, forward: Any) -> tuple[int, int]:
    """Bytes of the storages that autograd keeps of forward(), parameters left out: in all, and of the largest block.

    Blocks are those that diffusers checkpoints.
    """
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

    handles: list[Any] = []
    begins: list[int] = []
    for block in model.modules():
        if type(block).__name__ not in CHECKPOINTED:
            continue
        handles.append(block.register_forward_pre_hook(lambda *_: begins.append(sizes[0])))
        handles.append(block.register_forward_hook(lambda *_: blocks.append(sizes[0] - begins.pop())))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for handle in handles:
        handle.remove()
    return sizes[0], max(blocks)


def decoder_cost(train: Train, vae: dict[str, Any]) -> DecoderCost:
    """Cost of decoding a crop of the prediction with gradients, and of the truth without; float32.

    Validation decodes without gradients and few images at once: that fits where a step's activations were.
    """
    if not train.decoded_loss_weight:
        size = sum(p.numel() for p in on_meta(AutoencoderKL, vae).parameters()) if train.validation else 0
        return DecoderCost(weight_bytes=4 * size)
    with FakeTensorMode():
        model = AutoencoderKL.from_config(vae).requires_grad_(False)
        latent = torch.zeros(1, vae["latent_channels"], train.decoded_crop, train.decoded_crop, requires_grad=True)
        saved, _ = saved_bytes(model, lambda: model.decode(latent))
        with flop_counter() as counter:
            model.decode(latent).sample.sum().backward()
            model.decode(latent.detach())
    return DecoderCost(4 * sum(p.numel() for p in model.parameters()), saved, counter.get_total_flops())


def _training_unet(config: dict[str, Any], gradient_checkpointing: bool) -> UNet2DConditionModel:
    """The U-Net as the trainer has it."""
    model = UNet2DConditionModel.from_config(config).train()
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _forward(model: UNet2DConditionModel, shape: tuple[int, int, int]) -> torch.Tensor:
    """The U-Net's output for one sample of image and depth latents [c, h, w]."""
    channels, height, width = shape
    sample = torch.zeros(1, 2 * channels, height, width)
    prompt = torch.zeros(1, NUM_PROMPT_TOKENS, model.config.cross_attention_dim)
    timesteps = torch.zeros(1, dtype=torch.long)
    return model(sample, timesteps, encoder_hidden_states=prompt).sample


def cast_as_autocast(model: torch.nn.Module) -> None:
    """Weights in bf16, as autocast's copies are; normalisation in fp32, as on a GPU but not on a CPU."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
        else:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.detach().bfloat16()))
