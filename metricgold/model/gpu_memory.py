"""Memory of the GPU, without loading torch for the question."""

import sys


def peak_gpu_memory_mb() -> float | None:
    """The most that tensors of this process have taken on a GPU at once, in 10^6 bytes; None where none is used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return round(torch.cuda.max_memory_allocated() / 1e6, 1)
