"""Servers of depth: in a thread of the test, around a model whose answers a test can compute itself, or the command."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from metricgold.log_depth import LogDepth
from metricgold.params.sections import Predict
from metricgold.predict.job import BatchJob
from metricgold.serve.app import create_app
from metricgold.serve.model import ServedModel
from metricgold.serve.service import Limits, Service
from tests.support import ROOT
from tests.support.waiting import wait_until

DIGEST = "ab" * 32
LOG_DEPTH = LogDepth(0.5, 80.0)


def depth_of(rgb: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What the model says of an image: farther where it is redder, and no pixel out of range."""
    return (scale * (1 + rgb[..., 0].astype(np.float32) / 8 + rgb[..., 1] / 64)).astype(np.float32)


class CountingModel:
    """A DepthModel that answers depth_of; `batches` are the sizes of the images it was called with.

    gate   closed, every call waits at it
    fails  raised for what it is asked
    """

    max_steps = 1000
    needs_camera = False

    def __init__(self, *, one_step: bool = False, scale: float = 1.0) -> None:
        self.is_one_step, self.scale = one_step, scale
        self.batches: list[list[tuple[int, ...]]] = []
        self.options: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails: Exception | None = None

    def processing_size(self, height: int, width: int) -> tuple[int, int]:
        return (64, 96) if width > height else (96, 64)

    def __call__(self, image: list[np.ndarray], **options: Any) -> list[SimpleNamespace]:
        self.batches.append([one.shape[:2] for one in image])
        self.options.append(options)
        assert self.gate.wait(60)
        if self.fails:
            raise self.fails
        return [self.predict(rgb) for rgb in image]

    def predict(self, rgb: np.ndarray) -> SimpleNamespace:
        """What a Prediction holds, whose own module would load torch."""
        depth_m = depth_of(rgb, self.scale)
        return SimpleNamespace(
            planar_depth_m=depth_m,
            uncertainty=np.full(depth_m.shape, 0.05, np.float32),
            valid_mask=np.ones(depth_m.shape, bool),
            intrinsics=None,
            focal_from="none",
            log_depth=LOG_DEPTH,
            num_members=2,
            uncertainty_calibrated=True,
            unlikeness=1.0,
        )


def served_model(pipe: Any, *, name: str = "metricgold/3", digest: str = DIGEST, **params: Any) -> ServedModel:
    values = {"num_inference_steps": 2, "ensemble_size": 2} | params
    return ServedModel.of(BatchJob(Predict(**values), "", "", Path("/nowhere/models"), name, digest), pipe)


@contextmanager
def serving(pipe: Any, *, token: str | None = None, params: dict[str, Any] | None = None, **limits: Any) -> Iterator:
    """(client, service): a server on a free port that has started, until the block ends. pipe may be a ServedModel."""
    model = pipe if isinstance(pipe, ServedModel) else served_model(pipe, **(params or {}))
    service = Service(model, Limits(**limits))
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        config = uvicorn.Config(create_app(service, token=token), log_config=None, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, what="the server")
        at = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=at, timeout=60, limits=httpx.Limits(max_connections=200)) as client:
                yield client, service
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def photograph(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], smooth enough for a JPEG to keep."""
    y, x = np.mgrid[0:height, 0:width]
    shift = np.random.default_rng(seed).uniform(0, 6, 3)
    return (128 + 90 * np.sin(x[..., None] / 17 + y[..., None] / 23 + shift)).astype(np.uint8)


def encoded(rgb: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


SERVE = [sys.executable, "-m", "metricgold.cli", "serve"]


@contextmanager
def serve_command(folder: Path, *words: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address, process) of `metricgold serve` in an empty folder; it is ended by SIGTERM, if it still runs."""
    log = folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*SERVE, *words],
            cwd=folder,
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        )
    try:
        found = re.compile(r"(http://\S+) serves")
        line = wait_until(lambda: found.search(log.read_text()) or process.poll() is not None)
        assert not isinstance(line, bool), log.read_text()
        wait_until(lambda: is_ready(line[1]))
        yield line[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def mlflow_serve(folder: Path, model_uri: str) -> Iterator[str]:
    """The address of `mlflow models serve` of a version; its log is in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scripts = Path(sys.executable).parent
    command = [str(scripts / "mlflow"), "models", "serve", "--model-uri", model_uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    log = folder / "mlflow-serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, every_s=0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
