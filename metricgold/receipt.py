"""The rows of a batch job, one for each input: in SQLite while it runs, as JSON lines in the output.

`receipt.jsonl` is written last and sorted by input. Until then `receipt.partial/` holds what is done, at most
FLUSH_SECONDS old; a killed job goes on from there. Nothing here grows in memory with the number of inputs.
"""

import json
import logging
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

from metricgold.buckets import Entry, Folder, S3Prefix
from metricgold.outputs import SUFFIXES

log = logging.getLogger(__name__)

RECEIPT, PARTIAL, SUMMARY = "receipt.jsonl", "receipt.partial/", "summary.json"
FLUSH_SECONDS, FLUSH_ROWS = 5.0, 1000  # what a kill may cost; rows of one part
MAX_REASONS = 10  # kinds of failure in the summary

Row = dict[str, Any]

_SCHEMA = """
pragma journal_mode=off;
pragma synchronous=off;
create table output(key blob primary key, tag text) without rowid;
-- now: whether it is a row of this run; failure: the reason without what is this image's alone
create table row(input blob primary key, line text, status text, failure text, now integer);
-- Never committed: the file ends with the run, and a commit for each row would take most of the time.
begin;
"""


class Receipt:
    """The rows of this run, and of earlier ones as far as they are not yet replaced. For one thread."""

    def __init__(self, sink: Folder | S3Prefix) -> None:
        self.sink = sink
        self.file = tempfile.NamedTemporaryFile(prefix="metricgold-", suffix=".sqlite")  # noqa: SIM115
        self.db = sqlite3.connect(self.file.name, isolation_level=None)
        self.db.executescript(_SCHEMA)
        self.run = uuid.uuid4().hex[:8]  # a job whose output was taken over overwrites no part of the other's
        self.parts: list[str] = []
        self.growing: str | None = None  # the last of them, until it is full
        self.lines: list[str] = []  # of that one
        self.is_saved, self.saved_at = True, time.monotonic()

    def close(self) -> None:
        """Save what is not saved yet, as a broken run leaves it."""
        try:
            if not self.is_saved:
                self.flush()
        finally:
            self.db.close()
            self.file.close()

    # --- earlier runs

    def load_previous(self) -> None:
        """Take over the receipt of the last whole run, then what a broken run after it has saved.

        Raises ValueError naming a receipt that holds anything else.
        """
        found = takewhile(lambda key: key.startswith(PARTIAL), (entry.key for entry in self.sink.list(after=PARTIAL)))
        self.parts = list(found)
        written = [RECEIPT] * self.sink.exists(RECEIPT) + self.parts
        for key in written:
            for line in self.sink.lines(key):
                self._take_over(key, line)
        if written:  # otherwise there is no row that could name them
            self.db.executemany("replace into output values (?, ?)", self._outputs())

    def _outputs(self) -> Iterator[tuple[bytes, str]]:
        suffixes = tuple(SUFFIXES.values())
        return ((_blob(entry.key), entry.tag) for entry in self.sink.list() if entry.key.endswith(suffixes))

    def _take_over(self, key: str, line: bytes) -> None:
        try:
            row = json.loads(line)
            status, input = row["status"], _blob(row["input"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.sink}: {key} holds a line that is no row; move it away: {line[:80]!r}") from error
        if status == "done":
            self.db.execute("replace into row values (?, ?, ?, null, 0)", [input, line.decode().rstrip(), status])

    def keep(self, entry: Entry, identity: str, kinds: Iterable[str]) -> bool:
        """Take the row of an earlier run into this one if it holds still; whether it does.

        It holds if identity and the input's tag are equal and outputs of all these kinds lie there as it left them.
        Outputs of other kinds that are gone meanwhile, or are something else, are no longer named.
        """
        found = self.db.execute("select line from row where input = ? and not now", [_blob(entry.key)]).fetchone()
        row = json.loads(found[0]) if found else {}
        if (row.get("identity"), row.get("input_tag")) != (identity, entry.tag):
            return False
        lying = {kind: file for kind, file in row["outputs"].items() if self._lies_there(file)}
        if not lying.keys() >= set(kinds):
            return False
        if lying == row["outputs"]:
            self.db.execute("update row set now = 1 where input = ?", [_blob(entry.key)])
        else:
            self._put(_without_lost(row, lying))
        return True

    def _lies_there(self, file: Row) -> bool:
        found = self.db.execute("select tag from output where key = ?", [_blob(file["key"])]).fetchone()
        return found == (file["tag"],)

    # --- this run

    def add(self, row: Row) -> None:
        """Take a row of this run."""
        self.lines.append(self._put(row))
        self.is_saved = False
        if len(self.lines) >= FLUSH_ROWS or time.monotonic() - self.saved_at > FLUSH_SECONDS:
            self.flush()

    def _put(self, row: Row) -> str:
        line = json.dumps(row, sort_keys=True, allow_nan=False)
        values = [_blob(row["input"]), line, row["status"], _failure(row)]
        self.db.execute("replace into row values (?, ?, ?, ?, 1)", values)
        return line

    def flush(self) -> None:
        """Save the rows of this run that are not saved yet, in a part that grows until it is full."""
        if self.growing is None:
            number = int(self.parts[-1].removeprefix(PARTIAL)[:8]) + 1 if self.parts else 0
            self.growing = f"{PARTIAL}{number:08d}-{self.run}.jsonl"
            self.parts.append(self.growing)
        data = "".join(line + "\n" for line in self.lines).encode()
        self.sink.write(self.growing, data, "application/jsonl", durable=True)
        if len(self.lines) >= FLUSH_ROWS:
            self.growing, self.lines = None, []
        self.is_saved, self.saved_at = True, time.monotonic()

    def reasons(self) -> dict[str, int]:
        """The commonest reasons of failure in this run, with how many images each has cost."""
        query = "select failure, count(*) from row where now and failure is not null group by 1 order by 2 desc, 1"
        return dict(self.db.execute(f"{query} limit {MAX_REASONS}"))

    def done_inputs(self) -> Iterator[str]:
        """Inputs with depth, in no order."""
        for (input,) in self.db.execute("select input from row where now and status = 'done'"):
            yield _text(input)

    def troubles(self) -> Iterator[Row]:
        """Rows of this run without depth."""
        for (line,) in self.db.execute("select line from row where now and status != 'done' order by input"):
            yield json.loads(line)

    def row(self, input: str) -> Row:
        """The row of one input of this run."""
        (line,) = self.db.execute("select line from row where now and input = ?", [_blob(input)]).fetchone()
        return json.loads(line)

    def finish(self, summary: Row) -> None:
        """Write the summary, then the receipt, sorted by input; then drop the partial one."""
        self.sink.write(SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode(), "application/json")
        with tempfile.TemporaryFile() as file:
            for (line,) in self.db.execute("select line from row where now order by input"):
                file.write(line.encode() + b"\n")
            file.seek(0)
            self.sink.write(RECEIPT, file, "application/jsonl", durable=True)
        self.is_saved = True
        try:
            for key in (*self.parts, PARTIAL.rstrip("/")):
                self.sink.delete(key)
        except OSError as error:  # what they say is in the receipt too
            log.warning("%s of %s is left: %s", PARTIAL, self.sink, error)


def _without_lost(row: Row, lying: Row) -> Row:
    """The row naming only the files that lie there; without a depth file if that one is lost."""
    lost = row["output"] not in [file["key"] for file in lying.values()]
    return {**row, "outputs": lying, **({"output": None, "sha256": None} if lost else {})}


def _failure(row: Row) -> str | None:
    """What rows that failed alike share: their reason without names and numbers."""
    if row["status"] != "failed":
        return None
    return re.sub(r"\b\d+|(?<=\dx)\d+", "N", row["reason"].replace(row["input"], "...").removeprefix("...: "))


def _blob(key: str) -> bytes:
    # File names may hold bytes that are no UTF-8; bytes also sort as S3 sorts.
    return key.encode("utf-8", "surrogateescape")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogateescape")
