"""What a raw folder holds and where it came from: one SQLite file, a row for each archive and each member.

SQLite and not JSON lines: an archive and its thousands of members change state in one transaction, which a kill
cannot tear, and "who owns this file" is a look-up, not a scan of a million rows.
"""

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from metricgold.storage import digest_json

LEDGER = ".ledger/ledger.sqlite"  # below the raw folder
LISTED, FETCHING, PLACING, DONE, DROPPED, FAILED = "listed", "fetching", "placing", "done", "dropped", "failed"

_TABLES = """
CREATE TABLE IF NOT EXISTS archives (
    path TEXT PRIMARY KEY,       -- as in the manifest
    identity TEXT NOT NULL,      -- digest of what the manifest wants of it
    state TEXT NOT NULL,         -- listed, fetching, placing (members on their way into place),
                                 -- done, dropped (was done, members deleted on purpose), failed
    transfer_bytes INTEGER,      -- to fetch
    disk_bytes INTEGER,          -- of its members
    source TEXT,                 -- the mirror that delivered, without credentials
    time TEXT NOT NULL,          -- of the last change, UTC
    reason TEXT,                 -- of the last failure
    num_members INTEGER,
    members_sha256 TEXT          -- over names, sizes and CRCs
);
CREATE TABLE IF NOT EXISTS members (
    name TEXT PRIMARY KEY,       -- path below the raw folder
    archive TEXT NOT NULL REFERENCES archives (path),
    bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL       -- ledgers of earlier versions have a further column, which stays unused
);
CREATE INDEX IF NOT EXISTS members_of_archive ON members (archive);
"""


@dataclass(frozen=True, slots=True)
class ArchiveRow:
    """An archive in the ledger: its state, and what is known of it so far."""

    path: str
    identity: str
    state: str
    transfer_bytes: int | None
    disk_bytes: int | None
    source: str | None
    time: str
    reason: str | None
    num_members: int | None
    members_sha256: str | None


class MemberRow(NamedTuple):
    """An extracted member in the ledger."""

    name: str
    bytes: int
    crc32: int


class Ledger:
    """One data set's account. Threads may share it; processes are kept apart by the raw folder's lock."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises ValueError when the file is not a ledger."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=60)
        try:
            self._connection.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise not_a_ledger(self.path, error) from error

    @classmethod
    def copy(cls, path: Path, to: Path) -> "Ledger":
        """A copy of the ledger at `path`, empty if there is none: whatever is done to it changes nothing there."""
        if path.is_file():
            try:
                with (
                    closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as source,
                    closing(sqlite3.connect(to)) as target,
                ):
                    source.backup(target)
            except sqlite3.OperationalError:  # a killed run's journal is to be rolled back first: in the copy
                for suffix in ("", "-journal"):
                    if (part := path.with_name(path.name + suffix)).is_file():
                        shutil.copyfile(part, to.with_name(to.name + suffix))
            except sqlite3.DatabaseError as error:
                raise not_a_ledger(path, error) from error
        return cls(to)

    def close(self) -> None:
        self._connection.close()

    def archives(self) -> dict[str, ArchiveRow]:
        """All rows by path."""
        with self._lock:
            return {
                row[0]: ArchiveRow(*row) for row in self._connection.execute("SELECT * FROM archives ORDER BY path")
            }

    def archive(self, path: str) -> ArchiveRow | None:
        with self._lock:
            row = self._connection.execute("SELECT * FROM archives WHERE path = ?", [path]).fetchone()
        return ArchiveRow(*row) if row else None

    def members(self, archive: str) -> list[MemberRow]:
        """Members of an archive by name."""
        query = "SELECT name, bytes, crc32 FROM members WHERE archive = ? ORDER BY name"
        with self._lock:
            return [MemberRow(*row) for row in self._connection.execute(query, [archive])]

    def listed(self, path: str, identity: str, *, transfer_bytes: int | None, disk_bytes: int | None) -> None:
        """What is known of an archive before it is fetched."""
        self._set(path, identity, LISTED, transfer_bytes=transfer_bytes, disk_bytes=disk_bytes)

    def fetching(self, path: str, identity: str) -> None:
        self._set(path, identity, FETCHING)

    def failed(self, path: str, identity: str, reason: str) -> None:
        self._set(path, identity, FAILED, reason=reason)

    def placing(self, path: str, identity: str, source: str, members: Iterable[MemberRow]) -> None:
        """All members are extracted and verified, and begin to move into the raw folder."""
        self._account(path, identity, PLACING, source, members)

    def done(self, path: str, identity: str, source: str, members: Iterable[MemberRow]) -> None:
        """All members are in the raw folder."""
        self._account(path, identity, DONE, source, members)

    def _account(self, path: str, identity: str, state: str, source: str, members: Iterable[MemberRow]) -> None:
        """Replace an archive's members and its row in one transaction."""
        rows = sorted(members, key=lambda row: row.name)
        facts: dict[str, str | int | None] = {
            "source": source,
            "reason": None,
            "num_members": len(rows),
            "disk_bytes": sum(row.bytes for row in rows),
            "members_sha256": digest_json({row.name: [row.bytes, row.crc32] for row in rows}),
        }
        with self._transaction():
            self._connection.execute("DELETE FROM members WHERE archive = ?", [path])
            self._connection.executemany(
                "INSERT INTO members (name, archive, bytes, crc32) VALUES (?, ?, ?, ?)",
                [(row.name, path, row.bytes, row.crc32) for row in rows],
            )
            self._set(path, identity, state, **facts)

    def dropped(self, path: str) -> None:
        """Its members are deleted; what they were stays known."""
        with self._transaction():
            self._connection.execute("DELETE FROM members WHERE archive = ?", [path])
            self._connection.execute("UPDATE archives SET state = ?, time = ? WHERE path = ?", [DROPPED, _now(), path])

    def forget(self, path: str) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM members WHERE archive = ?", [path])
            self._connection.execute("DELETE FROM archives WHERE path = ?", [path])

    def owner(self, names: Iterable[str], archive: str) -> tuple[str, str] | None:
        """A member that another archive has put here already: (name, that archive), or None."""
        with self._lock:
            for name in names:
                query = "SELECT archive FROM members WHERE name = ? AND archive != ?"
                if row := self._connection.execute(query, [name, archive]).fetchone():
                    return name, row[0]
        return None

    def _set(self, path: str, identity: str, state: str, **facts: str | int | None) -> None:
        own = {"path": path, "identity": identity, "state": state, "time": _now()}
        values: dict[str, str | int | None] = {**own, **facts}
        columns = ", ".join(values)
        updates = ", ".join(f"{column} = excluded.{column}" for column in values)
        with self._lock:
            self._connection.execute(
                f"INSERT INTO archives ({columns}) VALUES ({', '.join('?' * len(values))}) "  # noqa: S608 - our names
                f"ON CONFLICT (path) DO UPDATE SET {updates}",
                list(values.values()),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


@contextmanager
def read_ledger(raw: Path) -> Iterator[Ledger]:
    """The ledger of a raw folder, only looked at."""
    with (
        TemporaryDirectory(prefix="metricgold-") as scratch,
        closing(Ledger.copy(raw / LEDGER, Path(scratch) / "ledger.sqlite")) as ledger,
    ):
        yield ledger


def not_a_ledger(path: Path, why: Exception) -> ValueError | OSError:
    """The error of a file that no download can have written; on a full disk, of one that none can write."""
    if getattr(why, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return ValueError(f"{path} is not a ledger: {why}; move it away to start over")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
