"""A run, its flow, its worker, its children and its server: whichever ends first, the others follow, and say why."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from flows.child_processes import FAMILY
from tests.flows.test_flows import GRAPH
from tests.support.interruptible import interruptible
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
POOLS = ("metricgold-gpu", "metricgold-cpu")


@pytest.fixture
def deployed(server, project):
    """A project of two stages, deployed, with flows that look every second whether they are wanted."""
    Path("dvc.yaml").write_text(GRAPH)
    watch = Path("flows/run_watch.py")
    watch.write_text(watch.read_text().replace("LOOK_EVERY_S = 10.0", "LOOK_EVERY_S = 1.0"))
    subprocess.run(["git", "commit", "-qam", "two stages"], check=True)
    deploy(server, project)
    return project


def deploy(server, project: Path) -> None:
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    for pool in POOLS:
        body = {"name": pool, "type": "process", "base_job_template": template, "concurrency_limit": 1}
        try:
            server.ask("POST", "/work_pools/", body)
        except Exception as error:  # of an earlier test
            assert "409" in str(error)
    done = server.run("prefect", "--no-prompt", "deploy", "--name", "train-metricgold", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr


def start_worker(server, folder: Path) -> subprocess.Popen:
    command = interruptible("prefect", "worker", "start", "--pool", "metricgold-gpu")
    env = server.env | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=(folder / "worker.log").open("a"), stderr=subprocess.STDOUT
    )


def start_run(server) -> str:
    deployment = server.get("/deployments/name/train-metricgold/train-metricgold")
    return server.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {})["id"]


def wait_for_state(server, run_id: str, *types: str, within_s: float = 100) -> dict:
    def reached():
        run = server.get(f"/flow_runs/{run_id}")
        return run if run and run["state"]["type"] in types else None

    return wait_until(reached, within_s=within_s, every_s=0.5, what=f"{types} of the run")


def family(project: Path) -> list[psutil.Process]:
    """What a flow of this project has started and what still lives."""
    found = []
    for process in psutil.process_iter():
        try:
            if FAMILY in process.environ() and process.cwd() == str(project):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def artifact(server, run_id: str) -> str:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": ["how-it-ended"]}}}
    found = wait_until(
        lambda: server.ask("POST", "/artifacts/filter", wanted), within_s=30, every_s=0.5, what="its page"
    )
    return found[0]["data"]


@pytest.mark.parametrize("ends", ["worker", "worker at once", "flow"])
def test_a_run_whose_process_ends_says_so_and_can_be_run_again(server, deployed, ends):
    """TERM for the worker, else -9: the trainer saves, the run is Crashed, its slot is free, its page tells why."""
    Path("wait").touch()
    worker = start_worker(server, deployed)
    try:
        run_id = start_run(server)
        wait_until(Path("started").exists, within_s=90, what="the trainer")
        if ends == "flow":
            kill(deployed, "prefect.engine")
        else:
            worker.send_signal(signal.SIGKILL if ends == "worker at once" else signal.SIGTERM)
        run = wait_for_state(server, run_id, "CRASHED")
        wait_until(lambda: not family(deployed), within_s=40, what="the end of the children")
        assert Path("saved").exists()
        page = artifact(server, run_id)
        assert run["state"]["message"].splitlines()[0] in page and f"prefect flow-run retry {run_id}" in page
        assert "metricgold train: at work" in page  # the last lines
        if ends == "worker at once":
            Path("wait").unlink()
            worker = start_worker(server, deployed)
            server.ask(
                "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
            )
            wait_for_state(server, run_id, "COMPLETED")
    finally:
        worker.kill()


def kill(project: Path, word: str) -> None:
    for process in psutil.process_iter():
        try:
            if word in process.cmdline() and process.cwd() == str(project):
                process.kill()
        except (psutil.Error, OSError):
            continue
