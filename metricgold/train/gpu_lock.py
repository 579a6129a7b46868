"""One training at a time on a graphics card: a lock of the operating system, whoever started the job.

Prefect's limit holds between flows only; this one is taken by the trainer itself, also when typed by hand, and is
freed by the kernel when its process ends, however that came.
"""

import json
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

from metricgold.storage import write_json

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0  # of a job that waits


def cards() -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES has them, of the cards here that a job may use; METRICGOLD_CARDS says how many."""
    if told := os.environ.get("METRICGOLD_CARDS"):
        if not told.isdecimal():
            raise ValueError(f"METRICGOLD_CARDS is {told!r}, expected a number of cards")
        return [str(number) for number in range(int(told))]
    number = _number_of_cards()
    return (_visible() or [str(i) for i in range(number)]) if number else []


def _number_of_cards() -> int:
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if devices or not shutil.which("nvidia-smi"):
        return len(devices)
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


@contextmanager
def one_of(names: list[str], *, timeout_s: float) -> Iterator[str]:
    """Hold one of some cards among the flows of this machine. TimeoutError when none becomes free."""
    deadline = time.monotonic() + timeout_s
    while not (held := _first_free(names)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no card of {', '.join(names)} became free")
        time.sleep(0.5)
    name, lock = held
    with lock:
        yield name


def _first_free(names: list[str]):
    """Name and lock of a card that no other flow holds; the lock is taken and closes when left."""
    from filelock import FileLock, Timeout

    for name in names:
        with suppress(Timeout):
            return name, FileLock(_lock_of(name, "flow")).acquire(timeout=0)
    return None


@contextmanager
def only_job(device: str) -> Iterator[None]:
    """Hold the lock of a card; waits as long as another process holds it, with a line each minute.

    device: as torch names it, `cuda` or `cuda:1`, counted within CUDA_VISIBLE_DEVICES; anything else needs no lock.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        yield
        return
    from filelock import FileLock

    position, visible = int(number or 0), _visible()
    path = _lock_of(visible[position] if position < len(visible) else str(position), "gpu")
    lock, holder = FileLock(path), path.with_suffix(".json")
    _wait_for(lock, holder, device)
    try:
        write_json(holder, {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _visible() -> list[str]:
    return [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def _lock_of(name: str, kind: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricgold"
    cache.mkdir(parents=True, exist_ok=True)
    # With the machine's name: a home on a network disk is shared by machines with cards of their own.
    return cache / f"{kind}-{re.sub('[^A-Za-z0-9.-]', '-', f'{platform.node()}-{name}')}.lock"


def _wait_for(lock, holder: Path, device: str) -> None:
    from filelock import Timeout

    patience_s = 0.0
    while True:
        try:
            lock.acquire(timeout=patience_s, poll_interval=0.5)
            return
        except Timeout:
            log.warning("%s is in use by %s; waiting for it", device, _named(holder))
            patience_s = SECONDS_BETWEEN_LINES


def _named(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text())
        return f"process {found['pid']} since {found['since']}"
    except (OSError, ValueError, KeyError):  # it holds the lock and has not said so yet
        return "another process"
