"""Batch depth: every image of a folder or S3 prefix to depth, uncertainty and preview files, with one receipt.

Images are decoded and results written in threads beside the model; memory is bounded by a window of images
in flight, the rows wait in a temporary SQLite file. A rerun computes only what the previous receipt does not
hold; a killed job goes on from `receipt.partial/`, which is at most a few seconds old.
"""

import hashlib
import io
import json
import logging
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.buckets import Entry, Folder, S3Prefix, open_bucket
from metricgold.depth_files import write_log_depth_png, write_uncertainty_png
from metricgold.images import (
    NotAnImage,
    claims_image,
    draw_preview,
    read_rgb,
)
from metricgold.params import Inference, Predict
from metricgold.storage import digest_folder, digest_json, only_writer

log = logging.getLogger(__name__)

FILES_VERSION = 1  # of the output files; a person raises it when their meaning changes
RECEIPT, PARTIAL, SUMMARY = "receipt.jsonl", "receipt.partial/", "summary.json"
DEPTH, UNCERTAINTY, PREVIEW = ".depth.png", ".uncertainty.png", ".preview.jpg"
OUTPUTS = (DEPTH, UNCERTAINTY, PREVIEW)
FLUSH_SECONDS, FLUSH_ROWS = 5.0, 200  # what a kill may cost
_PEEK_BYTES = 32 << 20  # larger files are asked for their first bytes before they are read

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What every image of a run has in common."""

    params: Predict
    source: Folder | S3Prefix
    sink: Folder | S3Prefix
    model: Path
    model_name: str
    model_sha256: str

    @property
    def inference(self) -> Row:
        """The params that decide the numbers; batch size and threads do not."""
        return {name: getattr(self.params, name) for name in Inference.model_fields}

    @property
    def asked(self) -> Row:
        """What the pipeline is called with."""
        names = ("num_inference_steps", "timestep_spacing", "ensemble_size", "seed")
        return {name: self.inference[name] for name in names}

    @property
    def identity(self) -> str:
        """Digest of what decides an output besides its input."""
        model = {"name": self.model_name, "sha256": self.model_sha256}
        return digest_json({"files": FILES_VERSION, "model": model, "params": self.inference})


def predict_all(
    params: Predict, model: Path, input: str, output: str, *, model_name: str, pipe: Callable | None = None
) -> Row:
    """Predict depth for every image of `input` (file, folder, glob, s3://bucket/prefix) into `output`.

    For `a.jpg` it writes `a.jpg.depth.png`, `a.jpg.uncertainty.png` and `a.jpg.preview.jpg`, then summary.json
    and, last, receipt.jsonl with one row per input. Files that are no images are skipped, broken ones and
    failed writes are rows with a reason; none of them ends the job. `pipe` stands for the pipeline that is
    otherwise loaded from the folder `model` when the first image needs it.

    Returns the summary. Raises ValueError or OSError naming the location where nothing can be read or written.
    """
    started = time.monotonic()
    source, sink = open_bucket(input), open_bucket(output, create=True)
    digest = digest_folder(model) if Path(model).is_dir() else ""
    job = Job(params, source, sink, Path(model), model_name, digest)
    with only_writer(sink.root) if isinstance(sink, Folder) else nullcontext(), closing(_Rows(sink)) as rows:
        rows.load_previous()
        rows.flush()  # the first write: an output that cannot be written ends the job here
        counts = _run(job, rows, pipe)
        if not counts:
            raise ValueError(f"{source}: no files to predict")
        summary = _summary(job, counts, time.monotonic() - started)
        rows.finish(summary)
    return summary


def _summary(job: Job, counts: Counter, seconds: float) -> Row:
    return {
        "images_done": counts["done"] + counts["kept"],
        "images_kept": counts["kept"],  # of those done: by an earlier run
        "images_failed": counts["failed"],
        "images_skipped": counts["skipped"],
        "seconds": round(seconds, 3),
        "input": str(job.source),
        "output": str(job.sink),
        "receipt": f"{str(job.sink).rstrip('/')}/{RECEIPT}",
        "model": job.model_name,
    }


def _run(job: Job, rows: "_Rows", pipe: Callable | None) -> Counter:
    counts: Counter = Counter()
    with ExitStack() as stack:
        progress = stack.enter_context(_Progress(counts))
        readers = stack.enter_context(_Pool(job.params.num_threads))
        writers = stack.enter_context(_Pool(job.params.num_threads))
        for row in _rows_of_run(job, rows, pipe, readers, writers):
            counts["kept" if row.pop("kept", False) else row["status"]] += 1
            rows.add(row)
            progress.tell()
    return counts


def _rows_of_run(
    job: Job, rows: "_Rows", pipe: Callable | None, readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
) -> Iterator[Row]:
    ahead, behind = job.params.batch_size + job.params.num_threads, 2 * job.params.num_threads
    written: deque[Future] = deque()
    for batch in _batches(_in_order(readers, _reader(job, rows), _inputs(job), ahead), job.params.batch_size):
        if isinstance(batch, dict):  # a row: nothing to predict
            yield batch
            continue
        pipe = pipe or _load_pipeline(job.model)
        for (row, _), prediction in zip(batch, _ask(pipe, [rgb for _, rgb in batch], job.asked), strict=True):
            written.append(writers.submit(_write, job, pipe.log_depth, row, prediction))
        while len(written) > behind or (written and written[0].done()):
            yield written.popleft().result()
    for future in written:
        yield future.result()


def _load_pipeline(model: Path) -> Callable:
    from metricgold.model import load_pipeline  # torch, which a rerun with nothing new does not need

    return load_pipeline(model)


# Reading


def _inputs(job: Job) -> Iterator[Entry]:
    """Entries of the input, without what an earlier run wrote if the output lies within it."""
    inside = job.source.prefix_of(job.sink)
    for entry in job.source.list():
        if inside is None or not entry.key.startswith(inside) or not _is_ours(entry.key[len(inside) :]):
            yield entry


def _is_ours(key: str) -> bool:
    return key in (RECEIPT, SUMMARY) or key.startswith(PARTIAL) or key.endswith(OUTPUTS)


def _reader(job: Job, rows: "_Rows") -> Callable[[Entry], tuple[Row, np.ndarray | None]]:
    identity = job.identity

    def read(entry: Entry) -> tuple[Row, np.ndarray | None]:
        kept = rows.previous(entry.key)
        if kept and kept["identity"] == identity and kept["input_tag"] == entry.tag and rows.has_outputs(kept):
            return {**kept, "kept": True}, None
        row = {"input": entry.key, "input_tag": entry.tag, "identity": identity, "reason": None}
        try:
            return {**row, "status": "done"}, _read(job, entry)
        except NotAnImage as error:
            return {**row, "status": "skipped", "reason": str(error)}, None
        except (ValueError, OSError, MemoryError) as error:
            return {**row, "status": "failed", "reason": _reason(error)}, None

    return read


def _read(job: Job, entry: Entry) -> np.ndarray:
    if entry.bytes > _PEEK_BYTES and not claims_image(entry.key, job.source.read(entry.key, 16)):
        raise NotAnImage(f"{entry.key}: not an image of a known format")
    data = job.source.read(entry.key)
    return read_rgb(data, max_pixels=job.params.max_pixels, name=entry.key)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _in_order(pool: ThreadPoolExecutor, work: Callable, items: Iterable, window: int) -> Iterator[Any]:
    """Results of `work` over `items`, in order, at most `window` of them ahead."""
    ahead: deque[Future] = deque()
    for item in items:
        ahead.append(pool.submit(work, item))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _batches(read: Iterable[tuple[Row, np.ndarray | None]], batch_size: int) -> Iterator[Row | list]:
    """Rows without an image as they come; images in lists of one size, no more than four lists waiting."""
    waiting: defaultdict[tuple[int, ...], list] = defaultdict(list)
    for row, rgb in read:
        if rgb is None:
            yield row
            continue
        waiting[rgb.shape].append((row, rgb))
        if len(waiting[rgb.shape]) == batch_size:
            yield waiting.pop(rgb.shape)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))  # the size that has waited longest
    yield from waiting.values()


def _ask(pipe: Callable, images: list[np.ndarray], inference: Row) -> list[Any]:
    """Predictions of a batch; where the model fails, each image alone, and its error in place of its prediction."""
    try:
        return pipe(images, **inference)
    except Exception as error:  # out of memory and the like: one image must not cost the others
        if len(images) == 1:
            return [error]
        return [_ask(pipe, [image], inference)[0] for image in images]


# Writing


def _write(job: Job, log_depth: Any, row: Row, prediction: Any) -> Row:
    """Write the three files of an image; the finished row, or a failed one with the reason."""
    if isinstance(prediction, Exception):
        return {**row, "status": "failed", "reason": f"{row['input']}: the model failed: {_reason(prediction)}"}
    stem = job.sink.own_key(row["input"])
    about = {"model": job.model_name, "model_sha256": job.model_sha256}
    text = {
        **about,
        "source": row["input"].encode("utf-8", "backslashreplace").decode(),
        "params": json.dumps(job.inference, sort_keys=True),
    }
    depth, uncertainty, preview = io.BytesIO(), io.BytesIO(), io.BytesIO()
    try:
        write_log_depth_png(depth, prediction.planar_depth_m, log_depth, text)
        write_uncertainty_png(uncertainty, prediction.uncertainty, text)
        draw_preview(prediction.planar_depth_m).save(preview, "JPEG", quality=90, subsampling=0)
        files = zip(OUTPUTS, (depth, uncertainty, preview), ("image/png", "image/png", "image/jpeg"), strict=True)
        tags = [job.sink.write(stem + suffix, file.getvalue(), kind) for suffix, file, kind in files]
    except (ValueError, OSError) as error:
        return {**row, "status": "failed", "reason": f"writing {row['input']}: {_reason(error)}"}
    outputs = {"output": stem + DEPTH, "output_tags": tags, "sha256": hashlib.sha256(depth.getvalue()).hexdigest()}
    return {**row, **outputs, **_figures(prediction), **about, "params": job.inference}


def _figures(prediction: Any) -> Row:
    depth_m = prediction.planar_depth_m
    height, width = depth_m.shape
    valid = depth_m[np.isfinite(depth_m) & (depth_m > 0)]
    low, middle, high = (float(f(valid)) for f in (np.min, np.median, np.max)) if valid.size else (None,) * 3
    known = prediction.uncertainty[np.isfinite(prediction.uncertainty)]
    uncertainty = float(np.median(known)) if known.size else None
    metres = {"min_m": low, "median_m": middle, "max_m": high, "uncertainty_median": uncertainty}
    return {"width": width, "height": height, **metres}


class _Rows:
    """The rows of this run and the one before, in a temporary SQLite file; the partial receipt in the output."""

    def __init__(self, sink: Folder | S3Prefix) -> None:
        self.sink = sink
        self.file = tempfile.NamedTemporaryFile(prefix="metricgold-", suffix=".sqlite")  # noqa: SIM115
        # One connection for all threads: SQLite's own build serialises them.
        self.db = sqlite3.connect(self.file.name, check_same_thread=False, isolation_level=None)
        self.db.executescript(
            "pragma journal_mode=off; pragma synchronous=off; create table output(key blob primary key, tag text);"
            "create table previous(input blob primary key, row text);"
            "create table now(input blob primary key, row text)"
        )
        self.parts: list[str] = []
        self.unsaved: list[str] = []
        self.saved_at = time.monotonic()

    def close(self) -> None:
        try:
            if self.unsaved:
                self.flush()
        finally:
            self.db.close()
            self.file.close()

    def load_previous(self) -> None:
        """Take over the receipt of the last whole run, then what a broken run after it has saved."""
        for entry in self.sink.list():
            if entry.key.startswith(PARTIAL):
                self.parts.append(entry.key)
            elif entry.key.endswith(OUTPUTS):
                self.db.execute("replace into output values (?, ?)", [_blob(entry.key), entry.tag])
        self.parts.sort()
        for key in ([RECEIPT] if self.sink.exists(RECEIPT) else []) + self.parts:
            for line in self.sink.lines(key):
                row = self._parsed(key, line)
                if row["status"] == "done":
                    self.db.execute("replace into previous values (?, ?)", [_blob(row["input"]), line.decode()])

    def _parsed(self, key: str, line: bytes) -> Row:
        try:
            row = json.loads(line)
            return {"status": row["status"], "input": row["input"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.sink}: {key} holds a line that is no row; move it away: {line[:80]!r}") from error

    def previous(self, key: str) -> Row | None:
        found = self.db.execute("select row from previous where input = ?", [_blob(key)]).fetchone()
        return json.loads(found[0]) if found else None

    def has_outputs(self, row: Row) -> bool:
        """Whether the three files lie there as that row's run left them."""
        stem = row["output"].removesuffix(DEPTH)
        keys = [_blob(stem + suffix) for suffix in OUTPUTS]
        found = self.db.execute("select key, tag from output where key in (?, ?, ?)", keys)
        return dict(found) == dict(zip(keys, row["output_tags"], strict=True))

    def add(self, row: Row) -> None:
        line = json.dumps(row, sort_keys=True, allow_nan=False)
        self.db.execute("replace into now values (?, ?)", [_blob(row["input"]), line])
        self.unsaved.append(line)
        if len(self.unsaved) >= FLUSH_ROWS or time.monotonic() - self.saved_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Save the rows since the last flush as one more part of the partial receipt."""
        number = int(self.parts[-1].removeprefix(PARTIAL).split(".")[0]) + 1 if self.parts else 0
        key = f"{PARTIAL}{number:08d}.jsonl"
        self.sink.write(key, "".join(line + "\n" for line in self.unsaved).encode(), "application/jsonl", durable=True)
        self.parts.append(key)
        self.unsaved, self.saved_at = [], time.monotonic()

    def finish(self, summary: Row) -> None:
        """Write the summary, then the receipt, sorted by input; then drop the partial one."""
        self.sink.write(SUMMARY, (json.dumps(summary, indent=2, sort_keys=True) + "\n").encode(), "application/json")
        with tempfile.TemporaryFile() as file:
            for (line,) in self.db.execute("select row from now order by input"):
                file.write(line.encode() + b"\n")
            file.seek(0)
            self.sink.write(RECEIPT, file, "application/jsonl", durable=True)
        self.unsaved = []
        for key in (*self.parts, PARTIAL.rstrip("/")):
            self.sink.delete(key)


def _blob(key: str) -> bytes:
    # File names may hold bytes that are no UTF-8; bytes also sort as S3 sorts.
    return key.encode("utf-8", "surrogateescape")


class _Pool(ThreadPoolExecutor):
    def __exit__(self, *error: Any) -> None:
        self.shutdown(cancel_futures=True)  # a broken job does not wait for what is queued


class _Progress:
    """A bar on a terminal, elsewhere a log line every ten seconds."""

    def __init__(self, counts: Counter) -> None:
        from tqdm import tqdm

        self.counts, self.started = counts, time.monotonic()
        self.told_at = self.started
        self.bar = tqdm(desc="predict", unit=" images", disable=not sys.stderr.isatty())

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def tell(self) -> None:
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.told_at > 10:
            self.told_at = now
            rate = self.counts.total() / (now - self.started)
            log.info("predict: %s; %.1f files/s", ", ".join(f"{n} {word}" for word, n in self.counts.items()), rate)
