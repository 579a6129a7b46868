"""Child processes of a flow: their lines join the flow's log, and they end when it ends.

A child stays in our process group: a cancelled run signals the whole group, and a trainer has GRACE_S to save.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from dotenv import dotenv_values

from metricgold.storage import BadCredentials, without_passwords

if TYPE_CHECKING:
    import psutil

GRACE_S = 28  # Prefect kills the group 30 s after asking it to end
KEPT_LINES = 20  # of a failed child, for the message
DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]  # the flag comes before the sub-command

FAMILY = "METRICGOLD_FAMILY"  # in the environment of all that a flow starts, whoever their parents are by now
NEW_CREDENTIALS = (
    "A worker keeps the credentials with which it was started. Where it has none, those in the project's .env count "
    "(lines such as AWS_ACCESS_KEY_ID=...), and each run reads them anew."
)
ORPHANS_AFTER_S = 5.0  # that a child's own children still write after its end

_family = uuid.uuid4().hex
_heir: socket.socket | None = None
_running: set[subprocess.Popen[str]] = set()
_ending = threading.Event()


class ChildFailed(RuntimeError):
    """A child process ended with another code than 0; the message holds its last lines. No code: it never started."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def environment(**more: str) -> dict[str, str]:
    """Our variables and `more`, with this interpreter's console scripts on PATH and no buffering or telemetry.

    Children often run side by side, and threads that wait in a loop, as OpenMP's do, take the cores from the others; a
    thread that waits without a loop is slow to wake for a stage that is alone. So they wait in a short loop. On two
    cores, seconds of the demo's five stages around the VAE and of 100 training steps: 137 and 31 with long loops, 95
    and 43 without loops, 99 and 32 with loops of 10,000 turns.
    """
    scripts = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if scripts not in path:
        path.insert(0, scripts)
    quiet = {"PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    ours = s3_of_env_file() | os.environ
    return {"GOMP_SPINCOUNT": "10000"} | ours | quiet | {"PATH": os.pathsep.join(path)} | more


def s3_of_env_file(path: Path = Path(".env")) -> dict[str, str]:
    """AWS_... of the project's .env, as it is now: a worker's own environment is that of its start."""
    values = dotenv_values(path, interpolate=False)
    return {name: value for name, value in values.items() if name.startswith("AWS_") and value}


def run_child(command: list[str], log: Callable[[str], None], cwd: Path = Path(), **variables: str) -> None:
    """Run a command in a folder, log what it prints. `variables` join its environment.

    Raises ChildFailed with its last lines.
    """
    code, lines = log_child(command, log, None, cwd, **variables)
    if code:
        raise _failure(command, code, lines)


def ask_child(command: list[str], log: Callable[[str], None], cwd: Path = Path(), **variables: str) -> dict[str, Any]:
    """Run a command that answers in JSON on its standard output; its standard error is logged.

    Codes 0 and 1 count as an answer if there is one ("no" is an answer). Raises ChildFailed otherwise.
    """
    with TemporaryFile("w+") as answer:
        code, lines = log_child(command, log, answer, cwd, **variables)
        answer.seek(0)
        text = answer.read()
    if code not in (0, 1) or not text.strip():
        raise _failure(command, code, lines)
    return json.loads(text)


def log_child(
    command: list[str], log: Callable[[str], None], answer: IO[str] | None, cwd: Path = Path(), **variables: str
) -> tuple[int, list[str]]:
    """Exit code and last lines of a command, logged while it runs; `answer` takes its standard output unlogged."""
    shown = " ".join(command).replace(f"{sys.executable} -m ", "")
    if _ending.is_set():
        raise ChildFailed(f"`{shown}` was not started: the flow is ending")
    stdout, stderr = (subprocess.PIPE, subprocess.STDOUT) if answer is None else (answer, subprocess.PIPE)
    family = f"{_family}.{uuid.uuid4().hex}"
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**variables) | {FAMILY: family},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        errors="replace",
    )
    lines = child.stdout or child.stderr
    assert lines is not None  # one of them is a pipe
    if _heir is not None:
        with suppress(OSError):  # somebody ended the heir
            socket.send_fds(_heir, [b"."], [lines.fileno()])
    last: deque[str] = deque(maxlen=KEPT_LINES)
    _running.add(child)
    is_read = threading.Event()
    threading.Thread(target=_end_orphans, args=(child, family, is_read), daemon=True).start()
    try:
        for line in lines:
            if line.strip():
                last.append(without_passwords(line.rstrip()))  # DVC's and MLflow's lines too
                log(last[-1])
        child.wait()
    except BaseException:
        end(child)
        raise
    finally:
        is_read.set()
        _running.discard(child)
        lines.close()
    return child.returncode, list(last)


