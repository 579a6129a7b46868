"""The latent cache of one data set: HDF5 shards, a record for each scene, and an index written last.

    index.json           identity, frame counts, dropped frames by reason, shards with their scene and sha256
    <scene>-000.h5       frames of one scene, sorted by name: rgb_latent, depth_latent float16 [n, c, h, w]
                         (unscaled VAE means), valid_mask bool [n, h, w], intrinsics float64 [n, 3, 3],
                         name as UTF-8; attribute `identity`: what every latent in it depends on
    <scene>.scene.json   written after the scene's last shard: its identity, gaps, and its shards with their sha256

Equal inputs give equal bytes. A shard appears whole or not at all and holds one scene, so a killed run goes on at
the first shard that is missing, and a new scene touches no other's files.
"""

import json
import os
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np

from metricgold.latents import LatentFrame
from metricgold.storage import digest_file, read_json, write_aside, write_json

INDEX = "index.json"
# Each open file holds a descriptor, of which a process often has 1024, and 0.6 MB; opening one again costs a
# millisecond.
MAX_OPEN_SHARDS = 64
_ARRAYS = ("rgb_latent", "depth_latent", "valid_mask", "intrinsics")
_RECORD_SUFFIX = ".scene.json"


def shard_path(cache: Path, scene: str, number: int) -> Path:
    return Path(cache) / f"{_file_name(scene)}-{number:03d}.h5"


def record_path(cache: Path, scene: str) -> Path:
    return Path(cache) / f"{_file_name(scene)}{_RECORD_SUFFIX}"


