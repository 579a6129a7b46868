"""A process that outlives a flow by a moment: it ends what the flow has left, and tells the server.

Of the end of a pipe it always hears, whatever ended the flow: an exception, the kernel, or `kill -9`. Prefect is
imported only then.
"""

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any
from uuid import UUID

from flows.child_processes import FAMILY, end_family, family_of_this_flow, take_heir

DONE = b"done"
ENDED = "the flow's process ended without a word: it was killed, or its worker was stopped"
MESSAGE_BYTES, ANY_NUMBER_OF_FDS = 64, 16
DRAINED_BYTES = 64 << 10


class Guard:
    """Started by the flow's process, which tells when its run needs no guard any more."""

    def __init__(self, run_id: UUID, api_url: str | None) -> None:
        self._to_guard, theirs = socket.socketpair()
        env = {name: value for name, value in os.environ.items() if name != FAMILY}
        env |= {"PREFECT_API_URL": api_url} if api_url else {}
        command = [sys.executable, "-m", "flows.guard", str(run_id), family_of_this_flow()]
        # A session of its own: who ends the flow's group must leave the guard.
        self._process = subprocess.Popen(command, env=env, stdin=theirs.fileno(), start_new_session=True)
        theirs.close()
        take_heir(self._to_guard)

    def dismiss(self) -> None:
        """The flow's function is over and Prefect reports how. Without this call the guard acts."""
        take_heir(None)
        with suppress(BrokenPipeError):
            self._to_guard.sendall(DONE)
        self._to_guard.close()
        self._process.wait()


def stand_guard(run_id: UUID, family: str) -> None:
    """Wait for the end of the flow's process, end what is left of it, and correct what the server believes."""
    pipes: list[int] = []
    with socket.socket(fileno=0) as flow:
        while True:
            told, received, _, _ = socket.recv_fds(flow, MESSAGE_BYTES, ANY_NUMBER_OF_FDS)
            pipes += received
            if told.endswith(DONE):
                return
            if not told:
                break
    for pipe in pipes:  # a child that prints as it saves must neither fail nor wait
        threading.Thread(target=drain, args=(pipe,), daemon=True).start()
    end_family(family)
    if "PREFECT_API_URL" in os.environ:  # else the run's server ended with it
        tell_server(run_id)


def drain(pipe: int) -> None:
    """Read a pipe to its end."""
    while os.read(pipe, DRAINED_BYTES):
        pass


def tell_server(run_id: UUID) -> None:
    """A run without a process is not running, and its page says why."""
    from prefect.states import Cancelled, Crashed

    from flows.hooks import write_end_once

    state = state_of(run_id)
    if state is not None and state.is_cancelling():
        set_state(run_id, Cancelled(message=ENDED))
    elif state is not None and (state.is_running() or state.is_pending()):
        set_state(run_id, Crashed(message=ENDED))
    with suppress(Exception):
        write_end_once(run_id)


def state_of(run_id: UUID) -> Any:
    """What the server says of a run: Prefect's State; None while it cannot be asked."""
    from prefect.client.orchestration import get_client

    with suppress(Exception), get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state
    return None


def set_state(run_id: UUID, state: Any) -> None:
    """Tell the server, if it is there."""
    from prefect.client.orchestration import get_client

    with suppress(Exception), get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, state, force=True)


if __name__ == "__main__":
    stand_guard(UUID(sys.argv[1]), sys.argv[2])
