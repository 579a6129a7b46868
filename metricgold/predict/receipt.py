"""The rows of a batch job, one for each input: in SQLite while it runs, as JSON lines in the output.

`receipt.jsonl` is written last and sorted by input. Until then `receipt.partial/` holds the finished rows, at most
FLUSH_SECONDS behind; a killed job resumes from there. Rows of inputs that a run does not list are kept in
`receipt.earlier.jsonl`. Of both files blocks of rows in which nothing has changed are kept as bytes, unread
(metricgold.predict.row_blocks); only their index is in memory, some 20 bytes a row.
"""

import json
import logging
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from heapq import merge, nsmallest
from itertools import chain, takewhile
from operator import itemgetter
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, Required, TypedDict

from metricgold.params import Output
from metricgold.predict.outputs import SUFFIXES, ImageFacts
from metricgold.predict.row_blocks import (
    Block,
    RowFile,
    RowWriter,
    State,
    blob,
    digest_run,
    entries_apart,
    index_of,
    sample_rank,
)
from metricgold.storage import Folder, S3Prefix, StoredObject, parse_json, remove_left_aside

log = logging.getLogger(__name__)

RECEIPT, EARLIER, PARTIAL, SUMMARY = "receipt.jsonl", "receipt.earlier.jsonl", "receipt.partial/", "summary.json"
FLUSH_SECONDS, FLUSH_ROWS = 5.0, 1000  # what a kill may cost; rows of one part
STEPS = ("read", "model", "write")  # of an image, whose seconds a row has
MAX_REASONS = 10  # kinds of failure in the summary


class OutputFile(TypedDict):
    """A file of an image: its key in the output, and its tag when it was written."""

    key: str
    tag: str


OutputFiles = dict[Output, OutputFile]


class ReceiptRow(ImageFacts, total=False):
    """One line of the receipt: what became of one input.

    Rows of images that failed or were skipped have no facts and no outputs; rows of earlier versions may lack any key
    that is not required.
    """

    status: Required[Literal["done", "failed", "skipped"]]
    reason: str | None  # None for images that are done
    seconds: dict[str, float]  # that reading, the model and writing took
    finished: str  # ISO 8601 in UTC
    output: str | None  # key of the depth file
    sha256: str | None  # of the depth file
    outputs: OutputFiles  # every file by its kind
    unlikeness: float | None  # of the image to held-out frames of the training
    stale: list[OutputFile]  # files that an earlier, other run has left beside them


class RunFigures(TypedDict):
    """Of the images that one run predicted; None where none has the figure."""

    images: int
    depth_median_m: float | None  # median of the images' medians
    uncertainty_median: float | None  # likewise, relative
    unlikeness_median: float | None  # likewise, to held-out frames of the training: 1 for typical ones
    share_assumed: float  # of images whose camera is not known


def without_lost_outputs(row: ReceiptRow, present: OutputFiles) -> ReceiptRow:
    """The row naming only the files that are present; without a depth file if that one is lost."""
    named: ReceiptRow = {**row, "outputs": present}
    if row.get("output") not in [file["key"] for file in present.values()]:
        named["output"] = named["sha256"] = None
    return named


def with_earlier_outputs(row: ReceiptRow, earlier: ReceiptRow, present: OutputFiles) -> ReceiptRow:
    """The row of an image that names also the files an equal, earlier run has left; its depth file, if row has none.

    present  the files of `earlier` that still are as it left them
    """
    others = {kind: file for kind, file in present.items() if kind not in row["outputs"]}
    rewritten = earlier.get("output") in [file["key"] for file in row["outputs"].values()]
    if rewritten and earlier.get("sha256") != row["sha256"]:
        others.pop("json", None)  # this side-car describes the bytes that were there before
    depth = row if row["output"] else without_lost_outputs(earlier, others)
    return {
        **row,
        "outputs": {**others, **row["outputs"]},
        "output": depth.get("output"),
        "sha256": depth.get("sha256"),
    }


