"""The rows of a study, kept in Git: studies/results/NAME.csv and NAME.runs.csv.

    NAME.csv       levels, seed, set, scene, abs_rel, delta1, vae_floor: means over a scene's images, four digits; where
                   the study measures uncertainty also stated, the standard error of ln depth that the model states,
                   and within, the share of pixels that are no farther off than it
    NAME.runs.csv  levels, seed, digest (of the params), commit, machine, passes (of the U-Net for an image),
                   train_passes, image_gflop, train_tflop, image_s, train_s, peak_gb

A run is measured once NAME.runs.csv has its line. Both files are written aside and renamed, the lines in order, so that
the same runs give the same bytes, whoever came first; rows without their line are those of a killed run.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

from metricgold.storage import only_writer, write_aside
from metricgold.study.definition import FOLDER, Run, Study

FIGURES = ("abs_rel", "delta1", "vae_floor")
STATED = ("stated", "within")  # where a study measures uncertainty
COSTS = ("passes", "train_passes", "image_gflop", "train_tflop", "image_s", "train_s", "peak_gb")
Row = dict[str, str]


class Results:
    """The two files of a study's results."""

    def __init__(
        self, name: str, study: Study, folder: Path = FOLDER / "results", if_there: Sequence[str] = ()
    ) -> None:
        """if_there: sets beside those of all runs, without which a run does not count as measured."""
        self.path, self.runs_path = folder / f"{name}.csv", folder / f"{name}.runs.csv"
        self.keys = [*study.every_factor, "seed"]
        self.figures = [*FIGURES, *(STATED if study.measures.uncertainty else ())]
        self.columns, self.if_there = [*self.keys, "set", "scene", *self.figures], set(if_there)
        self.run_columns = [*self.keys, "digest", "commit", "machine", *COSTS]

    def rows(self) -> list[Row]:
        """Figures by run, set and scene."""
        return read_csv(self.path, self.columns)

    def runs(self) -> list[Row]:
        """What is known of each measured run."""
        return read_csv(self.runs_path, self.run_columns)

    def measured_rows(self) -> list[Row]:
        """The rows of runs that were measured; others are those of a run that was killed while it wrote."""
        measured = set(map(self._key_of, self.runs()))
        return [row for row in self.rows() if self._key_of(row) in measured]

    def summaries(self) -> list[dict[str, Any]]:
        """Of every measured run its levels and seed, facts, costs, and figures as means over the scenes of a set."""
        figures: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows():
            for figure in self.figures:
                figures[self._key_of(row)][f"{row['set']}/{figure}"].append(float(row[figure]))
        return [
            {
                "levels": {name: row[name] for name in self.keys},
                "facts": {name: row[name] for name in ("digest", "commit", "machine")},
                "costs": {name: float(row[name]) for name in COSTS},
                "figures": {name: mean(values) for name, values in figures[self._key_of(row)].items()},
            }
            for row in self.runs()
        ]

    def _key_of(self, row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in self.keys)

    def has(self, run: Run) -> bool:
        """Whether the run is measured with these params, on all sets that are there."""
        if not any(self._is_of(run, row) and row["digest"] == run.digest for row in self.runs()):
            return False
        return not self.if_there or self.if_there <= {row["set"] for row in self.rows() if self._is_of(run, row)}

    def add(self, run: Run, facts: Mapping[str, Any], figures: Iterable[Mapping[str, Any]]) -> None:
        """Put a run's rows in place of those that it may have had; other processes may do so for other runs."""
        with only_writer(self.path, waits=True):
            rows = [row for row in self.rows() if not self._is_of(run, row)]
            write_csv(self.path, self.columns, [*rows, *({**run.key, **row} for row in figures)])
            runs = [row for row in self.runs() if not self._is_of(run, row)]
            write_csv(self.runs_path, self.run_columns, [*runs, {**run.key, "digest": run.digest, **facts}])

    def _is_of(self, run: Run, row: Row) -> bool:
        return all(row[name] == value for name, value in run.key.items())


def read_csv(path: Path, columns: Sequence[str]) -> list[Row]:
    """The lines of a file with these columns; none without the file. ValueError for another file."""
    if not path.is_file():
        return []
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if reader.fieldnames != list(columns):
        found, expected = ", ".join(reader.fieldnames or ()), ", ".join(columns)
        raise ValueError(f"{path}: has the columns {found}; expected {expected}: move it away if the study has changed")
    rows: list[Row] = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}: line {reader.line_num}: expected {len(columns)} columns")
        rows.append(row)
    return rows


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows in the order of their first columns, numbers as numbers."""
    lines = [{name: str(row[name]) for name in columns} for row in rows]
    lines.sort(key=lambda row: [_in_order(row[name]) for name in columns])
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return inf, text
