"""How weights are moved: the optimiser, its learning rate, and which updates are left out."""

from collections import deque
from math import isfinite
from statistics import median
from typing import Any

import torch

from metricgold.extras import naming_the_extra
from metricgold.params import DepthVae, Train

NORMS_REMEMBERED = 100  # their median is the usual gradient norm
NORMS_NEEDED = 20  # before anything counts as a spike


def new_optimizer(params: Train, parameters: Any) -> torch.optim.Optimizer:
    """AdamW, fused, or with moments of 8 bits. Raises ValueError when bitsandbytes is not installed."""
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=params.lr, fused=True)
    with naming_the_extra():
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit(parameters, lr=params.lr)


def exponential_rate(step: int, params: Train) -> float:
    """Linear warm-up, then exponential decay to final_lr_ratio at decay_steps, constant after it (Marigold)."""
    span = max(1, params.decay_steps - params.warmup_steps)
    share = min(1.0, max(0, step - params.warmup_steps) / span)
    return params.lr * warm_up(step, params.warmup_steps) * params.final_lr_ratio**share


def linear_rate(step: int, params: DepthVae) -> float:
    """Linear warm-up on a line that reaches 0 after the last step."""
    return params.lr * warm_up(step, params.warmup_steps) * (1 - step / params.num_steps)


def warm_up(step: int, warmup_steps: int) -> float:
    """Share of the learning rate at a step: rises linearly to 1 over the first warmup_steps."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


class SpikeGuard:
    """Decides which updates to leave out, by comparing gradient norms with those of recent updates."""

    def __init__(self, spike_factor: float) -> None:
        self.spike_factor = spike_factor
        self.norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)  # of updates that were made
        self.skipped = 0
        self.in_a_row = 0

    def fault(self, loss: float, norm: float) -> str | None:
        """The reason to leave out an update of this loss and gradient norm; None where it is sound."""
        usual = median(self.norms) if len(self.norms) >= NORMS_NEEDED else None
        if not isfinite(loss):
            return f"loss is {loss}"
        if not isfinite(norm):
            return f"gradient norm is {norm}"
        if usual is not None and norm > self.spike_factor * usual:
            return f"gradient norm {norm:.4g} is over {self.spike_factor:g} times the median of late, {usual:.4g}"
        return None

    def note_update(self, norm: float) -> None:
        """Count an update that was made."""
        self.norms.append(norm)
        self.in_a_row = 0

    def note_left_out(self) -> None:
        """Count an update that was left out."""
        self.skipped += 1
        self.in_a_row += 1

    def position(self) -> dict[str, Any]:
        """What a checkpoint keeps of the guard."""
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def resume(self, position: dict[str, Any]) -> None:
        """Continue from what `position` gave."""
        self.norms.extend(position["norms"])
        self.skipped, self.in_a_row = position["skipped"], position["in_a_row"]
