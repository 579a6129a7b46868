"""Entries of a listing to depth files and rows: read, batch, predict, write.

Images are read and written in threads beside the model; windows of images in flight bound the memory. Photographs
that the model sees at one size share a batch, whatever their own sizes. Nothing here depends on the rest of the job, so
slices of a listing can be done on different machines.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from metricgold.images import ASSUMED, FocalFrom, NotAnImage, Photo, claims_image, pixels_by_head, read_photo
from metricgold.params import Output
from metricgold.predict.calibration import Calibration, apply_calibration
from metricgold.predict.gallery import GALLERY, ThumbnailSample, make_thumbnail
from metricgold.predict.job import BatchJob, DepthModel
from metricgold.predict.outputs import NEED_PINHOLE, SUFFIXES, ImageResult, files_of, labels, with_figures
from metricgold.predict.receipt import EARLIER, PARTIAL, RECEIPT, SUMMARY, OutputFiles, ReceiptRow
from metricgold.predict.row_blocks import index_of
from metricgold.storage import LEASE, LOCK, Folder, S3Prefix, StoredObject, StoreLost

log = logging.getLogger(__name__)
T = TypeVar("T")

PEEK_BYTES = 32 << 20  # of larger files the first bytes are checked before the rest is read
HELD_BYTES = 1 << 30  # of images read and decoded ahead, and again of those that wait for a batch
DECODING_BYTES = 10  # that a pixel takes while it is decoded; 3 afterwards
BATCH_PIXELS = 96 << 20  # of the images of a batch; a pixel takes 12 bytes with its depth
WRITTEN_PIXELS = 48 << 20  # of images being written; a pixel takes 30 bytes meanwhile, 100 in point clouds


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """The file of an image, not decoded yet."""

    entry: StoredObject
    data: bytes
    decoding_bytes: int  # that decoding will take, by the size in the file's head
    seconds: float


Fetching = Future[FetchedImage | ReceiptRow]


class ImageCamera(NamedTuple):
    """Intrinsics [3, 3] of an image, None for a panorama; where they come from, and where they are stated."""

    intrinsics: np.ndarray | None
    focal_from: FocalFrom
    place: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether it is not assumed."""
        return self.focal_from not in ASSUMED


@dataclass(frozen=True, eq=False)
class ReadImage:
    """An image on its way from the source to its files."""

    entry: StoredObject
    photo: Photo
    camera: ImageCamera
    seconds: dict[str, float]  # of each step so far


def predict_entries(
    job: BatchJob,
    entries: Iterable[StoredObject],
    *,
    pipe: DepthModel | None = None,
    sample: ThumbnailSample | None = None,
) -> Generator[ReceiptRow, None, None]:
    """Predict these entries of the job's input, write their files, yield a row for each, not in order.

    `pipe` stands for the job's model, which is otherwise loaded when the first image needs it; each image is offered
    to `sample` while it is at hand. A fault of one image becomes its row. Raises StoreLost where no other image
    would fare better, and ValueError for a model that cannot do what the params ask.
    """
    source, sink, num_threads = job.open_source(), job.open_sink(), job.params.num_threads

    @cache
    def model() -> DepthModel:
        loaded = pipe or job.load_model()
        job.check_model(loaded)
        return loaded

    def seen_size(photo: Photo) -> tuple[int, int]:
        height, width = photo.rgb.shape[:2]
        return model().processing_size(height, width)

    written: deque[tuple[int, Future[ReceiptRow]]] = deque()  # with its pixels
    # One pool: on a far store writing takes most of the time, on a near one with large images reading does.
    with PromptPool(2 * num_threads) as pool, closed_on_error(source, sink):
        images = read_ahead(pool, job, source, entries)
        for batch in batches_of_one_size(images, seen_size, job.images_at_once):
            if not isinstance(batch, list):
                yield batch  # the row of an input without an image: nothing to predict
                continue
            for image, result in predict_batch(job, model(), batch):
                if not isinstance(result, ImageResult):
                    yield result
                    continue
                pixels = result.planar_depth_m.size
                while written and sum(size for size, _ in written) + pixels > WRITTEN_PIXELS:
                    yield written.popleft()[1].result()
                written.append((pixels, pool.submit(write_image, job, sink, image, result, sample)))
            while len(written) > 2 * num_threads or (written and written[0][1].done()):
                yield written.popleft()[1].result()
        for _, future in written:
            yield future.result()


