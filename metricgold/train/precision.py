"""In which arithmetic a U-Net is trained on this machine."""

import torch

from metricgold.model import default_device
from metricgold.params import Train


def with_precision(params: Train) -> Train:
    """The same params, with `auto` as this machine has it: bf16 where it multiplies bfloat16, else no.

    Elsewhere bfloat16 is emulated, and slower than float32. Checkpoints and lineage name what was used.
    """
    if params.mixed_precision != "auto":
        return params
    return params.model_copy(update={"mixed_precision": "bf16" if multiplies_bf16() else "no"})


def multiplies_bf16() -> bool:
    """Whether the default device has instructions for bfloat16."""
    if default_device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
