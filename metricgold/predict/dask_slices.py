"""A batch job on a Dask cluster: its listing in slices, each a task that one worker does like a small job.

A worker process loads the pipeline once, reads inputs and writes outputs itself; only rows and the gallery's
thumbnails come back, to the one receipt. The listing is read while slices run, two of them for each worker. Rows are
safe when their slice is done, so a slice is as long as half a minute of work. A slice that is lost with its worker is
done again by another; one that takes its workers with it is halved down to the image at fault, which is then tried
alone.
"""

import logging
import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import CancelledError
from itertools import islice
from typing import TYPE_CHECKING

from metricgold.model import digest_model
from metricgold.predict.entries import predict_entries, row_without_depth
from metricgold.predict.gallery import Thumbnail, ThumbnailSample
from metricgold.predict.job import BatchJob, DepthModel
from metricgold.predict.receipt import ReceiptRow
from metricgold.storage import Folder, StoredObject

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

FIRST_IMAGES, MOST_IMAGES = 16, 256  # of a slice
SHORT_S, LONG_S = 20.0, 60.0  # a slice that took less is followed by larger ones, one that took more by smaller ones
SLICES_PER_WORKER = 2  # one at work, one waiting
RETRIES = 2  # of a slice that raised
MAX_HALVED = 32  # slices that took their workers with them; beyond, single images are not at fault
SECONDS_BETWEEN_LINES = 60.0  # of a job that waits for workers
SHARED_S = 10.0  # until a file that another machine wrote is seen here


def predict_on(
    client: "Client",
    job: BatchJob,
    entries: Iterable[StoredObject],
    *,
    pipe: DepthModel | None = None,
    sample: ThumbnailSample | None = None,
) -> Generator[ReceiptRow, None, None]:
    """predict_entries on the workers of a cluster, which need this package and the same paths.

    Workers that offer the resource GPU take one slice for each; where none does, each worker takes one. An image whose
    workers die again and again is a failed row. Raises what predict_entries raises, ValueError where a worker finds
    another model, and OSError where outputs are not seen here or the scheduler is gone; finished files stay.
    """
    slices = RunningSlices(client, job.elsewhere(), pipe, sample)
    listing = iter(entries)
    try:
        while True:
            while slices.has_room() and (part := list(islice(listing, slices.num_images))):
                slices.submit(part)
            if not (slices.running or slices.submit_suspect()):
                return
            yield from slices.next_rows()
    finally:
        slices.cancel()


