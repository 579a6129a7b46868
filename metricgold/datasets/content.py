"""Which bytes the frames of a raw folder have, for folders that no archive vouches for.

Sizes and names stay when a team exports its depth again in place, so every file is read and gets a CRC-32, as members
of archives have. A file whose size, time and inode are those of the last look is not read again.
"""

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from metricgold.datasets.listing import FrameRef
from metricgold.storage import Progress, digest_crc32

CACHE = ".content.sqlite"  # in the raw folder; may be deleted at any time
SETTLED_S = 2.0  # a younger file may be written once more within one tick of its disk's clock: it is not cached
_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, inode INTEGER, crc32 INTEGER
)
"""


class Content(NamedTuple):
    """Of one file; crc32 is None where it cannot be read."""

    bytes: int
    crc32: int | None


class _Seen(NamedTuple):
    bytes: int
    mtime_ns: int
    inode: int
    crc32: int


def contents_by_scene(raw: Path, frames: Sequence[FrameRef]) -> dict[str, dict[str, Content]]:
    """Scene -> name -> content of the files of its frames, all of which are below `raw`."""
    contents = read_contents(raw, {path for ref in frames for path in ref.paths})
    by_scene: dict[str, dict[str, Content]] = defaultdict(dict)
    for ref in frames:
        by_scene[ref.scene].update({name: contents[name] for name in _names(raw, ref.paths)})
    return dict(by_scene)


def read_contents(raw: Path, paths: Iterable[Path]) -> dict[str, Content]:
    """Name below `raw` -> content of each of these files; read by threads, as far as the cache does not know them."""
    names, contents, fresh = sorted(_names(raw, paths)), {}, {}
    with closing(_open_cache(raw)) as cache:
        known = {name: _Seen(*row) for name, *row in cache.execute("SELECT * FROM files")}

        def look(name: str) -> tuple[Content, _Seen | None]:
            try:
                stat = (raw / name).stat()
                seen = known.get(name)
                if seen is None or seen[:3] != (stat.st_size, stat.st_mtime_ns, stat.st_ino):
                    is_settled = time.time() - stat.st_mtime > SETTLED_S  # before it is read
                    crc32 = digest_crc32(raw / name)
                    seen = _Seen(stat.st_size, stat.st_mtime_ns, stat.st_ino, crc32)
                    return Content(seen.bytes, crc32), seen if is_settled else None
            except OSError:  # its reader will say so
                return Content(0, None), None
            return Content(seen.bytes, seen.crc32), None

        with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(f"content of {raw.name}", len(names), "file") as bar:
            for name, (content, seen) in zip(names, pool.map(look, names), strict=True):
                contents[name] = content
                if seen is not None:
                    fresh[name] = seen
                bar.advance()
        with cache:
            rows = [(name, *seen) for name, seen in fresh.items()]
            cache.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
    return contents


def _names(raw: Path, paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(raw).as_posix() for path in paths]


def _open_cache(raw: Path) -> sqlite3.Connection:
    """What earlier looks know of a raw folder; nothing where its file is broken or the folder is read-only."""
    cache = sqlite3.connect(raw / CACHE, timeout=60)
    try:
        cache.execute(_TABLE)
    except sqlite3.DatabaseError:
        cache.close()
        cache = sqlite3.connect(":memory:")
        cache.execute(_TABLE)
    return cache
