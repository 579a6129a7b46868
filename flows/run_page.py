"""What a run's page shows of a stage while it works, read from the lines of its log: how far it is, how good."""

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from metricgold.images import data_uri

STATE = Path("models/metricgold.state")  # of the trainer: metrics.jsonl, samples/step-NNNNNN.png
PICTURE_PX = 1000  # of the long side; the picture travels inside the artifact
_SHARE = re.compile(r"\bprogress (\d+(?:\.\d+)?) %")  # what metricgold.download.progress writes into a log
_STEP = re.compile(r"\bstep (\d+) of (\d+)\b")  # the trainers
_VALIDATION = re.compile(r"\bstep (\d+), validation: (\{.*?\})")


def show_lines(stage: str, log: Callable[[str], None]) -> Callable[[str], None]:
    """`log`, and beside it artifacts: a share of the work as progress, validation as a table and a picture."""
    progress = _Progress(stage)
    told = False

    def show(line: str) -> None:
        nonlocal told
        log(line)
        try:
            progress.show(line)
            show_validation(line)
        except Exception as error:  # a server that is away must not cost days of training
            if not told:
                told = True
                log(f"the run's page lacks something of {stage}: {error}")

    return show


class _Progress:
    """A progress artifact, made with the first line that tells a share."""

    def __init__(self, stage: str) -> None:
        self.stage, self.artifact = stage, None
        self.percent = -1.0

    def show(self, line: str) -> None:
        percent = _percent(line)
        if percent is None or percent == self.percent:
            return
        self.percent = percent
        if self.artifact is None:
            key = re.sub("[^a-z0-9]+", "-", self.stage.lower())
            self.artifact: UUID | None = create_progress_artifact(percent, key=key, description=self.stage)
        else:
            update_progress_artifact(self.artifact, percent)


def _percent(line: str) -> float | None:
    if found := _SHARE.search(line):
        return float(found[1])
    if found := _STEP.search(line):
        return round(100 * int(found[1]) / max(1, int(found[2])), 1)
    return None


def show_validation(line: str) -> None:
    """Of a line with figures of validation: all figures so far as a table, and the newest picture."""
    if not (found := _VALIDATION.search(line)):
        return
    step = int(found[1])
    rows = {row["step"]: row for row in _written() if row["step"] < step}
    # The row itself is still in the trainer's buffer; `nan` is no literal.
    figures = ast.literal_eval(re.sub(r"\b(nan|inf)\b", "None", found[2]))
    rows[step] = {"step": step} | {f"val_{name}": value for name, value in figures.items()}
    create_markdown_artifact(
        _table(list(rows.values())), key="validation", description="held-out frames while training"
    )
    picture = STATE / "samples" / f"step-{step:06d}.png"
    if picture.is_file():
        create_image_artifact(_data_uri(picture), key="validation-picture", description=f"step {step}")


def _written() -> list[dict[str, Any]]:
    """Rows of metrics.jsonl with figures of validation."""
    path = STATE / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if any(name.startswith("val_") for name in row)]


def _table(rows: list[dict[str, Any]]) -> str:
    names = sorted({name for row in rows for name in row if name.startswith("val_")})
    lines = ["| step | " + " | ".join(name[4:] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        values = ["" if row.get(name) is None else f"{row[name]:.4g}" for name in names]
        lines.append(f"| {row['step']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _data_uri(picture: Path) -> str:
    from PIL import Image

    data = io.BytesIO()
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        image.save(data, "JPEG", quality=80)
    return data_uri(data.getvalue(), "image/jpeg")
