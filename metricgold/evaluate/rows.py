"""What was measured, one row for each frame, method and protocol: a journal while it grows, then a Parquet file.

A row is flat: the texts and numbers below, and every figure under its own name, such as `metric/abs_rel`. A figure that
is not defined is NaN. Every table, plot and page is computed from rows alone.

benchmark        the data set's name
protocol         the name of the rules, and protocol_digest of all in them that decides figures
ruler_digest     of protocol, data set and the names of all frames asked for: means compare only where it is equal
method           the name of what was measured, and method_digest of all that decides its estimates
frame, scene     names of the image and of the scene it belongs to
reason           why it has no figures; empty where it has
focal_px         focal length, pixels of the image along its width
width, height    of the image, pixels
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.extras import naming_the_extra
from metricgold.storage import parse_json, row_line, write_aside

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = ".rows.parquet"  # how a file of rows ends
MAX_CELLS = 100_000_000  # rows x columns: a file of a few kB may name any number of them, each of eight bytes
TEXTS = (
    *("benchmark", "protocol", "protocol_digest", "ruler_digest", "method", "method_digest", "frame", "scene"),
    "reason",
)
NUMBERS = ("focal_px", "width", "height")
ORDER = ("benchmark", "protocol", "method", "frame")  # in which a Parquet file has its rows: equal rows, equal bytes
KEY = ("ruler_digest", "method_digest", "frame")  # of a row; the ruler is that of one protocol and data set

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows as columns [N] by name: those of TEXTS hold str, all others are float64, NaN where not defined."""

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["frame"])

    def __getitem__(self, name: str) -> np.ndarray:
        """The column [N] of this name. ValueError for one that these rows do not have."""
        if name not in self.columns:
            raise ValueError(f"no figure {name!r} in these rows; there are {', '.join(self.figures)}")
        return self.columns[name]

    @property
    def figures(self) -> list[str]:
        """Names of all figures, in the order of the file."""
        return [name for name in self.columns if name not in TEXTS + NUMBERS]

    def column(self, name: str) -> np.ndarray:
        """The column of this name [N]; NaN everywhere where these rows do not have it."""
        return self.columns[name] if name in self.columns else np.full(len(self), np.nan)

    def where(self, keep: np.ndarray | None = None, **texts: str) -> "Rows":
        """The rows for which the mask `keep` [N] is true, if given, and whose texts are these: where(method="ours")."""
        chosen = np.ones(len(self), bool) if keep is None else keep
        for name, text in texts.items():
            chosen = chosen & (self[name] == text)
        return self.take(np.flatnonzero(chosen))

    def take(self, order: np.ndarray) -> "Rows":
        """These rows in this order, by their numbers. Columns are taken when they are asked for: all are many bytes."""
        return Rows(_Taken(self.columns, order))

    def unique(self, name: str) -> list[str]:
        """The different texts of a column, in the order in which they come first."""
        return list(dict.fromkeys(self[name].tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class _Taken(Mapping[str, np.ndarray]):
    """Columns of which only some rows count."""

    columns: Mapping[str, np.ndarray]
    order: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name][self.order]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def require_parquet() -> None:
    """ValueError that names the extra where pyarrow is not installed: before hours of measuring, not after them."""
    _parquet()


def write_rows_file(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a Parquet file, completely or not at all. Equal rows give equal bytes, whatever their order."""
    parquet = _parquet()
    import pyarrow as pa

    columns = dict(to_rows(rows).columns)
    keys = list(zip(*(columns[name] for name in ORDER), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for name in columns:  # one by one: many rows are many bytes
        columns[name] = columns[name][order]
    with write_aside(path) as aside:
        parquet.write_table(_to_table(Rows(columns)), aside, compression="zstd", write_page_checksum=True)
    pa.default_memory_pool().release_unused()  # which Arrow would keep


def read_rows_files(paths: Sequence[Path]) -> Rows:
    """The rows of Parquet files that write_rows_file wrote, or of journals (.jsonl), one file after the other.

    A figure that a file does not have is NaN in its rows. A row that is in several files is taken once. Raises
    ValueError naming a file that is not one of rows, and a frame whose figures are not the same in two rows of it.
    """
    files = [
        to_rows(read_journal(path)) if path.suffix == ".jsonl" else _read_parquet(path) for path in map(Path, paths)
    ]
    figures = sorted({name for file in files for name in file.figures})
    parts = {name: [file.column(name) for file in files] for name in (*TEXTS, *NUMBERS, *figures)}
    columns = {name: part[0] if len(files) == 1 else np.concatenate(part) for name, part in parts.items()}
    first: dict[tuple[str, ...], int] = {}
    for index, key in enumerate(zip(*(columns[name] for name in KEY), strict=True)):
        pair = [index, first.setdefault(key, index)]
        if pair[0] != pair[1] and not all(_equal(*columns[name][pair]) for name in figures):
            raise ValueError(
                f"{', '.join(map(str, paths))}: frame {key[-1]} of {columns['method'][index]} has two rows"
            )
    rows = Rows(columns)
    return rows if len(first) == len(rows) else rows.take(np.array(sorted(first.values())))


def _equal(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


# The journal


def read_journal(path: Path) -> Iterator[Row]:
    """The rows of a journal one by one; a last line cut short by a kill is left out.

    Raises ValueError naming the file and the line that is not a row.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict) or not _is_row(row):
                raise ValueError(f"{path}, line {number} is not a row of a benchmark")
            yield row


def _is_row(values: Row) -> bool:
    """Whether all of TEXTS are texts, and all of NUMBERS and whatever else is there numbers."""
    if not set(TEXTS) | set(NUMBERS) <= values.keys():
        return False
    return all(isinstance(value, str if name in TEXTS else (int, float)) for name, value in values.items())


class Journal:
    """A file that rows are added to, a line each; what was cut short by a kill is cut off when it is opened again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
            file.truncate(whole)
        self.file = path.open("a", encoding="utf-8")

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; they survive a kill when this returns."""
        try:
            self.file.write("".join(map(row_line, rows)))
            self.file.flush()
        except OSError as error:
            error.filename = self.file.name  # the system does not name it when a disk is full
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


# Between rows, numpy and Arrow


def to_rows(rows: Iterable[Row]) -> Rows:
    """Rows as columns; a figure that a row does not have is NaN."""
    same: dict[str, str] = {}  # equal texts are one object
    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    numbers: dict[str, np.ndarray] = {name: np.full(64, np.nan) for name in NUMBERS}
    count = 0
    for row in rows:
        for name in TEXTS:
            texts[name].append(same.setdefault(row[name], row[name]))
        for name in row.keys() - TEXTS:
            if name not in numbers:
                numbers[name] = np.full(max(64, count + 1), np.nan)
            elif count >= len(numbers[name]):
                numbers[name] = np.concatenate([numbers[name], np.full(count, np.nan)])
            numbers[name][count] = row[name]
        count += 1
    columns = {name: _objects(column) for name, column in texts.items()}
    for name in (*NUMBERS, *sorted(numbers.keys() - set(NUMBERS))):
        column = numbers.pop(name)[:count]
        columns[name] = np.concatenate([column, np.full(count - len(column), np.nan)])
    return Rows(columns)


def _objects(texts: Sequence[str]) -> np.ndarray:
    """Texts as an array [N] of objects, not of characters."""
    column = np.empty(len(texts), object)
    column[:] = texts
    return column


def _parquet() -> Any:
    with naming_the_extra():
        import pyarrow.parquet
    return pyarrow.parquet


def _to_table(rows: Rows) -> "pa.Table":
    import pyarrow as pa

    arrays = {name: pa.array(column) for name, column in rows.columns.items()}
    return pa.table({name: one.dictionary_encode() if name in TEXTS else one for name, one in arrays.items()})


def _read_parquet(path: Path) -> Rows:
    """The rows of a Parquet file. ValueError naming one that is broken or holds something else."""
    parquet = _parquet()
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path) as file:
            num_cells = file.metadata.num_rows * file.metadata.num_columns
        if num_cells > MAX_CELLS:
            raise ValueError(f"{path}: expected at most {MAX_CELLS:,} figures, its head names {num_cells:,}")
        table = parquet.read_table(path, memory_map=False, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file of rows") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file, or not a complete one: {error}") from error
    missing = [name for name in TEXTS + NUMBERS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} is not a file of rows of a benchmark: it has no column {missing[0]}")
    try:
        return Rows({name: _column(name, table[name].combine_chunks()) for name in table.column_names})
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a file of rows of a benchmark: {error}") from error


def _column(name: str, array: Any) -> np.ndarray:
    """A column of a table as Rows have it; equal texts are one object."""
    import pyarrow as pa

    if name not in TEXTS:
        return np.asarray(array.cast(pa.float64()).fill_null(np.nan))
    coded = array.cast(pa.string()).fill_null("").dictionary_encode()
    return _objects(coded.dictionary.to_pylist())[coded.indices]
