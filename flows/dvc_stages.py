"""DVC's graph as Prefect tasks: one task run per stage, in the order that dvc.yaml alone knows.

Freshness is DVC's: a task runs `dvc repro` for one stage, which does nothing when nothing changed. Prefect
caches nothing. Independent stages run side by side.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed, wait

from flows.child_processes import DVC, ChildFailed, end_children, is_ending, run_child
from flows.dvc_files import forget_torn_locks, keep_or_restore_lock_file, open_dvc
from flows.experiments import PROJECT, Workspace
from flows.gpu_slots import gpu_slot
from flows.run_page import StagePage
from metricgold.datasets import load_manifest, raw_folder
from metricgold.download import check_licence
from metricgold.params import Folders
from metricgold.storage import PROGRESS_FILE, STOPPED_AND_SAVED, read_json, read_progress, write_json

SECONDS = Folders().reports / "seconds.json"
# Stages that use a GPU if there is one.
ON_GPU = frozenset({"encode", "vae-floor", "depth-vae", "train", "evaluate", "benchmark"})
RESUMES, RESUME_AFTER_S = 3, 5.0
BUSY, BUSY_PAUSE_S = "is busy, it is being blocked by", 20.0  # DVC's words, before it names who blocks
ENDING_S = 10.0  # for threads whose children have ended; one that waits for its next try takes longer
RETRY_DELAYS_S = [60, 600, 3600]  # of a download: a host that is down at night is often up in the morning
RETRY_JITTER = 0.3  # of each delay, so that stages that failed together do not return together

Graph = dict[str, set[str]]


def stage_graph(targets: list[str] | None = None, folder: Path = Path()) -> Graph:
    """Stages of the dvc.yaml in a folder, each with the stages that it needs, in an order in which they can run.

    targets  only these and what they need; all if not given
    Raises ValueError without a DVC project there, or for an unknown stage.
    """
    from graphlib import TopologicalSorter

    with open_dvc(folder) as repo:
        edges = repo.index.graph  # from a stage to what it needs
        name = {stage: stage_name(stage.addressing, folder) for stage in edges}
        needs = {name[stage]: {name[need] for need in edges.successors(stage)} for stage in edges}
    wanted = set(needs) if targets is None else set(targets)
    if unknown := sorted(wanted - set(needs)):
        raise ValueError(f"dvc.yaml has no stage {', '.join(unknown)}; it has {', '.join(sorted(needs))}")
    while missing := {need for stage in wanted for need in needs[stage]} - wanted:
        wanted |= missing
    return {stage: needs[stage] for stage in TopologicalSorter(needs).static_order() if stage in wanted}


def stage_name(address: str, folder: Path) -> str:
    """What a stage is called in its own folder; DVC's address says where that is seen from here."""
    return address.removeprefix(f"{os.path.relpath(folder)}/").removeprefix("dvc.yaml:")


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, num_threads: int, workspace: Workspace = PROJECT) -> float | None:
    """Bring one stage up to date, without those before it; its seconds, None if it was.

    Fails with the stage's last lines.
    """
    logger, has_run = get_run_logger(), False

    def log(line: str) -> None:
        nonlocal has_run
        has_run |= line.startswith(f"Running stage '{stage}'")
        logger.info(line)

    on_gpu = stage.partition("@")[0] in ON_GPU
    slot: AbstractContextManager[dict[str, str]] = gpu_slot(logger.info) if on_gpu else nullcontext({})
    with slot as variables:
        started = time.perf_counter()
        # Not --quiet: that would hide why DVC itself fails.
        command = [*DVC, "repro", "--single-item", stage]
        try:
            run_until_done(stage, command, log, workspace, OMP_NUM_THREADS=str(num_threads), **variables)
        finally:
            mend_lock_file(log, workspace)
    seconds = time.perf_counter() - started
    logger.info("up to date after %.1f s", seconds)
    return seconds if has_run else None


def mend_lock_file(log: Callable[[str], None], workspace: Workspace = PROJECT) -> None:
    """Put a copy of dvc.lock back where a full disk has left half of it, and say so."""
    if keep_or_restore_lock_file(workspace.folder):
        log("dvc.lock was torn, as a full disk leaves it: it is again what it was before the stage that tore it")