def read_ahead(
    pool: ThreadPoolExecutor, job: BatchJob, source: Folder | S3Prefix, entries: Iterable[StoredObject]
) -> Iterator[ReadImage | ReceiptRow]:
    """Images fetched and decoded by the pool, in order; as many ahead as a batch and the threads need.

    Fewer if they are large: HELD_BYTES bounds the files, and what decoding takes by the sizes in their heads. One image
    that is larger goes alone.
    """
    most, coming, lock = job.images_at_once + job.params.num_threads, iter(entries), Lock()
    fetching: deque[Fetching] = deque()
    decoding: deque[tuple[int, Future[ReadImage | ReceiptRow]]] = deque()  # with the bytes that it takes

    def start_decoding() -> None:
        with lock:
            while fetching and fetching[0].done() and not fetching[0].cancelled():
                size = decoding_bytes(fetching[0])
                if decoding and sum(size for size, _ in decoding) + size > HELD_BYTES:
                    return
                decoding.append((size, pool.submit(decode_image, job, fetching[0])))
                fetching.popleft()

    def fetched(file: Fetching) -> None:
        """In the thread that has fetched it: so images are decoded beside the model too."""
        if not file.cancelled():  # by a pool that is shutting down, which holds the lock of `submit`
            with suppress(RuntimeError):  # of a pool that has been shut down
                start_decoding()

    held: deque[int] = deque()  # bytes of the files that are not yielded yet
    while True:
        while len(held) < most and sum(held) <= HELD_BYTES and (entry := next(coming, None)) is not None:
            held.append(entry.bytes)
            file = pool.submit(fetch_image, job, source, entry)
            with lock:
                fetching.append(file)
            file.add_done_callback(fetched)
        if not held:
            return
        with lock:
            first = None if decoding else fetching[0]
        if first is not None:
            wait([first])
            start_decoding()
        image = decoding[0][1].result()
        with lock:
            decoding.popleft()
        held.popleft()
        start_decoding()
        yield image


def decoding_bytes(file: Fetching) -> int:
    """What decoding a file that was fetched will take."""
    fetched = None if file.exception() else file.result()
    return fetched.decoding_bytes if isinstance(fetched, FetchedImage) else 0


def fetch_image(job: BatchJob, source: Folder | S3Prefix, entry: StoredObject) -> FetchedImage | ReceiptRow:
    """The file of an entry, or the row of one that has no image."""
    started = time.perf_counter()

    def fetch() -> FetchedImage:
        if entry.bytes > PEEK_BYTES and not claims_image(entry.key, source.read(entry.key, 16, tag=entry.tag)):
            raise NotAnImage(f"{entry.key}: not an image of a known format")
        data = source.read(entry.key, tag=entry.tag)
        num_pixels = pixels_by_head(data, max_pixels=job.params.max_pixels)
        return FetchedImage(entry, data, DECODING_BYTES * num_pixels, seconds_since(started))

    return or_its_row(job, entry, started, fetch)


def decode_image(job: BatchJob, file: Fetching) -> ReadImage | ReceiptRow:
    """The photograph in a file that was fetched, or the row of one that has none."""
    fetched = file.result()
    if not isinstance(fetched, FetchedImage):
        return fetched
    entry, started = fetched.entry, time.perf_counter() - fetched.seconds

    return or_its_row(job, entry, started, lambda: read_image(job, entry, fetched.data, started=started))


def read_image(job: BatchJob, entry: StoredObject, data: bytes, *, started: float) -> ReadImage:
    """The photograph in the bytes of a file, with its camera; `started` is the time of perf_counter at which it began.

    ValueError for what the job does not take: no image or a broken one, beyond its limits, of another shape than the
    camera that is stated for it, or a panorama where a kind of output needs a pinhole camera.
    """
    photo = read_job_photo(job, data, entry.key)
    camera = camera_of(job, entry.key, photo)
    if camera.intrinsics is None:
        check_kinds_of_panorama(entry.key, photo, job.kinds)
    return ReadImage(entry, photo, camera, {"read": seconds_since(started)})


def or_its_row(job: BatchJob, entry: StoredObject, started: float, read: Callable[[], T]) -> T | ReceiptRow:
    """What `read` returns, or the row of an entry that it cannot read. Raises StoreLost only."""
    try:
        return read()
    except StoreLost:
        raise
    except NotAnImage as error:
        return row_without_depth(job, entry, "skipped", str(error), seconds={"read": seconds_since(started)})
    except Exception as error:  # a fault of one image must not end the others
        return row_without_depth(job, entry, "failed", reason_of(error), seconds={"read": seconds_since(started)})


