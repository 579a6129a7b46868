"""DVC's graph as Prefect tasks: one task run per stage, in the order that dvc.yaml alone knows.

Freshness is DVC's: a task asks `dvc repro` for one stage, which does nothing when nothing changed. Prefect
caches nothing. Independent stages run side by side.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from flows.child_processes import ChildFailed, end_children, is_ending, run_child
from flows.gpu_slots import card
from flows.run_page import show_lines
from metricgold.datasets import load_manifest
from metricgold.download import check_licence
from metricgold.storage import write_json

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]  # the flag stands before the sub-command
SECONDS = Path("reports/seconds.json")
ON_CARD = frozenset({"encode", "vae-floor", "depth-vae", "train", "evaluate"})  # stages that use a card if there is one
STOPPED = "the same command goes on"  # last words of work that saved because it was told to stop
RESUMES, RESUME_AFTER_S = 3, 5.0
RETRY_DELAYS_S = [60, 600, 3600]  # of a download: a host that is down at night is often up in the morning

Graph = dict[str, set[str]]


def stage_graph(targets: list[str] | None = None) -> Graph:
    """Stages of the dvc.yaml here, each with the stages that it needs, in an order in which they can run.

    targets  only these and what they need; all if not given
    Raises ValueError without a DVC project here, or for an unknown stage.
    """
    from graphlib import TopologicalSorter

    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            edges = repo.index.graph  # from a stage to what it needs
            needs = {stage.addressing: {need.addressing for need in edges.successors(stage)} for stage in edges}
    except DvcException as error:
        raise ValueError(f"{Path.cwd()}: {error}") from error
    unknown = sorted(set(targets or ()) - set(needs))
    if unknown:
        raise ValueError(f"dvc.yaml has no stage {', '.join(unknown)}; it has {', '.join(sorted(needs))}")
    wanted = set(needs) if targets is None else _with_needs(targets, needs)
    return {stage: needs[stage] for stage in TopologicalSorter(needs).static_order() if stage in wanted}


def _with_needs(targets: list[str], needs: Graph) -> set[str]:
    found, open_ends = set(), list(targets)
    while open_ends:
        stage = open_ends.pop()
        if stage not in found:
            found.add(stage)
            open_ends.extend(needs[stage])
    return found


def reproduce(stage: str) -> list[str]:
    """The command that brings one stage up to date, without those before it; the only lines are the stage's."""
    return [*DVC, "repro", "--quiet", "--single-item", stage]


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, num_threads: int) -> float:
    """Bring one stage up to date and answer the seconds it took. Fails with the stage's last lines."""
    logger = get_run_logger()
    with card(logger.info) if stage.partition("@")[0] in ON_CARD else nullcontext({}) as variables:
        started = time.perf_counter()
        variables = {"OMP_NUM_THREADS": str(num_threads), **variables}
        run_until_done(reproduce(stage), show_lines(stage, logger.info), **variables)
    seconds = time.perf_counter() - started
    logger.info("up to date after %.1f s", seconds)
    return seconds


def run_until_done(command: list[str], log: Callable[[str], None], **variables: str) -> None:
    """Run a child; where its work was told to stop and saved, but the flow was not, it goes on, some times over.

    A trainer that gets SIGTERM saves and exits 143: with 0, and no model, DVC would fail with words of its own.
    """
    for left in reversed(range(RESUMES + 1)):
        try:
            return run_child(command, log, **variables)
        except ChildFailed as failure:
            # Who cancels the flow signals its children too, and theirs may be the first to end.
            if STOPPED not in str(failure) or not left or is_ending(RESUME_AFTER_S):
                raise
            log(f"told to stop from outside, it saved; going on, {left - 1} more times at most")


def _task_of(stage: str):
    """The task of a stage; downloads are tried again later, since it is others' machines that fail them."""
    if stage.startswith("download@"):
        return run_stage.with_options(retries=len(RETRY_DELAYS_S), retry_delay_seconds=RETRY_DELAYS_S)
    return run_stage


def check_licences(datasets: list[str], *, accept: bool = False) -> None:
    """ValueError for a data set whose licence nobody has accepted: said before hours of work, not retried."""
    for name in datasets:
        raw = Path("data/raw") / name
        if not (raw / "dataset.yaml").is_file():  # a team's own data have no manifest
            check_licence(load_manifest(name), raw, accept=accept)


def threads_of(stage: str, graph: Graph) -> int:
    """Threads for a stage's arithmetic: the rows of a matrix run side by side and share the cores.

    With more threads than cores each waits for the others, and all are slower than one alone.
    """
    rows = sum(other.partition("@")[0] == stage.partition("@")[0] for other in graph)
    return max(1, (os.cpu_count() or 1) // rows)


def run_stages(graph: Graph) -> dict[str, float]:
    """Walk the graph inside a flow; answers seconds per stage and keeps them in reports/seconds.json.

    Stages that need a failed one do not start; the others finish. Raises the first failure.
    """
    futures = {}
    for stage, needs in graph.items():
        ready = [futures[need] for need in needs]
        futures[stage] = _task_of(stage).submit(stage, threads_of(stage, graph), wait_for=ready)
    progress = create_progress_artifact(0.0, key="stages", description=f"{len(graph)} stages of dvc.yaml")
    try:
        for count, _ in enumerate(as_completed(list(futures.values())), start=1):
            update_progress_artifact(progress, 100 * count / len(graph))
    except BaseException:
        end_children()  # cancelled: the trainer saves, then all stop
        raise
    done = {stage: future.result() for stage, future in futures.items() if future.state.is_completed()}
    write_json(SECONDS, {stage: round(seconds, 2) for stage, seconds in done.items()})
    return {stage: future.result() for stage, future in futures.items()}
