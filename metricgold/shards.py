"""The latent cache of one data set: a folder of HDF5 shards, a record for each scene, an index written last.

    <scene>-000.h5, ...  shards: frames of one scene, sorted by name
    <scene>.scene.json   written after the scene's last shard: format; identity; gaps: frames that upstream lists and
                         the raw folder lacks, by reason; shards: file, num_frames, sizes, dropped by reason, sha256
    index.json           written last, so that a folder with it is complete: format; identity; num_frames; sizes: how
                         many frames of each size in pixels; dropped: all frames left out, by reason; shards in order of
                         scene: scene, file, num_frames, sha256

An identity holds everything that latents depend on: data set, split, params of encode, log depth and digest of the
VAE; in a record also its scene and source, the digest of the files that the scene was read from (null: not known); in
a shard also frames, the digest of their names; in the index also the source of each scene. A file of another identity
or FORMAT is refused, and replaced by `metricgold encode`. A shard in numbers: attributes, and for each size of its
frames a group that is named after it, such as 480x640, with n frames of H x W pixels and c x h x w latents:

    attributes           format, num_frames; as JSON identity, dropped and sizes: n by the name of the group, in order
    frame                records [n], in one piece
        intrinsics       float64 [3, 3]     of the encoded image, pixels, pixel centres at +0.5
        rgb_latent       float16 [c, h, w]  unscaled means of the VAE's posterior
        depth_latent     float16 [c, h, w]
        latent_mask      bool [h, w]        every pixel below this latent is valid
        no_surface_mask  bool [h, w]        every pixel below it is valid or known to show no surface, not all are valid
        name             UTF-8, filled up with zeros
    valid_mask           uint8, in one piece: a zlib stream a frame of the bits of its bool [H, W], one behind the
                         other; attribute shape: H, W
    valid_mask_begin     int64 [n + 1]      where each stream begins, and the last one ends

With nothing but h5py, zlib and numpy, for frame i of the first size of a shard:

    group = file[next(iter(json.loads(file.attrs["sizes"])))]
    record, masks = group["frame"][i], group["valid_mask"]
    begin, end = group["valid_mask_begin"][i : i + 2]
    bits = np.frombuffer(zlib.decompress(masks[begin:end]), np.uint8)
    valid_mask = np.unpackbits(bits, count=np.prod(masks.attrs["shape"])).reshape(masks.attrs["shape"])

Here HDF5 only finds the pieces and the kernel reads them: twice as fast. Equal inputs give equal bytes. A shard appears
completely or not at all and holds one scene, so a killed run resumes at the first missing shard, and a new scene
touches no other's files.
"""

import json
import os
import re
import zlib
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np

from metricgold.storage import (
    dataset_within,
    digest_file,
    parse_json,
    paths_below,
    read_json,
    write_aside,
    write_json,
)

