"""A rerun of a batch job over very many rows that all still hold: what the job costs beside the listings of a store.

Listings are made up, of five objects an image; their making is counted too. `python -m tests.benchmarks.kept 10000000`
measures as many rows.
"""

import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from metricgold.params.sections import Predict
from metricgold.predict.outputs import DEFAULT, SUFFIXES
from metricgold.predict.receipt import RECEIPT
from metricgold.predict.row_blocks import RowWriter, index_of
from metricgold.predict.stage import predict_all
from metricgold.storage.buckets import Folder, StoredObject

from . import CannotRun
from .batch import FreePipe, write_photographs

NUM_ROWS = 1_000_000
TAG = "0" * 32
FILES = sorted(SUFFIXES[kind] for kind in DEFAULT)


def name(number: int) -> str:
    return f"2026/{number // 1000:06d}/{number:08d}.jpg"


def rerun(folder: Path, num: int = NUM_ROWS) -> dict[str, float]:
    """CPU seconds and growth of memory of a second run over so many images, in a process of its own."""
    if not Path("/proc/self/status").exists():
        raise CannotRun("this system does not tell a process's peak memory")
    write_receipt(folder, num)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, few_mb, many_mb = pool.apply(_rerun_and_measure, [folder, num])
    million = num / 1_000_000
    return {
        "batch.kept_cpu_s_per_million": seconds / million,
        "batch.kept_rss_mb_per_million": (many_mb - few_mb) / million,
    }


def write_receipt(folder: Path, num: int) -> None:
    """The receipt of a run over that many images, of which each row is that of one that was predicted."""
    (photo,) = write_photographs(folder / "photographs", 1).iterdir()
    (folder / "in").mkdir()
    shutil.copy(photo, folder / "in" / "one.jpg")
    _predict(folder)
    row = json.loads((folder / "out" / RECEIPT).read_text())
    row["input_tag"] = TAG
    row["outputs"] = {kind: {**file, "tag": TAG} for kind, file in row["outputs"].items()}
    line = json.dumps(row, sort_keys=True) + "\n"
    with (folder / "out" / RECEIPT).open("wb") as file:
        writer = RowWriter(file)
        for number in range(num):
            writer.add(line.replace("one.jpg", name(number)).encode())
        writer.close()
    sink = Folder(folder / "out")
    (sink.root / index_of(RECEIPT)).write_bytes(writer.index(sink.tag(RECEIPT)))
    (folder / "in" / "one.jpg").unlink()


def _predict(folder: Path) -> dict:
    arguments = Predict(gallery=0), Path("none"), str(folder / "in"), str(folder / "out")
    return predict_all(*arguments, model_name="free", pipe=FreePipe())


class MadeUp(Folder):
    """A folder that lists objects which are not there; the job's own files are."""

    __slots__ = ()
    num = 0

    def entries(self, after: str | None = None, *, below: str = "") -> Iterator[StoredObject]:
        suffixes = [""] if self.root.name == "in" else FILES
        if after is not None:  # it asks for parts of a broken run
            return
        for head in map(name, range(MadeUp.num)):
            for suffix in suffixes:
                yield StoredObject(head + suffix, 1, TAG)


def _rerun_and_measure(folder: Path, num: int) -> tuple[float, float, float]:
    MadeUp.num, before_mb = num, _peak_mb()
    with mock.patch("metricgold.predict.job.open_bucket", lambda place, **_: MadeUp(Path(place))):
        started = time.process_time()
        summary = _predict(folder)
        seconds = time.process_time() - started
    assert (summary["images_done"], summary["images_kept"]) == (num, num), summary
    return seconds, before_mb, _peak_mb()


def _peak_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="metricgold-kept-") as place:
        print(rerun(Path(place), int(sys.argv[1])))
