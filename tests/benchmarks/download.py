"""Downloads over HTTP on loopback from a server in another process: bytes, rates and memory.

Names that BOUNDS does not know are reported beside those that it does.
"""

import multiprocessing
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from metricgold.datasets.manifest import Manifest
from metricgold.download.stage import download
from metricgold.storage.files import digest_file

from . import CannotRun, chaos, least_seconds
from .upstream import HYPERSIM_MEMBERS, Upstream, manifest_of, serve, write_plain, write_scene_zip, write_tar

NUM_BYTES = 256 << 20
NUM_FRAMES = 10  # of a scene's zip, 254 MB


def faulty(folder: Path) -> dict[str, float]:
    """The run of tests/download/test_chaos.py: two mirrors, one of them often bad, fifty kills."""
    tally = chaos.over_http(folder, num_kills=50)
    print(f"    {tally}")
    return {
        "download.faulty_bytes_ratio": tally.ratio,
        "download.faulty_kills": tally.kills,
        "download.faulty_requests": tally.num_requests,
    }


def selective(folder: Path) -> dict[str, float]:
    """Colour, distance and entity ids of a HyperSim scene against its whole zip by curl and unzip."""
    (folder / "up").mkdir()
    upstream = write_scene_zip(folder / "up/ai_001_001.zip", np.random.default_rng(0), NUM_FRAMES)
    with serve(folder / "up", buffer_bytes=0) as server:
        archives = [{"path": "ai_001_001.zip"}]
        manifest = manifest_of(server.url, archives=archives, members=HYPERSIM_MEMBERS)
        _download(manifest, folder / "once")
        once = server.counts()
        whole_bytes = (folder / "up/ai_001_001.zip").stat().st_size
        outputs = (folder / f"out{n}" for n in count())
        ours_s, whole_s = least_seconds(
            lambda: shutil.rmtree(_download(manifest, next(outputs))),
            lambda: _curl_and_unzip(f"{server.url}/ai_001_001.zip", folder / "copy"),
            rounds=3,
        )
    return {
        "download.selective_bytes_ratio": once["bytes_sent"] / upstream.needed_bytes,
        "download.selective_share_of_zip": once["bytes_sent"] / whole_bytes,
        "download.selective_speedup": whole_s / ours_s,
        "download.requests_per_100_members": 100 * once["num_requests"] / len(upstream.sha256_of),
    }


def _curl_and_unzip(url: str, folder: Path) -> None:
    """What the data set's own script does."""
    folder.mkdir()
    subprocess.run(["curl", "-sS", "-o", folder / "x.zip", url], check=True)
    subprocess.run(["unzip", "-q", "x.zip"], cwd=folder, check=True)
    shutil.rmtree(folder)


def rate(folder: Path) -> dict[str, float]:
    """A plain file, verified by its sha256, against the better of curl and boto3, which do not verify.

    Told beside it: against the fastest client of all that reads its file again for the sha256, that client's rate
    when it does not (beyond what sha256 itself does on a core), and a zip that is extracted and verified by its CRCs.
    """
    bucket = folder / "up/bucket"
    bucket.mkdir(parents=True)
    sha256 = write_plain(bucket / "blob.bin", np.random.default_rng(0), NUM_BYTES).sha256_of["blob.bin"]
    write_scene_zip(bucket / "scene.zip", np.random.default_rng(1), NUM_FRAMES)
    zip_bytes = (bucket / "scene.zip").stat().st_size
    with serve(folder / "up", buffer_bytes=0) as server:
        mirror, outputs = f"{server.url}/bucket", (folder / f"out{n}" for n in count())
        of_file = manifest_of(mirror, archives=[{"path": "blob.bin", "sha256": sha256}])
        of_zip = manifest_of(mirror, archives=[{"path": "scene.zip"}])
        file_s, zip_s, *clients_s, verified_s = least_seconds(
            # Ours are deleted later, with the folder: what has reached the disk takes long to delete.
            lambda: _download(of_file, next(outputs)),
            lambda: _download(of_zip, next(outputs)),
            *(partial(_copy, client, server.url, folder / "copy") for client in (curl, boto3, urllib)),
            partial(_copy, urllib, server.url, folder / "copy", sha256),
            rounds=4,
        )
    curl_s, boto3_s, urllib_s = clients_s
    return {
        "download.rate_vs_client": min(curl_s, boto3_s) / file_s,
        "download.rate_vs_verifying_client": verified_s / file_s,
        "download.rate_zip_vs_client": zip_bytes / zip_s / (NUM_BYTES / min(curl_s, boto3_s)),
        "download.rate_mb_per_s": NUM_BYTES / file_s / 1e6,
        "download.rate_mb_per_s_curl": NUM_BYTES / curl_s / 1e6,
        "download.rate_mb_per_s_boto3": NUM_BYTES / boto3_s / 1e6,
        "download.rate_mb_per_s_urllib": NUM_BYTES / urllib_s / 1e6,
    }


