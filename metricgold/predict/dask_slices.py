"""A batch job on a Dask cluster: its listing in slices, each a task that one worker does like a small job.

A worker process loads the pipeline once, reads inputs and writes outputs itself; only rows and the gallery's cards
come back, to the one receipt. Listing and slices go on side by side: two slices for each worker are under way. Rows
are safe when their slice is done, so a slice is as long as half a minute of work; one that is lost with its worker is
done again by another, and one that takes its workers with it is halved until the image is found, which is then tried
alone.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.predict.gallery import Card, Sample
from metricgold.predict.receipt import Row
from metricgold.predict.stage import Job, failed_row, load, predict_entries
from metricgold.storage import Folder, StoredObject, digest_folder

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

FIRST_IMAGES, MOST_IMAGES = 16, 256  # of a slice
SHORT_S, LONG_S = 20.0, 60.0  # a slice that took less is followed by larger ones, one that took more by smaller ones
SLICES_PER_WORKER = 2  # one at work, one waiting
RETRIES = 2  # of a slice that raised
MAX_HALVED = 32  # slices that took their workers with them; beyond, it is not for single images
SECONDS_BETWEEN_LINES = 60.0  # of a job that waits for workers
SHARED_S = 10.0  # until a file that another machine wrote is seen here

_alone = threading.Lock()  # a worker with more threads still has one pipeline
_loaded: dict[tuple[str, ...], Callable] = {}  # of this worker process, by job


def predict_on(
    client: "Client",
    job: Job,
    entries: Iterable[StoredObject],
    *,
    pipe: Callable | None = None,
    sample: Sample | None = None,
) -> Iterator[Row]:
    """predict_entries on the workers of a cluster, which need this package and the same paths.

    Workers that offer the resource GPU take one slice for each; where none does, each worker takes one. An image whose
    workers die again and again is a failed row. Raises what predict_entries raises, ValueError where a worker finds
    another model, and OSError where outputs are not seen here or the scheduler is gone; what is done stays.
    """
    work = _Work(client, _travelling(job), pipe, sample)
    listing = iter(entries)
    try:
        while True:
            while work.has_room() and (part := list(islice(listing, work.num_images))):
                work.submit(part)
            if not (work.running or work.submit_suspect()):
                return
            yield from work.next_rows()
    finally:
        work.cancel()


def _travelling(job: Job) -> Job:
    """The job with paths that hold in any working folder."""

    def absolute(location: str) -> str:
        return location if "://" in location else str(Path.cwd() / Path(location).expanduser())

    return replace(job, input=absolute(job.input), output=absolute(job.output), model=Path.cwd() / job.model)


class _Work:
    """Slices under way."""

    def __init__(self, client: "Client", job: Job, pipe: Callable | None, sample: Sample | None) -> None:
        self.client, self.job, self.pipe, self.sample = client, job, pipe, sample
        self.running: dict[Future, list[StoredObject]] = {}
        self.num_images = FIRST_IMAGES  # of the next slice
        self.halved, self.is_shared = 0, False
        self.suspects: list[list[StoredObject]] = []  # single images that died, perhaps of a neighbour
        self.is_alone = False
        self.resources: dict[str, int] | None = None

    def has_room(self) -> bool:
        """Whether the cluster, as large as it is by now, can take one more slice."""
        workers = self.client.scheduler_info()["workers"].values()
        cards = int(sum(worker["resources"].get("GPU", 0) for worker in workers))
        self.resources = {"GPU": 1} if cards else None
        return len(self.running) < SLICES_PER_WORKER * max(1, cards or len(workers))

    def submit(self, part: list[StoredObject]) -> None:
        wanted = frozenset(entry.key for entry in part if self.sample is not None and self.sample.wants(entry.key))
        asked = {"resources": self.resources, "retries": RETRIES, "pure": False}
        self.running[self.client.submit(_predict_slice, self.job, part, wanted, self.pipe, **asked)] = part

    def submit_suspect(self) -> bool:
        """Once nothing else is under way, submit one of the suspects, if there is one.

        What waits at a worker dies with it: only of an image that was alone it is known who did it.
        """
        self.is_alone = bool(self.suspects)
        if self.is_alone:
            self.submit(self.suspects.pop())
        return self.is_alone

    def next_rows(self) -> list[Row]:
        """Rows of a slice that is done; none where it is halved or put off instead."""
        from distributed import KilledWorker

        future = self._next_done()
        part = self.running.pop(future)
        try:
            rows, cards, seconds = future.result()
        except KilledWorker as error:
            return self._without_workers(part, error)
        except CancelledError as error:
            raise OSError("the Dask scheduler is gone; what is done is kept, the same job goes on later") from error
        except (ValueError, OSError):
            raise
        except Exception as error:  # the package is missing there, or is another version
            raise OSError(f"a worker of the Dask cluster failed: {type(error).__name__}: {error}") from error
        finally:
            future.release()
        self._check_shared(rows)
        for key, card in cards.items():
            if self.sample.wants(key):
                self.sample.keep(key, card)
        self._resize(seconds)
        return rows

    def _next_done(self) -> "Future":
        from distributed import wait

        while True:
            try:
                wait(list(self.running), timeout=SECONDS_BETWEEN_LINES, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if not self.client.scheduler_info()["workers"]:
                    log.warning("the Dask cluster has no workers; waiting for them")
            except CancelledError:
                pass  # it is found below
            for future in self.running:
                if future.done():
                    return future

    def _resize(self, seconds: float) -> None:
        if seconds < SHORT_S:
            self.num_images = min(MOST_IMAGES, 2 * self.num_images)
        elif seconds > LONG_S:
            self.num_images = max(1, self.num_images // 2)

    def _without_workers(self, part: list[StoredObject], error: Exception) -> list[Row]:
        """Halve a slice whose workers all died, down to the image; rows of failure where that is not to be found."""
        self.halved += 1
        if self.is_alone or self.halved > MAX_HALVED:
            return [failed_row(self.job, entry, f"{entry.key}: the workers died at it: {error}") for entry in part]
        if len(part) == 1:
            self.suspects.append(part)
            return []
        log.warning("%d images from %s on: their workers died; they are tried in halves", len(part), part[0].key)
        middle = len(part) // 2
        self.submit(part[:middle])
        self.submit(part[middle:])
        return []

    def _check_shared(self, rows: list[Row]) -> None:
        """Once: that a folder of outputs is the same one here."""
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
        """Give up what is still under way; slices at work end by themselves, and nobody takes their rows."""
        if self.running and self.client.status == "running":
            self.client.cancel(list(self.running))


# --- on a worker


class _Wanted:
    """The side of a Sample that offers are made to: cards of the keys named before."""

    def __init__(self, keys: frozenset[str]) -> None:
        self.keys = keys
        self.cards: dict[str, Card] = {}

    def wants(self, key: str) -> bool:
        return key in self.keys

    def keep(self, key: str, card: Card) -> None:
        self.cards[key] = card


def _predict_slice(
    job: Job, entries: list[StoredObject], wanted: frozenset[str], pipe: Callable | None
) -> tuple[list[Row], dict[str, Card], float]:
    """Rows and cards of a slice, and the seconds that it took with the pipeline loaded."""
    with _alone:
        cards, pipe = _Wanted(wanted), pipe or _pipeline(job)
        started = time.monotonic()
        rows = list(predict_entries(job, entries, pipe=pipe, sample=cards))
        return rows, cards.cards, time.monotonic() - started


def _pipeline(job: Job) -> Any:
    """The pipeline of this process, loaded with the first slice of a job. ValueError where the model is another."""
    key = (str(job.model), job.identity, str(job.params.compile))
    if key not in _loaded:
        _loaded.clear()  # there is memory for one
        if digest_folder(job.model) != job.model_sha256:
            raise ValueError(f"{job.model} on a worker is not the model of this job: another disk?")
        _loaded[key] = load(job)
    return _loaded[key]
