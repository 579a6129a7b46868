"""The latent cache of one data set: a folder of HDF5 shards, a record for each scene, an index written last.

    <scene>-000.h5, ...  shards: frames of one scene, sorted by name
    <scene>.scene.json   written after the scene's last shard: format; identity; gaps: frames that upstream lists and
                         the raw folder lacks, by reason; shards: file, num_frames, dropped by reason, sha256
    index.json           written last, so that a folder with it is complete: format; identity; num_frames; dropped: all
                         frames left out, by reason; shards in order of scene: scene, file, num_frames, sha256

An identity holds everything that latents depend on: data set, split, params of encode, log depth and digest of the
VAE; in a record also its scene and source, the digest of the files that the scene was read from (null: not known); in
a shard also frames, the digest of their names; in the index also the source of each scene. A file of another identity
or FORMAT is refused, and replaced by `metricgold encode`. A shard in numbers, n frames of H x W pixels and c x h x w
latents:

    attributes           format, num_frames; as JSON identity and dropped
    frame                records [n], in one piece; without frames nothing from here on
        intrinsics       float64 [3, 3]     of the encoded image, pixels, pixel centres at +0.5
        rgb_latent       float16 [c, h, w]  unscaled means of the VAE's posterior
        depth_latent     float16 [c, h, w]
        latent_mask      bool [h, w]        every pixel below this latent is valid
        name             UTF-8, filled up with zeros
    valid_mask           uint8, in one piece: a zlib stream a frame of the bits of its bool [H, W], one behind the
                         other; attribute shape: H, W
    valid_mask_begin     int64 [n + 1]      where each stream begins, and the last one ends

With nothing but h5py, zlib and numpy, for frame i of a shard:

    record, masks = file["frame"][i], file["valid_mask"]
    begin, end = file["valid_mask_begin"][i : i + 2]
    bits = np.frombuffer(zlib.decompress(masks[begin:end]), np.uint8)
    valid_mask = np.unpackbits(bits, count=np.prod(masks.attrs["shape"])).reshape(masks.attrs["shape"])

Here HDF5 only finds the pieces and the kernel reads them: twice as fast. Equal inputs give equal bytes. A shard appears
completely or not at all and holds one scene, so a killed run resumes at the first missing shard, and a new scene
touches no other's files.
"""

import json
import os
import zlib
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np

from metricgold.storage import digest_file, parse_json, read_json, write_aside, write_json

FORMAT = 2  # 1: an array a field, no valid_mask in pixels
INDEX = "index.json"
MAX_OPEN_SHARDS = 64  # a process often has 1024 descriptors; opening one again costs 20 microseconds
# Numbers of eight bytes first: then they start at multiples of eight in a record that was read alone.
_ARRAYS = ("intrinsics", "rgb_latent", "depth_latent", "latent_mask")
_RECORD_SUFFIX = ".scene.json"
# What h5py may raise for broken bytes.
_BROKEN = (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError)


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """One encoded frame, as a shard stores it and the trainer reads it.

    rgb_latent, depth_latent  float16 [c, h, w], unscaled means of the VAE's posterior
    latent_mask               bool [h, w]: every pixel below this latent is valid
    intrinsics                float64 [3, 3] in pixels of the encoded image, pixel centres at +0.5
    scene, name               of the frame; a crop's name ends in # and its number
    valid_mask                bool [H, W] of the encoded image; None when read from a cache, see its valid_mask(i)
    """

    rgb_latent: np.ndarray
    depth_latent: np.ndarray
    latent_mask: np.ndarray
    intrinsics: np.ndarray
    scene: str
    name: str
    valid_mask: np.ndarray | None = None


def shard_path(cache: Path, scene: str, number: int) -> Path:
    """Where a scene's shard of that number is stored."""
    return Path(cache) / f"{_file_name(scene)}-{number:03d}.h5"


def record_path(cache: Path, scene: str) -> Path:
    """Where a scene's record is stored."""
    return Path(cache) / f"{_file_name(scene)}{_RECORD_SUFFIX}"


