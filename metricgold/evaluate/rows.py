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

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricgold.extras import naming_the_extra
from metricgold.storage import parse_json, row_line, write_aside

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = (
    *("benchmark", "protocol", "protocol_digest", "ruler_digest", "method", "method_digest", "frame", "scene"),
    "reason",
)
NUMBERS = ("focal_px", "width", "height")
ORDER = ("benchmark", "protocol", "method", "frame")  # in which a Parquet file has its rows: equal rows, equal bytes
KEY = ("ruler_digest", "method_digest", "method", "frame")  # of a row; the ruler names protocol and data set

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

    def where(self, keep: np.ndarray | None = None, **texts: str) -> "Rows":
        """The rows for which the mask `keep` [N] is true, if given, and whose texts are these: where(method="ours")."""
        chosen = np.ones(len(self), bool) if keep is None else keep
        for name, text in texts.items():
            chosen = chosen & (self[name] == text)
        return Rows({name: column[chosen] for name, column in self.columns.items()})

    def unique(self, name: str) -> list[str]:
        """The different texts of a column, in the order in which they come first."""
        return list(dict.fromkeys(self[name].tolist()))


def require_parquet() -> None:
    """ValueError that names the extra where pyarrow is not installed: before hours of measuring, not after them."""
    _parquet()


def write_rows_file(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a Parquet file, completely or not at all. Equal rows give equal bytes, whatever their order."""
    parquet = _parquet()
    import pyarrow as pa

    table = _table(rows).sort_by([(name, "ascending") for name in ORDER])
    columns = [table[name].dictionary_encode() if name in TEXTS else table[name] for name in table.column_names]
    with write_aside(path) as aside:
        parquet.write_table(pa.table(columns, names=table.column_names), aside, compression="zstd")


def read_rows_files(paths: Sequence[Path]) -> Rows:
    """The rows of Parquet files that write_rows_file wrote, or of journals (.jsonl), one file after the other.

    A figure that a file does not have is NaN in its rows. Raises ValueError naming a file that is not one of rows, and
    where two files hold the same row: frame, method and protocol by their digests.
    """
    _parquet()
    import pyarrow as pa

    tables = [_table(read_journal(path)) if path.suffix == ".jsonl" else _read_table(path) for path in map(Path, paths)]
    if not tables:
        raise ValueError("no file of rows is named")
    rows = _to_rows(pa.concat_tables(tables, promote_options="default"))
    keys = Counter(zip(*(rows[name] for name in KEY), strict=True))
    for (_, _, method, frame), count in keys.items():
        if count > 1:
            raise ValueError(f"{', '.join(map(str, paths))}: frame {frame} of {method} is there {count} times")
    return rows


# The journal


def read_journal(path: Path) -> Iterator[Row]:
    """The rows of a journal one by one, none without the file; a last line cut short by a kill is left out.

    Raises ValueError naming the file and the line that is not a row.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            row = parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict) or not set(TEXTS) | set(NUMBERS) <= row.keys():
                raise ValueError(f"{path}, line {number} is not a row of a benchmark")
            yield row


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
        self.file.write("".join(map(row_line, rows)))
        self.file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


# Between dicts, Arrow and numpy


def _parquet() -> Any:
    with naming_the_extra():
        import pyarrow.parquet
    return pyarrow.parquet


def _table(rows: Iterable[Row]) -> "pa.Table":
    """An Arrow table of rows: TEXTS as strings, all else as float64 in the order of first appearance."""
    import pyarrow as pa

    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    numbers: dict[str, Any] = {}
    count = 0
    for row in rows:
        for name in TEXTS:
            texts[name].append(row[name])
        for name in row.keys() - numbers.keys() - texts.keys():
            numbers[name] = np.full(max(count, 64), np.nan)
        for name, column in numbers.items():
            if count == len(column):
                numbers[name] = column = np.concatenate([column, np.full(count, np.nan)])
            column[count] = row.get(name, np.nan)
        count += 1
    names = [*NUMBERS, *sorted(numbers.keys() - set(NUMBERS))]
    arrays = [pa.array(texts[name], pa.string()) for name in TEXTS]
    arrays += [pa.array(numbers[name][:count] if name in numbers else np.empty(0)) for name in names]
    return pa.table(arrays, names=[*TEXTS, *names])


def _read_table(path: Path) -> "pa.Table":
    """A Parquet file as _table makes it. ValueError naming one that is broken or holds something else."""
    parquet = _parquet()
    import pyarrow as pa

    try:
        table = parquet.read_table(path, memory_map=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file, or not a complete one: {error}") from error
    missing = [name for name in TEXTS + NUMBERS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} is not a file of rows of a benchmark: it has no column {missing[0]}")
    schema = pa.schema([(name, pa.string() if name in TEXTS else pa.float64()) for name in table.column_names])
    try:
        return table.cast(schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a file of rows of a benchmark: {error}") from error


def _to_rows(table: "pa.Table") -> Rows:
    """An Arrow table as numpy columns; equal texts are one object."""
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in TEXTS:
            coded = column.dictionary_encode()
            different = np.array([*coded.dictionary.to_pylist(), None], object)[:-1]
            columns[name] = different[coded.indices.to_numpy()] if len(column) else different
        else:
            columns[name] = column.fill_null(np.nan).to_numpy()
    return Rows(columns)
