"""What the page of a run shows of a stage while it works: its progress file, and figures and pictures of validation."""

import io
import re
import time
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
from metricgold.params import Folders
from metricgold.storage import read_progress, read_rows

PICTURE_PX = 1000  # of the long side; the picture travels inside the artifact
VALIDATING = "train"  # the stage whose rows hold figures of validation, as val_<name>
SECONDS_BETWEEN_LOOKS = 1.0


class StagePage:
    """Artifacts of one stage, brought up to date with its log lines and at its end.

    stage          as DVC names it, such as download@hypersim
    progress_file  what the stage writes by metricgold.storage.write_progress
    log            takes the stage's lines, and one more if the server refuses an artifact
    folders        of the project that the stage works in
    """

    def __init__(
        self, stage: str, progress_file: Path, log: Callable[[str], None], folders: Folders | None = None
    ) -> None:
        self.stage, self.progress_file, self.log = stage, progress_file, log
        self._folders = folders or Folders()
        self._bar: UUID | None = None
        self._percent: float | None = None
        self._validated = [row["step"] for row in self._validation_rows()]  # by an earlier run
        self._looked_at = -SECONDS_BETWEEN_LOOKS
        self._has_failed = False

    def log_line(self, line: str) -> None:
        """Log a line of the stage; look what is new, at most every SECONDS_BETWEEN_LOOKS."""
        self.log(line)
        if time.monotonic() - self._looked_at >= SECONDS_BETWEEN_LOOKS:
            self.refresh()

    def refresh(self) -> None:
        """Show what is new. A server that is away must not cost days of training: that is one line in the log."""
        self._looked_at = time.monotonic()
        try:
            self._show_progress()
            self._show_validation()
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                self.log(f"the page of the run does not show all of {self.stage}: {error}")

    def _show_progress(self) -> None:
        progress = read_progress(self.progress_file)
        if progress is None or not progress.total or progress.percent == self._percent:
            return
        self._percent = progress.percent
        says = f"{self.stage}: {progress.done:,.10g} of {progress.total:,.10g} {progress.unit.strip()}"
        if self._bar is None:
            key = re.sub("[^a-z0-9]+", "-", self.stage.lower())
            self._bar = create_progress_artifact(progress.percent, key=key, description=says)
        else:
            update_progress_artifact(self._bar, progress.percent, description=says)

    def _show_validation(self) -> None:
        """Figures of all validations as a table, and the newest picture, once there is a new row."""
        rows = self._validation_rows()
        steps = [row["step"] for row in rows]
        if not rows or steps == self._validated:
            return
        self._validated = steps
        create_markdown_artifact(validation_table(rows), key="validation", description="held-out frames while training")
        picture = self._folders.samples / f"step-{steps[-1]:06d}.png"
        if picture.is_file():
            create_image_artifact(_data_uri(picture), key="validation-picture", description=f"step {steps[-1]}")

    def _validation_rows(self) -> list[dict[str, Any]]:
        path = self._folders.training_rows
        rows = read_rows(path) if self.stage == VALIDATING and path.is_file() else []
        return [row for row in rows if any(name.startswith("val_") for name in row)]


def validation_table(rows: list[dict[str, Any]]) -> str:
    """Rows of metrics.jsonl with val_<name> as a Markdown table."""
    names = sorted({name for row in rows for name in row if name.startswith("val_")})
    lines = ["| step | " + " | ".join(name[4:] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        values = ["" if row.get(name) is None else f"{row[name]:.4g}" for name in names]
        lines.append(f"| {row['step']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _data_uri(picture: Path) -> str:
    """A smaller JPEG of a picture, as a link that needs no other file."""
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return data_uri(data.getvalue(), "image/jpeg")
