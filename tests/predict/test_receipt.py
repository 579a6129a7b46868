"""Rows of a batch job: kept, saved in parts, sorted at the end, in little memory."""

import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import closing

import pytest

import metricgold.predict.receipt as receipt_module
import metricgold.predict.row_blocks as row_blocks
from metricgold.predict.outputs import SUFFIXES
from metricgold.predict.receipt import PARTIAL, RECEIPT, SUMMARY, Receipt, open_receipt
from metricgold.storage.buckets import Folder, StoredObject


def done(key: str, **more) -> dict:
    outputs = {"log-png": {"key": f"{key}.depth.png", "tag": "t"}}
    row = {"input": key, "input_tag": "1", "identity": "i", "status": "done", "reason": None}
    return row | {"output": f"{key}.depth.png", "outputs": outputs, "sha256": "s"} | more


def failed(key: str, reason: str) -> dict:
    return {"input": key, "input_tag": "1", "identity": "i", "status": "failed", "reason": reason}


def rows_of(folder: Folder, key: str = RECEIPT) -> list[dict]:
    return [json.loads(line) for line in folder.lines(key)]


def parts_of(folder: Folder) -> list[str]:
    return [entry.key for entry in folder.entries() if entry.key.startswith(PARTIAL)]


@pytest.fixture
def sink(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_sorted_by_bytes_and_written_last(sink):
    names = ["b", "a", "ä", "a/b", "a-", "\udcff", "z"]
    with closing(Receipt(sink)) as receipt:
        for name in names:
            receipt.add(done(name))
        receipt.flush()
        assert parts_of(sink) and not sink.exists(RECEIPT)
        receipt.finish({"images_done": 7})
    ordered = sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))
    assert [row["input"] for row in rows_of(sink)] == ordered
    assert json.loads(sink.read(SUMMARY)) == {"images_done": 7}
    assert [entry.key for entry in sink.entries()] == [RECEIPT, SUMMARY]


