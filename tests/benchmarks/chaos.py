"""A download that is killed again and again while its servers misbehave, and what that costs in bytes."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import socket
import tarfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from metricgold.datasets.manifest import Manifest, load_manifest
from metricgold.params.sections import Download

from .upstream import HYPERSIM_MEMBERS, Served, Upstream, manifest_of, serve, write_plain, write_scene_zip, write_tar

# Of every 100 requests. Bytes are flipped only where a small part is lost by it: in zips, whose members have a CRC,
# and once in a small tar and a small file, which have to come again whole.
BAD = {
    "503": 8,
    "429": 2,
    "reset": 8,
    "truncate": 6,
    "no_range": 3,
    "wrong_range": 3,
    "html": 3,
    "expired": 5,
    "slow": 3,
}
FAIR = {"503": 2, "reset": 3, "truncate": 2, "wrong_range": 1, "expired": 1, "slow": 1}
FLIPPED = {"wrong_bytes": 5}
BYTES_PER_S = 4e6  # of a connection, so that the network is slower than the client, as it is in the world
NUM_SCRIPTED = 400  # requests of a path
RECEIVE_BUFFER_BYTES = 64 << 10  # the kernel takes twice as much
PARAMS = Download(num_workers=4, connections_per_host=4, patience_s=60, stall_s=1)
MAX_RUNS_AFTER = 3  # a mirror that told too many lies is left alone until the next run


class World(NamedTuple):
    """What lies upstream, and what should lie here afterwards."""

    values: dict  # of the manifest, but for the mirrors
    sha256_of: dict[str, str]
    needed_bytes: int
    zips: list[str]
    flipped_once: list[str]


class Tally(NamedTuple):
    kills: int
    runs_after: int  # that it took to finish
    needed_bytes: int
    sent_bytes: int  # of bodies
    num_requests: int
    befell: dict[str, int]
    seconds: float

    @property
    def ratio(self) -> float:
        return self.sent_bytes / self.needed_bytes


def write_world(folder: Path, *, num_archives: int = 3) -> World:
    """Of each: a scene's zip of 71 MB, of which 10.6 are wanted, a tar of 24 MB with an MD5, a file of 15 MB with a
    sha256. Once: a tar.gz, a small tar and a small file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made: dict[str, Upstream] = {}
    for number in range(num_archives):
        scene = f"ai_{number:03d}_001.zip"
        made[scene] = write_scene_zip(folder / scene, rng, num_frames=7, scale=0.4)
        made[f"tar{number}.tar"] = write_tar(folder / f"tar{number}.tar", rng, _sizes(rng, 24_000_000))
        made[f"file{number}.bin"] = write_plain(folder / f"file{number}.bin", rng, 15_000_000)
    made["packed.tar.gz"] = write_tar(folder / "packed.tar.gz", rng, _sizes(rng, 8_000_000))
    made["small.tar"] = write_tar(folder / "small.tar", rng, _sizes(rng, 1_000_000))
    made["small.bin"] = write_plain(folder / "small.bin", rng, 500_000)
    tars = [name for name in made if name.endswith(".tar")]
    lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in tars]
    (folder / "md5sums.txt").write_text("".join(lines))
    files = [{"path": name, "sha256": found.sha256_of[name]} for name, found in made.items() if name.endswith(".bin")]
    values = {
        "checksums": {"path": "md5sums.txt", "algorithm": "md5"},
        "archives": [{"path": name} for name in made if not name.endswith(".bin")],
        "files": files,
        "members": [*HYPERSIM_MEMBERS, "*/frames/*.png"],
    }
    return World(
        values,
        {name: sha256 for found in made.values() for name, sha256 in found.sha256_of.items()},
        sum(found.needed_bytes for found in made.values()),
        [name for name in made if name.endswith(".zip")],
        ["small.tar", "small.bin"],
    )


