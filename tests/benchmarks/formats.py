"""Containers for a latent cache, side by side: `python -m tests.benchmarks.formats` prints three tables in Markdown.

Every container holds the same samples, 256 to a shard. All run on one core and take turns. zarr and webdataset are no
dependencies of the project: install them beside it, or their rows are left out. Linux only.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from tests.support.workers import sent

from . import least_seconds
from .containers import CONTAINERS, RECORD, Container, Sample, make_shards, open_zarr

NUM_SHARDS, SAMPLES_PER_SHARD = 2, 256
NUM_READS, NUM_COLD_READS, NUM_OPENED = 64, 16, 6
NUM_INDEXED = 400_000
ROUNDS = 8  # short ones, so that one of them meets a quiet machine


class Written(NamedTuple):
    """The shards of one container, in a folder of its own."""

    container: Container
    paths: list[Path]

    def open(self) -> list[Callable[..., Sample]]:
        return [self.container.open(path) for path in self.paths]

    def files(self) -> list[Path]:
        return [file for file in self.paths[0].parent.rglob("*") if file.is_file()]

    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files())


def place(folder: Path, containers: Iterable[Container], num_shards: int) -> list[Written]:
    places = []
    for number, container in enumerate(containers):
        (folder / str(number)).mkdir()
        places.append(Written(container, [folder / str(number) / f"shard-{shard}" for shard in range(num_shards)]))
    return places


# Measurements


def measure(folder: Path, containers: Sequence[Container]) -> list[dict[str, str]]:
    """One row of the table for each container; ValueError names one that answers other arrays than it was given."""
    shards = make_shards(NUM_SHARDS, SAMPLES_PER_SHARD)
    places = place(folder, containers, NUM_SHARDS)
    write_s = _write(places, shards)
    for written in places:
        check(written, shards)
    order = np.random.default_rng(1).permutation(NUM_SHARDS * SAMPLES_PER_SHARD)
    rows = [divmod(int(i), SAMPLES_PER_SHARD) for i in order]
    read_s, latent_s, forked, spawned = _measure_open(places, rows[:NUM_READS], shards[0])
    first_s = least_seconds(*(partial(_open_and_read, written) for written in places), rounds=ROUNDS)
    cold_s = _cold_seconds(places, rows[-NUM_COLD_READS:])
    columns = zip(places, write_s, read_s, latent_s, first_s, cold_s, forked, spawned, strict=True)
    return [
        {
            "container": written.container.name,
            "bytes/sample": f"{written.num_bytes() / len(rows):,.0f}",
            "files/shard": f"{len(written.files()) / NUM_SHARDS:,.0f}",
            "written/s": f"{SAMPLES_PER_SHARD / write:,.0f}",
            "read/s": f"{NUM_READS / read:,.0f}",
            "read/s, no pixel mask": f"{NUM_READS / latent:,.0f}",
            "open and read one, ms": f"{1e3 * first / NUM_OPENED:.2f}",
            "the same from disk, ms": f"{1e3 * cold:.1f}",
            "after fork": fork,
            "sent to a process": spawn,
        }
        for written, write, read, latent, first, cold, fork, spawn in columns
    ]


def _write(places: Sequence[Written], shards: Sequence[Sequence[Sample]]) -> list[float]:
    """Seconds for the first shard."""
    for number, samples in enumerate(shards[1:], start=1):
        for written in places:
            written.container.write(written.paths[number], samples)
    writers = (partial(written.container.write, written.paths[0], shards[0]) for written in places)
    return least_seconds(*writers, rounds=2)


def _measure_open(
    places: Sequence[Written], rows: Sequence[tuple[int, int]], samples: Sequence[Sample]
) -> tuple[list[float], list[float], list[str], list[str]]:
    """Reads of shards that are open and in memory: seconds, without the pixel mask too; how handles travel."""
    opened = [written.open() for written in places]
    read_s = least_seconds(*(partial(_read, readers, rows) for readers in opened), rounds=ROUNDS)
    latent_s = least_seconds(*(partial(_read, readers, rows, pixels=False) for readers in opened), rounds=ROUNDS)
    forked = [after_fork(readers[0], samples) for readers in opened]
    return read_s, latent_s, forked, [_sent(readers[0]) for readers in opened]


def _read(readers: Sequence[Callable[..., Sample]], places: Iterable[tuple[int, int]], **options: bool) -> None:
    for shard, row in places:
        readers[shard](row, **options)


def _open_and_read(written: Written) -> None:
    for row in range(NUM_OPENED):
        written.container.open(written.paths[row % NUM_SHARDS])(row)


def check(written: Written, shards: Sequence[Sequence[Sample]]) -> None:
    for reader, samples in zip(written.open(), shards, strict=True):
        for row in (0, len(samples) - 1, len(samples) // 2):
            if not _same(reader(row), samples[row]):
                raise ValueError(f"{written.container.name}: row {row} is not what was written")


def _same(one: Sample, other: Sample) -> bool:
    return one.name == other.name and all(
        found.dtype == expected.dtype and np.array_equal(found, expected)
        for found, expected in zip(one[:-1], other[:-1], strict=True)
    )


def _cold_seconds(places: Sequence[Written], rows: Sequence[tuple[int, int]]) -> list[float]:
    """Median over samples, each of a shard of which neither file nor handle is at hand."""
    times: list[list[float]] = [[] for _ in places]
    os.sync()  # a page that has yet to be written stays in memory
    for shard, row in rows:
        for written, column in zip(places, times, strict=True):
            for file in written.files():
                _forget(file)
            started = time.perf_counter()
            written.container.open(written.paths[shard])(row)
            column.append(time.perf_counter() - started)
    return [statistics.median(column) for column in times]


def _forget(path: Path) -> None:
    with FileIO(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def after_fork(reader: Callable[..., Sample], samples: Sequence[Sample]) -> str:
    """What two forked processes make of an open shard, both reading all of it at once and its parent too."""
    inherited = {"reader": reader, "samples": samples}
    with multiprocessing.get_context("fork").Pool(2, _inherited.update, (inherited,)) as pool:
        answers = [pool.apply_async(_read_inherited) for _ in range(2)]
        try:
            parent_is_right = _all_right(reader, samples)
            return "right" if parent_is_right and all([answer.get(60) for answer in answers]) else "WRONG"
        except multiprocessing.TimeoutError:
            return "HANGS"
        except Exception as error:
            return f"FAILS: {type(error).__name__}"


_inherited: dict[str, Any] = {}  # filled in the children only


def _read_inherited() -> bool:
    return _all_right(**_inherited)


def _all_right(reader: Callable[..., Sample], samples: Sequence[Sample]) -> bool:
    return all(_same(reader(row), sample) for row, sample in enumerate(samples))


def _sent(reader: Callable[..., Sample]) -> str:
    """Whether an open shard can be sent to a spawned process; else that one must open it anew."""
    try:
        copy = sent(reader)
    except TypeError:
        return "opened anew"
    return "right" if _same(copy(0), reader(0)) else "WRONG"


# The index of many samples


def open_listed(folder: Path) -> Any:
    """Shards with their counts, as metricgold.shards has them."""
    index = json.loads((folder / "shards.json").read_text())
    return index, list(accumulate(shard["num_frames"] for shard in index["shards"]))


def open_places(folder: Path) -> Any:
    """Name, begin and end of every sample."""
    return json.loads((folder / "samples.json").read_text())


def open_arrays(folder: Path) -> Any:
    """zarr's own: the shapes of arrays over all samples, without names."""
    return open_zarr(folder / "zarr")


