"""How weights are moved: the optimiser, its learning rate, and which updates are left out."""

from collections import deque
from math import isfinite
from statistics import median
from typing import Any

import torch

from metricgold.params import Train

NORMS_REMEMBERED = 100  # whose median says what gradient norm is usual
NORMS_NEEDED = 20  # before anything is called a spike


def new_optimizer(params: Train, parameters: Any) -> torch.optim.Optimizer:
    """AdamW, fused, or with moments of 8 bits. Raises ValueError when bitsandbytes is not installed."""
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=params.lr, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("train.optimizer adamw8bit needs `pip install bitsandbytes`; adamw does without") from error
    return AdamW8bit(parameters, lr=params.lr)


def learning_rate(step: int, params: Train) -> float:
    """Linear warm-up, then exponential decay to final_lr_ratio at decay_steps, flat after it (Marigold)."""
    warm = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    span = max(1, params.decay_steps - params.warmup_steps)
    share = min(1.0, max(0, step - params.warmup_steps) / span)
    return params.lr * warm * params.final_lr_ratio**share


class Guard:
    """Says which updates to leave out, by what the gradient norms have been of late."""

    def __init__(self, spike_factor: float) -> None:
        self.spike_factor = spike_factor
        self.norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)  # of updates that were made
        self.skipped = 0
        self.in_a_row = 0

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with an update of this loss and gradient norm; None to make it."""
        usual = median(self.norms) if len(self.norms) >= NORMS_NEEDED else None
        if not isfinite(loss):
            return f"loss is {loss}"
        if not isfinite(norm):
            return f"gradient norm is {norm}"
        if usual is not None and norm > self.spike_factor * usual:
            return f"gradient norm {norm:.4g} is over {self.spike_factor:g} times the median of late, {usual:.4g}"
        return None

    def made(self, norm: float) -> None:
        self.norms.append(norm)
        self.in_a_row = 0

    def left_out(self) -> None:
        self.skipped += 1
        self.in_a_row += 1

    def position(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def go_on_from(self, position: dict[str, Any]) -> None:
        self.norms.extend(position["norms"])
        self.skipped, self.in_a_row = position["skipped"], position["in_a_row"]