def camera_of(job: BatchJob, key: str, photo: Photo) -> ImageCamera:
    """The camera that is stated for an image, else that of its EXIF, else an assumed one.

    ValueError where the stated one is of another shape.
    """
    stated = job.cameras.of_image(key) if job.cameras else None
    if job.cameras is None or stated is None:
        return ImageCamera(*photo.camera(job.params.fov_deg))
    try:
        return ImageCamera(stated.camera.intrinsics(*photo.rgb.shape[:2]), job.cameras.stated_from, stated.place)
    except ValueError as error:
        raise ValueError(f"{key}: {stated.place}: {error}") from error


def read_job_photo(job: BatchJob, data: bytes, key: str) -> Photo:
    """The photograph in the bytes of a file within the job's limits."""
    return read_photo(
        data,
        name=key,
        max_pixels=job.params.max_pixels,
        max_aspect=job.params.max_aspect,
        allow_truncated=job.params.allow_truncated,
    )


def check_kinds_of_panorama(key: str, photo: Photo, kinds: Iterable[Output]) -> None:
    """Raise ValueError for kinds of output that need a pinhole camera where the photograph is a panorama."""
    impossible = sorted(NEED_PINHOLE.intersection(kinds))
    if photo.panorama and impossible:
        without = ", ".join(impossible)
        raise ValueError(f"{key}: a panorama ({photo.panorama}) has no pinhole camera, which {without} need")


