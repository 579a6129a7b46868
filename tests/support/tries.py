"""How often the tests that look for faults by chance try."""

import os


def tries(num: int) -> int:
    """All where THOROUGH is set, else a sixth: each run of the tests draws other moments."""
    return num if os.environ.get("THOROUGH") else -(-num // 6)