def read_row(line: bytes, name: str) -> ReceiptRow:
    """A line of a receipt, which anybody may have written. ValueError led by the receipt's name for another line."""
    try:
        row: ReceiptRow = parse_json(line, name)
        texts = [row["input"], row.get("reason") or "", row.get("output") or ""]
        for file in (*row.get("outputs", {}).values(), *row.get("stale", [])):
            texts += [file["key"], file["tag"]]
        blob("".join(texts))
        if row["status"] not in ("done", "failed", "skipped"):
            raise ValueError(row["status"])
        return row
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} holds a line that is not a row; move it away: {line[:80]!r}") from error


def failure_of(row: ReceiptRow) -> str | None:
    """The reason of a failure without names and numbers, which rows that failed alike share; None for other rows."""
    if row["status"] != "failed":
        return None
    reason = row["reason"] or ""
    return re.sub(r"\b\d+|(?<=\dx)\d+", "N", reason.replace(row["input"], "...").removeprefix("...: "))


_SCHEMA = """
pragma journal_mode=off;
pragma synchronous=off;
create table output(key blob primary key, tag text) without rowid;
-- now: 1 for a row of this run, 2 for one that it kept, -1 for one of EARLIER, else 0
-- failure: the reason without what is this image's alone
-- was_earlier: 1 where EARLIER has a row of this input
create table row(input blob primary key, line text, status text, failure text, now integer, was_earlier integer);
-- Never committed: the file ends with the run, and a commit for each row would take most of the time.
begin;
"""
_TAKE = """
insert into row values (?, ?, ?, ?, ?, ?) on conflict(input) do update
set line = excluded.line, status = excluded.status, failure = excluded.failure, now = excluded.now
where now <= excluded.now
"""
_PUT = """
replace into row values (?, ?, ?, ?, ?, coalesce((select was_earlier from row where input = ?), 0))
"""


@contextmanager
def open_receipt(sink: Folder | S3Prefix) -> Iterator["Receipt"]:
    """The receipt of a run; what is done is saved if the run breaks off. OSError where rows do not fit on the disk."""
    try:
        with closing(Receipt(sink)) as receipt:
            yield receipt
    except (KeyboardInterrupt, SystemExit):
        log.warning("stopped; what is done is saved, and the same job resumes")
        raise
    except sqlite3.OperationalError as error:
        raise OSError(f"rows wait in a temporary file, in the folder TMPDIR if it is set: {error}") from error


