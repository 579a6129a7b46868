"""What downloads are measured on: archives shaped as the data sets have them, and a server in its own process."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metricgold.datasets.manifest import Manifest, load_manifest
from tests.support import ROOT

SERVER = ROOT / "tests/support/server.py"
HYPERSIM_MEMBERS = load_manifest("hypersim").members

# Bytes of one frame of a HyperSim scene. Colour and distance are a real frame's; the other layers share out the rest,
# so that colour, distance and entity ids are 15% of a scene. Order and names as in a scene's zip.
FRAME_LAYERS = {
    "final_hdf5": {
        "color.hdf5": 3_460_000,
        "diffuse_illumination.hdf5": 3_300_000,
        "diffuse_reflectance.hdf5": 2_600_000,
        "residual.hdf5": 2_900_000,
    },
    "final_preview": {
        f"{layer}.jpg": 110_000
        for layer in ("color", "diff", "diffuse_illumination", "diffuse_reflectance", "gamma", "residual", "tonemap")
    },
    "geometry_hdf5": {
        "depth_meters.hdf5": 250_000,
        "normal_bump_cam.hdf5": 2_400_000,
        "normal_bump_world.hdf5": 2_400_000,
        "normal_cam.hdf5": 800_000,
        "normal_world.hdf5": 800_000,
        "position.hdf5": 3_700_000,
        "render_entity_id.hdf5": 60_000,
        "semantic.hdf5": 20_000,
        "semantic_instance.hdf5": 25_000,
        "tex_coord.hdf5": 1_800_000,
    },
    "geometry_preview": {f"{layer}.png": 40_000 for layer in ("depth_meters", "normal_cam", "render_entity_id")},
}


class Upstream(NamedTuple):
    """A file as it lies on a server, and what a download of it should leave behind."""

    sha256_of: dict[str, str]  # by name of the file that is wanted
    needed_bytes: int  # of members with their headers, or of the whole


def write_scene_zip(path: Path, rng: np.random.Generator, num_frames: int, scale: float = 1.0) -> Upstream:
    """A scene of one camera, named by the zip; every layer's bytes times `scale`."""
    scene, sha256_of = path.stem, {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as file:  # HDF5 is compressed already
        for name, num_bytes in _scene_members(scene, num_frames, scale):
            content = rng.bytes(num_bytes)
            file.writestr(name, content)
            if any(fnmatchcase(name, glob) for glob in HYPERSIM_MEMBERS):
                sha256_of[name] = hashlib.sha256(content).hexdigest()
        wanted = [info for info in file.infolist() if info.filename in sha256_of]
        return Upstream(sha256_of, sum(30 + len(info.filename) + info.compress_size for info in wanted))


def _scene_members(scene: str, num_frames: int, scale: float) -> Iterator[tuple[str, int]]:
    yield f"{scene}/_detail/metadata_scene.csv", 60
    for table in ("frame_indices", "look_at_positions", "orientations", "positions"):
        yield f"{scene}/_detail/cam_00/camera_keyframe_{table}.hdf5", 9_000
    for folder, layers in FRAME_LAYERS.items():
        for frame in range(num_frames):
            for layer, num_bytes in layers.items():
                yield f"{scene}/images/scene_cam_00_{folder}/frame.{frame:04d}.{layer}", round(num_bytes * scale)


def write_tar(path: Path, rng: np.random.Generator, sizes: Iterable[int]) -> Upstream:
    """A tar, compressed if the name says so, of members of so many bytes below a folder named by the tar."""
    sha256_of = {}
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w", **_fast(path)) as file:
        for number, num_bytes in enumerate(sizes):
            content = rng.bytes(num_bytes)
            info = tarfile.TarInfo(f"{path.name.partition('.')[0]}/frames/{number:05d}.png")
            info.size = num_bytes
            file.addfile(info, io.BytesIO(content))
            sha256_of[info.name] = hashlib.sha256(content).hexdigest()
    return Upstream(sha256_of, path.stat().st_size)


def _fast(path: Path) -> dict[str, int]:
    return {"compresslevel": 1} if path.name.endswith("gz") else {}


def write_plain(path: Path, rng: np.random.Generator, num_bytes: int) -> Upstream:
    content = rng.bytes(num_bytes)
    path.write_bytes(content)
    return Upstream({path.name: hashlib.sha256(content).hexdigest()}, num_bytes)


def manifest_of(*mirrors: str, **values: Any) -> Manifest:
    """A manifest whose licence needs nobody's consent."""
    facts = {
        "name": "bench",
        "role": "train",
        "title": "Random bytes",
        "source": mirrors[0],
        "licence": {"name": "none", "url": mirrors[0], "terms": "made for a benchmark", "needs_acceptance": False},
        "citation": "none",
        "depth": {"unit": "m", "kind": "planar", "invalid": "none"},
        "mirrors": mirrors,
    }
    return Manifest.model_validate(facts | values)


class Served(NamedTuple):
    """A server that runs elsewhere."""

    url: str

    def counts(self) -> dict[str, Any]:
        """bytes_sent (of bodies), num_requests, befell as {fault: times}."""
        with urllib.request.urlopen(f"{self.url}/.control") as answer:
            return json.load(answer)

    def reset(self, **faults_and_script: Mapping) -> None:
        """Start the counts anew, with these faults."""
        body = json.dumps(faults_and_script).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/.control", body, method="PUT")).close()


@contextmanager
def serve(folder: Path | None = None, **options: Any) -> Iterator[Served]:
    """tests/support/server.py over `folder` in a process of its own; options as its command line has them."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, str(SERVER), *([] if folder is None else [str(folder)]), *given]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield Served(server.stdout.readline().strip())
        finally:
            server.stdin.close()  # it ends by itself