def test_a_part_grows_until_it_is_full(sink, monkeypatch):
    monkeypatch.setattr(receipt_module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(receipt_module, "FLUSH_ROWS", 3)
    with closing(Receipt(sink)) as receipt:
        for n in range(8):
            receipt.add(done(f"{n}"))
            assert sum(len(rows_of(sink, key)) for key in parts_of(sink)) == n + 1
        assert [len(rows_of(sink, key)) for key in parts_of(sink)] == [3, 3, 2]


def test_a_broken_run_is_gone_on_with_and_kept_rows_are_not_saved_twice(sink, monkeypatch):
    monkeypatch.setattr(receipt_module, "FLUSH_ROWS", 2)
    with closing(Receipt(sink)) as receipt:
        for n in range(3):
            receipt.add(done(f"{n}"))
    before = parts_of(sink)
    assert len(before) == 2
    for n in range(3):
        sink.write(f"{n}.depth.png", b"")
    tags = {entry.key: entry.tag for entry in sink.entries()}
    receipt = Receipt(sink)
    with closing(receipt):
        receipt.load_previous()
        assert not receipt.keep(StoredObject("0", 1, "1"), "i", ["log-png"])  # the file is another than the row's
    sink.delete(PARTIAL.rstrip("/"))
    with closing(Receipt(sink)) as receipt:
        for n in range(3):
            receipt.add(done(f"{n}", outputs={"log-png": {"key": f"{n}.depth.png", "tag": tags[f"{n}.depth.png"]}}))
    before = parts_of(sink)
    with closing(Receipt(sink)) as receipt:
        receipt.load_previous()
        assert all(receipt.keep(StoredObject(f"{n}", 1, "1"), "i", ["log-png"]) for n in range(2))
        assert not receipt.keep(StoredObject("2", 1, "other"), "i", ["log-png"])
        assert not receipt.keep(StoredObject("2", 1, "1"), "other", ["log-png"])
        assert not receipt.keep(StoredObject("2", 1, "1"), "i", ["log-png", "npz"])
        assert not receipt.keep(StoredObject("3", 1, "1"), "i", ["log-png"])
        receipt.add(done("2", sha256="new"))
        receipt.flush()
        assert [len(rows_of(sink, key)) for key in parts_of(sink)] == [2, 1, 1]
        assert sorted(receipt.sample(9)) == ["0", "1", "2"]
        receipt.finish({})
    assert [(row["input"], row["sha256"]) for row in rows_of(sink)] == [("0", "s"), ("1", "s"), ("2", "new")]
    assert parts_of(sink) == []


def run_of(sink: Folder, row: dict, *kinds: str) -> dict:
    """What a run says of one input whose files of these kinds it writes."""
    for kind in kinds:
        sink.write(f"a.{kind}{SUFFIXES[kind]}", b"")
    with closing(Receipt(sink)) as receipt:
        receipt.load_previous()
        names = {kind: f"a.{kind}{SUFFIXES[kind]}" for kind in kinds}
        outputs = {kind: {"key": name, "tag": sink.write(name, kind.encode())} for kind, name in names.items()}
        receipt.add(row | {"output": names.get("log-png"), "outputs": outputs})
        receipt.finish({})
    return rows_of(sink)[0]


def test_what_an_equal_run_left_is_named_as_long_as_it_is_true(sink):
    assert set(run_of(sink, done("a"), "log-png", "json")["outputs"]) == {"log-png", "json"}
    more = run_of(sink, done("a", sha256=None), "ply")
    assert set(more["outputs"]) == {"log-png", "json", "ply"}
    assert (more["output"], more["sha256"]) == ("a.log-png.depth.png", "s")
    again = run_of(sink, done("a", sha256="other"), "log-png")
    assert set(again["outputs"]) == {"log-png", "ply"}  # the side-car tells of other bytes
    sink.delete("a.ply.ply")
    assert set(run_of(sink, done("a", sha256=None), "npz")["outputs"]) == {"log-png", "npz"}
    assert set(run_of(sink, done("a", input_tag="2"), "ply")["outputs"]) == {"ply"}
    assert set(run_of(sink, done("a", identity="j"), "glb")["outputs"]) == {"glb"}


def stale(row: dict) -> set[str]:
    return {file["key"] for file in row.get("stale", [])}


def test_what_another_run_left_beside_is_named_as_stale_as_long_as_it_is_there(sink):
    run_of(sink, done("a"), "log-png", "ply", "npz")
    other = run_of(sink, done("a", identity="j", sha256="t"), "log-png")
    assert set(other["outputs"]) == {"log-png"}
    assert stale(other) == {"a.npz.depth.npz", "a.ply.ply"}
    other = run_of(sink, done("a", identity="k", sha256="u"), "ply")
    assert stale(other) == {"a.npz.depth.npz", "a.log-png.depth.png"}
    sink.delete("a.npz.depth.npz")
    assert stale(run_of(sink, done("a", identity="l", sha256="v"), "ply")) == {"a.log-png.depth.png"}


def test_a_kept_row_still_names_what_is_stale_and_a_failed_one_does_too(sink):
    run_of(sink, done("a"), "log-png", "ply")
    run_of(sink, done("a", identity="j", sha256="t"), "log-png")
    for files in ({"a.ply.ply"}, set()):
        with open_receipt(sink) as receipt:
            receipt.load_previous()
            assert receipt.keep(StoredObject("a", 1, "1"), "j", ["log-png"]) == "kept"
            receipt.finish({})
        assert stale(rows_of(sink)[0]) == files
        sink.delete("a.ply.ply")
    for _ in range(2):
        with open_receipt(sink) as receipt:
            receipt.load_previous()
            assert receipt.keep(StoredObject("a", 1, "1"), "i", ["log-png"]) is None
            receipt.add(failed("a", "a: no"))
            receipt.finish({})
        assert stale(rows_of(sink)[0]) == {"a.log-png.depth.png"}


def test_a_killed_run_leaves_no_file_in_the_temporary_folder(sink, tmp_path):
    code = "import os, sys\nfrom metricgold.storage.buckets import Folder\n"
    code += "from metricgold.predict.receipt import Receipt\n"
    code += "receipt = Receipt(Folder(sys.argv[1]))\n"
    code += "row = {'input': 'a', 'input_tag': '1', 'identity': 'i', 'status': 'failed', 'reason': 5_000_000 * 'x'}\n"
    code += "receipt.add(row); print(os.listdir(os.environ['TMPDIR'])); os._exit(9)"
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "[]\n"


def test_a_full_temporary_folder_is_said(sink):
    with pytest.raises(OSError, match="TMPDIR if it is set: database or disk is full"), open_receipt(sink) as receipt:
        receipt.db.execute("pragma max_page_count = 10")
        for n in range(1_000):
            receipt.add(done(f"{n}"))
    assert sum(len(rows_of(sink, key)) for key in parts_of(sink)) > 100


def test_rows_of_an_earlier_version_are_not_kept(sink):
    old = {"input": "a", "input_tag": "1", "identity": "old", "status": "done", "output": "a.depth.png"}
    sink.write(RECEIPT, json.dumps(old | {"output_tags": ["t"]}).encode() + b"\n")
    with closing(Receipt(sink)) as receipt:
        receipt.load_previous()
        assert not receipt.keep(StoredObject("a", 1, "1"), "i", ["log-png"])
        assert receipt.sample(9) == {}


@pytest.mark.parametrize(
    "line",
    [
        *(b"nonsense\n", b"\xff\n", b"[]\n", b"{}\n", b'{"status": "done", "input": 3}\n', b"\n"),
        b'{"status": "done", "input": "a", "outputs": ' + b"[" * 100_000 + b"\n",
        b'{"status": "done", "input": "a", "outputs": [1]}\n',
        b'{"status": "done", "input": "a", "outputs": {"npz": "b"}}\n',
        b'{"status": "done", "input": "a", "outputs": {"npz": {"key": 1, "tag": 2}}}\n',
    ],
    ids=range(10),
)
def test_what_is_no_receipt_is_named(sink, line):
    sink.write(RECEIPT, line)
    with closing(Receipt(sink)) as receipt, pytest.raises(ValueError, match=r"receipt\.jsonl holds a line that is not"):
        receipt.load_previous()


def test_reasons_are_counted_without_names_and_numbers(sink):
    with closing(Receipt(sink)) as receipt:
        for n in range(4):
            receipt.add(failed(f"{n}.jpg", f"{n}.jpg: {n}x7 is too much"))
        for name in ("a.png", "b.png"):
            receipt.add(failed(name, f"writing {name}: s3://out/{name}.json: denied"))
        for n in range(20):
            receipt.add(failed(f"odd{n}", f"odd{n}: {'x' * (n + 1)}"))
        receipt.add(done("z"))
        reasons = receipt.reasons()
        assert len(reasons) == receipt_module.MAX_REASONS
        assert reasons["NxN is too much"] == 4
        assert reasons["writing ...: s3://out/....json: denied"] == 2
        assert [row["input"] for row in receipt.troubles()][:2] == ["0.jpg", "1.jpg"]
        assert receipt.row("z")["status"] == "done"


def test_memory_does_not_grow_with_rows(sink, monkeypatch):
    monkeypatch.setattr(row_blocks, "WINDOW_BYTES", 100_000)

    def peak(count: int) -> int:
        with closing(Receipt(sink)) as receipt:
            tracemalloc.start()
            receipt.load_previous()
            for n in range(count):
                receipt.keep(StoredObject(f"{n:06d}", 1, "1"), "i", ["log-png"])
                receipt.add(done(f"{n:06d}"))
            receipt.finish({})
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    small = peak(1_500)
    assert peak(6_000) < small + 500_000  # a row is 300 bytes and more
