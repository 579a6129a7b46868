"""Rows of a receipt in blocks, so that a run keeps most of them without reading one.

Beside a file of rows lies its index, a hidden file. It says where each block of rows is, and holds digests of what the
listings of input and output show as long as none of its rows has changed. A block that is found unchanged is kept
whole, as bytes; rows of any other are looked at one by one. The index only saves time: one that does not belong to the
very bytes beside it is not used.
"""

import hashlib
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import islice, pairwise
from typing import Any, BinaryIO, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from metricgold.storage import Folder, S3Prefix, StoredObject

BLOCK_ROWS = 64  # fewer where rows join or leave; up to twice as many
WINDOW_BYTES = 1 << 20  # of a file of rows, read at once
T = TypeVar("T")
Run = list[StoredObject]


def index_of(key: str) -> str:
    """Key of the index beside a file of rows."""
    return f".{key}.index"


def blob(key: str) -> bytes:
    """A key as bytes, as files of rows are sorted. File names may hold bytes that are not UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def sample_rank(key: str) -> int:
    """The place of an image in line for the gallery, whose sample are the lowest ranks."""
    # sha256: the same order in every process and on every machine
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8])


def digest_run(run: Iterable[tuple[str, int, str]]) -> str:
    """Digest of the keys and tags of listed objects. Sizes are in the tags, or follow from the bytes."""
    keys, _, tags = zip(*run, strict=True)
    text = "\0".join(keys) + "\0\0" + "\0".join(tags)
    return hashlib.blake2b(blob(text), digest_size=16).hexdigest()


class BlockFacts(NamedTuple):
    """What an index says of a block.

    identity  of all rows; None where rows differ, or one failed: then the block is never kept whole
    kinds     of files that each of its images has
    inputs    digest of its inputs as they are listed, files that of all outputs that its rows name
    rank      the lowest sample_rank of its images
    """

    first: str  # input
    last: str
    begin: int  # its bytes in the file of rows
    end: int
    num_done: int
    num_skipped: int
    identity: str | None
    kinds: list[str]
    inputs: str
    files: str
    num_files: int
    first_file: str
    rank: int


_FACTS = TypeAdapter(BlockFacts)
_HEAD = TypeAdapter(tuple[str, int])  # tag of the file of rows, number of blocks


def facts_of(rows: list[Any], begin: int, end: int) -> BlockFacts:
    """Of consecutive rows, which are these bytes."""
    named = [[*row.get("outputs", {}).values(), *row.get("stale", [])] for row in rows]
    files = sorted((file["key"], 0, file["tag"]) for each in named for file in each)
    done = [row for row in rows if row["status"] == "done"]
    identities = {row.get("identity") for row in rows}
    is_plain = len(identities) == 1 and all(row["status"] != "failed" and "input_tag" in row for row in rows)
    return BlockFacts(
        first=rows[0]["input"],
        last=rows[-1]["input"],
        begin=begin,
        end=end,
        num_done=len(done),
        num_skipped=sum(row["status"] == "skipped" for row in rows),
        identity=identities.pop() if is_plain else None,
        kinds=sorted(set.intersection(*(set(row.get("outputs", {})) for row in done)) if done else ()),
        inputs=digest_run((row["input"], 0, row.get("input_tag", "")) for row in rows),
        files=digest_run(files) if files else "",
        num_files=len(files),
        first_file=files[0][0] if files else "",
        rank=min((sample_rank(row["input"]) for row in done), default=0),
    )


class State(Enum):
    """Of a block in a run: not reached yet, kept whole, or its rows stand for themselves."""

    UNSEEN, WHOLE, OPEN = range(3)


class Block:
    """A block in a run; `holds` says whether its files are in the output as its rows name them."""

    __slots__ = ("facts", "holds", "source", "state")

    def __init__(self, source: "RowFile", facts: BlockFacts) -> None:
        self.source, self.facts = source, facts
        self.state, self.holds = State.UNSEEN, False

    def lines(self) -> list[bytes]:
        """Its rows."""
        return self.source.read(self.facts).splitlines(keepends=True)


class RowFile:
    """A file of rows in the output, and its blocks if it has an index that belongs to it."""

    def __init__(self, sink: Folder | S3Prefix, key: str) -> None:
        self.sink, self.key = sink, key
        self.tag = sink.tag(key)  # None: there is no such file
        self.blocks = [Block(self, facts) for facts in self._read_index()] if self.tag else []
        self.firsts = [blob(block.facts.first) for block in self.blocks]
        self.begin, self.window, self.read_to = 0, b"", -1

    def block_at(self, key: str) -> Block | None:
        """The block that holds the row of an input, if there is one."""
        place = bisect_right(self.firsts, blob(key)) - 1
        return self.blocks[place] if place >= 0 and blob(key) <= blob(self.blocks[place].facts.last) else None

    def _read_index(self) -> list[BlockFacts]:
        index = index_of(self.key)
        if not self.sink.exists(index):
            return []
        lines = self.sink.lines(index)
        try:
            tag, num_blocks = _HEAD.validate_json(next(lines, b""))
            facts = [_FACTS.validate_json(line) for line in lines] if tag == self.tag else []
        except ValidationError:  # of another version, or torn
            return []
        is_whole = len(facts) == num_blocks and all(a.end == b.begin for a, b in pairwise(facts))
        return facts if is_whole and facts[:1] and facts[0].begin == 0 else []

    def read(self, facts: BlockFacts) -> bytes:
        """The rows of a block. Blocks that follow one another are read together."""
        if not self.begin <= facts.begin <= facts.end <= self.begin + len(self.window):
            num_bytes = max(facts.end - facts.begin, WINDOW_BYTES if facts.begin == self.read_to else 0)
            self.begin, self.window = facts.begin, self.sink.read(self.key, num_bytes, start=facts.begin, tag=self.tag)
        self.read_to = facts.end
        return self.window[facts.begin - self.begin : facts.end - self.begin]


class RowWriter:
    """Writes a file of rows in order, from lines and from blocks of earlier files, and makes its index."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.at = 0
        self.facts: list[BlockFacts] = []
        self.lines: list[bytes] = []  # of the next block

    def add(self, line: bytes) -> None:
        """Write a row."""
        self.lines.append(line)
        if len(self.lines) == 2 * BLOCK_ROWS:  # so that what is left is no crumb
            self._close(BLOCK_ROWS)

    def carry(self, block: Block) -> None:
        """Write a block as it is."""
        self.close()
        data = block.source.read(block.facts)
        self.facts.append(block.facts._replace(begin=self.at, end=self.at + len(data)))
        self._write(data)

    def close(self) -> None:
        """Write what is left."""
        self._close(len(self.lines))

    def index(self, tag: str) -> bytes:
        """The index of all that was written, whose file now has this tag."""
        return b"".join(json.dumps(line).encode() + b"\n" for line in ([tag, len(self.facts)], *self.facts))

    def _close(self, num_rows: int) -> None:
        lines, self.lines = self.lines[:num_rows], self.lines[num_rows:]
        if lines:
            data = b"".join(lines)
            self.facts.append(facts_of([json.loads(line) for line in lines], self.at, self.at + len(data)))
            self._write(data)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.at += len(data)


def entries_apart(
    entries: Iterable[StoredObject],
    starts: Mapping[str, T],
    num_of: Callable[[T], int],
    holds: Callable[[T, Run], bool],
) -> Iterator[StoredObject]:
    """The entries of a listing that belong to no run of entries which is as it was.

    starts  by the key of its first entry, what stands for a run; `num_of` tells its length
    holds   whether these entries are that run; they are then left out
    """
    listing = iter(entries)
    ahead: deque[StoredObject] = deque()
    while (entry := ahead.popleft() if ahead else next(listing, None)) is not None:
        start = starts.get(entry.key)
        if start is not None:
            ahead.appendleft(entry)
            ahead.extend(islice(listing, max(0, num_of(start) - len(ahead))))
            run = list(islice(ahead, num_of(start)))
            if holds(start, run):
                ahead = deque(islice(ahead, len(run), None))
                continue
            ahead.popleft()
        yield entry
