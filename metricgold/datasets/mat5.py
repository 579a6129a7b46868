"""Lists of texts in MATLAB 5 files, the format of `save` before 7.3: tagged elements, most of them deflated.

Source: MathWorks, MAT-File Format, R2019b. Little-endian alone, as on every machine that has written one since.
scipy reads all of the format; it is a large dependency for one list of names.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from

from metricgold.datasets.arrays import naming

HEADER_BYTES = 128
MAX_INFLATED_BYTES = 1 << 26
MATRIX, COMPRESSED = 14, 15  # types of elements
CELL, CHAR = 1, 4  # classes of matrices
ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}  # of text, by type of element


def read_cell_of_texts(path: Path, name: str) -> list[str]:
    """The texts of the cell array of that name, columns first. ValueError names the file and what is wrong in it."""
    with naming(path):
        data = path.read_bytes()
        if not data.startswith(b"MATLAB 5.0") or data[126:HEADER_BYTES] != b"IM":
            raise ValueError("expected a MATLAB 5 file")
        for kind, content in elements(data[HEADER_BYTES:]):
            if kind == MATRIX and name_of(content) == name:
                return [text_of(cell) for cell in parts_of(content, CELL)]
        raise ValueError(f"has no array called {name}")


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements that follow each other, inflated where they are compressed."""
    start = 0
    while start < len(data):
        kind, size = unpack_from("<II", data, start)
        if kind >> 16:  # four bytes or fewer are stored where others have their size
            kind, size, begin, room = kind & 0xFFFF, kind >> 16, start + 4, 4
        else:
            begin, room = start + 8, size if kind == COMPRESSED else size + -size % 8
        content = data[begin : begin + size]
        if len(content) != size or size > room:
            raise ValueError("expected whole arrays, got a part of one")
        start = begin + room
        if kind == COMPRESSED:
            yield from elements(inflate(content))
        else:
            yield kind, content


def inflate(packed: bytes) -> bytes:
    """ValueError for more than a list of names needs."""
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed, MAX_INFLATED_BYTES)
    if not inflater.eof:
        raise ValueError(f"expected a whole array of at most {MAX_INFLATED_BYTES} bytes")
    return data


def name_of(matrix: bytes) -> str:
    """What a variable is called: the third part, after flags and dimensions."""
    _, _, (_, name), *_ = elements(matrix)
    return name.decode("latin-1")


def parts_of(matrix: bytes, expected_class: int) -> list[tuple[int, bytes]]:
    """What follows flags, dimensions and name. ValueError for a matrix of another class."""
    (_, flags), _, _, *parts = elements(matrix)
    if flags[0] != expected_class:
        raise ValueError(f"expected a cell array of texts, got class {flags[0]} where class {expected_class} belongs")
    return parts


def text_of(cell: tuple[int, bytes]) -> str:
    """The characters of one cell."""
    return "".join(content.decode(ENCODINGS[kind]) for kind, content in parts_of(cell[1], CHAR))