def _file_name(scene: str) -> str:
    """Different for different scenes, never a path or a hidden file; most scenes stay as they are."""
    quoted = quote(scene, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def write_shard(
    path: Path, frames: Sequence[LatentFrame], dropped: Sequence[str], identity: dict[str, Any]
) -> dict[str, Any]:
    """Write one shard aside and rename it; answers what find_shard will.

    dropped: the reason of each frame that is not in it.
    """
    with write_aside(path) as aside, h5py.File(aside, "w") as file:
        file.attrs["identity"] = json.dumps(identity, sort_keys=True)
        file.attrs["dropped"] = json.dumps(Counter(dropped), sort_keys=True)
        file.attrs["num_frames"] = len(frames)
        for field in _ARRAYS if frames else ():
            # In one piece: a row is found without an index of chunks, which halves a first read.
            file.create_dataset(field, data=np.stack([getattr(frame, field) for frame in frames]))
        file.create_dataset("name", data=[frame.name for frame in frames], dtype=h5py.string_dtype())
    return find_shard(path, identity)


def find_shard(path: Path, identity: dict[str, Any], sha256: str | None = None) -> dict[str, Any] | None:
    """A shard as its scene's record lists it; None when no whole one of this identity lies there.

    With `sha256` its bytes must have that digest.
    """
    try:
        found = digest_file(path)
        if sha256 not in (None, found):
            return None
        with h5py.File(path) as file:
            if json.loads(file.attrs["identity"]) != identity:
                return None
            num_frames, dropped = int(file.attrs["num_frames"]), json.loads(file.attrs["dropped"])
    except (OSError, KeyError, ValueError, RuntimeError):  # HDF5 finds many words for broken bytes
        return None
    return {"file": path.name, "num_frames": num_frames, "dropped": dropped, "sha256": found}


def is_part_of(path: Path, common: dict[str, Any]) -> bool:
    """Whether a file is a shard or a record whose identity holds all of `common`."""
    try:
        identity = _read_identity(path)
        return {key: identity[key] for key in common} == common
    except (OSError, KeyError, TypeError, ValueError, RuntimeError):
        return False


def _read_identity(path: Path) -> dict[str, Any]:
    if path.name.endswith(_RECORD_SUFFIX):
        return read_json(path)["identity"]
    with h5py.File(path) as file:
        return json.loads(file.attrs["identity"])


def write_record(
    cache: Path, scene: str, identity: dict[str, Any], gaps: Mapping[str, int], shards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Say that a scene is whole; its file is left alone when it says so already.

    gaps: by reason, the frames that upstream lists and the raw folder lacks; shards: what find_shard says of each.
    """
    record = {"identity": identity, "gaps": dict(gaps), "shards": list(shards)}
    if read_record(cache, scene) != record:
        write_json(record_path(cache, scene), record)
    return record


def read_record(cache: Path, scene: str) -> dict[str, Any] | None:
    """What write_record wrote; None when there is none that can be read."""
    try:
        return read_json(record_path(cache, scene))
    except (OSError, ValueError):
        return None


def is_whole(cache: Path, record: dict[str, Any]) -> bool:
    """Whether every shard that a record lists is there and has its sha256."""
    try:
        return all(digest_file(Path(cache) / shard["file"]) == shard["sha256"] for shard in record["shards"])
    except OSError:
        return False


def write_index(
    cache: Path, common: dict[str, Any], records: Mapping[str, dict[str, Any]], gaps: Mapping[str, int]
) -> Path:
    """Describe the scenes' shards; its presence means that the cache is whole.

    common: the identity that all shards share; records by scene; gaps that belong to no scene in particular.
    Raises ValueError when no frame is left.
    """
    shards, sources, dropped = [], {}, Counter(gaps)
    for scene, record in sorted(records.items()):
        dropped.update(record["gaps"])
        for shard in record["shards"]:
            sources[scene] = record["identity"]["source"]
            dropped.update(shard["dropped"])
            shards.append({"scene": scene} | {key: shard[key] for key in ("file", "num_frames", "sha256")})
    num_frames = sum(shard["num_frames"] for shard in shards)
    if not num_frames:
        raise ValueError(f"{cache}: no frame left to train on; dropped: {dict(dropped)}")
    identity = common | {"scenes": sources}
    index = {"identity": identity, "num_frames": num_frames, "dropped": dict(dropped), "shards": shards}
    write_json(Path(cache) / INDEX, index)
    return Path(cache) / INDEX


class LatentCache:
    """Random access to a finished cache: len(), [i] -> LatentFrame, .identity.

    Frames lie in order of scene, then name. Safe to hand to worker processes: HDF5 handles are opened where they
    are used and never shared. Raises ValueError when the folder holds no index or a shard is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise ValueError(f"{path} is no finished latent cache: {INDEX} is missing; run `metricgold encode`")
        self.index = read_json(self.path / INDEX)
        self._ends = list(accumulate(shard["num_frames"] for shard in self.index["shards"]))
        self._files: OrderedDict[int, h5py.File] = OrderedDict()  # the longest unused first
        self._pid = os.getpid()

    @property
    def identity(self) -> dict[str, Any]:
        return self.index["identity"]

    @property
    def digest(self) -> str:
        """sha256 of the index, which names the sha256 of every shard."""
        return digest_file(self.path / INDEX)

    def __len__(self) -> int:
        return self.index["num_frames"]

    def __getitem__(self, i: int) -> LatentFrame:
        if not 0 <= i < len(self):
            raise IndexError(f"frame {i} of {len(self)} in {self.path}")
        number = bisect_right(self._ends, i)
        row = i - (self._ends[number - 1] if number else 0)
        file = self._open(number)
        arrays = {field: file[field][row] for field in _ARRAYS}
        return LatentFrame(**arrays, scene=self.index["shards"][number]["scene"], name=file["name"][row].decode())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def _open(self, number: int) -> h5py.File:
        if os.getpid() != self._pid:
            # After a fork the parent's handles must be neither used nor closed.
            self._files, self._pid = OrderedDict(), os.getpid()
        if number not in self._files:
            path = self.path / self.index["shards"][number]["file"]
            try:
                self._files[number] = h5py.File(path)
            except OSError as error:
                raise ValueError(f"{path} cannot be read as a shard: {error}; encode it again") from error
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(number)
        return self._files[number]
