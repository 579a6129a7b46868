"""A run, its flow, its worker, its children and its server: whichever ends first, the others follow, and say why."""

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
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
    for pool in POOLS:
        server.make_pool(pool, 1)
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


def wait_for_state(server, run_id: str, *types: str) -> dict:
    def reached():
        run = server.get(f"/flow_runs/{run_id}")
        return run if run and run["state"]["type"] in types else None

    return wait_until(reached, every_s=0.5, what=f"{types} of the run")


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
    found = wait_until(lambda: server.ask("POST", "/artifacts/filter", wanted), every_s=0.5, what="its page")
    return found[0]["data"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_worker_ends_says_so_and_can_be_run_again(server, deployed, sent):
    """The trainer saves, the run is Crashed, its slot is free, its page tells why. SIGTERM has the flow killed too."""
    Path("wait").touch()
    worker = start_worker(server, deployed)
    try:
        run_id = start_run(server)
        wait_until(lambda: "metricgold train: at work" in logged(server, run_id), every_s=0.5)
        worker.send_signal(sent)
        run = wait_for_state(server, run_id, "CRASHED")
        wait_until(lambda: not family(deployed), what="the end of the children")
        assert Path("saved").exists()
        page = artifact(server, run_id)
        assert run["state"]["message"].splitlines()[0] in page and f"prefect flow-run retry {run_id}" in page
        assert "metricgold train: at work" in page  # the last lines
        if sent == signal.SIGKILL:
            Path("wait").unlink()
            worker = start_worker(server, deployed)
            server.ask(
                "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
            )
            wait_for_state(server, run_id, "COMPLETED")
    finally:
        worker.kill()


def test_a_job_on_a_gpu_that_is_cancelled_ends_within_a_minute_and_frees_its_slots(server, deployed, monkeypatch):
    """By the command; the soak does it by the request that the page makes."""
    monkeypatch.setitem(server.env, "METRICGOLD_CARDS", "1")
    monkeypatch.setitem(server.env, "XDG_CACHE_HOME", str(deployed / "cache"))
    Path("wait").touch()
    worker = start_worker(server, deployed)
    try:
        run_id = start_run(server)
        wait_until(lambda: "metricgold train: at work" in logged(server, run_id), every_s=0.5)
        limit = "/v2/concurrency_limits/metricgold-gpu"
        assert server.get(limit)["active_slots"] == 1
        children = family(deployed)
        done = server.run("prefect", "flow-run", "cancel", run_id, cwd=deployed)
        assert done.returncode == 0, done.stderr
        assert children and not psutil.wait_procs(children, timeout=60)[1]
        assert Path("saved").exists()
        wait_for_state(server, run_id, "CANCELLED")
        wait_until(lambda: server.get(limit)["active_slots"] == 0, every_s=0.5, what="the GPU's slot")
        assert "Cancelled" in artifact(server, run_id)
    finally:
        worker.terminate()
        worker.wait(60)


def logged(server, run_id: str) -> list[str]:
    wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}}
    return [line["message"] for line in server.ask("POST", "/logs/filter", wanted)]


def test_a_run_that_nobody_ends_hears_of_its_cancellation_after_the_server_was_away(server, deployed):
    """Its flow, started by hand, has no worker that would end it, and the server's word reaches nobody else."""
    Path("wait").touch()
    flow = subprocess.Popen([sys.executable, "-m", "flows.train_metricgold"], env=server.env)
    try:
        wait_until(Path("started").exists, what="the trainer")
        running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "sort": "START_TIME_DESC", "limit": 1}
        (run,) = server.ask("POST", "/flow_runs/filter", running)
        server.stop()
        assert flow.poll() is None
        server.start()
        server.wait_until_ready()
        assert family(deployed), "the flow works on while the server is away"
        cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
        server.ask("POST", f"/flow_runs/{run['id']}/set_state", cancelled)
        wait_until(lambda: not family(deployed), what="the end of the children")
        assert flow.wait(60) != 0 and Path("saved").exists()
        assert server.get(f"/flow_runs/{run['id']}")["state"]["type"] == "CANCELLED"
        assert "Cancelled" in artifact(server, run["id"])
    finally:
        flow.kill()


def test_wrong_values_and_a_missed_run_from_another_folder(server, deployed, tmp_path):
    """Refused before anything starts; what was due while no worker was there runs late, where it was deployed from."""
    deployment = server.get("/deployments/name/train-metricgold/train-metricgold")
    wrong = {"parameters": {"overrides": ["train.lr"]}, "enforce_parameter_schema": True}
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        server.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", wrong)
    (tmp_path / "elsewhere").mkdir()
    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    due = {"type": "SCHEDULED", "state_details": {"scheduled_time": an_hour_ago}}
    run_id = server.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {"state": due})["id"]
    worker = start_worker(server, tmp_path / "elsewhere")
    try:
        wait_for_state(server, run_id, "COMPLETED")
        assert Path("models/metricgold/weights").exists()
    finally:
        worker.terminate()
        worker.wait(60)
