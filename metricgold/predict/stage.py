"""Batch depth: every image of a folder or S3 prefix to files of depth and what goes with it, with one receipt.

Images are read and results written in threads beside the model; windows of images in flight bound the memory, and
rows wait on disk. Photographs that the model sees at one size share a batch, whatever their own sizes. A rerun
predicts only what the receipt does not hold; a killed job goes on from `receipt.partial/`.
"""

import logging
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.images import (
    NotAnImage,
    Photo,
    claims_image,
    pinhole_or_assumed,
    read_depth_exr,
    read_depth_npz,
    read_depth_tiff,
    read_log_depth_png,
    read_mm_depth_png,
    read_photo,
)
from metricgold.params import Inference, Output, Predict
from metricgold.predict.gallery import GALLERY, Card, Sample, make_card, render_gallery
from metricgold.predict.outputs import DEFAULT, DEPTH, SUFFIXES, Depicted, check_kinds, figures, files_of, metadata
from metricgold.predict.receipt import EARLIER, PARTIAL, RECEIPT, SUMMARY, Receipt, Row, open_receipt
from metricgold.storage import (
    Folder,
    S3Prefix,
    StoredObject,
    StoreLost,
    digest_folder,
    digest_json,
    hold_output,
    open_bucket,
)

log = logging.getLogger(__name__)

FILES_VERSION = 2  # of the output files; a person raises it when their meaning changes
_PEEK_BYTES = 32 << 20  # larger files are asked for their first bytes before they are read
_HELD_BYTES = 1 << 30  # of images decoded ahead, and again of those that wait for a batch
_WRITTEN_PIXELS = 48 << 20  # of images being written; a pixel takes 30 bytes meanwhile, 100 in point clouds
_EXPANSION = 16  # decoded bytes of a photograph over its file's, roughly
_FIRST_MEMBERS = 3  # of ensemble_size auto: every image has as many


