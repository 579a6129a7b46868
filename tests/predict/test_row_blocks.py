"""Blocks of rows that a run keeps as bytes: it must end as one that looks at each row, and read next to nothing."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

import metricgold.predict.row_blocks as row_blocks
from metricgold.predict.outputs import SUFFIXES
from metricgold.predict.quota import Quota
from metricgold.predict.receipt import EARLIER, RECEIPT, Receipt
from metricgold.predict.row_blocks import entries_apart, index_of
from metricgold.predict.stage import inputs_to_predict
from metricgold.storage.buckets import StoredObject
from tests.support.memory_bucket import MemoryBucket

INDEXES = [index_of(EARLIER), index_of(RECEIPT)]


@dataclass
class Job:
    """What inputs_to_predict asks a job."""

    identity: str = "i"
    kinds: tuple[str, ...] = ("log-png", "json")
    cameras: None = None

    def identity_of(self, key: str) -> str:
        return self.identity


@dataclass
class Run:
    """A job over a listing: names with `bad` fail, names with `txt` are skipped, the others are written."""

    listing: list[StoredObject]
    job: Job = field(default_factory=Job)
    max_images: int | None = None
    breaks: bool = False  # before it has finished

    def __call__(self, sink: MemoryBucket) -> Counter[str]:
        counts: Counter[str] = Counter()
        with closing(Receipt(sink)) as receipt:
            receipt.load_previous()

            def count(word: str, num: int = 1) -> None:
                counts[word] += num

            for entry in inputs_to_predict(self.job, self.listing, receipt, Quota(self.max_images), count):
                row = self.row(sink, entry)
                receipt.add(row)
                count(row["status"])
            if not self.breaks:
                self.sample = receipt.sample(4)
                self.troubles = list(receipt.troubles())
                receipt.finish({})
        return counts

    def row(self, sink: MemoryBucket, entry: StoredObject) -> dict:
        row = {"input": entry.key, "input_tag": entry.tag, "identity": self.job.identity, "reason": None}
        if "bad" in entry.key or "txt" in entry.key:
            return row | {"status": "failed" if "bad" in entry.key else "skipped", "reason": f"{entry.key}: no"}
        depth = f"{entry.tag} {self.job.identity}".encode()
        names = {kind: entry.key + SUFFIXES[kind] for kind in self.job.kinds}
        outputs = {kind: {"key": name, "tag": sink.write(name, depth + kind.encode())} for kind, name in names.items()}
        output = names.get("log-png")
        return row | {"status": "done", "output": output, "sha256": output and depth.decode(), "outputs": outputs}


def listing(*names: str, tag: str = "1") -> list[StoredObject]:
    return [StoredObject(name, 1, tag) for name in names]


def rows_of(sink: MemoryBucket, key: str = RECEIPT) -> list[dict]:
    return [json.loads(line) for line in sink.objects.get(key, b"").splitlines()]


MANY = listing(*(f"{n:04d}.jpg" for n in range(1_000)))


@pytest.fixture
def sink() -> MemoryBucket:
    sink = MemoryBucket()
    Run(MANY)(sink)
    return sink


def test_a_run_in_which_nothing_has_changed_reads_no_row_and_writes_no_receipt(sink):
    before, sink.num_read = sink.objects[RECEIPT], 0
    assert Run(MANY)(sink) == {"kept": 1_000}
    assert sink.objects[RECEIPT] is before
    assert sink.num_read < len(before) / 3  # of the index, and of blocks with images for the gallery
    assert EARLIER not in sink.objects


def test_rows_around_a_change_are_carried_unread(sink, monkeypatch):
    taken, take = [], Receipt._take
    monkeypatch.setattr(Receipt, "_take", lambda *what, **how: taken.append(what) or take(*what, **how))
    rows = rows_of(sink)
    changed = [entry._replace(tag="2") if entry.key == "0500.jpg" else entry for entry in MANY]
    assert Run([*changed, *listing("0500.jpg-2.jpg", "new.jpg")])(sink) == {"kept": 999, "done": 3}
    assert len(taken) <= 2 * row_blocks.BLOCK_ROWS
    after = {row["input"]: row for row in rows_of(sink)}
    assert list(after) == sorted(after, key=str.encode)
    assert [row for row in rows if row["input"] != "0500.jpg"] == [
        row for key, row in after.items() if key in {row["input"] for row in rows} - {"0500.jpg"}
    ]
    assert Run([*changed, *listing("0500.jpg-2.jpg", "new.jpg")])(sink) == {"kept": 1_002}


def test_an_index_that_is_not_of_the_rows_beside_it_is_not_used(sink):
    rows = sink.objects[RECEIPT].splitlines(keepends=True)
    index = sink.objects[index_of(RECEIPT)]
    for torn in (b"", b"nonsense\n", index[: len(index) // 2], b"".join(index.splitlines(keepends=True)[:-1]), b"[]\n"):
        sink.objects[index_of(RECEIPT)] = torn
        assert Run(MANY)(sink) == {"kept": 1_000}
    sink.objects[RECEIPT] = b"".join(rows[:300] + rows[301:])  # edited by hand
    assert Run(MANY)(sink) == {"kept": 999, "done": 1}
    sink.objects[RECEIPT] = b"nonsense\n"
    with pytest.raises(ValueError, match="holds a line that is not a row"):
        Run(MANY)(sink)


def test_a_slice_leaves_the_rows_behind_its_end_in_blocks_too(sink):
    sink.num_read = 0
    more = sorted([*MANY, *listing("0100a.jpg", "0100b.jpg")])
    assert Run(more, max_images=1)(sink) == {"kept": 101, "done": 1}
    assert len(rows_of(sink)) == 102 and len(rows_of(sink, EARLIER)) == 899
    assert Run(more)(sink) == {"kept": 1_001, "done": 1}
    assert len(rows_of(sink)) == 1_002 and rows_of(sink, EARLIER) == []


def test_what_was_written_over_by_another_job_is_found_in_blocks_too(sink):
    with closing(Receipt(sink)) as receipt:
        receipt.load_previous()
        assert list(receipt.kept_apart(MANY, "i", ["json"], lambda *_: None)) == []
        assert receipt.overwritten() == []
        sink.write("0500.jpg.json", b"of another")
        ((row, word),) = receipt.overwritten()
        assert (row["input"], word) == ("0500.jpg", "kept")


names = st.sampled_from(["a.jpg", "a.jpg-1.jpg", "a.jpg b", "b", "b/a", "b/c.txt", "bad", "c.txt", "ä", "\udcff", "z"])
entries = st.lists(names, unique=True, min_size=1).map(lambda keys: listing(*sorted(keys)))
jobs = st.builds(Job, st.sampled_from("iij"), st.sampled_from([("log-png", "json"), ("log-png", "json"), ("npz",)]))
runs = st.builds(Run, entries, jobs, st.sampled_from([None, None, 1, 3]), st.sampled_from([False, False, True]))
suffixes = st.sampled_from([".json", ".depth.png", ".ply"])
changes = st.sampled_from(["lose", "change", "add", "replace"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(runs, changes, names, suffixes), min_size=2, max_size=6))
def test_it_ends_as_if_each_row_had_been_looked_at(steps):
    """Runs over any inputs, some with quota, some broken off; between them files and inputs change."""
    with_index, without = MemoryBucket(), MemoryBucket()
    tags: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "BLOCK_ROWS", 2)
        for run, change, name, suffix in steps:
            run.listing = [entry._replace(tag=tags.get(entry.key, "1")) for entry in run.listing]
            for index in INDEXES:
                without.delete(index)
            counted = []
            seen = []
            for sink in (with_index, without):
                counted.append(run(sink))
                seen.append((run.sample, run.troubles) if not run.breaks else None)
            assert counted[0] == counted[1]
            assert seen[0] == seen[1]
            assert rows_of(with_index) == rows_of(without)
            assert rows_of(with_index, EARLIER) == rows_of(without, EARLIER)
            for sink in (with_index, without):
                if change == "lose":
                    sink.delete(name + suffix)
                elif change == "add" or (change == "change" and name + suffix in sink.objects):
                    sink.write(name + suffix, b"another")
            if change == "replace":
                tags[name] = tags.get(name, "1") + "1"


@given(st.lists(st.text("ab", min_size=1, max_size=3), unique=True), st.data())
def test_entries_of_runs_that_are_as_they_were_are_left_out(keys, data):
    found = listing(*sorted(keys))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=6)))
    known = [found[a:b] for a, b in pairwise(cuts) if a < b]
    changed = [data.draw(st.booleans()) for _ in known]
    starts = {run[0].key: number for number, run in enumerate(known)}

    def holds(number, run):
        return run == known[number] and not changed[number]

    left = list(entries_apart(found, starts, lambda number: len(known[number]), holds))
    kept = {entry for run, is_changed in zip(known, changed, strict=True) if not is_changed for entry in run}
    assert left == [entry for entry in found if entry not in kept]
