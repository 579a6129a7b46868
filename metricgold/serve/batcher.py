"""Requests that wait for the model: those of one job and one size go through the U-Net together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from metricgold.predict import BatchJob, ImageResult, ReadImage, predict_batch
from metricgold.serve.metrics import Metrics
from metricgold.serve.model import ServedModel

log = logging.getLogger(__name__)
T = TypeVar("T")


class ModelFailed(Exception):
    """The model has no depth for an image; the reason stands in the server's log."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """An image that waits for its depth, from the model that was served when it came."""

    model: ServedModel
    job: BatchJob
    image: ReadImage
    size: tuple[int, int]  # at which the model sees it
    answer: asyncio.Future[ImageResult]

    def goes_with(self, other: "Ticket") -> bool:
        """Whether both can share a pass."""
        return self.model is other.model and self.job is other.job and self.size == other.size


class Batcher:
    """One thread that runs the model, and the images that wait for it. Of one event loop.

    window_s  seconds that an image waits for others that are on their way; alone it never waits
    """

    def __init__(self, window_s: float, metrics: Metrics) -> None:
        self.window_s, self.metrics = window_s, metrics
        self._waiting: list[Ticket] = []
        self._num_coming = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around what is done to an image before it is predicted: others wait for it, for window_s."""
        self._num_coming += 1
        try:
            yield
        finally:
            self._num_coming -= 1
            self._arrived.set()

    async def predict(self, model: ServedModel, job: BatchJob, image: ReadImage) -> ImageResult:
        """The image with its depth. Raises ModelFailed. Cancelled, the image is not computed any more."""
        size = model.pipe.processing_size(*image.photo.rgb.shape[:2])
        ticket = Ticket(model, job, image, size, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self._arrived.set()
        try:
            return await ticket.answer
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def between_batches(self, work: Callable[[], T]) -> T:
        """What the work returns, done in the model's thread; for other threads than that of the event loop."""
        return self._thread.submit(work).result()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The model's thread at work."""
        task = asyncio.create_task(self._run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with self._thread:
            while True:
                batch = await self._next_batch()
                results = await loop.run_in_executor(self._thread, self._compute, batch)
                for ticket, result in zip(batch, results, strict=True):
                    if ticket.answer.done():  # its client has left
                        continue
                    if isinstance(result, ImageResult):
                        ticket.answer.set_result(result)
                    else:
                        ticket.answer.set_exception(ModelFailed())

    async def _next_batch(self) -> list[Ticket]:
        """The images that go with the one that has waited longest."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        first = self._waiting[0]
        most, until = first.job.images_at_once, asyncio.get_running_loop().time() + self.window_s
        while self._num_coming and sum(map(first.goes_with, self._waiting)) < most:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
            except TimeoutError:
                break
        batch = [ticket for ticket in self._waiting if ticket.goes_with(first)][:most]
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        return batch

    def _compute(self, batch: list[Ticket]) -> list[ImageResult | None]:
        """In the model's thread: results in the order of the batch, None where the model failed."""
        if not batch:
            return []
        started = time.perf_counter()
        results: list[ImageResult | None] = []
        try:
            for image, found in predict_batch(batch[0].job, batch[0].model.pipe, [one.image for one in batch]):
                if isinstance(found, ImageResult):
                    results.append(found)
                else:
                    log.error("%s", found["reason"] or image.entry.key)
                    results.append(None)
        except Exception:  # a batch that fails must not end the thread, which others wait for
            log.exception("a batch of %d images failed", len(batch))
            results = [None] * len(batch)
        self.metrics.model_seconds.observe(time.perf_counter() - started)
        self.metrics.batch_images.observe(len(batch))
        return results