FORMAT = 3  # 2: all frames of one size; 1: an array a field, no valid_mask in pixels
INDEX = "index.json"
CROP_MARK = "#"  # between the name of a frame and the number of a random crop of it
MAX_OPEN_SHARDS = 64  # a process often has 1024 descriptors; opening one again costs 20 microseconds
# Numbers of eight bytes first: then they start at multiples of eight in a record that was read alone.
_ARRAYS = ("intrinsics", "rgb_latent", "depth_latent", "latent_mask", "no_surface_mask")
_RECORD_SUFFIX = ".scene.json"
_OWN_NAME = re.compile(rf"{re.escape(INDEX)}|.+{re.escape(_RECORD_SUFFIX)}|.+-\d{{3,}}\.h5", re.DOTALL)
# What h5py may raise for broken bytes.
_BROKEN = (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError)


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """One encoded frame, as a shard stores it and the trainer reads it.

    rgb_latent, depth_latent  float16 [c, h, w], unscaled means of the VAE's posterior
    latent_mask               bool [h, w]: every pixel below this latent is valid
    no_surface_mask           bool [h, w]: every pixel below it is valid or known to show no surface, such as sky, and
                              not all are valid; None, of shards of an earlier version too: no such pixel is known
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
    no_surface_mask: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a record holds of it, by field."""
        nowhere = np.zeros_like(self.latent_mask)
        no_surface_mask = nowhere if self.no_surface_mask is None else self.no_surface_mask
        return {field: getattr(self, field) for field in _ARRAYS} | {"no_surface_mask": no_surface_mask}


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

    frames: with their valid_mask, those of one size in order; dropped: the reason of each frame that is not in it.
    ValueError for a frame without valid_mask.
    """
    of_size = _by_size(frames)
    row = {
        "num_frames": len(frames),
        "sizes": {size: len(its_frames) for size, its_frames in of_size.items()},
        "dropped": dict(sorted(Counter(dropped).items())),
    }
    attributes: dict[str, Any] = {name: json.dumps(row[name]) for name in ("sizes", "dropped")}
    attributes |= {"format": FORMAT, "num_frames": len(frames), "identity": json.dumps(identity, sort_keys=True)}
    content = _pack_shard(of_size, attributes)
    with write_aside(path) as aside:
        aside.write_bytes(content)
    return {"file": path.name, **row, "sha256": sha256(content).hexdigest()}


def _by_size(frames: Sequence[LatentFrame]) -> dict[str, list[LatentFrame]]:
    """Frames by their size in pixels, HxW, the smallest first."""
    of_shape: defaultdict[tuple[int, ...], list[LatentFrame]] = defaultdict(list)
    for frame in frames:
        if frame.valid_mask is None:
            raise ValueError(f"frame {frame.name} has no valid_mask")
        of_shape[frame.valid_mask.shape].append(frame)
    return {"x".join(map(str, shape)): of_shape[shape] for shape in sorted(of_shape)}


def _pack_shard(of_size: Mapping[str, Sequence[LatentFrame]], attributes: Mapping[str, Any]) -> bytes:
    """The bytes of a shard's file."""
    # In memory: where a disk is full, HDF5 would fail again each time it closes its file.
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        file.attrs.update(attributes)
        for size, frames in of_size.items():
            group = file.create_group(size)
            group["frame"] = _pack_records(frames)
            masks = [np.asarray(frame.valid_mask) for frame in frames]
            streams = [zlib.compress(np.packbits(mask).tobytes(), 1) for mask in masks]
            group["valid_mask"] = np.frombuffer(b"".join(streams), np.uint8)
            group["valid_mask"].attrs["shape"] = masks[0].shape
            group["valid_mask_begin"] = np.cumsum([0, *map(len, streams)], dtype=np.int64)
        file.flush()
        return bytes(file.id.get_file_image())


def _pack_records(frames: Sequence[LatentFrame]) -> np.ndarray:
    """Frames of one size as one structured array [n]."""
    names = np.array([frame.name.encode() for frame in frames])
    fields = [(field, array.dtype, array.shape) for field, array in frames[0].arrays.items()]
    records = np.empty(len(frames), [*fields, ("name", names.dtype)])
    records["name"] = names
    for field in _ARRAYS:
        records[field] = [frame.arrays[field] for frame in frames]
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
            row = {"num_frames": int(file.attrs["num_frames"])}
            row |= {name: parse_json(file.attrs[name], path) for name in ("sizes", "dropped")}
    except _BROKEN:
        return None
    return {"file": path.name, **row, "sha256": digest}


def shard_names(path: Path) -> list[str]:
    """Names of the frames in a shard that find_shard has found or an index lists, in their order."""
    with h5py.File(path) as file:
        sizes = parse_json(file.attrs["sizes"], path)
        return [name.decode() for size in sizes for name in file[size]["frame"].fields("name")[:]]


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


def cache_files(cache: Path) -> list[Path]:
    """Index, records and shards in a folder, sorted; hidden files are passed over.

    ValueError for a folder that holds anything else, or files of such names of which none was written here: it is
    somebody's data, and what a cache has is replaced and deleted.
    """
    found = sorted(path for path in Path(cache).glob("[!.]*")) if Path(cache).is_dir() else []
    foreign = next((path for path in found if not (_OWN_NAME.fullmatch(path.name) and path.is_file())), None)
    if found and (foreign or not any(map(_is_ours, found))):
        name = (foreign or found[0]).name
        raise ValueError(f"{cache} is not a latent cache, expected one or an empty folder: {name} is not of one")
    return found


