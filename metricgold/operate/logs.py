"""What the programs print: the last lines of each, and the new ones as they come."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from metricgold.operate.stage import HOME


def last_lines(root: Path, name: str | None = None, number: int = 20) -> Iterator[str]:
    """The last lines of one program's log or of all, each with the program's name before it.

    ValueError for a program without a log.
    """
    for path in _logs(root, name):
        with path.open(errors="replace") as lines:
            yield from (f"{path.stem}: {line.rstrip()}" for line in deque(lines, number))


def follow_logs(root: Path, name: str | None = None, number: int = 20) -> Iterator[str]:
    """`last_lines`, then every new line; never ends by itself."""
    seen = {path: path.stat().st_size for path in _logs(root, name)}
    yield from last_lines(root, name, number)
    while True:
        for path in _logs(root, name):
            with path.open("rb") as log:
                # A log that has become shorter was begun anew.
                begin = seen.get(path, 0) if path.stat().st_size >= seen.get(path, 0) else 0
                log.seek(begin)
                whole = log.read().rpartition(b"\n")
            seen[path] = begin + len(whole[0]) + len(whole[1])
            if whole[1]:
                yield from (f"{path.stem}: {line}" for line in whole[0].decode(errors="replace").splitlines())
        time.sleep(0.5)


def _logs(root: Path, name: str | None) -> list[Path]:
    known = {path.stem: path for path in sorted((root / HOME / "logs").glob("*.log")) if "." not in path.stem}
    if name is not None and name not in known:
        raise ValueError(
            f"{name}: no such log, expected one of: {', '.join(known) or 'none, nothing was started here'}"
        )
    return [known[name]] if name else list(known.values())
