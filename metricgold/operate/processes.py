"""Programs that outlive the command which starts them, known by number and start: a number alone is used again."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from metricgold.storage import machine

ROTATE_BYTES = 10_000_000  # a log above it is set aside when its program is started again

Known = dict[str, Any]  # pid, started


def start(command: list[str], variables: dict[str, str], log: Path, root: Path) -> Known:
    """Start a program in the folder `root`, in a session of its own; what it prints joins the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > ROTATE_BYTES:
        log.replace(log.with_suffix(".old.log"))
    # A script's background job ignores SIGINT, and its children inherit that: a worker would never stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a") as lines:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": lines, "stderr": lines}
        child = subprocess.Popen(command, cwd=root, env=os.environ | variables, start_new_session=True, **options)
    return {"pid": child.pid, "started": started(child.pid)}


def started(pid: int) -> str | None:
    """When a process began, within this boot and container, as no clock can change it; None where there is none."""
    import psutil

    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        with suppress(psutil.NoSuchProcess):
            return str(psutil.Process(pid).create_time())
        return None
    return None if fields[0] == "Z" else f"{machine()}/{fields[19]}"


def is_alive(known: Known | None) -> bool:
    """Whether the very process that was started still runs."""
    return known is not None and known["started"] is not None and started(known["pid"]) == known["started"]


def end(known: Known, within_s: float) -> None:
    """Ask a program to end, and kill what it and its descendants leave; nothing where it has ended before."""
    import psutil

    if not is_alive(known):
        return
    try:
        process = psutil.Process(known["pid"])
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    psutil.wait_procs([process], timeout=within_s)
    _, alive = psutil.wait_procs(family, timeout=1)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    psutil.wait_procs(alive, timeout=5)