@dataclass(frozen=True)
class Job:
    """What every image of a run has in common: plain values that can travel to another machine."""

    params: Predict
    input: str
    output: str
    model: Path
    model_name: str
    model_sha256: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def open_source(self) -> Folder | S3Prefix:
        return open_bucket(self.input, include=self.include, exclude=self.exclude)

    def open_sink(self) -> Folder | S3Prefix:
        return open_bucket(self.output, create=True)

    @property
    def kinds(self) -> tuple[Output, ...]:
        return tuple(self.params.outputs or DEFAULT)

    @property
    def inference(self) -> Row:
        """The params that decide the numbers; batch size and threads do not."""
        names = set(Inference.model_fields)
        if self.params.ensemble_size != "auto":
            names -= {"max_ensemble_size", "uncertainty_target"}
        return {name: getattr(self.params, name) for name in sorted(names)}

    @property
    def asked(self) -> Row:
        """What the pipeline is called with."""
        names = set(Inference.model_fields) - {"dtype"} | {"batch_size"}
        return {name: getattr(self.params, name) for name in names}

    @property
    def images_at_once(self) -> int:
        """Images of a batch, which counts images x members."""
        members = self.params.ensemble_size
        return max(1, self.params.batch_size // (_FIRST_MEMBERS if members == "auto" else members))

    @cached_property
    def identity(self) -> str:
        """Digest of what decides an output besides its input."""
        model = {"name": self.model_name, "sha256": self.model_sha256}
        asked = {"params": self.inference, "fov_deg": self.params.fov_deg}
        return digest_json({"files": FILES_VERSION, "model": model, **asked})


def predict_all(
    params: Predict,
    model: Path,
    input: str,
    output: str,
    *,
    model_name: str,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    pipe: Callable | None = None,
    elsewhere: Callable[..., Iterator[Row]] | None = None,
) -> Row:
    """Predict depth for every image of `input` (file, folder, glob, s3://bucket/prefix) into `output`.

    For `a.jpg` it writes `a.jpg` + SUFFIXES of the kinds in params.outputs, then summary.json, gallery.html and, last,
    receipt.jsonl with one row per input. Files that are no images are skipped, broken ones
    and failed writes are rows with a reason; none of them ends the job. `include` and `exclude` are globs over keys.
    `pipe` stands for the pipeline that is otherwise loaded from the folder `model` when the first image needs it;
    `elsewhere` for predict_entries, such as metricgold.predict.dask_slices.predict_on with a cluster.

    Returns the summary. Raises ValueError or OSError naming the location where nothing can be read or written.
    """
    started = time.monotonic()
    digest = digest_folder(model) if Path(model).is_dir() else ""
    job = Job(params, input, output, Path(model), model_name, digest, tuple(include), tuple(exclude))
    check_kinds(job.kinds)
    source, sink = job.open_source(), job.open_sink()
    entries = _inputs(source, sink)
    with (
        hold_output(sink, params.lease_s) as check_held,
        open_receipt(sink) as receipt,
        _no_patience_in_trouble(source, sink),
    ):
        receipt.load_previous()
        receipt.flush()  # the first write: an output that cannot be written ends the job here
        sample = Sample(params.gallery)
        rows = partial(elsewhere or predict_entries, job, pipe=pipe, sample=sample)
        counts = _run(job, entries, rows, receipt, check_held)
        summary = _summary(job, source, sink, counts, time.monotonic() - started) | {"reasons": receipt.reasons()}
        summary |= {"max_failed": params.max_failed, "over_budget": over_budget(summary, params.max_failed)}
        _write_gallery(job, source, sink, receipt, sample, summary)
        receipt.finish(summary)
    return summary


def over_budget(summary: Row, max_failed: float | int | None) -> str | None:
    """Why a job has failed as a whole, None where it has not.

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


def predict_entries(
    job: Job, entries: Iterable[StoredObject], *, pipe: Callable | None = None, sample: Sample | None = None
) -> Iterator[Row]:
    """Predict these entries of the job's input, write their files, yield a row for each, not in order.

    Needs nothing but the job, so that slices of a listing can be done on different machines. `sample` is offered
    each image while it is at hand. What is wrong with one image is in its row. Raises StoreLost where no other image
    would fare better, and ValueError for a model that cannot do what is asked.
    """
    source, sink, loaded = job.open_source(), job.open_sink(), cache(lambda: _checked(job, pipe or load(job)))
    threads = job.params.num_threads
    written: deque[tuple[int, Future]] = deque()  # with its pixels
    # One pool: on a far store writing takes most of the time, on a near one with large images reading does.
    with _Pool(2 * threads) as pool, _no_patience_in_trouble(source, sink):
        read = _in_order(pool, partial(_read, job, source), entries, job.images_at_once + threads, threads)
        for batch in _batches(read, lambda photo: _seen_size(loaded(), photo), job.images_at_once):
            if isinstance(batch, dict):  # a row: nothing to predict
                yield batch
                continue
            for row, depicted in _predict(job, loaded(), batch):
                pixels = depicted.planar_depth_m.size if depicted else 0
                while written and sum(size for size, _ in written) + pixels > _WRITTEN_PIXELS:
                    yield written.popleft()[1].result()
                written.append((pixels, pool.submit(_write, job, sink, row, depicted, sample)))
            while len(written) > 2 * threads or (written and written[0][1].done()):
                yield written.popleft()[1].result()
        for _, future in written:
            yield future.result()


@contextmanager
def _no_patience_in_trouble(*buckets: Folder | S3Prefix) -> Iterator[None]:
    """A broken job does not wait for requests that wait for a store."""
    try:
        yield
    except BaseException:
        for bucket in buckets:
            bucket.close()
        raise


# --- the job as a whole


def _run(
    job: Job,
    entries: Iterable[StoredObject],
    predict: Callable[[Iterable[StoredObject]], Iterator[Row]],
    receipt: Receipt,
    check_held: Callable[[], None],
) -> Counter:
    """Rows of all entries into the receipt: kept ones as they are, the others from `predict`."""
    counts: Counter = Counter()

    def changed() -> Iterator[StoredObject]:
        for entry in entries:
            if counted := receipt.keep(entry, job.identity, job.kinds):
                progress.count(counted)
            else:
                yield entry

    with _Progress(counts) as progress, closing(predict(changed())) as rows:
        for row in rows:
            check_held()
            receipt.add(row)
            progress.count(row["status"])
    return counts


def _inputs(source: Folder | S3Prefix, sink: Folder | S3Prefix) -> Iterator[StoredObject]:
    """Entries of the input, without what an earlier run wrote if the output lies within it. ValueError for none."""
    inside = source.prefix_of(sink)

    def is_input(entry: StoredObject) -> bool:
        return inside is None or not entry.key.startswith(inside) or not _is_ours(entry.key[len(inside) :])

    entries = filter(is_input, source.entries())
    first = next(entries, None)
    if first is None:
        raise ValueError(f"{source}: no files to predict")
    return chain([first], entries)


def _is_ours(key: str) -> bool:
    own = key in (RECEIPT, EARLIER, SUMMARY, GALLERY) or key.startswith(PARTIAL)
    return own or key.endswith(tuple(SUFFIXES.values()))


def _summary(job: Job, source: Folder | S3Prefix, sink: Folder | S3Prefix, counts: Counter, seconds: float) -> Row:
    done, failed = counts["done"] + counts["kept"], counts["failed"]
    return {
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
        "model_sha256": job.model_sha256,
        "params": job.inference,
    }


def _write_gallery(
    job: Job, source: Folder | S3Prefix, sink: Folder | S3Prefix, receipt: Receipt, sample: Sample, summary: Row
) -> None:
    try:
        if not job.params.gallery:
            sink.delete(GALLERY)  # an earlier run's would show another state than the receipt
            return
        cards = _cards(job, source, sink, receipt, sample)
        page = render_gallery(summary, cards, {key: receipt.row(key) for key in cards}, receipt.troubles())
        sink.write(GALLERY, page.encode(), "text/html; charset=utf-8")
    except Exception as error:  # the page is for looking; the job is done without it
        log.warning("%s is left out: %s", GALLERY, _reason(error))


def _cards(
    job: Job, source: Folder | S3Prefix, sink: Folder | S3Prefix, receipt: Receipt, sample: Sample
) -> dict[str, Card]:
    """Cards of the sample over all that is done; those of images kept from earlier runs are made now."""
    chosen: Sample = Sample(job.params.gallery)
    for key in receipt.done_inputs():
        if chosen.wants(key):
            chosen.keep(key, None)
    cards = {key: card for key, card in sample.cards.items() if key in chosen.cards}
    kept = (receipt.row(key) for key in chosen.cards if key not in cards)
    missing = [row for row in kept if not row["outputs"].keys().isdisjoint(DEPTH)]
    with _Pool(job.params.num_threads) as pool:
        made = pool.map(partial(_card_of_kept, job, source, sink), missing)
        cards |= {row["input"]: card for row, card in zip(missing, made, strict=True) if card is not None}
    return cards


def _card_of_kept(job: Job, source: Folder | S3Prefix, sink: Folder | S3Prefix, row: Row) -> Card | None:
    try:
        kind = next(kind for kind in DEPTH if kind in row["outputs"])
        found, _ = _READERS[kind](BytesIO(sink.read(row["outputs"][kind]["key"])))
        depth_m = found["planar_depth_m"] if kind == "npz" else found
        return make_card(_read_photo(job, source.read(row["input"]), row["input"]).rgb, depth_m)
    except Exception as error:
        log.info("%s is left out of %s: %s", row["input"], GALLERY, _reason(error))
        return None


_READERS: dict[Output, Callable] = {
    "log-png": read_log_depth_png,
    "mm-png": read_mm_depth_png,
    "npz": read_depth_npz,
    "tiff": read_depth_tiff,
    "exr": read_depth_exr,
}


# --- reading


def _read(job: Job, source: Folder | S3Prefix, entry: StoredObject) -> tuple[Row, Photo | None]:
    """A row to go on with and its photograph, or a finished row and None."""
    started, photo = time.perf_counter(), None
    try:
        if entry.bytes > _PEEK_BYTES and not claims_image(entry.key, source.read(entry.key, 16)):
            raise NotAnImage(f"{entry.key}: not an image of a known format")
        photo = _read_photo(job, source.read(entry.key), entry.key)
    except StoreLost:
        raise
    except NotAnImage as error:
        status, reason = "skipped", str(error)
    except Exception as error:  # whatever is wrong with one image, the others go on
        status, reason = "failed", _reason(error)
    row = {**_begun(job, entry), "seconds": {"read": _since(started)}}
    return (row, photo) if photo else (_without_depth(row, status, reason), None)


def _begun(job: Job, entry: StoredObject) -> Row:
    return {"input": entry.key, "input_tag": entry.tag, "identity": job.identity}


def failed_row(job: Job, entry: StoredObject, reason: str) -> Row:
    """The row of an image that nobody could predict."""
    return _without_depth(_begun(job, entry), "failed", reason)


def _read_photo(job: Job, data: bytes, key: str) -> Photo:
    limits = {name: getattr(job.params, name) for name in ("max_pixels", "max_aspect", "allow_truncated")}
    return read_photo(data, name=key, **limits)


def _without_depth(row: Row, status: str, reason: str) -> Row:
    return {**row, "status": status, "reason": reason, "finished": _now()}


def _reason(error: BaseException) -> str:
    name = type(error).__name__
    return str(error) or name if isinstance(error, ValueError | OSError | RuntimeError) else f"{name}: {error}"


def _in_order(
    pool: ThreadPoolExecutor, work: Callable, entries: Iterable[StoredObject], window: int, least: int
) -> Iterator[Any]:
    """Results of `work` over entries, in order, at most `window` of them ahead; `least`, if they are large."""
    ahead: deque[tuple[int, Future]] = deque()
    held = 0
    for entry in entries:
        ahead.append((_EXPANSION * entry.bytes, pool.submit(work, entry)))
        held += ahead[-1][0]
        while len(ahead) >= window or (held > _HELD_BYTES and len(ahead) > least):
            num_bytes, future = ahead.popleft()
            held -= num_bytes
            yield future.result()
    while ahead:
        yield ahead.popleft()[1].result()


# --- predicting


def load(job: Job) -> Callable:
    """The pipeline of a job, as predict_entries asks it."""
    from metricgold.model import load_pipeline

    return load_pipeline(job.model, dtype=job.params.dtype, compile=job.params.compile)


def _checked(job: Job, pipe: Callable) -> Callable:
    """The pipeline, if it can do what is asked: otherwise every image would fail for the same reason."""
    asked = job.params.num_inference_steps, job.params.ensemble_size
    most = pipe.scheduler.config.num_train_timesteps if hasattr(pipe, "scheduler") else asked[0]
    if asked[0] > most:
        raise ValueError(f"{job.model_name} takes num_inference_steps up to {most}, got {asked[0]}")
    if getattr(pipe, "is_one_step", False) and asked != (1, 1):
        raise ValueError(
            f"{job.model_name} was trained for one step: it takes num_inference_steps 1 and ensemble_size 1 "
            f"(--preset one-step), got {asked[0]} and {asked[1]}"
        )
    return pipe


def _seen_size(pipe: Callable, photo: Photo) -> tuple[int, int]:
    """Height and width at which the model sees a photograph: what a batch has in common."""
    return pipe.processing_size(*photo.rgb.shape[:2])


def _batches(
    read: Iterable[tuple[Row, Photo | None]], seen_size: Callable[[Photo], tuple[int, int]], images_at_once: int
) -> Iterator[Row | list[tuple[Row, Photo]]]:
    """Rows without an image as they come; images in lists of one seen size, no more than four lists waiting."""
    waiting: defaultdict[tuple[int, int], list] = defaultdict(list)
    for row, photo in read:
        if photo is None:
            yield row
            continue
        size = seen_size(photo)
        waiting[size].append((row, photo))
        if len(waiting[size]) == images_at_once:
            yield waiting.pop(size)
        elif _is_full(waiting, 4 * images_at_once):
            yield waiting.pop(next(iter(waiting)))  # the size that has waited longest
    yield from waiting.values()


def _is_full(waiting: dict[tuple[int, int], list], most: int) -> bool:
    images = [photo.rgb.nbytes for batch in waiting.values() for _, photo in batch]
    return len(images) >= most or sum(images) > _HELD_BYTES


def _predict(job: Job, pipe: Callable, batch: list[tuple[Row, Photo]]) -> Iterator[tuple[Row, Depicted | None]]:
    """Each image of a batch with its depth, or a finished row where the model failed."""
    started = time.perf_counter()
    predictions = _ask(pipe, [photo.rgb for _, photo in batch], job.asked)
    share = _since(started) / len(batch)
    for (row, photo), prediction in zip(batch, predictions, strict=True):
        if isinstance(prediction, Exception):
            yield _without_depth(row, "failed", f"{row['input']}: the model failed: {_reason(prediction)}"), None
        else:
            row = {**row, "seconds": {**row["seconds"], "model": round(share, 4)}}
            yield row, _depict(job, pipe, row, photo, prediction)


def _ask(pipe: Callable, images: list[np.ndarray], asked: Row) -> list[Any]:
    """Predictions of a batch; where the model fails, those of its halves, at last an error for an image."""
    try:
        return pipe(images, **asked)
    except Exception as error:  # out of memory and the like: one image must not cost the others
        if len(images) == 1:
            return [error]
        half = len(images) // 2
        return _ask(pipe, images[:half], asked) + _ask(pipe, images[half:], asked)


def _depict(job: Job, pipe: Callable, row: Row, photo: Photo, prediction: Any) -> Depicted:
    height, width = photo.rgb.shape[:2]
    intrinsics, focal_from = pinhole_or_assumed(photo.focal_px, job.params.fov_deg, height, width)
    return Depicted(
        rgb=photo.rgb,
        planar_depth_m=prediction.planar_depth_m,
        uncertainty=prediction.uncertainty,
        valid_mask=prediction.valid_mask,
        intrinsics=intrinsics,
        log_depth=pipe.log_depth,
        facts={
            **{name: row[name] for name in ("input", "input_tag", "identity")},
            **{"width": width, "height": height, "truncated": photo.truncated},
            **{"focal_px": float(intrinsics[0, 0]), "focal_from": focal_from},
            **{"num_members": prediction.num_members, "params": job.inference},
            **{"model": job.model_name, "model_sha256": job.model_sha256},
        },
    )


# --- writing


def _write(job: Job, sink: Folder | S3Prefix, row: Row, depicted: Depicted | None, sample: Sample | None) -> Row:
    """Write the files of an image; its finished row, with the reason where that failed."""
    if depicted is None:
        return row
    started = time.perf_counter()
    try:
        figured = figures(depicted.planar_depth_m, depicted.uncertainty, depicted.valid_mask)
        depicted = replace(depicted, facts={**depicted.facts, **figured})
        written = _write_files(job, sink, row["input"], depicted)
    except StoreLost:
        raise
    except Exception as error:  # whatever is wrong with one image, the others go on
        return _without_depth(row, "failed", f"writing {row['input']}: {_reason(error)}")
    _offer(sample, row["input"], depicted)
    seconds = {**row["seconds"], "write": _since(started)}
    return {
        **row,
        "status": "done",
        "reason": None,
        **depicted.facts,
        **written,
        "seconds": seconds,
        "finished": _now(),
    }


def _write_files(job: Job, sink: Folder | S3Prefix, key: str, depicted: Depicted) -> Row:
    stem, about = sink.own_key(key), metadata(depicted.facts)
    outputs, depth = {}, {"output": None, "sha256": None}
    if stem + SUFFIXES["json"] == SUMMARY and "json" in job.kinds:
        raise ValueError(f"its side-car would be the job's own {SUMMARY}; give it another name")
    for file in files_of(depicted, job.kinds):
        name = stem + file.suffix
        outputs[file.kind] = {"key": name, "tag": sink.write(name, file.data, file.content_type, metadata=about)}
        if file.sha256:
            depth = {"output": name, "sha256": file.sha256}
    return {**depth, "outputs": outputs}


def _offer(sample: Sample | None, key: str, depicted: Depicted) -> None:
    try:
        if sample is not None and sample.wants(key):
            sample.keep(key, make_card(depicted.rgb, depicted.planar_depth_m))
    except Exception as error:  # the page is for looking; the files are written
        log.info("%s is left out of %s: %s", key, GALLERY, _reason(error))


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Pool(ThreadPoolExecutor):
    def __exit__(self, *error: Any) -> None:
        self.shutdown(cancel_futures=True)  # a broken job does not wait for what is queued


class _Progress:
    """Counts rows: a bar on a terminal, elsewhere a log line every ten seconds."""

    def __init__(self, counts: Counter) -> None:
        from tqdm import tqdm

        self.counts, self.started = counts, time.monotonic()
        self.told_at = self.started
        self.bar = tqdm(desc="predict", unit=" images", disable=not sys.stderr.isatty())

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def count(self, word: str) -> None:
        self.counts[word] += 1
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.told_at > 10:
            self.told_at = now
            rate = self.counts.total() / (now - self.started)
            log.info("predict: %s; %.1f files/s", ", ".join(f"{n} {word}" for word, n in self.counts.items()), rate)
