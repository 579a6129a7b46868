"""Batch depth: every image of a folder or S3 prefix to depth files, with one receipt and a page to look at.

A rerun predicts only what the receipt does not hold; a killed job resumes from `receipt.partial/`.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.images import read_depth
from metricgold.model import digest_model, peak_gpu_memory_mb
from metricgold.params import Output, Predict
from metricgold.predict.calibration import Calibration
from metricgold.predict.cameras import CAMERA_FILES, Cameras, find_cameras
from metricgold.predict.days import days_with, earlier_days
from metricgold.predict.drift import earlier_runs, report_drift
from metricgold.predict.entries import (
    WRITTEN_PIXELS,
    PromptPool,
    closed_on_error,
    is_of_job,
    predict_entries,
    read_job_photo,
    reason_of,
    row_without_depth,
)
from metricgold.predict.gallery import GALLERY, GallerySample, Thumbnail, make_thumbnail, render_gallery
from metricgold.predict.job import BatchJob, DepthModel
from metricgold.predict.outputs import DEPTH, SUFFIXES, check_kinds
from metricgold.predict.prometheus import MetricsFile
from metricgold.predict.quota import Quota
from metricgold.predict.receipt import RECEIPT, Receipt, ReceiptRow, open_receipt
from metricgold.predict.waiting import Waiting
from metricgold.storage import (
    Folder,
    OutputLost,
    Progress,
    S3Prefix,
    StoredObject,
    hold_output,
)

log = logging.getLogger(__name__)

MAX_AGAIN = 10_000  # failed images that a run with a quota tries again


def predict_all(
    params: Predict,
    model: Path,
    input: str,
    output: str,
    *,
    model_name: str,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    calibration: Calibration | None = None,
    cameras: Cameras | None = None,
    first: Iterable[str] = (),
    quota: Quota | None = None,
    metrics: MetricsFile | None = None,
    pipe: DepthModel | None = None,
    run_entries: Callable[..., Generator[ReceiptRow, None, None]] | None = None,
) -> dict[str, Any]:
    """Predict depth for every image of `input` (file, folder, glob, s3://bucket/prefix) into `output`.

    For `a.jpg` it writes `a.jpg` + SUFFIXES of the kinds in params.outputs, then summary.json, gallery.html and, last,
    receipt.jsonl with one row per input. Files that are not images are skipped, broken ones
    and failed writes are rows with a reason; none of them ends the job. `include` and `exclude` are globs over keys.
    `pipe` stands for the pipeline that is otherwise loaded from the folder `model` when the first image needs it;
    `run_entries` for predict_entries, such as metricgold.predict.dask_slices.predict_on with a cluster.

    `calibration` corrects depth; images of another camera than its own then fail, and another model is a ValueError.
    `cameras` are stated for the images; without them those of cameras.csv or COLMAP's files beside the images count.
    Keys that begin with one of `first` come before the others, in that order. A run with a `quota` ends well once it
    is spent; summary["ended_by"] says so, and the next run continues. What waits meanwhile is told to `metrics`.

    Returns the summary. Raises ValueError or OSError naming the location where nothing can be read or written,
    OutputLost once another job has taken the output.
    """
    started = time.monotonic()
    digest = digest_model(model) if Path(model).is_dir() else ""
    wanted = tuple(include), tuple(exclude)
    job = BatchJob(params, input, output, Path(model), model_name, digest, *wanted, calibration=calibration)
    job.check_calibration()
    check_kinds(job.kinds)
    source, sink = job.open_source(), job.open_sink()
    job = replace(job, cameras=cameras or find_cameras(source))
    entries = list_inputs(source, sink, tuple(first))
    quota = quota or Quota()
    with (
        hold_output(sink, params.lease_s) as lease,
        open_receipt(sink := lease.fence(sink)) as receipt,
        closed_on_error(source, sink),
    ):
        job = replace(job, lease=lease)
        receipt.load_previous()
        receipt.flush()  # the first write: an output that cannot be written ends the job here
        sample = GallerySample(params.gallery)
        predict = partial(run_entries or predict_entries, job, pipe=pipe, sample=sample)
        tell = partial(metrics.write_waiting, str(sink)) if metrics else lambda _: None
        with Waiting(partial(list_inputs, source, sink), tell) as waiting:
            counts = fill_receipt(job, entries, receipt, predict, quota, waiting)
        if lease.is_doubtful:
            fail_overwritten(job, receipt, counts)
        summary = summarise(job, source, sink, counts, receipt, time.monotonic() - started)
        summary["ended_by"] = quota.ended_by
        summary["images_waiting"] = waiting.after(counts.total()) if quota.ended_by else 0
        summary["seconds_by_step"] = receipt.seconds_by_step()
        summary["gpu_memory_mb"] = peak_gpu_memory_mb()
        summary |= report_drift(receipt.figures(), earlier_runs(sink), params.max_drift)
        summary["days"] = days_with(summary, earlier_days(sink))
        write_gallery(job, source, sink, receipt, sample, summary)
        receipt.finish(summary)
    return summary


def list_inputs(
    source: Folder | S3Prefix, sink: Folder | S3Prefix, first: tuple[str, ...] = ()
) -> Iterator[StoredObject]:
    """Entries of the input, without outputs of earlier runs if the output is inside it. ValueError for none.

    Those whose keys begin with one of `first` come first, in the order of these prefixes.
    """
    inside = source.prefix_of(sink)

    def is_input(entry: StoredObject) -> bool:
        if entry.key in CAMERA_FILES:
            return False
        if inside is None or not entry.key.startswith(inside):
            return True
        key = entry.key[len(inside) :]
        return not is_of_job(key) and not key.endswith(tuple(SUFFIXES.values()))

    entries = filter(is_input, entries_in_turn(source, first))
    one = next(entries, None)
    if one is None:
        globs = [glob for glob in (source.wanted.pattern, *source.wanted.include) if glob]
        hint = f"; globs are case-sensitive: {', '.join(globs)}" if globs else ""
        raise ValueError(f"{source}: no files to predict{hint}")
    return chain([one], entries)


def entries_in_turn(source: Folder | S3Prefix, first: tuple[str, ...]) -> Iterator[StoredObject]:
    """All entries, each once: those below each of these prefixes, then the rest. A prefix without any is warned of."""
    for turn, prefix in enumerate(first):
        entry = None
        for entry in source.entries(below=prefix):
            if not entry.key.startswith(first[:turn]):
                yield entry
        if entry is None:
            log.warning("%s: no key begins with %s", source, prefix)
    yield from (entry for entry in source.entries() if not entry.key.startswith(first))


def fill_receipt(
    job: BatchJob,
    entries: Iterable[StoredObject],
    receipt: Receipt,
    predict: Callable[[Iterable[StoredObject]], Generator[ReceiptRow, None, None]],
    quota: Quota,
    waiting: Waiting,
) -> Counter[str]:
    """Rows of the entries into the receipt: those kept from earlier runs, the others from `predict`; counts of them.

    What waits is looked at whenever an image has a row; rows that are kept do not take long.
    """
    counts: Counter[str] = Counter()
    started = time.monotonic()

    def line() -> str:
        rate = counts.total() / (time.monotonic() - started)
        words = [f"{count} {word}" for word, count in counts.items()]
        words += [] if (left := waiting.after(counts.total())) is None else [f"{left} waiting"]
        return f"predict: {', '.join(words)}; {rate:.1f} files/s"

    def count(word: str, num: int = 1) -> None:
        counts[word] += num
        progress.advance(num)

    to_predict = inputs_to_predict(job, entries, receipt, quota, count)
    with Progress("predict", None, " images", line=line) as progress, closing(predict(to_predict)) as rows:
        for row in rows:
            receipt.add(row)
            if (left := waiting.after(counts.total())) is not None:
                progress.expect(counts.total() + left)
            count(row["status"])
    return counts


def inputs_to_predict(
    job: BatchJob, entries: Iterable[StoredObject], receipt: Receipt, quota: Quota, count: Callable[..., None]
) -> Iterator[StoredObject]:
    """Entries that are predicted now; rows that still hold are kept on the way, and counted.

    Once the quota is spent the listing is not read on. Under one, images that have failed before come last: else they
    would use up every run, and no other image would have its turn.
    """
    used: set[str] = set()
    again: list[StoredObject] = []
    if job.cameras is None:  # else identities differ
        entries = receipt.kept_apart(entries, job.identity, job.kinds, count)
    for entry in entries:
        if job.cameras and (stated := job.cameras.of_image(entry.key)):
            used.add(stated.place)
        identity = job.identity_of(entry.key)
        if word := receipt.keep(entry, identity, job.kinds):
            count(word)
        elif quota.is_limited and len(again) < MAX_AGAIN and receipt.has_failed(entry, identity):
            again.append(entry)
        elif quota.takes_one():
            yield entry
        else:
            break
    for entry in again:
        if quota.takes_one():
            yield entry
        else:
            receipt.keep_failed(entry)
            count("failed")
    if job.cameras and not quota.ended_by:  # else the image of such a camera may be behind the end
        job.cameras.warn_of_unused(used)


def fail_overwritten(job: BatchJob, receipt: Receipt, counts: Counter[str]) -> None:
    """Make failed rows of images whose files are no longer what the row names.

    A write that was under way when the job before lost the output may have come late.
    """
    for row, word in receipt.overwritten():
        reason = f"{row['input']}: another job has written over its files; the next run predicts it again"
        receipt.add(row_without_depth(job, StoredObject(row["input"], 0, row["input_tag"]), "failed", reason))
        counts[word] -= 1
        counts["failed"] += 1


def summarise(
    job: BatchJob,
    source: Folder | S3Prefix,
    sink: Folder | S3Prefix,
    counts: Counter[str],
    receipt: Receipt,
    seconds: float,
) -> dict[str, Any]:
    """The contents of summary.json."""
    done, failed = counts["done"] + counts["kept"], counts["failed"]
    summary = {
        "images_done": done,
        "images_kept": counts["kept"],  # of those done: by an earlier run
        "images_failed": failed,
        "images_skipped": counts["skipped"],
        "share_failed": round(failed / (done + failed), 6) if failed else 0.0,
        "seconds": round(seconds, 3),
        "images_per_s": round(counts["done"] / seconds, 3) if seconds else 0.0,  # without those kept
        "input": str(source),
        "output": str(sink),
        "receipt": f"{str(sink).rstrip('/')}/{RECEIPT}",
        "model": job.model_name,
        "model_digest": job.model_digest,
        "params": job.inference,
        "reasons": receipt.reasons(),
        "max_failed": job.params.max_failed,
    }
    if job.calibration:
        summary["calibration"] = job.calibration.facts
    return summary | {"over_budget": over_budget(summary, job.params.max_failed)}


def over_budget(summary: dict[str, Any], max_failed: float | int | None) -> str | None:
    """Why the job itself has failed, None where it has not.

    max_failed  share of the images (float) or number of them (int) that may fail; None: all but one
    """
    failed, images = summary["images_failed"], summary["images_failed"] + summary["images_done"]
    where = f"{summary['receipt']} says why"
    if not images and summary["images_skipped"]:
        return f"none of {summary['images_skipped']} files is an image; {where}"
    if max_failed is None:
        return f"all {failed} images failed; {where}" if failed and not summary["images_done"] else None
    if failed <= (max_failed if isinstance(max_failed, int) else max_failed * images):
        return None
    allowed = f"{max_failed}" if isinstance(max_failed, int) else f"{100 * max_failed:g} %"
    return f"{failed} of {images} images failed, max_failed is {allowed}; {where}"


def write_gallery(
    job: BatchJob,
    source: Folder | S3Prefix,
    sink: Folder | S3Prefix,
    receipt: Receipt,
    sample: GallerySample,
    summary: dict[str, Any],
) -> None:
    """Write the page of the job, or delete an earlier one if the params ask for none; a failure is only a warning."""
    try:
        if not job.params.gallery:
            sink.delete(GALLERY)  # an earlier run's would show another state than the receipt
            return
        rows = receipt.sample(job.params.gallery)
        thumbnails = {key: thumbnail for key, thumbnail in sample.thumbnails.items() if key in rows}
        kept = [row for key, row in rows.items() if key not in thumbnails]
        thumbnails |= thumbnails_from_files(job, source, sink, kept)
        page = render_gallery(summary, thumbnails, rows, receipt.troubles())
        sink.write(GALLERY, page.encode(), "text/html; charset=utf-8")
    except OutputLost:
        raise
    except Exception as error:  # the page is an extra; the job is done without it
        log.warning("%s is left out: %s", GALLERY, reason_of(error))


def thumbnails_from_files(
    job: BatchJob, source: Folder | S3Prefix, sink: Folder | S3Prefix, rows: Iterable[ReceiptRow]
) -> dict[str, Thumbnail]:
    """Thumbnails of images that are done, made again from their inputs and depth files.

    Rows without a depth file have none. Those that cannot be made are left out, with one warning for all of them.
    Images of WRITTEN_PIXELS are open at once, or one that is larger.
    """

    def make(row: ReceiptRow, kind: Output) -> Thumbnail:
        file = row["outputs"][kind]
        depth = read_depth(BytesIO(sink.read(file["key"], tag=file["tag"])))
        seen_depth_m = np.where(depth.beyond_mask, np.float32(np.inf), depth.planar_depth_m)
        data = source.read(row["input"], tag=row["input_tag"])
        return make_thumbnail(read_job_photo(job, data, row["input"]).rgb, seen_depth_m)

    thumbnails, reasons = {}, []
    making: deque[tuple[str, int, Future[Thumbnail]]] = deque()  # with the pixels of the image

    def collect() -> None:
        key, _, future = making.popleft()
        try:
            thumbnails[key] = future.result()
        except Exception as error:
            reasons.append(f"{key}: {reason_of(error)}")

    with PromptPool(job.params.num_threads) as pool:
        for row in rows:
            if (kind := next((kind for kind in DEPTH if kind in row["outputs"]), None)) is None:
                continue
            pixels = row.get("width", 0) * row.get("height", 0)
            while making and sum(size for _, size, _ in making) + pixels > WRITTEN_PIXELS:
                collect()
            making.append((row["input"], pixels, pool.submit(make, row, kind)))
        while making:
            collect()
    if reasons:
        log.warning("%s lacks %d images that are done, such as %s", GALLERY, len(reasons), reasons[0])
    return thumbnails
