"""The rows of a batch job, one for each input: in SQLite while it runs, as JSON lines in the output.

`receipt.jsonl` is written last and sorted by input. Until then `receipt.partial/` holds what is done, at most
FLUSH_SECONDS old; a killed job goes on from there. Rows of inputs that a run does not list stay known in
`receipt.earlier.jsonl`. Nothing here grows in memory with the number of inputs.
"""

import json
import logging
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from typing import Any

from metricgold.predict.outputs import SUFFIXES
from metricgold.storage import Folder, S3Prefix, StoredObject, remove_left_aside

log = logging.getLogger(__name__)

RECEIPT, EARLIER, PARTIAL, SUMMARY = "receipt.jsonl", "receipt.earlier.jsonl", "receipt.partial/", "summary.json"
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


@contextmanager
def open_receipt(sink: Folder | S3Prefix) -> Iterator["Receipt"]:
    """The receipt of a run, saved as far as it goes if the run breaks off. OSError where no row finds room."""
    try:
        with closing(Receipt(sink)) as receipt:
            yield receipt
    except (KeyboardInterrupt, SystemExit):
        log.warning("stopped; what is done is saved, and the same job goes on")
        raise
    except sqlite3.OperationalError as error:
        raise OSError(f"rows wait in a temporary file, in the folder TMPDIR if it is set: {error}") from error


class Receipt:
    """The rows of this run, and of earlier ones as far as they are not yet replaced. For one thread."""

    def __init__(self, sink: Folder | S3Prefix) -> None:
        self.sink = sink
        self.db = sqlite3.connect("", isolation_level=None)  # a temporary file without a name: a kill leaves none
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

    # --- earlier runs

    def load_previous(self) -> None:
        """Take over what whole runs have left, then what a broken run after them has saved.

        Raises ValueError naming a receipt that holds anything else.
        """
        found = takewhile(
            lambda key: key.startswith(PARTIAL), (entry.key for entry in self.sink.entries(after=PARTIAL))
        )
        self.parts = list(found)
        written = [key for key in (EARLIER, RECEIPT) if self.sink.exists(key)] + self.parts
        for key in written:
            for line in self.sink.lines(key):
                self._take_over(key, line)
        if written:  # otherwise there is no row that could name them
            if isinstance(self.sink, Folder):
                remove_left_aside(self.sink.root)
            self.db.executemany("replace into output values (?, ?)", self._outputs())

    def _outputs(self) -> Iterator[tuple[bytes, str]]:
        suffixes = tuple(SUFFIXES.values())
        return ((_blob(entry.key), entry.tag) for entry in self.sink.entries() if entry.key.endswith(suffixes))

    def _take_over(self, key: str, line: bytes) -> None:
        try:
            row = json.loads(line)
            status, input = row["status"], _blob(row["input"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.sink}: {key} holds a line that is no row; move it away: {line[:80]!r}") from error
        if status in ("done", "skipped"):  # what failed is tried again
            self.db.execute("replace into row values (?, ?, ?, null, 0)", [input, line.decode().rstrip(), status])

    def keep(self, entry: StoredObject, identity: str, kinds: Iterable[str]) -> str | None:
        """Take the row of an earlier run into this one if it holds still; as what it counts: `kept` or `skipped`.

        It holds if identity and the input's tag are equal and, of an image, outputs of all these kinds lie there as it
        left them. Outputs of other kinds that are gone meanwhile, or are something else, are no longer named.
        """
        row = self._earlier(entry.key, entry.tag, identity)
        lying = self._lying(row)
        if row is None:
            return None
        if row["status"] == "done" and not lying.keys() >= set(kinds):
            return None
        if lying == row.get("outputs", {}):
            self.db.execute("update row set now = 1 where input = ?", [_blob(entry.key)])
        else:
            self._put(_without_lost(row, lying))
        return "kept" if row["status"] == "done" else "skipped"

    def _earlier(self, input: str, tag: str, identity: str) -> Row | None:
        """The row of an earlier run, if it was made of the same bytes in the same way."""
        found = self.db.execute("select line from row where input = ? and not now", [_blob(input)]).fetchone()
        row = json.loads(found[0]) if found else {}
        return row if (row.get("identity"), row.get("input_tag")) == (identity, tag) else None

    def _lying(self, row: Row | None) -> Row:
        return {kind: file for kind, file in (row or {}).get("outputs", {}).items() if self._lies_there(file)}

    def _lies_there(self, file: Row) -> bool:
        found = self.db.execute("select tag from output where key = ?", [_blob(file["key"])]).fetchone()
        return found == (file["tag"],)

    # --- this run

    def add(self, row: Row) -> None:
        """Take a row of this run. Outputs of other kinds that an equal run has left there are named in it too."""
        earlier = self._earlier(row["input"], row["input_tag"], row["identity"])
        if earlier and row["status"] == earlier["status"] == "done":
            row = _with_earlier(row, earlier, self._lying(earlier))
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
        """Write the summary, then the receipt, sorted by input; then drop the partial one.

        Rows of inputs that this run did not list go beside it as long as files of theirs lie there, so that a job over
        a part of the inputs does not make the next one over all of them begin anew.
        """
        self.sink.write(SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode(), "application/json")
        self._write_lines(EARLIER, (line for line in self._lines(now=False) if self._lying(json.loads(line))))
        self._write_lines(RECEIPT, self._lines(now=True))
        self.is_saved = True
        try:
            for key in (*self.parts, PARTIAL.rstrip("/")):
                self.sink.delete(key)
        except OSError as error:  # what they say is in the receipt too
            log.warning("%s of %s is left: %s", PARTIAL, self.sink, error)

    def _lines(self, *, now: bool) -> Iterator[str]:
        return (line for (line,) in self.db.execute("select line from row where now = ? order by input", [now]))

    def _write_lines(self, key: str, lines: Iterable[str]) -> None:
        """Write an object of lines; without any only where there is one to replace."""
        with tempfile.TemporaryFile() as file:
            file.writelines(line.encode() + b"\n" for line in lines)
            if file.tell() or self.sink.exists(key):
                file.seek(0)
                self.sink.write(key, file, "application/jsonl", durable=True)


def _without_lost(row: Row, lying: Row) -> Row:
    """The row naming only the files that lie there; without a depth file if that one is lost."""
    lost = row["output"] not in [file["key"] for file in lying.values()]
    return {**row, "outputs": lying, **({"output": None, "sha256": None} if lost else {})}


def _with_earlier(row: Row, earlier: Row, lying: Row) -> Row:
    """The row naming also what an earlier one left; its depth file, if the row has none."""
    others = {kind: file for kind, file in lying.items() if kind not in row["outputs"]}
    rewritten = earlier["output"] in [file["key"] for file in row["outputs"].values()]
    if rewritten and earlier["sha256"] != row["sha256"]:
        others.pop("json", None)  # it speaks of the bytes that were there before
    same = _without_lost(earlier, others)
    depth = row if row["output"] else same
    return {**row, "outputs": {**others, **row["outputs"]}, "output": depth["output"], "sha256": depth["sha256"]}


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
