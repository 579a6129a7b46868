"""Pictures of a method's best, median and worst image: which they are, how they are stored, what the page shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.evaluate.report.comparisons import Comparison, MethodRows, comparisons_of
from metricgold.evaluate.rows import Row, Rows
from metricgold.images import Example, colour_depth, colour_error, data_uri, depth_scale
from metricgold.metrics import ALIGNMENTS
from metricgold.storage import digest_json, paths_below, read_json, write_aside, write_json

KINDS = {"photograph": "photograph", "truth": "true depth", "depth": "predicted depth", "error": "relative error"}
SHOWN_PX = 320  # long side of each
PLACES = ("best", "median", "worst")
SCALE = "scale.json"  # written last: a folder that has it is complete


@dataclass(frozen=True, slots=True)
class Pictured:
    """An image that stands for a method: the column that ranks it, its value, and its rank."""

    method: MethodRows
    place: str
    frame: str
    scene: str
    column: str
    value: float


def pictured(comparison: Comparison) -> list[Pictured]:
    """Best, median and worst image by AbsRel of each method that looks at images."""
    found = []
    for method in comparison.methods:
        if method.is_baseline:
            continue
        column = ranking_column(method)
        values = method.values(column)
        order = [index for index in np.argsort(values, kind="stable") if np.isfinite(values[index])]
        chosen = {order[0]: "best", order[-1]: "worst"} if order else {}
        if len(order) > 2:
            chosen[order[(len(order) - 1) // 2]] = "median"
        for index, place in sorted(chosen.items(), key=lambda item: PLACES.index(item[1])):
            frame, scene = method.rows["frame"][index], method.rows["scene"][index]
            found.append(Pictured(method, place, frame, scene, column, float(values[index])))
    return found


def ranking_column(method: MethodRows) -> str:
    """AbsRel of the first alignment in which the method has one."""
    columns = [f"{name}/abs_rel" for name in ALIGNMENTS]
    return next((column for column in columns if np.isfinite(method.values(column)).any()), columns[0])


def frames_to_picture(rows: Rows) -> dict[tuple[str, str], set[str]]:
    """Frames of which the page shows pictures, by (ruler_digest, method_digest)."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for comparison in comparisons_of(rows):
        for one in pictured(comparison):
            wanted.setdefault((comparison.digest, one.method.rows["method_digest"][0]), set()).add(one.frame)
    return wanted


def picture_folder(pictures: Path, row: Row) -> Path:
    """Where the pictures of a row are: a name by digest, since frames have slashes and methods have anything."""
    name = digest_json([row["ruler_digest"], row["method_digest"], row["frame"]])[:24]
    return paths_below(pictures, [f"{row['benchmark']}/{name}"])[0]


def write_pictures(pictures: Path, row: Row, example: Example) -> Path:
    """Write photograph, truth, prediction (in metres, aligned where it is relative) and error of a row's image."""
    from PIL import Image

    height, width = example.pred_m.shape
    step = max(1, -(-max(height, width) // SHOWN_PX))
    drawn = {
        "photograph": example.rgb,
        "truth": colour_depth(example.true_m, example.range_m, example.valid_mask),
        "depth": colour_depth(example.pred_m, example.range_m),
        "error": colour_error(example.relative_error),
    }
    folder = picture_folder(pictures, row)
    for name, picture in drawn.items():
        with write_aside(folder / f"{name}.jpg") as aside:
            Image.fromarray(picture[::step, ::step]).save(aside, "JPEG", quality=85, subsampling="4:4:4")
    write_json(folder / SCALE, {"near_m": example.range_m[0], "far_m": example.range_m[1]})
    return folder


def picture_card(pictures: Path, comparison: Comparison, one: Pictured) -> dict[str, Any] | None:
    """What the page shows of an image; None where its pictures have not been written."""
    row = {
        "benchmark": comparison.benchmark,
        "ruler_digest": comparison.digest,
        "method_digest": one.method.rows["method_digest"][0],
        "frame": one.frame,
    }
    folder = picture_folder(pictures, row)
    if not (folder / SCALE).is_file():
        return None
    range_m = read_json(folder / SCALE)
    views = {name: data_uri((folder / f"{name}.jpg").read_bytes(), "image/jpeg") for name in KINDS}
    scale = depth_scale((range_m["near_m"], range_m["far_m"]), max_ticks=4)
    return {"pictured": one, "views": views, "scale": scale}
