"""`metricgold serve`: from a loaded model to a server that listens."""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from metricgold.params import Predict
from metricgold.predict import Calibration
from metricgold.serve.app import LOOPBACK, create_app
from metricgold.serve.follow import following
from metricgold.serve.model import ServedModel
from metricgold.serve.service import Limits, Service

log = logging.getLogger(__name__)

TOKEN = "METRICGOLD_SERVE_TOKEN"  # noqa: S105  the variable's name
GRACE_S = 30  # for requests that are under way when the server is told to end


def serve(
    params: Predict,
    resolve: Callable[[], tuple[Path, str]],
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    follow_s: float | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; those under way are answered first. Port 0: any that is free.

    resolve      says the folder and the name of the checkpoint to serve
    follow_s     seconds after which it is asked again, and another one served if it has another name; None: never
    calibration  of that checkpoint and one camera, which corrects depth; photographs of other cameras are refused

    With METRICGOLD_SERVE_TOKEN in the environment requests need that token. Raises ValueError for a host that other
    machines reach without one and for what cannot be served, OSError where it cannot be listened.
    """
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback(host):
        raise ValueError(f"host {host} lets other machines ask: set {TOKEN}, or serve at 127.0.0.1")
    with listen(host, port) as listening:
        model = ServedModel.load(params, *resolve(), calibration)
        model.warm_up()
        service = Service(model, limits)
        app = create_app(service, token=token)
        at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        log.info("%s serves %s (digest %.12s)", at, model.name, model.digest)
        config = uvicorn.Config(app, log_config=None, server_header=False, timeout_graceful_shutdown=GRACE_S)
        newer = partial(newer_model, service, params, resolve)
        with following(service, newer, follow_s) if follow_s else nullcontext():
            uvicorn.Server(config).run(sockets=[listening])


def newer_model(
    service: Service, params: Predict, resolve: Callable[[], tuple[Path, str]], present: str
) -> ServedModel | None:
    """The model that is to be served now, ready to; None where it is still the present one."""
    folder, name = resolve()
    if name == present:
        return None

    def load() -> ServedModel:
        model = ServedModel.load(params, folder, name)
        model.warm_up()
        return model

    # Half precision: a load changes torch's default dtype for a moment, which the model at work must not see.
    return load() if params.dtype == "float32" else service.batcher.between_batches(load)


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients. OSError names host and port where there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False
