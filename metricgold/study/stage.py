"""Run a study: one process for each training, at most so many at a time, until all runs are measured.

Whoever is killed, and when, the same command continues: models and caches resume, measured runs have their rows. Two
calls, of two machines on a shared disk too, share the work: each training has a lock. A child ends with its parent.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metricgold.params import Folders, Params
from metricgold.storage import Progress, exit_on_sigterm, log_formatter, message_of
from metricgold.study.definition import FOLDER, Run, load_study, runs_of
from metricgold.study.job import Job
from metricgold.study.results import Results
from metricgold.study.store import Names, Store, names_of
from metricgold.study.worlds import render_worlds
from metricgold.train import gpu_names, only_job

log = logging.getLogger(__name__)

Follow = Callable[[list[dict[str, Any]]], None]  # gets the summaries of all measured runs when some were added
CONTEXT = "forkserver"  # fresh processes that have torch already, and none of the memory of the one before
LOOK_EVERY_S = 5.0  # for a training that another call has


def run_study(
    name: str, params: Params, *, jobs: int = 1, folders: Folders | None = None, follow: Follow | None = None
) -> dict[str, Any]:
    """Train and measure what studies/NAME.yaml asks for and its results lack, at most `jobs` trainings at a time.

    params  the project's, which the study changes
    follow  is told of all measured runs at the end of each training and of the call, such as to track them

    Answers with the numbers of runs and of measured ones. With the stand-in no training starts beyond budget_minutes.
    Raises ValueError for a fault of the study, without data, and, once all others are done, for trainings that failed.
    """
    folders = folders or Folders()
    study = load_study(name, folders.root / FOLDER)
    runs, store = runs_of(study, params, name), Store(folders)
    if_there = [one for one in study.measures.if_there if store.is_there(one)]
    results = Results(name, study, folders.root / FOLDER / "results", if_there)
    for one in sorted({*study.measures.if_there} - {*if_there}):
        log.warning("%s is left out: %s is empty; metricgold download %s fills it", one, folders.benchmark(one), one)
    missing = [run for run in runs if not results.has(run)]
    deadline = time.monotonic() + study.budget_s(params)
    if missing:
        with only_job("cuda" if gpu_names() else "cpu"), exit_on_sigterm():
            render_worlds(missing, store)
            _Crew(jobs, results, store, deadline, follow).run(_trainings(missing, store))
    if follow is not None:
        follow(results.summaries())  # also of runs that somebody else has measured
    num_measured = sum(map(results.has, runs))
    if num_measured < len(runs):
        log.info("%s: %d of %d runs are measured; the same command continues", name, num_measured, len(runs))
    return {"study": name, "runs": len(runs), "measured": num_measured}


def _trainings(runs: list[Run], store: Store) -> dict[str, tuple[Names, list[Run]]]:
    """Runs by the model that they need."""
    of_model: dict[str, tuple[Names, list[Run]]] = {}
    for run in runs:
        names = names_of(run.params, store.contents(run))
        of_model.setdefault(names.training, (names, []))[1].append(run)
    return of_model


class _Crew:
    """The processes of one call."""

    def __init__(self, jobs: int, results: Results, store: Store, deadline: float, follow: Follow | None) -> None:
        self.num_jobs, self.results, self.store = jobs, results, store
        self.deadline, self.follow = deadline, follow
        self.children: dict[Any, tuple[str, Any, Connection]] = {}  # by sentinel
        self.failures: dict[str, str] = {}
        self.context: Any = multiprocessing.get_context(CONTEXT)
        self.context.set_forkserver_preload(["metricgold.study.worker"])

    def run(self, trainings: dict[str, tuple[Names, list[Run]]]) -> None:
        """Until all are measured, or the budget is spent. ValueError names what failed."""
        waiting = deque(trainings)
        with Progress("study", len(trainings), "trainings") as progress:
            try:
                while (waiting and time.monotonic() < self.deadline) or self.children:
                    while waiting and len(self.children) < self.num_jobs and time.monotonic() < self.deadline:
                        free = next((one for one in waiting if _is_free(self.store.lock_path(one))), None)
                        if free is None and self.children:
                            break
                        training = free or waiting[0]  # where other calls have all, wait for the first
                        waiting.remove(training)
                        self._start(training, *trainings[training], waits=free is None)
                    for training, said in self._ended():
                        if said or all(map(self.results.has, trainings[training][1])):
                            progress.advance()
                            self._tell()
                        elif said is None:
                            waiting.append(training)  # another call was faster
                        else:
                            waiting.appendleft(training)  # its inputs are there now
            finally:
                self._end()
        if self.failures:
            raise ValueError("; ".join(f"{name}: {text}" for name, text in self.failures.items()))

    def _start(self, training: str, names: Names, runs: list[Run], *, waits: bool) -> None:
        reader, writer = self.context.Pipe(duplex=False)
        options = (writer, self.num_jobs, Job(runs, names, self.results, self.store, waits))
        child = self.context.Process(target=_work, args=options, daemon=True)
        child.start()
        writer.close()
        log.info("%s: %s", training, runs[0] if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more")
        self.children[child.sentinel] = training, child, reader

    def _ended(self) -> list[tuple[str, str | None]]:
        """The trainings whose processes have ended by now, with why they failed; None if another call has it."""
        ended = []
        for sentinel in wait(list(self.children), timeout=LOOK_EVERY_S):
            training, child, reader = self.children.pop(sentinel)
            child.join()
            said = reader.recv() if reader.poll() else f"its process ended with code {child.exitcode}"
            reader.close()
            if said:
                log.error("%s failed: %s", training, said)
                self.failures[training] = said
            ended.append((training, said))
        return ended

    def _tell(self) -> None:
        if self.follow is not None:
            self.follow(self.results.summaries())

    def _end(self) -> None:
        """Ask children to save and end, and wait for that."""
        for _, child, _ in self.children.values():
            child.terminate()
        for _, child, _ in self.children.values():
            child.join()


def _is_free(lock_path: Path) -> bool:
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_path, timeout=0):
            return True
    except Timeout:
        return False


def _work(writer: Connection, num_jobs: int, job: Job) -> None:
    """The child: says what `_ended` tells. Ctrl-C reaches the parent, which asks it to save."""
    import torch

    from metricgold.study.worker import advance

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if num_jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_jobs))
    try:
        writer.send("" if advance(job) else None)
    except (ValueError, OSError) as error:
        writer.send(str(message_of(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