class Receipt:
    """The rows of this run, and those of earlier runs that it has not yet replaced. For one thread."""

    def __init__(self, sink: Folder | S3Prefix) -> None:
        self.sink = sink
        self.db = sqlite3.connect("", isolation_level=None)  # a temporary file without a name: a kill leaves none
        self.db.executescript(_SCHEMA)
        self.run = uuid.uuid4().hex[:8]  # so that a job which lost its output to another overwrites no part of it
        self.parts: list[str] = []
        self.growing: str | None = None  # the last of them, until it is full
        self.lines: list[str] = []  # of that one
        self.is_saved, self.saved_at = True, time.monotonic()
        self.files: dict[str, RowFile] = {}  # of earlier runs

    def close(self) -> None:
        """Save the rows that are not saved yet, as a broken run leaves them."""
        try:
            if not self.is_saved:
                self.flush()
        finally:
            self.db.close()

    # --- earlier runs

    def load_previous(self) -> None:
        """Take over the rows of complete runs, then those that a broken run after them has saved.

        Raises ValueError naming a receipt that holds anything else.
        """
        keys = (entry.key for entry in self.sink.entries(after=PARTIAL))
        self.parts = list(takewhile(lambda key: key.startswith(PARTIAL), keys))
        self.files = {key: RowFile(self.sink, key) for key in (EARLIER, RECEIPT)}
        for file in self.files.values():
            if file.tag and not file.blocks:
                for line in self.sink.lines(file.key):
                    self._take(line, file.key)
        if any(file.tag for file in self.files.values()) or self.parts:  # otherwise no row names a file
            if isinstance(self.sink, Folder):
                remove_left_aside(self.sink.root)
            self._list_outputs()
        for part in self.parts:
            for line in self.sink.lines(part):
                self._take(line, part)

    def _take(self, line: bytes, source: str, *, is_kept: bool = False) -> ReceiptRow:
        """Take over a row from a file of the output, unless a later one is known. ValueError for anything else."""
        row = read_row(line, f"{self.sink}: {source}")
        if source.startswith(PARTIAL):
            self._open_at(row["input"])  # its rows are older than this one
        was_earlier = source == EARLIER
        now = 2 if is_kept else -was_earlier
        values = [blob(row["input"]), line.decode().rstrip(), row["status"], failure_of(row), now, was_earlier]
        self.db.execute(_TAKE, values)
        return row

    def _blocks(self, state: State) -> list[Block]:
        """Blocks in this state, in the order of their inputs."""
        blocks = (block for file in self.files.values() for block in file.blocks if block.state is state)
        return sorted(blocks, key=lambda block: blob(block.facts.first))

    def _open_at(self, key: str) -> None:
        for file in self.files.values():
            if (block := file.block_at(key)) is not None:
                self._open(block)

    def _open(self, block: Block) -> None:
        """Let the rows of a block stand for themselves: one of them is asked for, or has changed."""
        if block.state is State.OPEN:
            return
        is_kept, block.state = block.state is State.WHOLE, State.OPEN
        for line in block.lines():
            row = self._take(line, block.source.key, is_kept=is_kept)
            if block.holds:
                files = [*row.get("outputs", {}).values(), *row.get("stale", [])]
                self._hold_outputs((file["key"], file["tag"]) for file in files)

    def _list_outputs(self) -> None:
        """Look which files are there. Those of a block that are as its rows name them are not held one by one."""
        self.db.execute("delete from output")
        suffixes = tuple(SUFFIXES.values())
        starts = {}
        for block in (*self._blocks(State.UNSEEN), *self._blocks(State.WHOLE)):
            block.holds = not block.facts.num_files
            if block.facts.num_files:
                starts[block.facts.first_file] = block

        def holds(block: Block, run: list[StoredObject]) -> bool:
            block.holds = len(run) == block.facts.num_files and digest_run(run) == block.facts.files
            return block.holds

        listed = (entry for entry in self.sink.entries() if entry.key.endswith(suffixes))
        apart = entries_apart(listed, starts, lambda block: block.facts.num_files, holds)
        self._hold_outputs((entry.key, entry.tag) for entry in apart)

    def _hold_outputs(self, files: Iterable[tuple[str, str]]) -> None:
        self.db.executemany("replace into output values (?, ?)", ((blob(key), tag) for key, tag in files))

    def kept_apart(
        self, entries: Iterable[StoredObject], identity: str, kinds: Iterable[str], count: Callable[[str, int], None]
    ) -> Iterator[StoredObject]:
        """The entries that are not in a block of rows which all still hold; such blocks are kept and counted."""

        def holds(block: Block, run: list[StoredObject]) -> bool:
            facts = block.facts
            if block.state is not State.UNSEEN or digest_run(run) != facts.inputs:
                return False
            block.state = State.WHOLE
            for word, num in (("kept", facts.num_done), ("skipped", facts.num_skipped)):
                if num:
                    count(word, num)
            return True

        wanted = set(kinds)
        starts = {
            block.facts.first: block
            for block in self._blocks(State.UNSEEN)
            if block.holds
            and block.facts.identity == identity
            and (not block.facts.num_done or wanted.issubset(block.facts.kinds))
        }
        return entries_apart(entries, starts, lambda block: block.facts.num_done + block.facts.num_skipped, holds)

    def keep(self, entry: StoredObject, identity: str, kinds: Iterable[str]) -> str | None:
        """Take the row of an earlier run into this one if it still holds; returns what it counts as: kept or skipped.

        It holds if identity and the input's tag are equal and, for an image, its outputs of all these kinds are as it
        left them. Outputs of other kinds that are gone or changed since are dropped from the row.
        """
        row = self._earlier(entry.key, entry.tag, identity)
        if row is None or row["status"] == "failed":
            return None
        present = self._present_outputs(row)
        if row["status"] == "done" and not present.keys() >= set(kinds):
            return None
        stale = [file for file in row.get("stale", []) if self._is_present(file)]
        if (present, stale) == (row.get("outputs", {}), row.get("stale", [])):
            self.db.execute("update row set now = 2 where input = ?", [blob(entry.key)])
        else:
            self._put({**without_lost_outputs(row, present), "stale": stale}, kept=True)
        return "kept" if row["status"] == "done" else "skipped"

    def has_failed(self, entry: StoredObject, identity: str) -> bool:
        """Whether an earlier run has tried these bytes in this way in vain."""
        row = self._earlier(entry.key, entry.tag, identity)
        return row is not None and row["status"] == "failed"

    def keep_failed(self, entry: StoredObject) -> None:
        """Take the row of an image that an earlier run has tried in vain into this run, which does not try it."""
        row = self._previous(entry.key)
        if row is not None:
            stale = [file for file in row.get("stale", []) if self._is_present(file)]
            self._put({**row, "stale": stale} if row.get("stale") else row, kept=True)

    def _earlier(self, key: str, tag: str, identity: str) -> ReceiptRow | None:
        """The row of an earlier run, if it was made from the same bytes in the same way."""
        row = self._previous(key)
        return row if row and (row.get("identity"), row.get("input_tag")) == (identity, tag) else None

    def _previous(self, key: str) -> ReceiptRow | None:
        """The row of an earlier run, however it was made."""
        self._open_at(key)
        found = self.db.execute("select line from row where input = ? and now <= 0", [blob(key)]).fetchone()
        row: ReceiptRow | None = found and json.loads(found[0])
        return row

    def _present_outputs(self, row: ReceiptRow) -> OutputFiles:
        """The files of a row that are in the output as the row's run has left them."""
        return {kind: file for kind, file in row.get("outputs", {}).items() if self._is_present(file)}

    def _is_present(self, file: OutputFile) -> bool:
        query = "select tag from output where key = ?"
        return bool(self.db.execute(query, [blob(file["key"])]).fetchone() == (file["tag"],))

    def _stale_beside(self, row: ReceiptRow) -> list[OutputFile]:
        """The files of an earlier row of this input that `row` does not name, as long as they are there."""
        previous = self._previous(row["input"])
        if previous is None:
            return []
        named = {file["key"] for file in row.get("outputs", {}).values()}
        left = {file["key"]: file for file in (*previous.get("stale", []), *previous.get("outputs", {}).values())}
        return [file for key, file in left.items() if key not in named and self._is_present(file)]

    # --- this run

    def add(self, row: ReceiptRow) -> None:
        """Take a row of this run. It names also the files of an equal run, and as stale those of an other one."""
        earlier = self._earlier(row["input"], row["input_tag"], row["identity"])
        if earlier and row["status"] == earlier["status"] == "done":
            row = with_earlier_outputs(row, earlier, self._present_outputs(earlier))
        if stale := self._stale_beside(row):
            row = {**row, "stale": stale}
        self.lines.append(self._put(row))
        self.is_saved = False
        if len(self.lines) >= FLUSH_ROWS or time.monotonic() - self.saved_at > FLUSH_SECONDS:
            self.flush()

    def _put(self, row: ReceiptRow, *, kept: bool = False) -> str:
        """Replace the row of an input; returns its line."""
        line = json.dumps(row, sort_keys=True, allow_nan=False)
        values = [blob(row["input"]), line, row["status"], failure_of(row), 1 + kept, blob(row["input"])]
        self.db.execute(_PUT, values)
        return line

    def overwritten(self) -> list[tuple[ReceiptRow, Literal["done", "kept"]]]:
        """Rows of this run whose files are not all in the output as they name them, and how each was counted."""
        self._list_outputs()
        for block in self._blocks(State.WHOLE):
            if not block.holds:
                self._open(block)
        rows = ((json.loads(line), now) for line, now in self.db.execute("select line, now from row where now > 0"))
        return [
            (row, "done" if now == 1 else "kept")
            for row, now in rows
            if self._present_outputs(row) != row.get("outputs", {})
        ]

    def flush(self) -> None:
        """Save the rows of this run that are not saved yet, in a part that grows until it is full."""
        if self.growing is None:
            self.growing = self._new_part()
        data = "".join(line + "\n" for line in self.lines).encode()
        if self.lines:
            self._sync_outputs()
        self.sink.write(self.growing, data, "application/jsonl", durable=True)
        if len(self.lines) >= FLUSH_ROWS:
            self.growing, self.lines = None, []
        self.is_saved, self.saved_at = True, time.monotonic()

    def _new_part(self) -> str:
        number = int(self.parts[-1].removeprefix(PARTIAL)[:8]) + 1 if self.parts else 0
        self.parts.append(f"{PARTIAL}{number:08d}-{self.run}.jsonl")
        return self.parts[-1]

    def _save_moving(self) -> None:
        """Save rows that leave EARLIER for the receipt in a part: a kill after the one is written would lose them."""
        blocks = (block for block in self._blocks(State.WHOLE) if block.source.key == EARLIER)
        of_blocks = (line.rstrip() for block in blocks for line in block.lines())
        alone = self.db.execute("select line from row where now > 0 and was_earlier")
        with TemporaryFile() as file:
            file.writelines(line + b"\n" for line in chain(of_blocks, (line.encode() for (line,) in alone)))
            if file.tell():
                file.seek(0)
                self.sink.write(self._new_part(), file, "application/jsonl", durable=True)

    def _sync_outputs(self) -> None:
        """Files to the disk, before rows say that they are there: after a power cut that must still be true."""
        was_saved, self.is_saved = self.is_saved, True  # where this fails, `close` saves none of these rows
        self.sink.sync()
        self.is_saved = was_saved

    def reasons(self) -> dict[str, int]:
        """The commonest reasons of failure in this run, with how many images each has cost."""
        query = "select failure, count(*) from row where now > 0 and failure is not null group by 1 order by 2 desc, 1"
        return dict(self.db.execute(f"{query} limit {MAX_REASONS}"))

    def figures(self) -> RunFigures:
        """Of the images that this run predicted."""
        done = "from row where now = 1 and status = 'done'"

        def middle(path: str) -> float | None:
            (count,) = self.db.execute(f"select count(json_extract(line, ?)) {done}", [path]).fetchone()
            query = f"select json_extract(line, ?) as value {done} and value is not null order by 1 limit ? offset ?"
            around = self.db.execute(query, [path, 2 - count % 2, max(0, count - 1) // 2]).fetchall()
            return sum(value for (value,) in around) / len(around) if around else None

        assumed = "coalesce(avg(json_extract(line, '$.focal_reason') is not null), 0.0)"
        count, share = self.db.execute(f"select count(*), {assumed} {done}").fetchone()
        return {
            "images": count,
            "depth_median_m": middle("$.median_m"),
            "uncertainty_median": middle("$.uncertainty_median"),
            "unlikeness_median": middle("$.unlikeness"),
            "share_assumed": share,
        }

    def seconds_by_step(self) -> dict[str, float]:
        """Seconds that reading, the model and writing took for the images of this run, all threads together."""
        query = "select round(total(json_extract(line, ?)), 3) from row where now = 1"
        return {step: self.db.execute(query, [f"$.seconds.{step}"]).fetchone()[0] for step in STEPS}

    def sample(self, limit: int) -> dict[str, ReceiptRow]:
        """Rows of the images with depth that are first by sample_rank, by input."""
        table = self.db.execute("select input from row where now > 0 and status = 'done'")
        with_images = (block for block in self._blocks(State.WHOLE) if block.facts.num_done)
        blocks = nsmallest(limit, with_images, key=lambda block: block.facts.rank)  # no other can hold one of them
        rows = (row for block in blocks for row in self._rows(block))
        of_blocks: dict[str, ReceiptRow] = {row["input"]: row for row in rows if row["status"] == "done"}
        keys = chain((key.decode("utf-8", "surrogateescape") for (key,) in table), of_blocks)
        return {key: of_blocks.get(key) or self.row(key) for key in nsmallest(limit, keys, key=sample_rank)}

    def _rows(self, block: Block) -> list[ReceiptRow]:
        return [read_row(line, f"{self.sink}: {block.source.key}") for line in block.lines()]

    def troubles(self) -> Iterator[ReceiptRow]:
        """Rows of this run without depth: those that failed, then those that were skipped."""
        without = "select input, line from row where now > 0 and status = ? order by input"
        for _, line in self.db.execute(without, ["failed"]):
            yield json.loads(line)
        blocks = (block for block in self._blocks(State.WHOLE) if block.facts.num_skipped)
        of_blocks = (row for block in blocks for row in self._rows(block))
        skipped = ((blob(row["input"]), row) for row in of_blocks if row["status"] == "skipped")
        alone = ((key, json.loads(line)) for key, line in self.db.execute(without, ["skipped"]))
        for _, row in merge(skipped, alone, key=itemgetter(0)):
            yield row

    def row(self, key: str) -> ReceiptRow:
        """The row of one input of this run."""
        (line,) = self.db.execute("select line from row where now > 0 and input = ?", [blob(key)]).fetchone()
        row: ReceiptRow = json.loads(line)
        return row

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, then the receipt, sorted by input; then drop the partial one.

        Rows of inputs that this run did not list are stored beside it while any of their files is present, so that
        after a job over a part of the inputs the next one over all of them keeps the rest.
        """
        self.sink.write(SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode(), "application/json")
        self._sync_outputs()
        with TemporaryFile() as earlier, TemporaryFile() as receipt:
            # Both before either is replaced: rows move from one to the other.
            writers = {EARLIER: self._compose(EARLIER, earlier), RECEIPT: self._compose(RECEIPT, receipt)}
            self._save_moving()
            for key, writer in writers.items():
                if writer is not None and (writer.at or self.sink.exists(key)):
                    writer.file.seek(0)
                    tag = self.sink.write(key, writer.file, "application/jsonl", durable=True)
                    self.sink.write(index_of(key), writer.index(tag), "application/jsonl")
        self.is_saved = True
        try:
            for key in (*self.parts, PARTIAL.rstrip("/")):
                self.sink.delete(key)
        except OSError as error:  # their rows are in the receipt too
            log.warning("%s of %s is left: %s", PARTIAL, self.sink, error)

    def _compose(self, key: str, file: BinaryIO) -> RowWriter | None:
        """Write into a file what `key` is to hold: rows of this run, or of inputs that it has not listed.

        None where it holds that already.
        """
        of_this_run = key == RECEIPT
        blocks = self._carried(of_this_run=of_this_run)
        rows = self.db.execute("select input, line from row where (now > 0) = ? order by input", [of_this_run])
        first, earlier = rows.fetchone(), self.files.get(key)
        if first is None and earlier is not None and blocks == earlier.blocks and (blocks or earlier.tag is None):
            return None
        writer = RowWriter(file)
        lines = ((name, line) for name, line in chain([first] if first else [], rows))
        if not of_this_run:
            lines = ((name, line) for name, line in lines if self._present_outputs(json.loads(line)))
        for _, item in merge(((blob(block.facts.first), block) for block in blocks), lines, key=itemgetter(0)):
            if isinstance(item, Block):
                writer.carry(item)
            else:
                writer.add(item.encode() + b"\n")
        writer.close()
        return writer

    def _carried(self, *, of_this_run: bool) -> list[Block]:
        """Blocks that go into a file as they are; the others that belong there are opened, also where two overlap."""
        state = State.WHOLE if of_this_run else State.UNSEEN
        carried: list[Block] = []
        for block in self._blocks(state):
            facts = block.facts
            if not of_this_run and (not block.holds or facts.identity is None or facts.num_skipped):
                self._open(block)  # rows without files are dropped
            elif carried and blob(facts.first) <= blob(carried[-1].facts.last):
                self._open(carried.pop())
                self._open(block)
            else:
                carried.append(block)
        among = "select 1 from row where (now > 0) = ? and input between ? and ? limit 1"
        for block in carried:
            if self.db.execute(among, [of_this_run, blob(block.facts.first), blob(block.facts.last)]).fetchone():
                self._open(block)
        return [block for block in carried if block.state is state]
