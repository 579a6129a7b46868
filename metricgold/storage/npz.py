"""NPZ files of strangers: plain numbers and texts, and never more room than the bytes that are there."""

import io
import zipfile
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

MAX_ARRAY_BYTES = 1 << 30  # of one array; a head may claim any size


def read_npz(
    source: str | Path | BinaryIO, choose: Callable[[list[str]], Iterable[str]] = lambda names: names
) -> dict[str, Any]:
    """Arrays of an NPZ by name, those that `choose` takes from all names.

    ValueError, KeyError, EOFError, zipfile.BadZipFile or zlib.error for a file that is broken, holds objects, or claims
    another size than it has: numpy by itself makes room for what a head claims, and unpacks without end.
    """
    with zipfile.ZipFile(source) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        return {name: _read_array(archive, f"{name}.npy") for name in choose(names)}


def _read_array(archive: zipfile.ZipFile, member: str) -> Any:
    import numpy as np

    info = archive.getinfo(member)
    if info.file_size > MAX_ARRAY_BYTES:
        raise ValueError(f"{member}: expected at most {MAX_ARRAY_BYTES:,} bytes, got {info.file_size:,}")
    content = bytearray(archive.read(info))  # no more than stated, and its checksum is compared
    head = io.BytesIO(content)
    read_head = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = read_head[np.lib.format.read_magic(head)[0]](head)
    if dtype.hasobject or prod(shape) * dtype.itemsize != len(content) - head.tell():
        raise ValueError(f"{member}: expected the numbers of its head, {dtype} {list(shape)}, got other bytes")
    return np.frombuffer(content, dtype, offset=head.tell()).reshape(shape, order="F" if by_columns else "C")