def _is_ours(path: Path) -> bool:
    """Whether an index, record or shard of any FORMAT."""
    try:
        if path.suffix == ".json":
            return {"format", "identity"} <= set(read_json(path))
        with h5py.File(path) as file:
            return {"format", "identity"} <= set(file.attrs)
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
        paths = paths_below(cache, (shard["file"] for shard in record["shards"]))
        return all(digest_file(path) == shard["sha256"] for path, shard in zip(paths, record["shards"], strict=True))
    except (OSError, ValueError, KeyError, TypeError):  # of a record that was not written here
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
    sizes: Counter[str] = Counter()
    for scene, record in sorted(records.items()):
        dropped.update(record["gaps"])
        for shard in record["shards"]:
            sources[scene] = record["identity"]["source"]
            dropped.update(shard["dropped"])
            sizes.update(shard["sizes"])
            shards.append({"scene": scene} | {key: shard[key] for key in ("file", "num_frames", "sha256")})
    num_frames = sum(shard["num_frames"] for shard in shards)
    if not num_frames:
        raise ValueError(f"{cache}: no frame left to train on; dropped: {dict(dropped)}")
    index = {"format": FORMAT, "identity": common | {"scenes": sources}, "num_frames": num_frames}
    index |= {
        "sizes": dict(sizes),
        "dropped": dict(dropped),
        "shards": shards,
        **({"measured": dict(measured)} if measured else {}),
    }
    write_json(Path(cache) / INDEX, index)
    return Path(cache) / INDEX


# Reading


class SizeLayout(NamedTuple):
    """Where the pieces of a shard's frames of one size begin."""

    record: np.dtype
    frame_offset: int
    mask_offset: int
    mask_begins: np.ndarray  # [n + 1]
    mask_shape: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        """How many frames are of this size."""
        return len(self.mask_begins) - 1


class ShardLayout(NamedTuple):
    """Where the pieces of a shard begin. Kept when the file is closed: HDF5 needs a millisecond to find them."""

    file_state: tuple[int, ...]  # inode, time and size of the file that it was read from
    sizes: list[SizeLayout]  # in the order of frames

    def place(self, row: int) -> tuple[SizeLayout, int]:
        """The size of a frame of the shard, and which of that size it is."""
        for layout in self.sizes:
            if row < layout.num_frames:
                return layout, row
            row -= layout.num_frames
        raise IndexError(row)


