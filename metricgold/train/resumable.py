"""The skeleton that both trainers share: exact resume, steps that are read ahead, rows of figures, a clean stop.

    <model>.state/fingerprint.json    digest of everything that decides what is learnt; with another one the folder is
                                      moved aside (metricgold.train.earlier_states)
    <model>.state/step-NNNNNN/        checkpoints (metricgold.train.checkpoints)
    <model>.state/metrics.jsonl       a row of figures every `log_every` steps, complete before anyone hears of it

Whatever is random in a step is drawn from (seed, step), and a checkpoint contains weights, optimiser and position. So a
run that was killed resumes at its newest checkpoint and ends, on the same device, with the bytes of an undisturbed one.
"""

import logging
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file

from metricgold.storage import Progress, cut_rows, read_json, remove, row_line, stop_on_sigterm, sync
from metricgold.train.checkpoints import Tensors, find_checkpoint, flat_state, load_flat_state, save_checkpoint
from metricgold.train.earlier_states import claim_state
from metricgold.train.sessions import SESSIONS, session_facts

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
MetricRow = dict[str, float]
Report = Callable[[MetricRow], None]


def state_folder(out: Path) -> Path:
    """Where a run keeps what it resumes from: beside its result, as <result>.state."""
    return Path(out).with_name(Path(out).name + ".state")


def read_ahead(read: Callable[[int], Batch], steps: range, num_readers: int) -> Generator[Batch, None, None]:
    """The batch of each step in order; threads read the next `num_readers` batches while one is in use."""
    coming: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(num_readers) as readers:
        for step in steps:
            coming.append(readers.submit(read, step))
            if len(coming) > num_readers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


