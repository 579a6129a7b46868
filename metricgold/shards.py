"""The latent cache of one data set: HDF5 shards, and an index written last.

    index.json          identity, frame counts, dropped frames by reason, shards with their sha256
    shard-00000.h5      rgb_latent, depth_latent float16 [n, c, h, w] (unscaled VAE means, one chunk a frame),
                        valid_mask bool [n, h, w], intrinsics float64 [n, 3, 3], scene and name as UTF-8;
                        attribute `identity`: what every latent in it depends on

Equal inputs give equal bytes. A shard appears whole or not at all, so a killed run goes on at the first
shard that is missing.
"""

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from metricgold.latents import LatentFrame
from metricgold.storage import digest_file, read_json, write_aside, write_json

INDEX = "index.json"
_ARRAYS = ("rgb_latent", "depth_latent", "valid_mask", "intrinsics")


def shard_path(cache: Path, number: int) -> Path:
    return Path(cache) / f"shard-{number:05d}.h5"


def write_shard(path: Path, frames: Sequence[LatentFrame], dropped: Sequence[str], identity: dict[str, Any]) -> None:
    """Write one shard aside and rename it. `dropped`: the reason of each frame that is not in it."""
    with write_aside(path) as aside, h5py.File(aside, "w") as file:
        file.attrs["identity"] = json.dumps(identity, sort_keys=True)
        file.attrs["dropped"] = json.dumps(sorted(dropped))
        file.attrs["num_frames"] = len(frames)
        for field in _ARRAYS if frames else ():
            array = np.stack([getattr(frame, field) for frame in frames])
            file.create_dataset(field, data=array, chunks=(1, *array.shape[1:]))
        for field in ("scene", "name"):
            names = [getattr(frame, field) for frame in frames]
            file.create_dataset(field, data=names, dtype=h5py.string_dtype())


def shard_fits(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a whole shard of this identity lies at `path`."""
    try:
        with h5py.File(path) as file:
            return file.attrs["identity"] == json.dumps(identity, sort_keys=True)
    except (OSError, KeyError):
        return False


def write_index(cache: Path, num_shards: int, identity: dict[str, Any], gaps: dict[str, int]) -> Path:
    """Describe the finished shards; its presence means that the cache is whole.

    `gaps` counts by reason the frames that upstream lists and the raw folder lacks; they join the dropped.
    Raises ValueError when no frame is left.
    """
    shards, dropped = [], Counter(gaps)
    for number in range(num_shards):
        path = shard_path(cache, number)
        with h5py.File(path) as file:
            shards.append({"file": path.name, "num_frames": int(file.attrs["num_frames"]), "sha256": digest_file(path)})
            dropped.update(json.loads(file.attrs["dropped"]))
    num_frames = sum(shard["num_frames"] for shard in shards)
    if not num_frames:
        raise ValueError(f"{cache}: no frame left to train on; dropped: {dict(dropped)}")
    index = {"identity": identity, "num_frames": num_frames, "dropped": dict(dropped), "shards": shards}
    write_json(Path(cache) / INDEX, index)
    return Path(cache) / INDEX


class LatentCache:
    """Random access to a finished cache: len(), [i] -> LatentFrame, .identity.

    Safe to hand to worker processes: HDF5 handles are opened where they are used and never shared.
    Raises ValueError when the folder holds no index or a shard is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise ValueError(f"{path} is no finished latent cache: {INDEX} is missing; run `metricgold encode`")
        self.index = read_json(self.path / INDEX)
        self._ends = list(accumulate(shard["num_frames"] for shard in self.index["shards"]))
        self._files: dict[int, h5py.File] = {}
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
        return LatentFrame(**arrays, scene=file["scene"][row].decode(), name=file["name"][row].decode())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def _open(self, number: int) -> h5py.File:
        if os.getpid() != self._pid:
            # After a fork the parent's handles must be neither used nor closed.
            self._files, self._pid = {}, os.getpid()
        if number not in self._files:
            path = self.path / self.index["shards"][number]["file"]
            try:
                self._files[number] = h5py.File(path)
            except OSError as error:
                raise ValueError(f"{path} cannot be read as a shard: {error}; encode it again") from error
        return self._files[number]