def write_indices(folder: Path, num_samples: int) -> dict[str, Callable[[Path], Any]]:
    """By kind, how the index is opened."""
    shards = [
        {"file": f"scene{n}-000.h5", "scene": f"scene{n}", "num_frames": SAMPLES_PER_SHARD, "sha256": f"{n:064x}"}
        for n in range(-(-num_samples // SAMPLES_PER_SHARD))
    ]
    (folder / "shards.json").write_text(json.dumps({"shards": shards}))
    samples = [[f"scene{n % 457}/cam_00/frame.{n:06d}", 78_000 * n, 78_000 * (n + 1)] for n in range(num_samples)]
    (folder / "samples.json").write_text(json.dumps(samples))
    opened = {"shards in JSON (HDF5, safetensors, tars)": open_listed, "every sample in JSON": open_places}
    if find_spec("zarr"):
        import zarr

        group = zarr.create_group(folder / "zarr", attributes={"name": []})
        for field in RECORD.names:
            subtype, shape = RECORD[field].base, RECORD[field].shape
            group.create_array(field, shape=(num_samples, *shape), chunks=(1, *shape), dtype=subtype)
        opened["zarr's arrays"] = open_arrays
    return opened


def index_cost(opener: Callable[[Path], Any], folder: Path) -> tuple[float, float]:
    """Seconds to open, MB that it keeps. In a process of its own, imports not counted."""
    if opener is open_arrays:
        import zarr  # noqa: F401
    memory = psutil.Process().memory_info
    before = memory().rss
    started = time.perf_counter()
    opened = opener(folder)
    seconds = time.perf_counter() - started
    grown_mb = (memory().rss - before) / 1e6
    del opened
    return seconds, grown_mb


def measure_indices(folder: Path) -> list[dict[str, str]]:
    rows = []
    for name, opener in write_indices(folder, NUM_INDEXED).items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, grown_mb = pool.apply(index_cost, (opener, folder))
        rows.append({f"index of {NUM_INDEXED:,} samples": name, "open, s": f"{seconds:.4f}", "MB": f"{grown_mb:.1f}"})
    return rows


# Masks


def measure_masks(folder: Path) -> list[dict[str, str]]:
    """Bits of a mask and what packers make of them; the last codec only where Python or a backport has it."""
    bits = [np.packbits(sample.valid_mask).tobytes() for sample in make_shards(1, 64)[0]]
    packers = {f"zlib, level {level}": (partial(zlib.compress, level=level), zlib.decompress) for level in (1, 6, 9)}
    packers |= _zstd()
    rows = [{"mask": "bits", "bytes": f"{len(bits[0]):,}", "pack, us": "-", "unpack, us": "-"}]
    for name, (pack, unpack) in packers.items():
        packed = [pack(content) for content in bits]
        pack_s, unpack_s = least_seconds(
            lambda pack=pack: [pack(content) for content in bits],
            lambda unpack=unpack, packed=packed: [unpack(content) for content in packed],
            rounds=3,
        )
        mean_bytes = statistics.mean(map(len, packed))
        times = {"pack, us": f"{1e6 * pack_s / len(bits):.0f}", "unpack, us": f"{1e6 * unpack_s / len(bits):.0f}"}
        rows.append({"mask": name, "bytes": f"{mean_bytes:,.0f}", **times})
    return rows


def _zstd() -> dict[str, tuple[Callable, Callable]]:
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            return {}
    return {"zstd, level 3": (zstd.compress, zstd.decompress)}


# Tables


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys in Markdown."""
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    present = [container for container in CONTAINERS if find_spec(container.package)]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="metricgold-formats-") as folder:
        for measured in (measure_masks, measure_indices, partial(measure, containers=present)):
            print(table(measured(Path(folder))), end="\n\n", flush=True)
    for package in sorted({container.package for container in CONTAINERS} - {each.package for each in present}):
        print(f"{package} is not installed: its rows are left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