def run_until_done(
    stage: str,
    command: list[str],
    log: Callable[[str], None],
    workspace: Workspace = PROJECT,
    **variables: str,
) -> None:
    """Run a stage's command and show its progress. A stage that SIGTERM stopped, and not its flow, resumes.

    A trainer that gets SIGTERM saves and exits 143; with 0 and no model, DVC would fail with words of its own. DVC
    ends with 255 either way, so the stage's own exit code comes from its progress file. RESUMES times at most.
    Where another DVC works on the same files, whose number DVC says, it is waited for.
    """
    left = RESUMES
    while True:
        with TemporaryDirectory() as scratch:
            progress_file = Path(scratch) / "progress.json"
            variables |= {PROGRESS_FILE: str(progress_file), **dict(workspace.variables)}
            page = StagePage(stage, progress_file, log, workspace.folders)
            try:
                return run_child(command, page.log_line, workspace.folder, **variables)
            except ChildFailed as failure:
                if BUSY in str(failure) and not is_ending(BUSY_PAUSE_S):
                    continue
                last = read_progress(progress_file)
                was_stopped = last is not None and last.exit_code == STOPPED_AND_SAVED
                # Who cancels the flow signals its children too, and theirs may be the first to end.
                if not was_stopped or not left or is_ending(RESUME_AFTER_S):
                    raise
            finally:
                page.refresh()
        left -= 1
        log(f"{stage} was stopped from outside and saved; it resumes, {left} more times at most")


def task_of(stage: str) -> Task[..., float | None]:
    """The task of a stage. Downloads are retried later: hosts of others make them fail."""
    named = run_stage.with_options(name=stage)  # what a task is called until it starts
    if stage.startswith(("download@", "benchmark-data@")):
        delays = {"retry_delay_seconds": RETRY_DELAYS_S, "retry_jitter_factor": RETRY_JITTER}
        return named.with_options(retries=len(RETRY_DELAYS_S), **delays)
    return named


def check_licences(datasets: list[str], *, accept: bool = False) -> None:
    """ValueError for a data set whose licence has not been accepted: before hours of work, and not retried."""
    folders = Folders()
    for name in datasets:
        if not folders.has_own_data(name):  # which have no manifest
            check_licence(load_manifest(name), raw_folder(name, folders), accept=accept)


def threads_of(stage: str, graph: Graph) -> int:
    """Threads for a stage's arithmetic: the rows of a matrix run side by side and share the cores.

    With more threads than cores each waits for the others, and all are slower than one alone.
    """
    rows = sum(other.partition("@")[0] == stage.partition("@")[0] for other in graph)
    return max(1, (os.cpu_count() or 1) // rows)


def stale_stages(graph: Graph, folder: Path = Path()) -> Graph:
    """The part of a graph that may have work: stages that DVC finds changed, and those that need one of them.

    A stage costs a process of DVC, and one question for all of them no more than that of one.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            changed = {stage_name(address, folder) for address in repo.status()}
    except DvcException:  # such as files in use: the stages that want them say so
        return graph
    stale: set[str] = set()
    for stage, needs in graph.items():
        if stage in changed or needs & stale:
            stale.add(stage)
    return {stage: needs & stale for stage, needs in graph.items() if stage in stale}


def run_stages(targets: list[str] | None = None, workspace: Workspace = PROJECT) -> dict[str, float]:
    """Walk the graph inside a flow; returns the seconds of stages that had work and keeps them in reports/seconds.json.

    targets  stages to bring up to date with what they need; all if not given

    Stages that need a failed one do not start; the others finish. Raises the first failure.
    """
    forget_torn_locks(workspace.folder)
    mend_lock_file(get_run_logger().info, workspace)
    graph = stage_graph(targets, workspace.folder)
    stale = stale_stages(graph, workspace.folder)
    get_run_logger().info("%d of %d stages are up to date", len(graph) - len(stale), len(graph))
    futures: dict[str, PrefectFuture[Any]] = {}
    for stage, needs in stale.items():
        ready = [futures[need] for need in needs]
        futures[stage] = task_of(stage).submit(stage, threads_of(stage, graph), workspace, wait_for=ready)
    progress = create_progress_artifact(
        0.0, key="stages", description=f"{len(stale)} of {len(graph)} stages of dvc.yaml"
    )
    try:
        for count, future in enumerate(as_completed(list(futures.values())), start=1):
            future.wait()  # from then on it knows its state, of which the server may hear later
            update_progress_artifact(progress, 100 * count / len(stale))
    except BaseException:
        end_children()  # cancelled: the trainer saves, then all stop
        wait(list(futures.values()), ENDING_S)  # their threads still mend dvc.lock: nobody may clear the folder before
        raise
    results = {stage: future.result() for stage, future in futures.items() if future.state.is_completed()}
    ran = {stage: round(seconds, 2) for stage, seconds in results.items() if seconds is not None}
    if ran:
        path = workspace.folder / SECONDS
        write_json(path, (read_json(path) if path.is_file() else {}) | ran)
    for future in futures.values():
        future.result()
    return ran
