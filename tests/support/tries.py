"""How often the tests that look for faults by chance try."""

import os


def tries(num: int) -> int:
    """All where METRICGOLD_THOROUGH is set, else a third: each run of the tests draws other moments."""
    return num if os.environ.get("METRICGOLD_THOROUGH") else -(-num // 3)
