"""Which bytes the frames of a raw folder have.

Sizes and names stay when depth is exported again in place, so every file is read and gets a CRC-32, as members of
archives have. A file whose size, time and inode are those of the last look is not read again; a download notes its
members as they arrive.
"""

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from metricgold.datasets.listing import FrameRef
from metricgold.storage import Progress, digest_crc32

CONTENT_CACHE = ".content.sqlite"  # in the raw folder; may be deleted at any time
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

    @classmethod
    def of(cls, stat: os.stat_result, crc32: int) -> "_Seen":
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, crc32)


def contents_by_scene(raw: Path, frames: Sequence[FrameRef]) -> dict[str, dict[str, Content]]:
    """Scene -> name -> content of the files of its frames, all of which are below `raw`."""
    contents = read_contents(raw, {path for ref in frames for path in ref.paths})
    by_scene: dict[str, dict[str, Content]] = defaultdict(dict)
    for ref in frames:
        by_scene[ref.scene].update({name: contents[name] for name in _names(raw, ref.paths)})
    return dict(by_scene)


def read_contents(raw: Path, paths: Iterable[Path]) -> dict[str, Content]:
    """Name below `raw` -> content of each of these files; read by threads, as far as the cache does not know them."""
    names, known = sorted(_names(raw, paths)), _load_cache(raw)
    contents: dict[str, Content] = {}
    fresh: dict[str, _Seen] = {}

    def look(name: str) -> tuple[Content, _Seen | None]:
        try:
            stat = (raw / name).stat()
            seen = known.get(name)
            if seen is not None and seen[:3] == (stat.st_size, stat.st_mtime_ns, stat.st_ino):
                return Content(seen.bytes, seen.crc32), None
            is_settled = time.time() - stat.st_mtime > SETTLED_S  # before it is read
            seen = _Seen.of(stat, digest_crc32(raw / name))
            return Content(seen.bytes, seen.crc32), seen if is_settled else None
        except OSError:  # its reader will say so
            return Content(0, None), None

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(f"content of {raw.name}", len(names), "file") as bar:
        for name, (content, seen) in zip(names, pool.map(look, names), strict=True):
            contents[name] = content
            if seen is not None:
                fresh[name] = seen
            bar.advance()
    _save_cache(raw, fresh)
    return contents


def settle(path: Path) -> None:
    """Set a new file's time back, so that a write within the same tick of its disk's clock shows."""
    settled_s = time.time() - 2 * SETTLED_S
    os.utime(path, (settled_s, settled_s))


def note_contents(raw: Path, arrived: Mapping[str, tuple[os.stat_result, int]]) -> None:
    """Note files whose CRC-32 is known without reading them: name below `raw` -> stat of the settled file, CRC-32."""
    _save_cache(raw, {name: _Seen.of(stat, crc32) for name, (stat, crc32) in arrived.items()})


def _names(raw: Path, paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(raw).as_posix() for path in paths]


def _load_cache(raw: Path) -> dict[str, _Seen]:
    """What earlier looks have seen; nothing where the cache is broken or cannot be opened."""
    try:
        with closing(sqlite3.connect(raw / CONTENT_CACHE, timeout=60)) as cache:
            cache.execute(_TABLE)
            return {name: _Seen(*row) for name, *row in cache.execute("SELECT * FROM files")}
    except sqlite3.OperationalError:  # locked, or a folder that may only be read
        return {}
    except (sqlite3.Error, TypeError):  # not what was written here
        with suppress(OSError):
            (raw / CONTENT_CACHE).unlink()
        return {}


def _save_cache(raw: Path, seen: dict[str, _Seen]) -> None:
    """Add what was seen; a cache that cannot be written is done without."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(raw / CONTENT_CACHE, timeout=60)) as cache, cache:
        cache.execute(_TABLE)
        rows = [(name, *row) for name, row in seen.items()]
        cache.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
