"""How often the tests that look for faults by chance try."""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")


def tries(num: int) -> int:
    """All where THOROUGH is set, else a sixth: each run of the tests draws other moments."""
    return num if os.environ.get("THOROUGH") else -(-num // 6)


def drawn(cases: Sequence[Case]) -> list[Case]:
    """All where THOROUGH is set, else a third, for cases that cost seconds each; each run of the tests draws others.

    Drawn from the id of the run: all workers of one run must collect the same tests.
    """
    if os.environ.get("THOROUGH"):
        return list(cases)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    return random.Random(run).sample(cases, -(-len(cases) // 3))