class LatentCache:
    """Random access to a finished latent cache, the folder that `metricgold encode` wrote.

        cache = LatentCache("data/latents/hypersim")
        frame = cache[0]          # LatentFrame: float16 [c, h, w] latents, unscaled means of the VAE's posterior
        mask = cache.valid_mask(0)  # bool [H, W] in pixels

    Frames are in order of scene, then of size within a shard, then name. A cache can be passed to worker processes,
    forked or spawned: reading moves nothing that they share. Threads take turns. Raises ValueError when the folder
    holds no index of this FORMAT, and on reading where a shard is missing or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not (self.path / INDEX).is_file():
            raise ValueError(f"{path} is not a finished latent cache: {INDEX} is missing; run `metricgold encode`")
        self.index = read_json(self.path / INDEX)
        its_format = self.index.get("format") if isinstance(self.index, dict) else None
        if its_format != FORMAT:
            raise ValueError(f"{self.path / INDEX}: format is {its_format}, expected {FORMAT}; encode it again")
        try:
            self._ends = list(accumulate(int(shard["num_frames"]) for shard in self.index["shards"]))
            whole = self.index["num_frames"] == (self._ends or [0])[-1]
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(f"{self.path / INDEX}: its shards are not {self.index.get('num_frames')!r:.80} frames")
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
        number, file, layout, row = self._find(i)
        size = layout.record.itemsize
        content = self._read(number, file, layout.frame_offset + row * size, size)
        record = np.frombuffer(content, layout.record)[0]
        scene = self.index["shards"][number]["scene"]
        arrays = {field: record[field] for field in _ARRAYS if field in (layout.record.names or ())}
        return LatentFrame(**arrays, scene=scene, name=record["name"].decode())

    def valid_mask(self, i: int) -> np.ndarray:
        """Pixels of frame i with measured depth in range, bool [H, W]. Raises as [i] does."""
        number, file, layout, row = self._find(i)
        begin, end = layout.mask_begins[row : row + 2].tolist()
        content = self._read(number, file, layout.mask_offset + begin, end - begin)
        num_pixels = prod(layout.mask_shape)
        try:
            # No more than the mask has: a few bytes may unpack to gigabytes.
            bits = np.frombuffer(zlib.decompressobj().decompress(content, num_pixels // 8 + 1), np.uint8)
            if 8 * len(bits) < num_pixels:
                raise ValueError(f"a mask of {len(bits)} bytes for {num_pixels} pixels")
            return np.unpackbits(bits, count=num_pixels).view(bool).reshape(layout.mask_shape)
        except (zlib.error, ValueError) as error:
            raise self._broken(number, error) from error

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the shards itself."""
        return self.__dict__ | {"_files": OrderedDict(), "_layouts": {}}

    def _find(self, i: int) -> tuple[int, FileIO, SizeLayout, int]:
        """The shard of a frame, by number and opened, and the frame's size and row in it."""
        if not 0 <= i < len(self):
            raise IndexError(f"frame {i} of {len(self)} in {self.path}")
        number = bisect_right(self._ends, i)
        file, layout = self._open(number)
        return number, file, *layout.place(i - (self._ends[number - 1] if number else 0))

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
        num_frames = sum(size.num_frames for size in layout.sizes)
        if num_frames != self.index["shards"][number]["num_frames"]:
            raise ValueError(f"{num_frames} frames, {INDEX} lists another number")
        return layout

    def _read(self, number: int, file: FileIO, offset: int, num_bytes: int) -> bytes:
        """A piece of a shard. ValueError where the file ends too early."""
        # pread leaves the file's position alone, which a fork shares.
        content = os.pread(file.fileno(), num_bytes, offset)
        if len(content) != num_bytes:
            raise self._broken(number, f"ends {num_bytes - len(content)} bytes too early")
        return content

    def _path(self, number: int) -> Path:
        # By its last part alone: whoever made an index must not choose files outside the cache.
        return self.path / Path(str(self.index["shards"][number]["file"])).name

    def _broken(self, number: int, reason: Any) -> ValueError:
        return ValueError(f"{self._path(number)} cannot be read as a shard: {reason}; encode it again")


def read_layout(file: FileIO, file_state: tuple[int, ...]) -> ShardLayout:
    """Ask HDF5 where a shard's pieces begin."""
    with h5py.File(file, "r") as shard:
        if shard.attrs["format"] != FORMAT:
            raise ValueError(f"format is {shard.attrs['format']}, expected {FORMAT}")
        sizes = parse_json(shard.attrs["sizes"], "its attribute sizes")
        return ShardLayout(file_state, [_size_layout(shard, size) for size in sizes])


def _size_layout(shard: h5py.File, size: str) -> SizeLayout:
    names = ("frame", "valid_mask", "valid_mask_begin")
    frame, masks, begins = (dataset_within(shard, f"{size}/{name}") for name in names)
    offsets = [_offset_in(shard, dataset) for dataset in (frame, masks, begins)]
    shape = tuple(masks.attrs["shape"].tolist())
    return SizeLayout(frame.dtype, offsets[0], offsets[1], begins[:], shape)


def _offset_in(shard: h5py.File, dataset: h5py.Dataset) -> int:
    """Where numbers begin that are in the file as they are. ValueError for others: a head may claim any size."""
    offset, end = dataset.id.get_offset(), shard.id.get_filesize()
    if offset is None or offset + dataset.nbytes > end:
        raise ValueError(f"{dataset.name} has {dataset.nbytes} bytes, of which the file of {end} has not all")
    return int(offset)