def _file_name(scene: str) -> str:
    """Different for different scenes, never a path or a hidden file; most scenes' own name."""
    quoted = quote(scene, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


# Shards


def write_shard(
    path: Path, frames: Sequence[LatentFrame], dropped: Sequence[str], identity: dict[str, Any]
) -> dict[str, Any]:
    """Write one shard aside and rename it; returns what find_shard will.

    frames: of one size, with their valid_mask; dropped: the reason of each frame that is not in it. ValueError for a
    frame without valid_mask.
    """
    counts = dict(sorted(Counter(dropped).items()))
    attributes: dict[str, Any] = {"format": FORMAT, "num_frames": len(frames)}
    attributes |= {"identity": json.dumps(identity, sort_keys=True), "dropped": json.dumps(counts)}
    content = _pack_shard(frames, attributes)
    with write_aside(path) as aside:
        aside.write_bytes(content)
    return {"file": path.name, "num_frames": len(frames), "dropped": counts, "sha256": sha256(content).hexdigest()}


def _pack_shard(frames: Sequence[LatentFrame], attributes: Mapping[str, Any]) -> bytes:
    """The bytes of a shard's file."""
    masks = [frame.valid_mask for frame in frames if frame.valid_mask is not None]
    if len(masks) != len(frames):
        raise ValueError(f"{len(frames) - len(masks)} of {len(frames)} frames have no valid_mask")
    # In memory: where a disk is full, HDF5 would fail again each time it closes its file.
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        file.attrs.update(attributes)
        if frames:
            file["frame"] = _pack_records(frames)
            streams = [zlib.compress(np.packbits(mask).tobytes(), 1) for mask in masks]
            file["valid_mask"] = np.frombuffer(b"".join(streams), np.uint8)
            file["valid_mask"].attrs["shape"] = masks[0].shape
            file["valid_mask_begin"] = np.cumsum([0, *map(len, streams)], dtype=np.int64)
        file.flush()
        return bytes(file.id.get_file_image())


def _pack_records(frames: Sequence[LatentFrame]) -> np.ndarray:
    """Frames as one structured array [n]."""
    names = np.array([frame.name.encode() for frame in frames])
    first = {field: getattr(frames[0], field) for field in _ARRAYS}
    fields = [(field, array.dtype, array.shape) for field, array in first.items()]
    records = np.empty(len(frames), [*fields, ("name", names.dtype)])
    records["name"] = names
    for field in _ARRAYS:
        records[field] = [getattr(frame, field) for frame in frames]
    return records


def find_shard(path: Path, identity: dict[str, Any], sha256: str | None = None) -> dict[str, Any] | None:
    """A shard as its scene's record lists it; None unless a complete one of this identity is at `path`.

    With `sha256` its bytes must have that digest.
    """
    try:
        digest = digest_file(path)
        if sha256 not in (None, digest):
            return None
        with h5py.File(path) as file:
            if file.attrs["format"] != FORMAT or parse_json(file.attrs["identity"], path) != identity:
                return None
            num_frames, dropped = int(file.attrs["num_frames"]), parse_json(file.attrs["dropped"], path)
    except _BROKEN:
        return None
    return {"file": path.name, "num_frames": num_frames, "dropped": dropped, "sha256": digest}


def shard_names(path: Path) -> list[str]:
    """Names of the frames in a shard that find_shard has found."""
    with h5py.File(path) as file:
        return [name.decode() for name in file["frame"].fields("name")[:]] if "frame" in file else []


def is_part_of(path: Path, common: dict[str, Any]) -> bool:
    """Whether a file is a shard or a record of this FORMAT whose identity holds all of `common`."""
    try:
        if path.name.endswith(_RECORD_SUFFIX):
            record = read_json(path)
            its_format, identity = record["format"], record["identity"]
        else:
            with h5py.File(path) as file:
                its_format, identity = file.attrs["format"], parse_json(file.attrs["identity"], path)
        return bool(its_format == FORMAT and {key: identity[key] for key in common} == common)
    except _BROKEN:
        return False


# Records and index


def write_record(
    cache: Path, scene: str, identity: dict[str, Any], gaps: Mapping[str, int], shards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Record that a scene is complete; a file that has the same content already is not touched. Returns the record.

    gaps: by reason, the frames that upstream lists and the raw folder lacks; shards: find_shard's row for each.
    """
    record = {"format": FORMAT, "identity": identity, "gaps": dict(gaps), "shards": list(shards)}
    if read_record(cache, scene) != record:
        write_json(record_path(cache, scene), record)
    return record


def read_record(cache: Path, scene: str) -> dict[str, Any] | None:
    """What write_record wrote; None where none can be read."""
    try:
        record: dict[str, Any] = read_json(record_path(cache, scene))
        return record if record["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(cache: Path, record: dict[str, Any]) -> bool:
    """Whether every shard that a record lists is there and has its sha256."""
    try:
        return all(digest_file(Path(cache) / shard["file"]) == shard["sha256"] for shard in record["shards"])
    except OSError:
        return False


def write_index(
    cache: Path,
    common: dict[str, Any],
    records: Mapping[str, dict[str, Any]],
    measured: Mapping[str, float] | None = None,
) -> Path:
    """Describe the scenes' shards; its presence means that the cache is complete.

    common: the identity that all shards share; records by scene; measured: figures to be kept beside them.
    Raises ValueError when no frame is left.
    """
    shards, sources = [], {}
    dropped: Counter[str] = Counter()
    for scene, record in sorted(records.items()):
        dropped.update(record["gaps"])
        for shard in record["shards"]:
            sources[scene] = record["identity"]["source"]
            dropped.update(shard["dropped"])
            shards.append({"scene": scene} | {key: shard[key] for key in ("file", "num_frames", "sha256")})
    num_frames = sum(shard["num_frames"] for shard in shards)
    if not num_frames:
        raise ValueError(f"{cache}: no frame left to train on; dropped: {dict(dropped)}")
    index = {"format": FORMAT, "identity": common | {"scenes": sources}, "num_frames": num_frames}
    index |= {"dropped": dict(dropped), "shards": shards, **({"measured": dict(measured)} if measured else {})}
    write_json(Path(cache) / INDEX, index)
    return Path(cache) / INDEX


# Reading


class ShardLayout(NamedTuple):
    """Where the pieces of a shard begin. Kept when the file is closed: HDF5 needs a millisecond to find them."""

    file_state: tuple[int, ...]  # inode, time and size of the file that it was read from
    record: np.dtype
    frame_offset: int
    mask_offset: int
    mask_begins: np.ndarray  # [n + 1]
    mask_shape: tuple[int, ...]


class LatentCache:
    """Random access to a finished latent cache, the folder that `metricgold encode` wrote.

        cache = LatentCache("data/latents/hypersim")
        frame = cache[0]          # LatentFrame: float16 [c, h, w] latents, unscaled means of the VAE's posterior
        mask = cache.valid_mask(0)  # bool [H, W] in pixels

    Frames are in order of scene, then name. A cache can be passed to worker processes, forked or spawned: reading
    moves nothing that they share. Threads take turns. Raises ValueError when the folder holds no index of this FORMAT,
    and on reading where a shard is missing or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise ValueError(f"{path} is not a finished latent cache: {INDEX} is missing; run `metricgold encode`")
        self.index = read_json(self.path / INDEX)
        its_format = self.index.get("format") if isinstance(self.index, dict) else None
        if its_format != FORMAT:
            raise ValueError(f"{self.path / INDEX}: format is {its_format}, expected {FORMAT}; encode it again")
        self._ends = list(accumulate(shard["num_frames"] for shard in self.index["shards"]))
        self._files: OrderedDict[int, FileIO] = OrderedDict()  # the longest unused first
        self._layouts: dict[int, ShardLayout] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """All that the latents depend on: dataset, split, encode, log_depth (metres), vae, scenes."""
        identity: dict[str, Any] = self.index["identity"]
        return identity

    @property
    def digest(self) -> str:
        """sha256 of the index, which names the sha256 of every shard."""
        return digest_file(self.path / INDEX)

    def __len__(self) -> int:
        """Number of frames, crops among them."""
        return int(self.index["num_frames"])

    def __getitem__(self, i: int) -> LatentFrame:
        """Frame i: float16 [c, h, w] latents, bool [h, w] latent_mask, float64 [3, 3] intrinsics; no valid_mask.

        Raises IndexError for an i below 0 or beyond the last one, ValueError where its shard cannot be read.
        """
        number, row = self._place(i)
        file, layout = self._open(number)
        size = layout.record.itemsize
        content = self._read(number, file, layout.frame_offset + row * size, size)
        record = np.frombuffer(content, layout.record)[0]
        scene = self.index["shards"][number]["scene"]
        return LatentFrame(**{field: record[field] for field in _ARRAYS}, scene=scene, name=record["name"].decode())

    def valid_mask(self, i: int) -> np.ndarray:
        """Pixels of frame i with measured depth in range, bool [H, W]. Raises as [i] does."""
        number, row = self._place(i)
        file, layout = self._open(number)
        begin, end = layout.mask_begins[row : row + 2].tolist()
        content = self._read(number, file, layout.mask_offset + begin, end - begin)
        try:
            bits = np.frombuffer(zlib.decompress(content), np.uint8)
            num_pixels = int(np.prod(layout.mask_shape))
            return np.unpackbits(bits, count=num_pixels).view(bool).reshape(layout.mask_shape)
        except (zlib.error, ValueError) as error:
            raise self._broken(number, error) from error

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the shards itself."""
        return self.__dict__ | {"_files": OrderedDict(), "_layouts": {}}

    def _place(self, i: int) -> tuple[int, int]:
        """Shard and row of a frame."""
        if not 0 <= i < len(self):
            raise IndexError(f"frame {i} of {len(self)} in {self.path}")
        number = bisect_right(self._ends, i)
        return number, i - (self._ends[number - 1] if number else 0)

    def _open(self, number: int) -> tuple[FileIO, ShardLayout]:
        """A shard's file, opened now or kept open, and its layout."""
        if number not in self._files:
            try:
                file = FileIO(self._path(number))
                self._layouts[number] = self._layout_of(number, file)
            except _BROKEN as error:
                raise self._broken(number, error) from error
            self._files[number] = file
            if len(self._files) > MAX_OPEN_SHARDS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(number)
        return self._files[number], self._layouts[number]

    def _layout_of(self, number: int, file: FileIO) -> ShardLayout:
        """The layout that HDF5 read from this very file, before or now: a shard that was replaced has another."""
        status = os.fstat(file.fileno())
        file_state = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._layouts.get(number)
        if known is not None and known.file_state == file_state:
            return known
        layout = read_layout(file, file_state)
        if len(layout.mask_begins) != self.index["shards"][number]["num_frames"] + 1:
            raise ValueError(f"{len(layout.mask_begins) - 1} frames, {INDEX} lists another number")
        return layout

    def _read(self, number: int, file: FileIO, offset: int, num_bytes: int) -> bytes:
        """A piece of a shard. ValueError where the file ends too early."""
        # pread leaves the file's position alone, which a fork shares.
        content = os.pread(file.fileno(), num_bytes, offset)
        if len(content) != num_bytes:
            raise self._broken(number, f"ends {num_bytes - len(content)} bytes too early")
        return content

    def _path(self, number: int) -> Path:
        return self.path / str(self.index["shards"][number]["file"])

    def _broken(self, number: int, reason: Any) -> ValueError:
        return ValueError(f"{self._path(number)} cannot be read as a shard: {reason}; encode it again")


def read_layout(file: FileIO, file_state: tuple[int, ...]) -> ShardLayout:
    """Ask HDF5 where a shard's pieces begin."""
    with h5py.File(file, "r") as shard:
        if shard.attrs["format"] != FORMAT:
            raise ValueError(f"format is {shard.attrs['format']}, expected {FORMAT}")
        frame, masks = shard["frame"], shard["valid_mask"]
        return ShardLayout(
            file_state,
            frame.dtype,
            frame.id.get_offset(),
            masks.id.get_offset(),
            shard["valid_mask_begin"][:],
            tuple(masks.attrs["shape"].tolist()),
        )
