"""`metricgold serve` as a process of its own, around a one-step model of the stand-in's size and random weights.

The yardstick of what a request costs is a call of the same pipeline with the decoded photograph, which takes turns with
the server; that of batching is the same server with batches of one. Memory is the server's, after requests that differ
in size, format and preset and of which some are refused.
"""

import base64
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import psutil
import torch
from diffusers import DDIMScheduler

from metricgold.images import read_rgb
from metricgold.model import EmptyPrompt, MetricGoldPipeline, digest_model, load_pipeline, new_unet, new_vae
from metricgold.model.parts import SCHEDULE, widen_conv_in
from metricgold.params.sections import Params, StandIn
from metricgold.registry.pyfunc import log_model
from metricgold.train.cost import NUM_PROMPT_TOKENS
from tests.support.serving import encoded, mlflow_serve, photograph, serve_command

from . import least_seconds

HEIGHT, WIDTH = 64, 96
AT_ONCE = 16
NUM_REQUESTS, NUM_WARM, NUM_TIMED = 5000, 500, 160
CALL_SHARE = 1.1  # a request may cost this times a call, and so many milliseconds more


def over_http(folder: Path) -> dict[str, float]:
    """What HTTP adds to a call, what batches gain, and what the server's memory does."""
    model = write_model(folder / "model")
    with server(folder, model) as (client, process):
        figures = overhead(client, model) | {"serve.rss_growth_mb": rss_growth(client, process)}
        batched = throughput(client)
    with server(folder, model, "--batch-size", "1") as (client, _):
        alone = throughput(client)
    return figures | {"serve.batching_speedup": batched / alone, "serve.images_per_s": batched}


def by_mlflow(folder: Path) -> dict[str, float]:
    """The same overhead of a version in MLflow's own server: base64 of a JPEG in, of PNGs and a mask out."""
    import mlflow

    store = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = store  # of the server too
    mlflow.set_tracking_uri(store)
    experiment = mlflow.create_experiment("bench", artifact_location=str(folder / "artifacts"))
    model, predict = write_model(folder / "model"), {"num_inference_steps": 1, "ensemble_size": 1}
    with mlflow.start_run(experiment_id=experiment):
        uri = str(log_model(Params(datasets=["any"], predict=predict), model, digest_model(model)).model_uri)
    data = encoded(photograph(480, 640), "JPEG", quality=90)
    pipe, rgb = load_pipeline(model), read_rgb(data, max_pixels=1_000_000)
    body = {"inputs": {"image": base64.b64encode(data).decode()}, "params": {"encoding": "png"}}
    with mlflow_serve(folder, uri) as address, httpx.Client(base_url=address, timeout=600) as client:

        def request() -> None:
            client.post("/invocations", json=body).raise_for_status()

        request_s, call_s = least_seconds(request, lambda: pipe(rgb), rounds=30)
    return {"serve.mlflow_overhead_ms": 1000 * (request_s - CALL_SHARE * call_s)}


def write_model(folder: Path) -> Path:
    torch.manual_seed(0)
    vae = new_vae(StandIn())
    unet = widen_conv_in(new_unet(StandIn()), vae.config.latent_channels)
    prompt = EmptyPrompt(NUM_PROMPT_TOKENS, unet.config.cross_attention_dim)
    scheduler = DDIMScheduler(**SCHEDULE)
    pipe = MetricGoldPipeline(unet, vae, scheduler, prompt, 0.5, 80.0, HEIGHT, WIDTH, objective="one-step")
    pipe.save_pretrained(folder)
    return folder


@contextmanager
def server(folder: Path, model: Path, *words: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with (
        serve_command(folder, "--model", str(model), "--port", "0", *words) as (address, process),
        httpx.Client(base_url=address, timeout=600) as client,
    ):
        yield client, psutil.Process(process.pid)


def overhead(client: httpx.Client, model: Path) -> dict[str, float]:
    """Milliseconds that a photograph of 640 x 480 takes beyond CALL_SHARE of a call with it; JPEG in, PNG out."""
    pipe, data = load_pipeline(model), encoded(photograph(480, 640), "JPEG", quality=90)
    rgb = read_rgb(data, max_pixels=1_000_000)
    request, call = least_seconds(lambda: ask(client, data), lambda: pipe(rgb), rounds=30)
    return {"serve.overhead_ms": 1000 * (request - CALL_SHARE * call), "serve.request_ms": 1000 * request}


def throughput(client: httpx.Client) -> float:
    """Photographs of the U-Net's own size a second, AT_ONCE clients; the best of three rounds."""
    data = encoded(photograph(HEIGHT, WIDTH))
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def round_of(num: int) -> float:
            started = perf_counter()
            for _ in pool.map(lambda _: ask(client, data), range(num)):
                pass
            return num / (perf_counter() - started)

        round_of(AT_ONCE)
        return max(round_of(NUM_TIMED) for _ in range(3))


def rss_growth(client: httpx.Client, process: psutil.Process) -> float:
    """MB of the server from NUM_WARM requests on."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        requests = mixed_requests()

        def send(num: int) -> float:
            for _ in pool.map(lambda request: client.post("/v1/depth", **request), islice(requests, num)):
                pass
            return process.memory_info().rss / 1e6

        before = send(NUM_WARM)
        return send(NUM_REQUESTS - NUM_WARM) - before


def mixed_requests() -> Iterator[dict]:
    """Photographs of several sizes as bytes and in forms, for several formats; every tenth is no photograph."""
    rng = np.random.default_rng(0)
    photographs = [encoded(photograph(*rng.integers(40, 160, 2), seed), "JPEG") for seed in range(32)]
    number = 0
    while True:
        number += 1
        data, params = photographs[number % 32], {"format": ("log-png", "json", "npz", "glb", "preview")[number % 5]}
        if number % 10 == 0:
            yield {"content": data[: len(data) // 2], "params": params}
        elif number % 2:
            yield {"content": data, "params": params}
        else:
            yield {"files": {"image": ("photo.jpg", io.BytesIO(data))}, "params": params}


def ask(client: httpx.Client, data: bytes) -> bytes:
    answer = client.post("/v1/depth", content=data)
    answer.raise_for_status()
    return answer.content