class RunningSlices:
    """The slices that workers have, and what has been learned about sizes and deadly images."""

    def __init__(
        self, client: "Client", job: BatchJob, pipe: DepthModel | None, sample: ThumbnailSample | None
    ) -> None:
        self.client, self.job, self.pipe, self.sample = client, job, pipe, sample
        self.running: dict[Future, list[StoredObject]] = {}
        self.num_images = FIRST_IMAGES  # of the next slice
        self.halved, self.is_shared = 0, False
        self.suspects: list[list[StoredObject]] = []  # single images whose worker died, perhaps of a neighbour
        self.is_alone = False
        self.resources: dict[str, int] | None = None

    def has_room(self) -> bool:
        """Whether the cluster, as large as it is by now, can take one more slice."""
        workers = self.client.scheduler_info()["workers"].values()
        num_gpus = int(sum(worker["resources"].get("GPU", 0) for worker in workers))
        self.resources = {"GPU": 1} if num_gpus else None
        return len(self.running) < SLICES_PER_WORKER * max(1, num_gpus or len(workers))

    def submit(self, part: list[StoredObject]) -> None:
        """Give these entries to the cluster, with the keys whose thumbnails the sample wants."""
        wanted = frozenset(entry.key for entry in part if self.sample is not None and self.sample.wants(entry.key))
        options = {"resources": self.resources, "retries": RETRIES, "pure": False}
        self.running[self.client.submit(predict_slice, self.job, part, wanted, self.pipe, **options)] = part

    def submit_suspect(self) -> bool:
        """Once nothing else is under way, submit one of the suspects, if there is one.

        An image that waits at a worker dies with it: only one that was alone is known to be at fault.
        """
        self.is_alone = bool(self.suspects)
        if self.is_alone:
            self.submit(self.suspects.pop())
        return self.is_alone

    def next_rows(self) -> list[ReceiptRow]:
        """Rows of a slice that is done; none where it is halved or put off instead."""
        from distributed import KilledWorker

        future = self.wait_for_one()
        part = self.running.pop(future)
        try:
            rows, thumbnails, seconds = future.result()
        except KilledWorker as error:
            return self.halve(part, error)
        except CancelledError as error:
            raise OSError("the Dask scheduler is gone; finished rows are kept, run the same job again later") from error
        except (ValueError, OSError):
            raise
        except Exception as error:  # the package is missing there, or is another version
            raise OSError(f"a worker of the Dask cluster failed: {type(error).__name__}: {error}") from error
        finally:
            future.release()
        self.check_shared(rows)
        for key, thumbnail in thumbnails.items():
            if self.sample is not None and self.sample.wants(key):
                self.sample.keep(key, thumbnail)
        self.resize(seconds)
        return rows

    def wait_for_one(self) -> "Future":
        """The first slice that is done, well or not."""
        from distributed import wait

        while True:
            try:
                wait(list(self.running), timeout=SECONDS_BETWEEN_LINES, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if not self.client.scheduler_info()["workers"]:
                    log.warning("the Dask cluster has no workers; waiting for them")
            except CancelledError:
                pass  # that slice is done too
            for future in self.running:
                if future.done():
                    return future

    def resize(self, seconds: float) -> None:
        """Make the next slices larger or smaller by the time that one took."""
        if seconds < SHORT_S:
            self.num_images = min(MOST_IMAGES, 2 * self.num_images)
        elif seconds > LONG_S:
            self.num_images = max(1, self.num_images // 2)

    def halve(self, part: list[StoredObject], error: Exception) -> list[ReceiptRow]:
        """Submit a slice whose workers all died again in halves, down to the image; failed rows where that is over."""
        self.halved += 1
        if self.is_alone or self.halved > MAX_HALVED:
            reason = f"the workers died at it: {error}"
            return [row_without_depth(self.job, entry, "failed", f"{entry.key}: {reason}") for entry in part]
        if len(part) == 1:
            self.suspects.append(part)
            return []
        log.warning("%d images from %s on: their workers died; they are tried in halves", len(part), part[0].key)
        middle = len(part) // 2
        self.submit(part[:middle])
        self.submit(part[middle:])
        return []

    def check_shared(self, rows: list[ReceiptRow]) -> None:
        """Once per job, raise OSError where a file that a worker has written is not in this machine's folder."""
        written = next((file["key"] for row in rows for file in row.get("outputs", {}).values()), None)
        if self.is_shared or written is None:
            return
        sink, deadline = self.job.open_sink(), time.monotonic() + SHARED_S
        while isinstance(sink, Folder) and not sink.exists(written):
            if time.monotonic() > deadline:
                raise OSError(f"{sink}: a worker has written {written} and it is not here: another disk?")
            time.sleep(0.2)
        self.is_shared = True

    def cancel(self) -> None:
        """Drop the slices that are still under way; those at work end by themselves, and their rows are not read."""
        if self.running and self.client.status == "running":
            self.client.cancel(list(self.running))


# --- on a worker

_one_slice = threading.Lock()  # a worker with more threads still has one pipeline
_loaded: dict[tuple[str, ...], DepthModel] = {}  # of this worker process, by job


class WantedThumbnails:
    """A ThumbnailSample on a worker: the thumbnails of keys that the driver's sample wants."""

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys
        self.thumbnails: dict[str, Thumbnail] = {}

    def wants(self, key: str) -> bool:
        return key in self.keys

    def keep(self, key: str, thumbnail: Thumbnail) -> None:
        self.thumbnails[key] = thumbnail


def predict_slice(
    job: BatchJob, entries: list[StoredObject], wanted: frozenset[str], pipe: DepthModel | None
) -> tuple[list[ReceiptRow], dict[str, Thumbnail], float]:
    """Rows and thumbnails of a slice, and the seconds that it took with the pipeline loaded."""
    with _one_slice:
        sample, pipe = WantedThumbnails(wanted), pipe or load_once(job)
        started = time.monotonic()
        rows = list(predict_entries(job, entries, pipe=pipe, sample=sample))
        return rows, sample.thumbnails, time.monotonic() - started


def load_once(job: BatchJob) -> DepthModel:
    """The pipeline of this process, loaded with the first slice of a job. ValueError where the model is another."""
    key = (str(job.model), job.identity, str(job.params.compile))
    if key not in _loaded:
        _loaded.clear()  # there is memory for one
        if digest_model(job.model) != job.model_digest:
            raise ValueError(f"{job.model} on a worker is not the model of this job: another disk?")
        _loaded[key] = job.load_model()
    return _loaded[key]
