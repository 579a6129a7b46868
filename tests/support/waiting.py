"""Waiting for what another process does, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 300.0  # costs nothing where all is well, and a busy machine is not a fault


def wait_until(condition: Callable[[], T], *, within_s: float = PATIENCE_S, every_s: float = 0.02, what: str = "") -> T:
    """The first true answer of `condition`, asked every `every_s` seconds. TimeoutError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or 'the condition'} did not hold within {within_s:g} s")
        time.sleep(every_s)
    return answer