def write_vkitti2_world(folder: Path, *, num_frames: int = 60) -> World:
    """The three archives of Virtual KITTI 2 as its manifest names and selects them: two tars and a tar.gz, 24 MB."""
    folder.mkdir(parents=True)
    rng, manifest = np.random.default_rng(0), load_manifest("vkitti2")
    rgb, depth, texts = (archive.path for archive in manifest.archives)
    places = [f"Scene0{1 + n % 2}/clone/{{}}/Camera_{n % 2}/{{}}_{n:05d}" for n in range(num_frames)]
    contents = {
        rgb: {f"{name.format('frames/rgb', 'rgb')}.jpg": rng.bytes(180_000) for name in places},
        depth: {f"{name.format('frames/depth', 'depth')}.png": rng.bytes(190_000) for name in places},
        texts: {f"Scene0{n}/clone/{kind}.txt": rng.bytes(300_000) for n in (1, 2) for kind in ("intrinsic", "bbox")},
    }
    sha256_of, archives = {}, []
    for path, members in contents.items():
        with tarfile.open(folder / path, "w:gz" if path.endswith("gz") else "w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
                if any(fnmatchcase(name, glob) for glob in manifest.members):
                    sha256_of[name] = hashlib.sha256(content).hexdigest()
        archives.append({"path": path, "md5": hashlib.md5((folder / path).read_bytes()).hexdigest()})
    needed_bytes = sum((folder / path).stat().st_size for path in contents)
    return World({"archives": archives, "members": manifest.members}, sha256_of, needed_bytes, [], [])


def _sizes(rng: np.random.Generator, num_bytes: int) -> list[int]:
    """Of members, 40 to 400 KB each as encoded frames have, num_bytes together or a little more."""
    sizes = []
    while sum(sizes) < num_bytes:
        sizes.append(int(rng.integers(40_000, 400_000)))
    return sizes


def write_script(world: World, odds: Mapping[str, int], prefix: str, seed: int) -> dict[str, list[str]]:
    """What befalls the next requests of every path below `prefix`."""
    rng = random.Random(seed)
    checksums = [world.values["checksums"]] if "checksums" in world.values else []
    sources = [*world.values["archives"], *world.values.get("files", ()), *checksums]
    script = {}
    for path in (source["path"] for source in sources):
        chances = dict(odds) | (FLIPPED if path in world.zips else {})
        chances["ok"] = 100 - sum(chances.values())
        script[prefix + path] = rng.choices(list(chances), list(chances.values()), k=NUM_SCRIPTED)
        if path in world.flipped_once:
            script[prefix + path][0] = "wrong_bytes"
    return script


def over_http(folder: Path, *, num_kills: int, seed: int = 0) -> Tally:
    """Two mirrors of a world written for it, the one that is asked first often bad."""
    world = write_world(folder / "upstream")
    shutil.copytree(folder / "upstream", folder / "mirror", copy_function=shutil.copyfile)  # other times, other ETags
    with (
        serve(folder / "upstream", seed=seed, bytes_per_s=BYTES_PER_S) as bad,
        serve(folder / "mirror", seed=seed + 1, bytes_per_s=BYTES_PER_S) as fair,
    ):
        bad.reset(script=write_script(world, BAD, "/", seed))
        fair.reset(script=write_script(world, FAIR, "/", seed + 1))
        return run(world, [bad.url, fair.url], [bad, fair], folder / "run", num_kills=num_kills, seed=seed)


def run(
    world: World,
    mirrors: Sequence[str],
    servers: Sequence[Served],
    folder: Path,
    *,
    num_kills: int,
    seed: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Tally:
    """Download into folder/raw with kills and faults; AssertionError says which file was not the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest, raw, rng = manifest_of(*mirrors, **world.values), folder / "raw", random.Random(seed)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "metricgold.download.stage", "boto3", "urllib3"])
    watch, started = Watch(world.sha256_of, raw), time.monotonic()

    def start():
        child = processes.Process(target=_child, args=(manifest, raw, folder / "log", dict(environment or {})))
        child.start()
        return child

    kills = 0
    for moment in sorted(rng.uniform(0, 0.9) * world.needed_bytes for _ in range(num_kills)):
        child = start()
        while child.exitcode is None and sum(server.counts()["bytes_sent"] for server in servers) < moment:
            child.join(0.01)
        child.join(rng.expovariate(1 / 0.05))  # whatever it does then: starting, hashing, moving
        child.kill()
        child.join()
        kills += child.exitcode == -9
        watch.look()
    runs_after = _finish(start, watch, folder / "log")
    counts = [server.counts() for server in servers]
    return Tally(
        kills,
        runs_after,
        world.needed_bytes,
        sum(count["bytes_sent"] for count in counts),
        sum(count["num_requests"] for count in counts),
        dict(sum((Counter(count["befell"]) for count in counts), Counter())),
        time.monotonic() - started,
    )


def _finish(start, watch: "Watch", log: Path) -> int:
    for number in range(1, MAX_RUNS_AFTER + 1):
        child = start()
        child.join()
        watch.look()
        if child.exitcode == 0:
            watch.look_at_the_end()
            return number
    raise AssertionError(f"not finished after {MAX_RUNS_AFTER} runs that nobody killed:\n{log.read_text()[-3000:]}")


def _child(manifest: Manifest, raw: Path, log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _keep_receive_buffers_small()
    os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644), 2)
    from metricgold.download.fetcher import Fetcher
    from metricgold.download.stage import download

    Fetcher.first_wait_s = 0.02
    download(manifest, raw, params=PARAMS)


def _keep_receive_buffers_small() -> None:
    """A kill loses what the kernel holds: on a busy machine that would be megabytes of loopback, not of a line."""
    from urllib3.util import connection

    set_options = connection._set_socket_options

    def set_options_and_buffer(sock: socket.socket, options) -> None:
        set_options(sock, options)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    connection._set_socket_options = set_options_and_buffer


class Watch:
    """Looks at every visible file of a raw folder; those seen whole before are hashed again only when touched."""

    def __init__(self, sha256_of: Mapping[str, str], raw: Path) -> None:
        self.sha256_of, self.raw = sha256_of, raw
        self._seen: dict[str, tuple[int, int, int]] = {}

    def look(self) -> None:
        """At whatever is there now."""
        visible = self._visible()
        if "manifest.yaml" in visible:
            assert yaml.safe_load((self.raw / "manifest.yaml").read_text())["mirrors"]
        if "ledger.json" in visible:
            assert json.loads((self.raw / "ledger.json").read_text())["archives"]
            assert visible >= self.sha256_of.keys(), "ledger.json is there before the last file"
        for name in visible - {"manifest.yaml", "ledger.json"}:
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        status = (self.raw / name).stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._seen.get(name) == stamp:
            return
        found = hashlib.sha256((self.raw / name).read_bytes()).hexdigest()
        assert found == self.sha256_of.get(name), f"{name} ({status.st_size:,} bytes) is not the truth"
        self._seen[name] = stamp

    def look_at_the_end(self) -> None:
        """Everything has come, and nothing else is left."""
        assert self._visible() == self.sha256_of.keys() | {"manifest.yaml", "ledger.json"}
        left = [path for path in self.raw.glob(".[!l]*/**/*")] + [path for path in self.raw.rglob(".*.part")]
        assert not left, f"left behind: {left}"

    def _visible(self) -> set[str]:
        present = {path.relative_to(self.raw).as_posix() for path in self.raw.rglob("*") if path.is_file()}
        return {name for name in present if not any(part.startswith(".") for part in name.split("/"))}