def _copy(client: Callable[[str, Path], None], url: str, path: Path, sha256: str | None = None) -> None:
    client(url, path)
    if sha256 is not None:
        assert digest_file(path) == sha256
    path.unlink()


def curl(url: str, path: Path) -> None:
    subprocess.run(["curl", "-sS", "-o", path, f"{url}/bucket/blob.bin"], check=True)


def urllib(url: str, path: Path) -> None:
    with urlopen(f"{url}/bucket/blob.bin") as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)


def boto3(url: str, path: Path) -> None:
    """As `aws s3 cp` does it: ranges, ten at a time."""
    from boto3 import Session
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"})
    client = Session().client("s3", endpoint_url=url, region_name="us-east-1", config=config)
    client.download_file("bucket", "blob.bin", str(path))


def rss_growth(folder: Path) -> dict[str, float]:
    """Peak memory of a process that fetches one archive of 1 GB over that of one of 10 MB; the worse of zip and tar.

    Told beside it: a zip of 1 GB with as many members as the largest scene has in 20 GB.
    """
    if not Path("/proc/self/status").exists():
        raise CannotRun("this system does not tell a process's peak memory")
    rng = np.random.default_rng(0)
    peaks_mb: dict[str, float] = {}
    for size_mb in (10, 100, 1000):
        scene = partial(write_scene_zip, rng=rng, num_frames=size_mb // 10, scale=0.4)  # 10 MB a frame
        frames = partial(write_tar, rng=rng, sizes=[250_000] * (4 * size_mb))
        peaks_mb[f"zip_{size_mb}"] = _peak_mb(folder, "a.zip", scene)
        peaks_mb[f"tar_{size_mb}"] = _peak_mb(folder, "a.tar", frames)
    crowd = partial(write_scene_zip, rng=rng, num_frames=800, scale=0.05)
    peaks_mb["zip_21600_members"] = _peak_mb(folder, "a.zip", crowd)
    growth_mb = max(peaks_mb[f"{kind}_1000"] - peaks_mb[f"{kind}_10"] for kind in ("zip", "tar"))
    told = {f"download.rss_mb_{name}": peak for name, peak in peaks_mb.items()}
    return {"download.rss_growth_mb": growth_mb} | told


def _peak_mb(folder: Path, name: str, write: Callable[[Path], Upstream]) -> float:
    (folder / "up").mkdir()
    write(folder / "up" / name)
    with serve(folder / "up", buffer_bytes=0) as server:
        peak_mb = _in_a_process(
            _download_and_measure, manifest_of(server.url, archives=[{"path": name}]), folder / "out"
        )
    for left in ("up", "out"):
        shutil.rmtree(folder / left)
    return peak_mb


def _in_a_process(function: Callable, *arguments) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _download_and_measure(manifest: Manifest, into: Path) -> float:
    _download(manifest, into)
    # Not ru_maxrss, which a child takes over from the process that started it.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _download(manifest: Manifest, into: Path) -> Path:
    return download(manifest, into).parent
