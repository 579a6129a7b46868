"""What becomes of a training's state when params or data change: it is moved aside, and taken back with the old ones.

<model>.state.earlier/<fingerprint>/    states of the last NUM_KEPT other runs, by the first digits of the fingerprint
"""

import logging
import os
import re
from pathlib import Path

from metricgold.storage import read_json, remove, require_ours, write_json
from metricgold.train.checkpoints import newest_first

log = logging.getLogger(__name__)

NUM_KEPT = 2
NUM_DIGITS = 12


def claim_state(state: Path, fingerprint: str, *, fresh: bool = False) -> None:
    """Make `state` the folder of the run with this fingerprint: the one that is there, was moved aside, or a new one.

    fresh: a new one; what this fingerprint has left is deleted. The state of another run is moved aside if it holds a
    checkpoint, and the oldest of more than NUM_KEPT is deleted. Raises FileExistsError where `state` is not a run's.
    """
    require_ours(state, ["fingerprint.json", "step-*"])
    mark, earlier = state / "fingerprint.json", state.with_name(state.name + ".earlier")
    own, present = earlier / fingerprint[:NUM_DIGITS], read_fingerprint(mark)
    if fresh:
        if present == fingerprint:
            log.info("%s is cleared: it belongs to an earlier run", state)
            remove(state)
        remove(own)
    if present != fingerprint:
        _move_aside(state, earlier / present[:NUM_DIGITS])
        if own.is_dir():
            log.info("%s is taken back: its params and data are those of this run", own)
            own.rename(state)
        _keep_newest(earlier)
    if read_fingerprint(mark) != fingerprint:
        write_json(mark, fingerprint)


def read_fingerprint(mark: Path) -> str:
    """The fingerprint in a file; `unknown` where none can be read."""
    try:
        present = read_json(mark)
    except (OSError, ValueError):
        present = None
    return present if isinstance(present, str) and re.fullmatch("[0-9a-f]{64}", present) else "unknown"


def _move_aside(state: Path, kept: Path) -> None:
    if newest_first(state):
        kept.parent.mkdir(exist_ok=True)
        remove(kept)
        state.rename(kept)
        os.utime(kept)
        log.warning("a run with other params or data is moved to %s; with those it resumes", kept)
    else:
        remove(state)  # nothing to resume from


def _keep_newest(earlier: Path) -> None:
    """Delete all but NUM_KEPT of the states that were moved aside, the oldest first."""
    states = [path for path in earlier.glob("*") if re.fullmatch(rf"[0-9a-f]{{{NUM_DIGITS}}}|unknown", path.name)]
    kept = sorted(states, key=lambda path: path.stat().st_mtime)
    for path in kept[:-NUM_KEPT]:
        log.warning("%s is deleted: the states of the last %d other runs are kept", path, NUM_KEPT)
        remove(path)
