"""Downloads over HTTP on loopback against a plain client that verifies too."""

import hashlib
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np

from metricgold.download import download
from metricgold.manifest import Manifest

from . import least_seconds

NUM_BYTES, NAME = 256 << 20, "blob.bin"


def rate_vs_client(folder: Path) -> dict[str, float]:
    data = np.random.default_rng(0).bytes(NUM_BYTES)
    (folder / NAME).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    with _server(folder) as url:
        manifest, outputs = _manifest(url, sha256), (folder / f"out{n}" for n in count())
        ours_s, client_s = least_seconds(
            lambda: shutil.rmtree(download(manifest, next(outputs)).parent),
            lambda: _plain_client(f"{url}/{NAME}", folder / "copy", sha256),
            rounds=4,
        )
    return {"download.rate_vs_client": client_s / ours_s}


def _plain_client(url: str, path: Path, sha256: str) -> None:
    """The yardstick: copy, then read again to verify, as `curl` and `sha256sum` do."""
    with urllib.request.urlopen(url) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
    path.unlink()


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield "http://127.0.0.1:" + server.stdout.readline().split(" port ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def _manifest(url: str, sha256: str) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "blob",
            "role": "train",
            "title": "Random bytes",
            "source": url,
            "licence": {"name": "none", "url": url, "terms": "made for a benchmark"},
            "citation": "none",
            "depth": {"unit": "m", "kind": "planar", "invalid": "none"},
            "mirrors": [url],
            "archives": [{"path": NAME, "bytes": NUM_BYTES, "sha256": sha256}],
        }
    )