def batches_of_one_size(
    images: Iterable[ReadImage | ReceiptRow], seen_size: Callable[[Photo], tuple[int, int]], images_at_once: int
) -> Iterator[list[ReadImage] | ReceiptRow]:
    """Images in lists that the model sees at one size; rows as they come.

    At most four batches' images wait for others of their size, and at most HELD_BYTES of them; a batch has
    BATCH_PIXELS at most, or one image.
    """
    waiting: defaultdict[tuple[int, int], list[ReadImage]] = defaultdict(list)
    for image in images:
        if not isinstance(image, ReadImage):
            yield image
            continue
        size = seen_size(image.photo)
        if sum(one.photo.rgb.size // 3 for one in (*waiting[size], image)) > BATCH_PIXELS and waiting[size]:
            yield waiting.pop(size)
        waiting[size].append(image)
        held = [image.photo.rgb.nbytes for batch in waiting.values() for image in batch]
        if len(waiting[size]) == images_at_once:
            yield waiting.pop(size)
        elif len(held) >= 4 * images_at_once or sum(held) > HELD_BYTES:
            yield waiting.pop(next(iter(waiting)))  # the size that has waited longest
    yield from waiting.values()


def predict_batch(
    job: BatchJob, model: DepthModel, batch: list[ReadImage]
) -> Iterator[tuple[ReadImage, ImageResult | ReceiptRow]]:
    """Each image of a batch with its depth, or with its row where the model failed."""
    started = time.perf_counter()
    predictions = predict_or_halve(model, batch, job.options | {"assumed_fov_deg": job.params.fov_deg})
    share = seconds_since(started) / len(batch)
    for image, prediction in zip(batch, predictions, strict=True):
        entry, photo = image.entry, image.photo
        if isinstance(prediction, Exception):
            reason = f"{entry.key}: the model failed: {reason_of(prediction)}"
            yield image, row_without_depth(job, entry, "failed", reason, seconds=image.seconds)
            continue
        image.seconds["model"] = round(share, 4)
        height, width = photo.rgb.shape[:2]
        intrinsics = image.camera.intrinsics
        result = ImageResult(
            rgb=photo.rgb,
            planar_depth_m=prediction.planar_depth_m,
            uncertainty=prediction.uncertainty,
            valid_mask=prediction.valid_mask,
            intrinsics=intrinsics,
            log_depth=prediction.log_depth,
            unlikeness=prediction.unlikeness,
            facts={
                "input": entry.key,
                "input_tag": entry.tag,
                "identity": job.identity,
                "width": width,
                "height": height,
                "truncated": photo.truncated,
                "focal_px": None if intrinsics is None else float(intrinsics[0, 0]),
                "focal_from": image.camera.focal_from,
                "focal_place": image.camera.place,
                "focal_reason": None if image.camera.is_known else photo.focal_reason,
                "scale_assumed": model.needs_camera and not image.camera.is_known,
                "panorama": photo.panorama,
                "camera_name": photo.camera_name,
                "num_members": prediction.num_members,
                "uncertainty_calibrated": prediction.uncertainty_calibrated,
                "drop_edges": job.params.drop_edges,
                "params": job.inference,
                "model": job.model_name,
                "model_digest": job.model_digest,
            },
        )
        try:
            yield image, calibrated(result, job.calibration) if job.calibration else result
        except ValueError as error:
            yield image, row_without_depth(job, entry, "failed", f"{entry.key}: {error}", seconds=image.seconds)


def calibrated(result: ImageResult, calibration: Calibration) -> ImageResult:
    """The image in the metres of the calibration, which its facts name. ValueError where it is of another camera."""
    result = apply_calibration(calibration, result, camera_name=result.facts.get("camera_name"))
    return replace(result, facts={**result.facts, "calibration": calibration.facts})


def predict_or_halve(model: DepthModel, images: list[ReadImage], options: dict[str, Any]) -> list[Any]:
    """Predictions of a batch; where the model fails, those of its halves, in the end an error for one image."""
    try:
        cameras = [image.camera.intrinsics if image.camera.is_known else None for image in images]
        return model([image.photo.rgb for image in images], intrinsics=cameras, **options)
    except Exception as error:  # out of memory and the like: one image must not cost the others
        if len(images) == 1:
            return [error]
        half = len(images) // 2
        return predict_or_halve(model, images[:half], options) + predict_or_halve(model, images[half:], options)


def write_image(
    job: BatchJob, sink: Folder | S3Prefix, image: ReadImage, result: ImageResult, sample: ThumbnailSample | None
) -> ReceiptRow:
    """Write the files of an image and offer it to the sample; its finished row, with the reason if writing failed."""
    started, key = time.perf_counter(), image.entry.key
    try:
        result = with_figures(result)
        stem = sink.own_key(key)
        if own := next(filter(is_of_job, (stem + SUFFIXES[kind] for kind in job.kinds)), None):
            raise ValueError(f"it would be written over the job's own {own}; give it another name")
        sink.check_length(stem + max((SUFFIXES[kind] for kind in job.kinds), key=len))  # before the first is written
        outputs: OutputFiles = {}
        depth_file = digest = None
        for file in files_of(result, job.kinds):
            name = stem + file.suffix
            tag = sink.write(name, file.data, file.content_type, metadata=labels(result.facts))
            outputs[file.kind] = {"key": name, "tag": tag}
            if file.sha256:
                depth_file, digest = name, file.sha256
    except StoreLost:
        raise
    except Exception as error:  # a fault of one image must not end the others
        reason = f"writing {key}: {reason_of(error)}"
        return row_without_depth(job, image.entry, "failed", reason, seconds=image.seconds)
    try:
        if sample is not None and sample.wants(key):
            sample.keep(key, make_thumbnail(result.rgb, result.seen_depth_m))
    except Exception as error:  # the page is an extra; the files are written
        log.warning("%s: no thumbnail for %s: %s", key, GALLERY, reason_of(error))
    return {
        **result.facts,
        "identity": job.identity_of(key),
        "status": "done",
        "reason": None,
        "output": depth_file,
        "sha256": digest,
        "outputs": outputs,
        "unlikeness": None if result.unlikeness is None else round(result.unlikeness, 4),
        "seconds": {**image.seconds, "write": seconds_since(started)},
        "finished": utc_now(),
    }


def is_of_job(key: str) -> bool:
    """Whether a key of the output is the job's own: no image may have it."""
    own = (RECEIPT, index_of(RECEIPT), EARLIER, index_of(EARLIER), SUMMARY, GALLERY, LEASE, LOCK)
    return key in own or key.startswith(PARTIAL)


def row_without_depth(
    job: BatchJob,
    entry: StoredObject,
    status: Literal["failed", "skipped"],
    reason: str,
    *,
    seconds: dict[str, float] | None = None,
) -> ReceiptRow:
    """The row of an input that failed or is not an image; `seconds` of the steps that it has passed, if known."""
    row: ReceiptRow = {
        "input": entry.key,
        "input_tag": entry.tag,
        "identity": job.identity_of(entry.key),
        "status": status,
        "reason": reason,
        "finished": utc_now(),
    }
    if seconds is not None:
        row["seconds"] = seconds
    return row


def reason_of(error: BaseException) -> str:
    """An error in one line; with its type where the message alone would not explain it."""
    name = type(error).__name__
    return str(error) or name if isinstance(error, ValueError | OSError | RuntimeError) else f"{name}: {error}"


def seconds_since(started: float) -> float:
    """Seconds since a time of perf_counter, as the receipt holds them."""
    return round(time.perf_counter() - started, 4)


def utc_now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class PromptPool(ThreadPoolExecutor):
    """A pool that drops what is queued when a broken job leaves it."""

    def __exit__(self, *error: Any) -> None:
        self.shutdown(cancel_futures=True)


@contextmanager
def closed_on_error(*buckets: Folder | S3Prefix) -> Iterator[None]:
    """Close the buckets if the job breaks off, so that it does not wait for requests that wait for a store."""
    try:
        yield
    except BaseException:
        for bucket in buckets:
            bucket.close()
        raise
