"""One training at a time on a GPU: a lock of the operating system, whoever started the job.

Prefect's limit holds between flows only; this one is taken by the trainer itself, also when a person starts it, and is
freed by the kernel when its process ends in whatever way.
"""

import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metricgold.storage import read_json, write_json

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0  # of a job that waits


def gpu_names() -> list[str]:
    """Names, as in CUDA_VISIBLE_DEVICES, of the GPUs here that a job may use; METRICGOLD_CARDS overrides their number.

    ValueError when METRICGOLD_CARDS is not a number.
    """
    if number := os.environ.get("METRICGOLD_CARDS"):
        if not number.isdecimal():
            raise ValueError(f"METRICGOLD_CARDS is {number!r}, expected a number of GPUs")
        return [str(i) for i in range(int(number))]
    installed = num_gpus()
    return (visible_gpus() or [str(i) for i in range(installed)]) if installed else []


def num_gpus() -> int:
    """NVIDIA GPUs in this machine, counted without torch."""
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if devices or not shutil.which("nvidia-smi"):
        return len(devices)
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def visible_gpus() -> list[str]:
    """The names in CUDA_VISIBLE_DEVICES; none where it is not set."""
    return [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


@contextmanager
def free_gpu(names: list[str], *, timeout_s: float) -> Iterator[str]:
    """Hold one of these GPUs among the flows of this machine; yields its name. TimeoutError when none becomes free."""
    deadline = time.monotonic() + timeout_s
    while (held := _lock_first_free(names)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no GPU of {', '.join(names)} became free")
        time.sleep(0.5)
    name, lock = held
    try:
        yield name
    finally:
        lock.release()


def _lock_first_free(names: list[str]) -> tuple[str, FileLock] | None:
    """The first of these GPUs that no other flow holds, and its lock, taken."""
    for name in names:
        lock = FileLock(lock_path(name, "flow"), timeout=0)
        with suppress(Timeout):
            lock.acquire()
            return name, lock
    return None


@contextmanager
def only_job(device: str) -> Iterator[None]:
    """Hold the lock of a GPU; waits as long as another process holds it, with a line each minute.

    device: as torch names it, `cuda` or `cuda:1`, counted within CUDA_VISIBLE_DEVICES; anything else needs no lock.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        yield
        return
    position, visible = int(number or 0), visible_gpus()
    path = lock_path(visible[position] if position < len(visible) else str(position), "gpu")
    lock, holder = FileLock(path), path.with_suffix(".json")
    patience_s = 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience_s, poll_interval=0.5)
        except Timeout:
            log.warning("%s is in use by %s; waiting for it", device, _describe(holder))
            patience_s = SECONDS_BETWEEN_LINES
    try:
        write_json(holder, {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def lock_path(name: str, kind: str) -> Path:
    """The lock file of a GPU: kind `gpu` for the job on it, `flow` for the flow that reserves it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricgold"
    cache.mkdir(parents=True, exist_ok=True)
    # With the machine's name: a home on a network disk is shared by machines with GPUs of their own.
    return cache / f"{kind}-{re.sub('[^A-Za-z0-9.-]', '-', f'{platform.node()}-{name}')}.lock"


def _describe(holder: Path) -> str:
    """The process that holds a lock, from the file beside it."""
    try:
        job = read_json(holder)
        return f"process {job['pid']} since {job['since']}"
    except (OSError, ValueError, KeyError):  # it has the lock and has not written the file yet
        return "another process"
