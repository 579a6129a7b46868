"""The ledger: states, one owner for each member, and nothing torn by a kill."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from metricgold.download.ledger import DONE, DROPPED, FAILED, FETCHING, LISTED, Ledger, MemberRow, not_a_ledger
from tests.support import ROOT

ROWS = [MemberRow("b/2.png", 20, 2), MemberRow("a/1.png", 10, 1)]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "raw/.ledger/ledger.sqlite")
    yield ledger
    ledger.close()


def test_an_archive_from_listing_to_dropping(ledger):
    assert ledger.archive("a.zip") is None
    ledger.listed("a.zip", "id", transfer_bytes=30, disk_bytes=40)
    assert ledger.archive("a.zip").state == LISTED
    ledger.fetching("a.zip", "id")
    row = ledger.archive("a.zip")
    assert (row.state, row.transfer_bytes, row.disk_bytes) == (FETCHING, 30, 40)
    ledger.failed("a.zip", "id", "no such host")
    assert (ledger.archive("a.zip").state, ledger.archive("a.zip").reason) == (FAILED, "no such host")
    ledger.done("a.zip", "id", "https://example.org/a.zip", ROWS)
    row = ledger.archive("a.zip")
    assert (row.state, row.num_members, row.disk_bytes, row.reason) == (DONE, 2, 30, None)
    assert ledger.members("a.zip") == sorted(ROWS, key=lambda one: one.name)
    digest = row.members_sha256
    ledger.dropped("a.zip")
    assert ledger.members("a.zip") == []
    assert (ledger.archive("a.zip").state, ledger.archive("a.zip").members_sha256) == (DROPPED, digest)


def test_the_digest_says_names_sizes_and_crcs_and_nothing_else(ledger):
    ledger.done("a.zip", "id", "here", ROWS)
    digest = ledger.archive("a.zip").members_sha256
    ledger.done("a.zip", "other", "there", [ROWS[1], MemberRow("b/2.png", 20, 2)])
    assert ledger.archive("a.zip").members_sha256 == digest
    for changed in (MemberRow("b/3.png", 20, 2), MemberRow("b/2.png", 21, 2), MemberRow("b/2.png", 20, 3)):
        ledger.done("a.zip", "id", "here", [ROWS[1], changed])
        assert ledger.archive("a.zip").members_sha256 != digest


def test_a_member_has_one_owner(ledger):
    ledger.done("a.zip", "id", "here", ROWS)
    assert ledger.owner(["x", "a/1.png"], "b.zip") == ("a/1.png", "a.zip")
    assert ledger.owner(["a/1.png"], "a.zip") is None
    with pytest.raises(Exception, match="UNIQUE"):
        ledger.done("b.zip", "id", "here", [ROWS[0]])
    assert ledger.archive("b.zip") is None  # all of it or nothing


def test_forgotten_archives_leave_no_members(ledger):
    ledger.done("a.zip", "id", "here", ROWS)
    ledger.forget("a.zip")
    assert ledger.archives() == {}
    assert ledger.owner(["a/1.png"], "b.zip") is None


def test_threads_share_it(ledger):
    def work(number):
        ledger.fetching(f"{number}.zip", "id")
        ledger.done(f"{number}.zip", "id", "here", [MemberRow(f"{number}/{i}", i, i) for i in range(50)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert {row.state for row in ledger.archives().values()} == {DONE}
    assert sum(len(ledger.members(path)) for path in ledger.archives()) == 2000


def test_what_is_no_ledger_is_said(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_text("hello, this is no database at all" * 100)
    with pytest.raises(ValueError, match=r"ledger\.sqlite is not a ledger: .*; move it away to start over"):
        Ledger(path)


KILLED = """
import sys
from pathlib import Path
from metricgold.download.ledger import Ledger, MemberRow
ledger = Ledger(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10_000):
    ledger.done(f"{number}.zip", "id", "here", [MemberRow(f"{number}/{i}", i, i) for i in range(100)])
"""


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_killed_in_the_middle_every_archive_is_whole_or_absent(tmp_path, seconds):
    path = tmp_path / "ledger.sqlite"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    child.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    ledger = Ledger(path)
    assert all(len(ledger.members(archive)) == 100 for archive in ledger.archives())
    ledger.close()


TORN = """
import os, signal, sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("PRAGMA cache_size = 1")
ledger.execute("BEGIN")
ledger.execute("UPDATE members SET bytes = -1")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_copy_is_what_was_committed_and_its_original_stays(tmp_path):
    path, rows = tmp_path / "raw/ledger.sqlite", [MemberRow(f"{number:06}", number, number) for number in range(9000)]
    with closing(Ledger(path)) as ledger:
        ledger.done("a.zip", "id", "file:///a.zip", rows)
    for number in range(2):
        with closing(Ledger.copy(path, tmp_path / f"{number}.sqlite")) as copy:
            assert copy.members("a.zip") == rows
            copy.forget("a.zip")
        with closing(Ledger(path)) as ledger:
            assert ledger.members("a.zip") == rows
        # Once more with a journal that a killed run has left, and that only a writer may roll back.
        subprocess.run([sys.executable, "-c", TORN, path])
        assert path.with_name("ledger.sqlite-journal").exists()
        before = [file.read_bytes() for file in sorted(path.parent.iterdir())]
    with closing(Ledger.copy(path, tmp_path / "last.sqlite")) as copy:
        assert copy.members("a.zip") == rows
    assert [file.read_bytes() for file in sorted(path.parent.iterdir())] == before


def test_a_copy_of_none_is_empty_and_of_another_file_none(tmp_path):
    with closing(Ledger.copy(tmp_path / "none.sqlite", tmp_path / "copy.sqlite")) as copy:
        assert copy.archives() == {}
    (tmp_path / "other").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="other is not a ledger: "):
        Ledger.copy(tmp_path / "other", tmp_path / "copy2.sqlite")
    assert (tmp_path / "other").read_bytes() == b"x" * 5000


def test_a_full_disk_is_no_reason_to_move_a_ledger_away(tmp_path):
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    error = not_a_ledger(tmp_path / "ledger.sqlite", full)
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    assert "move it away" not in str(error)