def _failure(command: list[str], code: int, lines: list[str]) -> ChildFailed:
    shown = " ".join(command).replace(f"{sys.executable} -m ", "")
    advice = [NEW_CREDENTIALS] if code == BadCredentials.exit_code else []
    return ChildFailed("\n".join([f"`{shown}` ended with code {code}; its last lines:", *lines, *advice]), code)


def end_children() -> None:
    """Ask every child and what it started to end, wait GRACE_S, then kill what is left. No new ones start."""
    _ending.set()
    for child in list(_running):
        end(child)


def is_ending(within_s: float = 0.0) -> bool:
    """Whether the flow ends its children, or begins to within some seconds."""
    return _ending.wait(within_s)


def end(child: subprocess.Popen[Any]) -> None:
    """End one child with all its descendants: what has work to save gets GRACE_S, and is killed then.

    DVC gets no signal: it ends when its stage does. One that is stopped while it gives its locks back, or while it
    writes dvc.lock, leaves half a file. A stage that it starts meanwhile is stopped too; what a stage starts in order
    to save is not.
    """
    import psutil

    deadline = time.monotonic() + GRACE_S
    if not _is_dvc(child):
        child.terminate()
    asked = alive = _ask_to_end(_children(child, recursive=True))
    # Not psutil for the child: it would take the exit code from another thread that waits for it.
    while (alive or child.poll() is None) and time.monotonic() < deadline:
        if _is_dvc(child):
            asked += _ask_to_end([one for one in _children(child) if one not in asked])
        _, alive = psutil.wait_procs(asked, timeout=0.1)
        time.sleep(0.02)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    child.kill()
    child.wait()


def _end_orphans(child: subprocess.Popen[Any], family: str, is_read: threading.Event) -> None:
    """Where a child was killed alone, what it had started works on, and on the files of whoever comes next."""
    child.wait()
    if not is_read.wait(ORPHANS_AFTER_S):
        end_family(family)


def take_heir(heir: socket.socket | None) -> None:
    """Who shares what our children write to, so that they do not fail as they print when we are killed."""
    global _heir
    _heir = heir


def family_of_this_flow() -> str:
    """What the families of all children of this process begin with."""
    return _family


def end_family(family: str) -> None:
    """End all processes of a family as `end` does, also those whose parents are gone."""
    import psutil

    deadline = time.monotonic() + GRACE_S
    asked: list[psutil.Process] = []
    while (alive := _members(family)) and time.monotonic() < deadline:
        stages = [
            one for one in alive if one not in asked and not _is_dvc(one) and (not asked or _is_dvc(one.parent()))
        ]
        asked += _ask_to_end(stages)
        time.sleep(0.1)
    for process in _members(family):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _members(family: str) -> list["psutil.Process"]:
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(FAMILY, "").startswith(family):
                found.append(process)
    return found


def _children(process: subprocess.Popen[Any], *, recursive: bool = False) -> list["psutil.Process"]:
    import psutil

    try:
        return psutil.Process(process.pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def _ask_to_end(processes: list["psutil.Process"]) -> list["psutil.Process"]:
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    return processes


def _is_dvc(process: "subprocess.Popen[Any] | psutil.Process | None") -> bool:
    import psutil

    with suppress(psutil.Error):
        command = process.cmdline() if isinstance(process, psutil.Process) else process and process.args
        return isinstance(command, list) and command[: len(DVC)] == DVC
    return False
