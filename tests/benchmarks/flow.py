"""What Prefect and DVC add to the stages: every stage of the demo's dvc.yaml, with commands that do nothing.

Counted is CPU time of the flow, of one DVC process a stage, and of a Prefect server that runs beside.
"""

import resource
import subprocess
import sys
from pathlib import Path

import psutil

from tests.flows.toy import Server, calls, make_project

WALK = "from prefect import flow; from flows.dvc_stages import run_stages; flow(lambda: run_stages(), name='walk')()"


def overhead(folder: Path) -> dict[str, float]:
    """CPU seconds a stage, of a walk over stages that all have work to do."""
    project = make_project(folder / "project")
    server = Server(folder / "home")
    try:
        server.wait_until_ready()
        began = _cpu_s(server)
        subprocess.run([sys.executable, "-c", WALK], cwd=project, env=server.env, check=True, capture_output=True)
        return {"flow.cpu_s_per_stage": (_cpu_s(server) - began) / len(calls(project))}
    finally:
        server.stop()


def _cpu_s(server: Server) -> float:
    """Of the server, its children, and of all children of this process that have ended."""
    process = psutil.Process(server.process.pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(one.user + one.system for one in times) + ended.ru_utime + ended.ru_stime
