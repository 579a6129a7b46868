"""What a server does with one photograph, from its bytes to its files. HTTP is in app.py."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from metricgold.images import pixels_by_head
from metricgold.params import Output, Preset
from metricgold.predict import BatchJob, Cameras, File, ReadImage, files_of, read_image, with_figures
from metricgold.serve.batcher import Batcher
from metricgold.serve.metrics import Metrics
from metricgold.serve.model import ServedModel, kinds_here
from metricgold.serve.upload import Upload
from metricgold.storage import StoredObject

log = logging.getLogger(__name__)
T = TypeVar("T")


class Busy(Exception):
    """As many requests are here as the server takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    max_bytes   of a photograph's file; max_pixels stands in the params
    max_queue   requests at once; one more is answered with 429
    upload_s    seconds for a body to arrive
    timeout_s   seconds from then on to the answer
    window_s    seconds that an image waits for others to share its pass
    """

    max_bytes: int = 32 << 20
    max_queue: int = 64
    upload_s: float = 30.0
    timeout_s: float = 120.0
    window_s: float = 0.01


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for: kinds of output by a preset, and the camera that it states."""

    kinds: tuple[Output, ...]
    preset: Preset | None = None
    cameras: Cameras | None = None


class PixelBudget:
    """Pixels of photographs that are open at once; one that is larger than all of them goes alone."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait for so many."""
        pixels = min(pixels, self.most)
        async with self._freed:
            await self._freed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            self.free += pixels
            async with self._freed:
                self._freed.notify_all()


class Service:
    """A model at work for requests; `model` may be replaced at any time, requests that came before keep theirs."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.limits, self.kinds, self.metrics = limits, kinds_here(), Metrics()
        self.model = model
        self.batcher = Batcher(limits.window_s, self.metrics)
        self.in_flight = 0
        self._model_task: asyncio.Task[None] | None = None

    @property
    def model(self) -> ServedModel:
        """The one that answers what comes now."""
        return self._model

    @model.setter
    def model(self, model: ServedModel) -> None:
        self._model = model
        self.metrics.name_model(model.name, model.digest)

    @property
    def is_ready(self) -> bool:
        """Whether another request would be taken."""
        is_running = self._model_task is not None and not self._model_task.done()
        return is_running and self.in_flight < self.limits.max_queue

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The threads at work."""
        params = self.model.jobs[None].params
        self._pixels = PixelBudget(params.max_pixels)
        with ThreadPoolExecutor(params.num_threads, thread_name_prefix="files") as self._pool:
            async with self.batcher.running() as self._model_task:
                yield

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around a request. Raises Busy where there are max_queue of them."""
        if self.in_flight >= self.limits.max_queue:
            raise Busy(f"{self.in_flight} requests are here, as many as this server takes; ask again soon")
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)

    async def depth(self, upload: Upload, wanted: Wanted) -> list[File]:
        """The files of a photograph, in the order of the kinds that are known.

        Raises ValueError where it, or what is wanted of it, cannot be; ModelFailed where the model has no depth for it.
        """
        model = self.model
        job = model.job(wanted.preset)
        if missing := sorted(set(wanted.kinds) - set(self.kinds)):
            raise ValueError(f"format {missing[0]} cannot be made by this server")
        mine = replace(
            job, cameras=wanted.cameras, params=job.params.model_copy(update={"outputs": list(wanted.kinds)})
        )
        pixels = await self._in_thread(lambda: pixels_by_head(upload.data, max_pixels=job.params.max_pixels))
        async with self._pixels.hold(pixels):
            with self.batcher.coming():
                image = await self._in_thread(lambda: read_upload_image(mine, upload))
            result = await self.batcher.predict(model, job, image)
            return await self._in_thread(lambda: list(files_of(with_figures(result), wanted.kinds)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def read_upload_image(job: BatchJob, upload: Upload) -> ReadImage:
    """The photograph of an upload as one of a job; its tag is the digest of its bytes.

    Raises ValueError where it is broken, or of another camera than the job's calibration.
    """
    started = time.perf_counter()
    entry = StoredObject(upload.name, len(upload.data), f"sha256:{hashlib.sha256(upload.data).hexdigest()}")
    image = read_image(job, entry, upload.data, started=started)
    if job.calibration:
        job.calibration.check_camera(image.camera.intrinsics, image.photo.rgb.shape, image.photo.camera_name)
    return image
