"""Whether the files of a downloaded raw folder are still those that arrived.

A member that was edited in place keeps its name and maybe its size, and the ledger still vouches for what it was.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from metricgold.datasets import Content, FrameRef, own_data, read_contents, some_frames
from metricgold.download.ledger import DONE, LEDGER, not_a_ledger, read_ledger
from metricgold.storage import paths_below

log = logging.getLogger(__name__)


def refuse_edited(raw: Path, frames: Iterable[FrameRef] | None = None) -> set[Path] | None:
    """ValueError naming a file below `raw` that is not what was downloaded; returns the paths that archives vouch for.

    frames  only their files are looked at, and what is no frame by its suffix, such as cameras; None: all that arrived

    A file is read only where the cache of metricgold.datasets.content does not know its size, time and inode. What is
    gone or cannot be read is warned of: its frame is a gap. Returns None where no ledger says what has arrived: in own
    data, a folder that was filled by hand, and one without its `.ledger`.
    """
    raw = Path(raw)
    if own_data.has_statement(raw) or not (raw / "ledger.json").is_file():
        return None
    if not (raw / LEDGER).is_file():
        log.warning("%s: without %s nobody can tell whether a file was edited", raw, LEDGER)
        return None
    arrived = read_arrived(raw)
    paths = set(arrived) if frames is None else _needed(arrived, frames)
    contents = {raw / name: content for name, content in read_contents(raw, paths).items()}
    lost = sorted(path for path, content in contents.items() if content.crc32 is None)
    edited = sorted(path for path in contents.keys() - set(lost) if contents[path] != arrived[path])
    if edited:
        raise ValueError(
            f"{edited[0]}: not what was downloaded ({len(edited)} of {len(contents)} files); "
            f"`metricgold download {raw.name} --verify` fetches it again"
        )
    if lost:
        again = f"`metricgold download {raw.name}` fetches what is gone"
        log.warning("%s: gone or unreadable (%d of %d files); %s", lost[0], len(lost), len(contents), again)
    return set(arrived)


def unedited_frames(name: str, raw: Path, split: str, limit: int | None) -> list[FrameRef]:
    """some_frames, whose files are still those that arrived. Raises ValueError as it and refuse_edited do."""
    refs = some_frames(name, raw, split, limit)
    refuse_edited(raw, refs)
    return refs


def read_arrived(raw: Path) -> dict[Path, Content]:
    """Path -> content of the members of all archives that are here; the ledger is only looked at."""
    with read_ledger(raw) as ledger:
        here = [path for path, row in ledger.archives().items() if row.state == DONE]
        rows = [row for path in here for row in ledger.members(path)]
    try:
        paths = paths_below(raw, (row.name for row in rows))
    except ValueError as error:
        raise not_a_ledger(raw / LEDGER, error) from error
    return {path: Content(row.bytes, row.crc32) for path, row in zip(paths, rows, strict=True)}


def _needed(arrived: Mapping[Path, Content], frames: Iterable[FrameRef]) -> set[Path]:
    """Of what arrived: the files of these frames, and all that are no frames by their suffix."""
    of_frames = {path for ref in frames for path in ref.paths}
    suffixes = {path.suffix for path in of_frames}
    return {path for path in arrived if path in of_frames or path.suffix not in suffixes}
