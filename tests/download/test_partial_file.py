"""A sparse file and its journal: every byte accounted for, whatever was written, forgotten, torn or killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from metricgold.download import partial_file as module
from metricgold.download.partial_file import PartialFile
from metricgold.download.ranges import Ranges


def create(path, total_bytes=100):
    return PartialFile.create(path, total_bytes, origin="http://host/a", validator='"1"')


def test_what_was_written_is_there_after_a_resume(tmp_path):
    partial = create(tmp_path / "deep" / "a")
    partial.write(10, b"x" * 10)
    partial.write(0, b"y" * 10)
    partial.write(50, b"z" * 10)
    partial.forget(55, 58)
    partial.add_origin("http://other/a", None)
    partial.close()
    again = PartialFile.resume(tmp_path / "deep" / "a")
    assert (again.prefix, again.total_bytes) == (20, 100)
    assert again.missing([(60, 200), (0, 30), (25, 57)]) == [(20, 50), (55, 57), (60, 100)]
    assert again.read(0, 20) + again.read(50, 55) == b"y" * 10 + b"x" * 10 + b"z" * 5
    assert again.origins == {"http://host/a": '"1"', "http://other/a": None}
    again.remove()
    assert not list((tmp_path / "deep").iterdir())


def test_every_prefix_of_a_journal_is_a_state_that_was(tmp_path):
    """A kill leaves any number of whole lines and perhaps a torn one: never more ranges than were written."""
    partial = create(tmp_path / "a")
    for number in range(5):
        partial.write(20 * number, b"x" * 10)
        partial.forget(20 * number, 20 * number + 2)
    partial.close()
    journal = (tmp_path / "a.have").read_bytes()
    data = (tmp_path / "a").read_bytes()
    for cut in range(len(journal) + 1):
        (tmp_path / "b").write_bytes(data)
        (tmp_path / "b.have").write_bytes(journal[:cut])
        again = PartialFile.resume(tmp_path / "b")
        lines = journal[:cut].count(b"\n")
        if not lines:
            assert again is None
            continue
        missing = 100 - 8 * ((lines - 1) // 2) - (10 if lines % 2 == 0 else 0)
        assert sum(end - start for start, end in again.missing([(0, 100)])) == missing
        again.write(90, b"x")  # behind a torn line, too, the journal stays readable
        again.close()
        assert PartialFile.resume(tmp_path / "b").missing([(90, 91)]) == []


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "\n",
        "[]\n",
        "no json\n",
        '{"total_bytes": 100}\n',
        '{"total_bytes": 99, "origins": {}}\n',
        '{"total_bytes": null, "origins": {}}\n{"have": [0, 9]}\n',
        '{"total_bytes": 100, "origins": {}}\n{"have": [0, 101]}\n',
        '{"total_bytes": 100, "origins": {}}\n{"ha\n{"forget": [0, 9]}\n',
        '{"total_bytes": 100, "origins": {}}\n{"else": 1}\n',
    ],
)
def test_a_journal_that_is_not_ours_is_not_believed(tmp_path, journal):
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "a.have").write_text(journal)
    assert PartialFile.resume(tmp_path / "a") is None


def test_nothing_to_resume(tmp_path):
    assert PartialFile.resume(tmp_path / "a") is None
    create(tmp_path / "a").close()
    (tmp_path / "a").unlink()
    assert PartialFile.resume(tmp_path / "a") is None
    create(tmp_path / "b").close()
    (tmp_path / "b.have").unlink()
    assert PartialFile.resume(tmp_path / "b") is None


def test_an_unknown_size_can_be_resumed_once_it_is_settled(tmp_path):
    partial = create(tmp_path / "a", None)
    partial.write(0, b"abc")
    assert PartialFile.resume(tmp_path / "a") is None
    partial.finish_unknown_length()
    partial.forget(1, 2)
    partial.close()
    assert PartialFile.resume(tmp_path / "a").missing([(0, 9)]) == [(1, 2)]


def test_a_full_disk_is_said_and_the_journal_stays_whole(tmp_path, monkeypatch):
    partial = create(tmp_path / "a")
    partial.write(0, b"x")
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda file, line: write(file, line[:5]))
    with pytest.raises(OSError, match="No space left") as caught:
        partial.write(1, b"y")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    partial.write(2, b"z")
    assert PartialFile.resume(tmp_path / "a").missing([(0, 3)]) == [(1, 2)]


def test_a_view_is_never_touched(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    view = PartialFile.of_local_file(tmp_path / "a", origin="file://a")
    assert (view.prefix, view.missing([(0, 3)]), view.read(1, 3)) == (3, [], b"bc")
    with pytest.raises(OSError):
        view.write(0, b"x")
    view.remove()
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_written_after_close(tmp_path):
    """The number of a closed file may be that of another one by now."""
    partial = create(tmp_path / "a")
    partial.close()
    with (tmp_path / "b").open("w+b") as other:
        for call in (lambda: partial.write(0, b"x"), lambda: partial.forget(0, 1), lambda: partial.read(0, 1)):
            with pytest.raises(OSError):
                call()
        assert other.read() == b""
    partial.close()


def test_a_file_cut_behind_our_back(tmp_path):
    partial = create(tmp_path / "a")
    os.truncate(tmp_path / "a", 5)
    with pytest.raises(OSError, match="bytes 0 to 9 were requested, 5 read"):
        partial.read(0, 9)


def test_many_threads(tmp_path):
    partial = create(tmp_path / "a", 8 * 500)

    def fill(number):
        for place in range(number, 500, 8):
            partial.write(8 * place, b"%08d" % place)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert partial.prefix == 4000
    assert PartialFile.resume(tmp_path / "a").read(0, 4000) == b"".join(b"%08d" % place for place in range(500))


KILLED = """
import sys
from pathlib import Path
from metricgold.download.partial_file import PartialFile
path = Path(sys.argv[1])
partial = PartialFile.resume(path) or PartialFile.create(path, 400_000, origin="o", validator=None)
print(flush=True)
while True:
    for number in range(4000):
        partial.write(100 * number, b"%0100d" % number)
        if number % 3 == 0:
            partial.forget(100 * number, 100 * number + 50)
"""


def test_killed_at_any_moment(tmp_path):
    for pause_s in (0, 0.01, 0.05, 0.1):
        child = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a"], stdout=subprocess.PIPE)
        child.stdout.readline()
        threading.Event().wait(pause_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        partial = PartialFile.resume(tmp_path / "a")
        truth = b"".join(b"%0100d" % number for number in range(4000))
        gaps = Ranges(partial.missing([(0, 400_000)]))
        for start, end in gaps.gaps(0, 400_000):
            assert partial.read(start, end) == truth[start:end]
        partial.close()
    assert json.loads((tmp_path / "a.have").read_text().splitlines()[0])["total_bytes"] == 400_000