class ResumableRun(ABC, Generic[Batch]):
    """A training run. A subclass says how a step is read and learnt from, and what its checkpoints contain.

    state: the folder to resume from, see above; checkpoint_every, log_every: in steps; keep_checkpoints: how many stay
    on the disk. Of several processes that share each batch, only the one with `is_writer` writes.
    """

    name: ClassVar[str]  # of the stage, for its progress
    num_readers: ClassVar[int] = 1
    optimizer: torch.optim.Optimizer
    is_writer: bool = True

    def __init__(
        self, state: Path, num_steps: int, *, checkpoint_every: int, log_every: int, keep_checkpoints: int
    ) -> None:
        self.state, self.num_steps = state, num_steps
        self.checkpoint_every, self.log_every, self.keep_checkpoints = checkpoint_every, log_every, keep_checkpoints
        self.step = 0  # steps that are done
        self.losses: list[float] = []  # since the last row
        self.session: dict[str, Any] = {}
        self.worked_from_s = 0.0  # by the monotonic clock: what the next row of sessions.jsonl counts from

    # --- what a subclass gives ---

    @abstractmethod
    def read(self, step: int) -> Batch:
        """The samples of a step; called by the reading threads."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""

    @abstractmethod
    def update(self, batch: Batch) -> float | None:
        """Learn from a batch; returns its loss, None for an update that was left out."""

    @abstractmethod
    def contents(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """What a checkpoint contains beside optimiser, step and losses: files of tensors, and values for JSON."""

    @abstractmethod
    def restore(self, folder: Path, position: dict[str, Any]) -> None:
        """Load what `contents` gave, from a checkpoint folder and its state.json."""

    def figures(self) -> MetricRow:
        """What a row says beside step, loss and learning rate."""
        return {}

    def validate(self) -> MetricRow:
        """Figures of held-out frames, for the row, where a validation is due after this step."""
        return {}

    def announce(self, row: MetricRow) -> None:
        """Log what is remarkable in a row, now that it is in metrics.jsonl."""

    def is_done(self) -> bool:
        """Whether the run ends before its last step."""
        return False

    def wait_for_everyone(self) -> None:
        """Wait for the other processes of this run."""

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process of this run."""
        return flag

    # --- start, steps, checkpoints ---

    def start(self, fingerprint: str, *, fresh: bool = False) -> None:
        """Resume from the newest checkpoint of this fingerprint; what another run left is moved aside."""
        if self.is_writer:
            claim_state(self.state, fingerprint, fresh=fresh)
            for path in self.state.glob(".*"):
                remove(path)  # half-written checkpoints of a killed run
            (self.state / "metrics.jsonl").touch()
        self.wait_for_everyone()
        if folder := find_checkpoint(self.state):
            position = read_json(folder / "state.json")
            self.restore(folder, position)
            load_flat_state(self.optimizer, load_file(folder / "optimizer.safetensors") | position["optimizer"])
            self.step, self.losses = position["step"], position["losses"]
            log.info("resuming at step %d of %d", self.step, self.num_steps)
        if self.is_writer:
            for path in self.state.glob("*.jsonl"):
                cut_rows(path, self.step)

    def run(self, report: Report | None = None) -> None:
        """Take the remaining steps; `report` receives each row. SIGTERM saves a checkpoint and exits 143."""
        self.session, self.worked_from_s = session_facts() if self.is_writer else {}, time.monotonic()
        remaining = range(self.step, self.step if self.is_done() else self.num_steps)
        batches = read_ahead(self.read, remaining, self.num_readers)
        bar = Progress(self.name, self.num_steps, "steps", done=self.step) if self.is_writer else nullcontext()
        with stop_on_sigterm() as sigterm, closing(batches), bar as progress:
            for batch in batches:
                loss = self.take_step(batch)
                self._finish_row(report)
                if progress is not None:
                    progress.advance(note="left out" if loss is None else f"loss {loss:.4f}")
                stops = self.any_process(sigterm.is_set())
                is_last = self.step == self.num_steps or self.is_done()
                if stops or is_last or self.step % self.checkpoint_every == 0:
                    is_saved = self.save()
                if stops:
                    where = f"step {self.step} of {self.num_steps}{' and saved' if is_saved else ''}"
                    log.warning("stopped at %s; run the same command to resume", where)
                    raise SystemExit(128 + signal.SIGTERM)
                if is_last:
                    break

    def take_step(self, batch: Batch) -> float | None:
        """One step, with its learning rate; returns the loss, None for an update that was left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        loss = self.update(batch)
        self.step += 1
        if loss is not None:
            self.losses.append(loss)
        return loss

    def _finish_row(self, report: Report | None) -> None:
        """Write the row of this step, where one is due, and only then report it."""
        validation = self.validate()
        is_due = validation or self.step % self.log_every == 0 or self.step == self.num_steps
        if not is_due or not self.losses:
            return
        row = {"step": self.step, "loss": float(np.mean(self.losses)), "lr": self.learning_rate(self.step - 1)}
        row |= self.figures() | validation
        self.losses = []
        if not self.is_writer:
            return
        path = self.state / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(row_line(row))
        except OSError as error:
            raise OSError(f"{path}: {error}; the checkpoints before step {self.step} remain valid") from error
        self.announce(row)
        if report is not None:
            report(row)

    def save(self) -> bool:
        """Write a checkpoint. False where the disk refuses it."""
        if not self.is_writer:
            return True
        self._note_session()
        for rows in self.state.glob("*.jsonl"):
            sync(rows)  # a resumed run writes only those after the checkpoint
        moments, numbers = flat_state(self.optimizer)
        parts, position = self.contents()
        position |= {"step": self.step, "losses": self.losses, "optimizer": numbers}
        parts |= {"optimizer": moments}
        return save_checkpoint(self.state, self.step, parts, position, keep=self.keep_checkpoints)

    def _note_session(self) -> None:
        """A row about the work since the last one. A full disk may cost it: the checkpoint says so itself."""
        now_s = time.monotonic()
        row = {"step": self.step, "seconds": round(now_s - self.worked_from_s, 3), **self.session}
        self.worked_from_s = now_s
        with suppress(OSError), (self.state / SESSIONS).open("a") as file:
            file.write(row_line(row))
