"""Another version under the alias: it is loaded beside the one at work, and takes over between two requests."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from metricgold.serve.model import ServedModel
from metricgold.serve.service import Service

log = logging.getLogger(__name__)


@contextmanager
def following(service: Service, newer: Callable[[str], ServedModel | None], every_s: float) -> Iterator[None]:
    """Ask every so many seconds for another model, by the name of the present one, and serve it from then on.

    A fault leaves the present model at work and is said once, until another one or a success.
    """
    ended = Event()

    def look() -> None:
        said = ""
        while not ended.wait(every_s):
            try:
                model = newer(service.model.name)
            except Exception as error:  # a registry that is away must not end the server, nor this thread
                service.metrics.reloads.labels("failed").inc()
                if str(error) != said:
                    log.warning("%s is served as before: %s", service.model.name, error)
                said = str(error)
                continue
            said = ""
            if model is not None:
                service.model = model
                service.metrics.reloads.labels("done").inc()
                log.info("%s is served from now on (digest %.12s)", model.name, model.digest)

    # A daemon: a registry that does not answer must not hold up the end of the server.
    Thread(target=look, name="follow", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
