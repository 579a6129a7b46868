"""The automations that `metricgold up` installs, with less patience: they end runs that nobody else can end.

Part of `make test-stores`: Prefect's heartbeats and the automations' own patience take minutes.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from flows.child_processes import FAMILY
from metricgold.operate.services import ask
from metricgold.operate.stage import _install_automation
from tests.flows.test_ends import artifact, deployed, start_run, start_worker, wait_for_state  # noqa: F401
from tests.support import ROOT
from tests.support.waiting import wait_until


@contextmanager
def installed(server, folder: Path, name: str, *, within_s: int) -> Iterator[str]:
    """An automation with another patience, installed as by `metricgold up`, and removed in the end; its message."""
    api, values = server.env["PREFECT_API_URL"], yaml.safe_load((ROOT / "flows" / name).read_text())
    values["trigger"]["within"] = within_s
    (folder / name).write_text(yaml.safe_dump(values))
    _install_automation(folder / name, api, print)
    try:
        yield values["actions"][0]["message"]
    finally:
        for one in server.ask("POST", "/automations/filter", {"automations": {"name": {"any_": [values["name"]]}}}):
            ask(api, "DELETE", f"/automations/{one['id']}")


def processes_of(run_id: str, project: Path) -> list[psutil.Process]:
    """What a worker has started for a run, its guard, and what the flow of this project has started."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            is_child = FAMILY in variables and process.cwd() == str(project)
            if is_child or run_id in (variables.get("PREFECT__FLOW_RUN_ID"), *process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def vanish(worker: subprocess.Popen, run_id: str, project: Path) -> None:
    """As when a machine loses its power: nobody is left who could tell the server."""
    worker.kill()
    worker.wait()
    while left := processes_of(run_id, project):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


@pytest.fixture
def explaining(deployed):  # noqa: F811
    """A deployed project whose flows explain at once what nobody else has explained."""
    hooks = Path("flows/hooks.py")
    hooks.write_text(hooks.read_text().replace("WRITTEN_WITHIN = timedelta(minutes=1)", "WRITTEN_WITHIN = timedelta()"))
    return deployed


def complete(server, project: Path, run_id: str) -> None:
    """Run to the end what is waiting for a slot of its pool and of its deployment, which take one run each."""
    worker = start_worker(server, project)
    try:
        wait_for_state(server, run_id, "COMPLETED")
    finally:
        worker.terminate()
        worker.wait(60)


def test_a_run_that_a_worker_took_and_never_began_is_crashed_and_frees_its_slot(server, explaining, tmp_path):
    """The next run has its slot, and writes the page that says how it ended."""
    deployment = server.get("/deployments/name/train-metricgold/train-metricgold")
    never = {"job_variables": {"command": "sleep 600"}}
    run_id = server.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", never)["id"]
    with installed(server, tmp_path, "never_begun.yaml", within_s=10) as message:
        worker = start_worker(server, explaining)
        wait_for_state(server, run_id, "PENDING")
        vanish(worker, run_id, explaining)
        run = wait_for_state(server, run_id, "CRASHED")
    assert run["state"]["message"] == message
    complete(server, explaining, start_run(server))
    page = artifact(server, run_id)
    assert message in page and f"prefect flow-run retry {run_id}" in page and str(explaining) not in page


def test_a_run_whose_machine_vanished_is_crashed_and_can_be_run_again(server, deployed, tmp_path):  # noqa: F811
    """Its flow, its guard and its worker have ended together; until then its heartbeats had it left alone."""
    Path("wait").touch()
    run_id = start_run(server)
    # Prefect sends a heartbeat every 30 s, no oftener.
    with installed(server, tmp_path, "vanished_machines.yaml", within_s=45) as message:
        worker = start_worker(server, deployed)
        wait_until(lambda: num_heartbeats(server, run_id) >= 2, every_s=1, what="two heartbeats")
        assert server.get(f"/flow_runs/{run_id}")["state"]["type"] == "RUNNING"
        vanish(worker, run_id, deployed)
        run = wait_for_state(server, run_id, "CRASHED")
    assert run["state"]["message"] == message
    Path("wait").unlink()
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
    server.ask("POST", f"/flow_runs/{run_id}/set_state", again)
    complete(server, deployed, run_id)


def num_heartbeats(server, run_id: str) -> int:
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
    return server.ask("POST", "/events/filter", {"filter": wanted})["total"]
