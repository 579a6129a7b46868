"""A run and its processes end together, whichever ends first and however.

Prefect's worker ends a run that it started, unless the worker or the server is away at that time. So the flow itself
looks whether its run is still wanted, and a guard outlives it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import wraps
from typing import ParamSpec, TypeVar
from uuid import UUID

from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from flows.guard import Guard, set_state, state_of
from flows.hooks import write_missing_ends

LOOK_EVERY_S = 10.0
LOOKS_WHILE_CANCELLING = 4  # a worker that lives has ended the run by then
P = ParamSpec("P")
T = TypeVar("T")


def watched(function: Callable[P, T]) -> Callable[P, T]:
    """A flow's function, watched while it works on a flow run."""

    @wraps(function)
    def with_watch(*args: P.args, **words: P.kwargs) -> T:
        if flow_run.id is None:  # called as a plain function
            return function(*args, **words)
        threading.Thread(target=copy_context().run, args=(explain_others,), daemon=True).start()
        with watch(UUID(flow_run.id)):
            return function(*args, **words)

    return with_watch


def explain_others() -> None:
    """Pages of runs that ended with nobody left to write one. Beside the work, which needs no server for it."""
    with suppress(Exception):
        write_missing_ends()


@contextmanager
def watch(run_id: UUID) -> Iterator[None]:
    """Guard the run that this process works on, and end it once nobody wants it any more."""
    guard, is_over, has_ended = Guard(run_id, PREFECT_API_URL.value()), threading.Event(), threading.Event()
    look = (end_when_unwanted, run_id, is_over, has_ended)
    threading.Thread(target=copy_context().run, args=look, daemon=True).start()
    try:
        yield
    except BaseException as error:
        if has_ended.is_set():
            raise Abort("the run has ended on the server") from error  # else Prefect would call it Crashed
        if isinstance(error, Exception):
            guard.dismiss()
        raise  # of SIGTERM the process may die before Prefect has reported: the guard stays
    else:
        guard.dismiss()
    finally:
        is_over.set()


def end_when_unwanted(run_id: UUID, is_over: threading.Event, has_ended: threading.Event) -> None:
    """Look every LOOK_EVERY_S; end this process's run where it ended on the server or where its worker is gone."""
    worker = os.getppid() if "PREFECT__FLOW_RUN_ID" in os.environ else None
    num_cancelling = 0
    while not is_over.wait(LOOK_EVERY_S):
        state = state_of(run_id)
        num_cancelling = num_cancelling + 1 if state is not None and state.is_cancelling() else 0
        nobody_cancels = num_cancelling == LOOKS_WHILE_CANCELLING
        if nobody_cancels:
            set_state(run_id, Cancelled(message="cancelled; no worker ended it, so it did itself"))
        if nobody_cancels or (state is not None and state.is_final()):
            has_ended.set()
        if has_ended.is_set() or (worker is not None and os.getppid() != worker):
            if not is_over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)  # Prefect makes it an exception, which ends the children
            return
