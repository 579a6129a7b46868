"""How much memory a model needs here: the peak of the GPU, or where there is none of this process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory_gb() -> float:
    """The peak since this process began or since reset_peak_memory, in GB."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    if _STATUS.exists():
        # Not ru_maxrss, which a child takes over from the process that started it.
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def reset_peak_memory() -> None:
    """Let the peak begin anew; outside Linux that of the process stays."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
