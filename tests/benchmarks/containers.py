"""Ways to lay a shard of samples on disk and to read one of them: HDF5, safetensors, zarr, tar, plain records.

Each is a pair of functions: write(path, samples), and open(path), whose answer is called with a row. All hold the
same, and give equal arrays back; samples are of 480 x 640 images.
"""

import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

HEIGHT, WIDTH, FACTOR = 480, 640, 8
LATENT = (HEIGHT // FACTOR, WIDTH // FACTOR)

# valid_mask lies on disk as bits, [H, W / 8].
RECORD = np.dtype(
    [
        ("rgb_latent", np.float16, (4, *LATENT)),
        ("depth_latent", np.float16, (4, *LATENT)),
        ("latent_mask", np.bool_, LATENT),
        ("intrinsics", np.float64, (3, 3)),
        ("valid_mask", np.uint8, (HEIGHT, WIDTH // 8)),
    ]
)
SMALL = [field for field in RECORD.names if field != "valid_mask"]
FIXED = np.dtype([(field, RECORD[field]) for field in SMALL])  # the part whose size is known


# Samples


class Sample(NamedTuple):
    """Scene and size are the shard's; valid_mask bool [H, W], or None where it was not asked for."""

    rgb_latent: np.ndarray
    depth_latent: np.ndarray
    latent_mask: np.ndarray
    intrinsics: np.ndarray
    valid_mask: np.ndarray | None
    name: str


def make_shards(num_shards: int, samples_per_shard: int) -> list[list[Sample]]:
    """Latents are noise, as those of a VAE are to a compressor; masks are real ones' kind and size when packed."""
    rng = np.random.default_rng(0)
    masks = [_mask(rng, kind) for kind in range(48)]
    return [[_sample(rng, masks, row) for row in range(samples_per_shard)] for _ in range(num_shards)]


def _sample(rng: np.random.Generator, masks: Sequence[np.ndarray], row: int) -> Sample:
    rgb, depth = rng.normal(0, 4, (2, 4, *LATENT)).astype(np.float16)
    valid = np.roll(masks[rng.integers(len(masks))], rng.integers(WIDTH), axis=1)
    latent_mask = valid.reshape(LATENT[0], FACTOR, LATENT[1], FACTOR).all(axis=(1, 3))
    return Sample(rgb, depth, latent_mask, rng.normal(size=(3, 3)), valid, f"images/cam_00/frame.{row:04d}")


def _mask(rng: np.random.Generator, kind: int) -> np.ndarray:
    """In turn: all valid, windows, a sky above a ragged skyline, holes along the edges of a sensor's depth."""
    valid = np.ones((HEIGHT, WIDTH), bool)
    if kind % 4 == 1:
        for top, left in rng.integers(0, (HEIGHT, WIDTH), (3, 2)):
            valid[top : top + 90, left : left + 60] = False
    elif kind % 4 == 2:
        skyline = 120 + np.cumsum(rng.integers(-2, 3, WIDTH))
        valid = np.arange(HEIGHT)[:, None] >= skyline + rng.integers(0, 6, WIDTH)
    elif kind % 4 == 3:
        coarse = rng.normal(size=(HEIGHT // 16, WIDTH // 16)).repeat(16, 0).repeat(16, 1)
        valid = coarse + rng.normal(0, 0.15, (HEIGHT, WIDTH)) < 1.5
    return valid


def _stack(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    arrays = {field: np.stack([getattr(sample, field) for sample in samples]) for field in RECORD.names}
    return arrays | {"valid_mask": np.packbits(arrays["valid_mask"], axis=-1)}


def _zip_masks(samples: Sequence[Sample]) -> tuple[list[bytes], np.ndarray]:
    """Each mask's bits as a zlib stream, and where it begins; one more beginning at the end."""
    streams = [zlib.compress(np.packbits(sample.valid_mask), 1) for sample in samples]
    return streams, np.cumsum([0, *map(len, streams)])


# Readers: an open shard is called with a row


class Rows(NamedTuple):
    """A shard whose fields answer [row]."""

    fields: Mapping[str, Any]
    names: Any

    def __call__(self, row: int, *, pixels: bool = True) -> Sample:
        small = [np.asarray(self.fields[field][row]) for field in SMALL]
        valid_mask = _unpack(self.fields["valid_mask"][row]) if pixels else None
        name = self.names[row]
        return Sample(*small, valid_mask, name.decode() if isinstance(name, bytes) else name)


class Records(NamedTuple):
    """A shard whose samples are records of all fields, in one read."""

    records: Any
    names: Sequence[str]

    def __call__(self, row: int, *, pixels: bool = True) -> Sample:
        record = self.records[row]
        valid_mask = _unpack(record["valid_mask"]) if pixels else None
        return Sample(*(record[field] for field in SMALL), valid_mask, self.names[row])


class Slab(NamedTuple):
    """Rows of equal size that lie in one piece of a file."""

    file: FileIO
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]  # of a row

    def __getitem__(self, row: int) -> np.ndarray:
        num_bytes = self.dtype.itemsize * int(np.prod(self.shape))
        content = os.pread(self.file.fileno(), num_bytes, self.offset + row * num_bytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape)


class Streams(NamedTuple):
    """Masks packed by zlib, one behind the other."""

    file: FileIO
    offset: int
    begins: Sequence[int]

    def __getitem__(self, row: int) -> np.ndarray:
        begin, end = self.begins[row : row + 2]
        return _unzip(os.pread(self.file.fileno(), end - begin, self.offset + begin))


def _unzip(content: bytes) -> np.ndarray:
    return np.frombuffer(zlib.decompress(content), np.uint8).reshape(RECORD["valid_mask"].shape)


def _unpack(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.asarray(bits), axis=-1).view(bool)


# HDF5


def write_hdf5(
    path: Path, samples: Sequence[Sample], *, libver: str = "earliest", mask: Mapping = {}, rest: Mapping | None = None
) -> None:
    """mask, rest: how the mask and the other arrays are filtered; None: in one piece, without chunks."""
    with h5py.File(path, "w", libver=libver) as file:
        for field, array in _stack(samples).items():
            filters = mask if field == "valid_mask" else rest
            layout = {} if filters is None else {"chunks": (1, *array.shape[1:]), **filters}
            file.create_dataset(field, data=array, **layout)
        file.create_dataset("name", data=[sample.name for sample in samples], dtype=h5py.string_dtype())


def open_hdf5(path: Path) -> Rows:
    """As simple as it gets: each read looks its data set up."""
    file = h5py.File(path)
    return Rows(file, file["name"])


def open_hdf5_kept(path: Path) -> Rows:
    """Data sets and names are held, chunks are not."""
    file = h5py.File(path, rdcc_nbytes=0)
    return Rows({field: file[field] for field in RECORD.names}, _names(file))


def write_compound(path: Path, samples: Sequence[Sample]) -> None:
    records = np.empty(len(samples), RECORD)
    for field, array in _stack(samples).items():
        records[field] = array
    with h5py.File(path, "w") as file:
        file.create_dataset("record", data=records)
        file.create_dataset("name", data=[sample.name for sample in samples], dtype=h5py.string_dtype())


def open_compound(path: Path) -> Records:
    file = h5py.File(path)
    return Records(file["record"], _names(file))


def _names(file: h5py.File) -> list[str]:
    return [name.decode() for name in file["name"][:]]


def write_streams(path: Path, samples: Sequence[Sample]) -> None:
    """Arrays in one piece each, which any HDF5 reader reads; masks as zlib streams, one behind the other."""
    streams, begins = _zip_masks(samples)
    arrays = _stack(samples) | {"valid_mask": np.frombuffer(b"".join(streams), np.uint8), "valid_mask_begin": begins}
    with h5py.File(path, "w") as file:
        for field, array in arrays.items():
            file.create_dataset(field, data=array)
        file.create_dataset("name", data=np.array([sample.name.encode() for sample in samples]))


def open_streams(path: Path) -> Rows:
    """HDF5 says where the arrays lie, the kernel reads them; what it said is remembered."""
    file = FileIO(path)
    offsets, begins, names = _layout(path)
    slabs = {field: Slab(file, offsets[field], RECORD[field].base, RECORD[field].shape) for field in SMALL}
    return Rows(slabs | {"valid_mask": Streams(file, offsets["valid_mask"], begins)}, names)


@cache
def _layout(path: Path) -> tuple[dict[str, int], list[int], list[str]]:
    with h5py.File(path) as file:
        offsets = {field: file[field].id.get_offset() for field in RECORD.names}
        return offsets, file["valid_mask_begin"][:].tolist(), _names(file)


def write_records(path: Path, samples: Sequence[Sample]) -> None:
    """What has a fixed size as one record a sample, with names of fields; masks as zlib streams."""
    streams, begins = _zip_masks(samples)
    names = np.array([sample.name.encode() for sample in samples])
    records = np.empty(len(samples), [*FIXED.descr, ("name", names.dtype)])
    for field, array in (_stack(samples) | {"name": names}).items():
        if field in records.dtype.names:
            records[field] = array
    with h5py.File(path, "w") as file:
        file.create_dataset("frame", data=records)
        file.create_dataset("valid_mask", data=np.frombuffer(b"".join(streams), np.uint8))
        file.create_dataset("valid_mask_begin", data=begins)


class PlacedRecords(NamedTuple):
    """HDF5 said where the records and the masks lie."""

    records: Slab
    masks: Streams

    def __call__(self, row: int, *, pixels: bool = True) -> Sample:
        record = self.records[row][()]
        valid_mask = _unpack(self.masks[row]) if pixels else None
        return Sample(*(record[field] for field in SMALL), valid_mask, record["name"].decode())


def open_records(path: Path) -> PlacedRecords:
    """As open_streams."""
    file = FileIO(path)
    dtype, frame, masks, begins = _places(path)
    return PlacedRecords(Slab(file, frame, dtype, ()), Streams(file, masks, begins))


@cache
def _places(path: Path) -> tuple[np.dtype, int, int, list[int]]:
    with h5py.File(path) as file:
        frame, masks = file["frame"], file["valid_mask"]
        return frame.dtype, frame.id.get_offset(), masks.id.get_offset(), file["valid_mask_begin"][:].tolist()


# safetensors


def write_safetensors(path: Path, samples: Sequence[Sample]) -> None:
    from safetensors.numpy import save_file

    streams, begins = _zip_masks(samples)
    arrays = _stack(samples) | {"valid_mask": np.frombuffer(b"".join(streams), np.uint8), "valid_mask_begin": begins}
    save_file(arrays, path, metadata={"name": json.dumps([sample.name for sample in samples])})


class SlicedStreams(NamedTuple):
    stream: Any
    begins: Sequence[int]

    def __getitem__(self, row: int) -> np.ndarray:
        begin, end = self.begins[row : row + 2]
        return _unzip(self.stream[begin:end].tobytes())


def open_safetensors(path: Path) -> Rows:
    from safetensors import safe_open

    file = safe_open(path, framework="numpy")
    slices = {field: file.get_slice(field) for field in RECORD.names}
    masks = SlicedStreams(slices["valid_mask"], file.get_tensor("valid_mask_begin").tolist())
    return Rows(slices | {"valid_mask": masks}, json.loads(file.metadata()["name"]))


# zarr


def write_zarr(path: Path, samples: Sequence[Sample], *, is_sharded: bool) -> None:
    """A group a shard; a chunk a sample, in a file of its own or with all others of its array."""
    import zarr

    group = zarr.create_group(path, overwrite=True, attributes={"name": [sample.name for sample in samples]})
    for field, array in _stack(samples).items():
        compressors = {} if field == "valid_mask" else {"compressors": None}  # the mask by zstd, its default
        shards = array.shape if is_sharded else None
        group.create_array(field, data=array, chunks=(1, *array.shape[1:]), shards=shards, **compressors)


def open_zarr(path: Path) -> Rows:
    import zarr

    group = zarr.open_group(path, mode="r")
    return Rows({field: group[field] for field in RECORD.names}, group.attrs["name"])


# Tars


def write_tar(path: Path, samples: Sequence[Sample]) -> None:
    from webdataset import TarWriter

    with TarWriter(str(path), encoder=False, mtime=0) as tar:
        for sample in samples:
            members = {field: getattr(sample, field).tobytes() for field in SMALL}
            mask = zlib.compress(np.packbits(sample.valid_mask), 1)
            tar.write(
                {"__key__": sample.name.replace(".", "_"), **members, "valid_mask": mask, "name": sample.name.encode()}
            )


class TarRows(NamedTuple):
    """webdataset itself reads from front to back; this finds members by their headers, as its `wids` did."""

    file: FileIO
    members: Sequence[Mapping[str, tuple[int, int]]]

    def __call__(self, row: int, *, pixels: bool = True) -> Sample:
        read = {field: os.pread(self.file.fileno(), *place) for field, place in self._places(row, pixels).items()}
        small = [np.frombuffer(read[field], RECORD[field].base).reshape(RECORD[field].shape) for field in SMALL]
        return Sample(*small, _unpack(_unzip(read["valid_mask"])) if pixels else None, read["name"].decode())

    def _places(self, row: int, pixels: bool) -> dict[str, tuple[int, int]]:
        return {field: place for field, place in self.members[row].items() if pixels or field != "valid_mask"}


def open_tar(path: Path) -> TarRows:
    members: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, field = member.name.rpartition(".")
            members.setdefault(key, {})[field] = (member.size, member.offset_data)
    return TarRows(FileIO(path), list(members.values()))


# Plain records


def write_plain(path: Path, samples: Sequence[Sample]) -> None:
    """The lower bound: bytes of the arrays, the mask's stream last; beside them their places in JSON."""
    streams, _ = _zip_masks(samples)
    arrays = [[getattr(sample, field) for field in SMALL] for sample in samples]
    records = [b"".join([*(array.tobytes() for array in row), s]) for row, s in zip(arrays, streams, strict=True)]
    path.write_bytes(b"".join(records))
    index = {"begin": [0, *accumulate(map(len, records))], "name": [sample.name for sample in samples]}
    path.with_suffix(".json").write_text(json.dumps(index))


class PlainRecords(NamedTuple):
    """Field by field out of one read."""

    file: FileIO
    begins: Sequence[int]
    names: Sequence[str]

    def __call__(self, row: int, *, pixels: bool = True) -> Sample:
        begin, end = self.begins[row : row + 2]
        length = end - begin if pixels else FIXED.itemsize
        content = os.pread(self.file.fileno(), length, begin)
        fixed = np.frombuffer(content, FIXED, 1)[0]
        valid_mask = _unpack(_unzip(content[FIXED.itemsize :])) if pixels else None
        return Sample(*(fixed[field] for field in SMALL), valid_mask, self.names[row])


def open_plain(path: Path) -> PlainRecords:
    index = json.loads(path.with_suffix(".json").read_text())
    return PlainRecords(FileIO(path), index["begin"], index["name"])


# Contestants


class Container(NamedTuple):
    name: str
    write: Callable[[Path, Sequence[Sample]], None]
    open: Callable[[Path], Callable[..., Sample]]
    package: str = "h5py"


GZIP, LZF = {"compression": "gzip", "compression_opts": 1}, {"compression": "lzf"}
CONTAINERS = [
    Container("HDF5, chunk a sample, mask as bits", partial(write_hdf5, rest={}), open_hdf5),
    Container("the same, `libver=latest`", partial(write_hdf5, rest={}, libver="latest"), open_hdf5),
    Container("the same, mask by gzip-1", partial(write_hdf5, rest={}, mask=GZIP), open_hdf5),
    Container("the same, mask by LZF", partial(write_hdf5, rest={}, mask=LZF), open_hdf5),
    Container(
        "the same, all by shuffle and gzip-1",
        partial(write_hdf5, rest={"shuffle": True, **GZIP}, mask=GZIP),
        open_hdf5,
    ),
    Container("HDF5, arrays in one piece, mask by gzip-1", partial(write_hdf5, mask=GZIP), open_hdf5),
    Container("the same, data sets kept, no chunk cache", partial(write_hdf5, mask=GZIP), open_hdf5_kept),
    Container("HDF5, one compound record, mask as bits", write_compound, open_compound),
    Container("HDF5, arrays in one piece, masks as streams, `pread`", write_streams, open_streams),
    Container("HDF5, records in one piece, masks as streams, `pread`", write_records, open_records),
    Container("safetensors, masks as streams", write_safetensors, open_safetensors, "safetensors"),
    Container("zarr, a file a sample and array", partial(write_zarr, is_sharded=False), open_zarr, "zarr"),
    Container("zarr, sharded", partial(write_zarr, is_sharded=True), open_zarr, "zarr"),
    Container("tar by webdataset, own offsets, `pread`", write_tar, open_tar, "webdataset"),
    Container("plain records, `pread`", write_plain, open_plain, "numpy"),
]
