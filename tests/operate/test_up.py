"""`metricgold up`, `down`, `status`, `logs`: what is started, found again, and ended."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import urllib3

from metricgold.operate import down, follow_logs, last_lines, stage, up, write_units
from metricgold.operate.processes import end, is_alive, start, started
from metricgold.operate.services import Service, ask
from metricgold.operate.stage import _port, _wait, _write_env
from tests.flows.toy import make_project, quiet_environment
from tests.support import ROOT
from tests.support.canary import CANARY, SECRETS, told
from tests.support.server import FaultServer
from tests.support.waiting import wait_until

NAMES = ["prefect", "mlflow", "worker-gpu", "worker-cpu"]


@pytest.fixture
def sleeper(tmp_path):
    known = start([sys.executable, "-c", "import time; time.sleep(600)"], {}, tmp_path / "logs/one.log", tmp_path)
    yield known
    end(known, 5)


def test_a_number_that_another_process_has_now_is_nobody_of_ours(sleeper):
    assert is_alive(sleeper)
    other = sleeper | {"started": sleeper["started"] + "0"}
    assert not is_alive(other)
    end(other, 5)
    assert is_alive(sleeper)
    end(sleeper, 5)
    assert not is_alive(sleeper)


def test_descendants_end_with_their_program(tmp_path):
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    known = start([sys.executable, "-c", code], {}, tmp_path / "one.log", tmp_path)
    child = int(wait_until((tmp_path / "one.log").read_text))
    end(known, 5)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_program_hears_ctrl_c_though_its_starter_ignores_it(tmp_path):
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        start([sys.executable, "-c", code], {}, tmp_path / "one.log", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert wait_until((tmp_path / "one.log").read_text).strip() == "True"


def test_a_port_is_kept_and_a_taken_one_is_not():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        free = _port("prefect", {"ports": {"prefect": taken}, "processes": {}})
    assert free != taken
    assert _port("prefect", {"ports": {"prefect": free}, "processes": {}}) == free


def test_a_program_that_has_ended_is_not_well_though_another_answers_in_its_place(tmp_path):
    known = start([sys.executable, "-c", ""], {}, tmp_path / "one.log", tmp_path)
    wait_until(lambda: not is_alive(known))
    service = Service("one", [], lambda _: True, "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"one\.log; another program answers"):
        _wait(tmp_path, {"processes": {"one": known}}, service, print)


def test_what_a_killed_program_left_in_its_temporary_folder_goes_when_it_starts_again(tmp_path, monkeypatch):
    code = "import pathlib, tempfile, time; pathlib.Path(tempfile.gettempdir(), 'left').touch(); time.sleep(600)"
    service, state = Service("one", [sys.executable, "-c", code], lambda _: True, ""), {"processes": {}}
    monkeypatch.setattr(stage, "services", lambda *_: [service])
    made = []
    for _ in range(2):
        stage._start_missing(tmp_path, state, service, lambda _: None)
        made.append(Path(state["processes"]["one"]["temporary"]))
        wait_until((made[-1] / "left").exists)
        assert [folder.exists() for folder in made] == [False] * (len(made) - 1) + [True]
        stage._start_missing(tmp_path, state, service, lambda _: None)
        assert (made[-1] / "left").exists(), "it is alive"
        psutil.Process(state["processes"]["one"]["pid"]).kill()
        wait_until(lambda: not is_alive(state["processes"]["one"]))
    down(tmp_path, lambda _: None)
    assert not any(folder.exists() for folder in made)


def test_lines_of_others_in_env_stay(tmp_path):
    path = tmp_path / ".env"
    path.write_text("MINE=1\n")
    path.chmod(0o640)
    for url in ("http://127.0.0.1:1/api", "http://127.0.0.1:2/api"):
        _write_env(tmp_path, {"PREFECT_API_URL": url})
    lines = path.read_text().splitlines()
    assert lines[0] == "MINE=1"
    assert [line for line in lines if line.startswith("PREFECT_")] == ["PREFECT_API_URL=http://127.0.0.1:2/api"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    _write_env(tmp_path, {})
    assert path.read_text() == "MINE=1\n"
    path.unlink()
    _write_env(tmp_path, {"A": "b"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _write_env(tmp_path, {})
    assert not path.exists()


def test_logs_of_one_or_all_and_what_comes(tmp_path):
    logs = tmp_path / ".metricgold/logs"
    logs.mkdir(parents=True)
    (logs / "prefect.log").write_text("1\n2\n3\n")
    (logs / "mlflow.log").write_text("a\n")
    assert list(last_lines(tmp_path, None, 2)) == ["mlflow: a", "prefect: 2", "prefect: 3"]
    following = follow_logs(tmp_path, "prefect", 1)
    assert next(following) == "prefect: 3"
    with (logs / "prefect.log").open("a") as log:
        log.write("4\n")
    assert next(following) == "prefect: 4"
    with pytest.raises(ValueError, match=r"nobody.*mlflow, prefect"):
        list(last_lines(tmp_path, "nobody"))


def test_a_unit_starts_and_ends_all_of_it(tmp_path):
    text = write_units(tmp_path, tmp_path / "units").read_text()
    assert f"WorkingDirectory={tmp_path}\n" in text
    assert "/metricgold up\n" in text
    assert "/metricgold down\n" in text
    with pytest.raises(ValueError, match="a b"):
        write_units(tmp_path / "a b", tmp_path)


def test_only_a_project_is_started(tmp_path):
    with pytest.raises(ValueError, match=r"prefect\.yaml"):
        up(tmp_path, print)
    down(tmp_path, print)
    assert not any(tmp_path.iterdir())


def test_an_automation_is_renewed_and_stays_switched_off(monkeypatch):
    asked = []

    def answer(_api, method, path, body=None):
        asked.append((method, path, body))
        return [{"id": "7", "enabled": False}] if path == "/automations/filter" else {}

    monkeypatch.setattr(stage, "ask", answer)
    stage._install_automation(ROOT / "flows/vanished_machines.yaml", "api", lambda _: None)
    (_, (method, path, body)) = asked
    assert (method, path, body["enabled"]) == ("PUT", "/automations/7", False)
    assert body["actions"] == [
        {"type": "change-flow-run-state", "state": "CRASHED", "message": "no heartbeat for 90 seconds"}
    ]


def test_a_server_of_others_gets_only_what_is_missing(monkeypatch):
    """Its limits may count machines that are not this one."""
    asked = []
    monkeypatch.setenv("METRICGOLD_CARDS", "2")
    monkeypatch.setattr(stage, "ask", lambda _api, method, path, _body=None: asked.append((method, path)))
    stage._make_pools("api", print, own=False)
    assert asked == [("POST", "/work_pools/")] * 2 + [("POST", "/v2/concurrency_limits/")]


def test_a_server_whose_database_is_busy_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib3.Retry, "sleep", lambda *_: None)
    with FaultServer(tmp_path) as server:
        (tmp_path / "one").write_text("{}")
        server.script["/one"] = ["503", "503", "ok"]
        assert ask(server.url, "GET", "/one") == {}
        server.script["/one"] = ["503"] * 9
        with pytest.raises(OSError, match=r"does not answer.*503"):
            ask(server.url, "GET", "/one")
    with pytest.raises(ConnectionError, match=r"does not answer: .*[Rr]efused"):
        ask(server.url, "GET", "/one")


# The real programs


PASSWORDS = {
    "PREFECT_API_AUTH_STRING": f"me:{CANARY}",
    "PREFECT_SERVER_API_AUTH_STRING": f"me:{CANARY}",
    "MLFLOW_AUTH_ADMIN_PASSWORD": f"{CANARY}-admin",
}
ME = urllib3.make_headers(basic_auth=f"me:{CANARY}")
ADMIN = urllib3.make_headers(basic_auth=f"admin:{CANARY}-admin")
SWITCHES = ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED")
# What each program asks before it reports on its user; run with the environment of one that `metricgold up` started.
ASKED = """
import dvc.analytics, huggingface_hub.constants, mlflow.telemetry.utils, prefect.analytics, prefect.settings
assert not dvc.analytics.is_enabled()
assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
assert mlflow.telemetry.utils.is_telemetry_disabled()
assert not prefect.settings.get_current_settings().server.analytics_enabled
"""


class Project:
    """A project whose programs reach other machines by way of a proxy that answers nobody, but notes who asks."""

    def __init__(self, root: Path, proxy: socket.socket) -> None:
        self.root = root
        way = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        self.environment = quiet_environment(
            **SECRETS | PASSWORDS,
            **{name: way for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")},
            **{name: "127.0.0.1,localhost" for name in ("no_proxy", "NO_PROXY")},
        )
        for name in ("CI", *SWITCHES):  # with which some programs are quiet anyhow
            self.environment.pop(name, None)

    def ask(self, *words: str, code: int = 0, cwd: Path | None = None, **more: str) -> str:
        command = [sys.executable, "-m", *words]
        env = self.environment | more
        done = subprocess.run(command, cwd=cwd or self.root, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        self.said = done.stderr
        assert CANARY not in done.stdout + done.stderr
        return done.stdout

    def pids(self) -> dict[str, int]:
        rows = json.loads(self.ask("metricgold.cli", "status", "--json"))["services"]
        return {row["name"]: row["pid"] for row in rows if row["state"] == "well"}


@pytest.fixture
def proxy():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


FLOWS = {"rollback-model": "COMPLETED", "batch-depth": "FAILED"}


def ends_of(address: str) -> dict[str, str]:
    """The state of a run of each flow."""
    asked = {
        name: urllib3.request("POST", f"{address}/api/{name}/filter", json={}, headers=ME).json()
        for name in ("flows", "flow_runs")
    }
    names = {flow["id"]: flow["name"] for flow in asked["flows"]}
    return {names[run["flow_id"]]: run["state_type"] for run in asked["flow_runs"]}


def environment_of(pid: int) -> dict[str, str]:
    return psutil.Process(pid).environ()


@pytest.mark.slow
def test_from_nothing_to_well_again_and_to_nothing(tmp_path, proxy):
    project = Project(make_project(tmp_path / "project"), proxy)
    (project.root / "refuse").touch()  # has the stand-in for our commands say that images failed
    try:
        rows = json.loads(project.ask("metricgold.cli", "up", "--json"))["services"]
        assert [(row["name"], row["state"]) for row in rows] == [(name, "well") for name in NAMES]
        for row in rows[:2]:
            host, port = row["address"].removeprefix("http://").split(":")
            listening = [
                one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == int(port)
            ]
            assert {one.laddr.ip for one in listening} == {host} == {"127.0.0.1"}

        api = rows[0]["address"] + "/api"
        assert urllib3.request("GET", f"{api}/admin/version").status == 401
        assert urllib3.request("GET", f"{api}/admin/version", headers=ME).status == 200
        pool = f"{api}/work_pools/metricgold-gpu"
        urllib3.request("PATCH", pool, json={"concurrency_limit": 5}, headers=ME)
        page = rows[1]["address"] + "/api/2.0/mlflow/experiments/search?max_results=1"
        assert [urllib3.request("GET", page, headers=who).status for who in ({}, ME, ADMIN)] == [401, 401, 200]

        # Nobody is told about us.
        settings = urllib3.request("GET", rows[0]["address"] + "/api/admin/settings", headers=ME).json()
        assert settings["server"]["analytics_enabled"] is False
        for pid in project.pids().values():
            assert set(SWITCHES) <= environment_of(pid).keys()
        subprocess.run([sys.executable, "-c", ASKED], env=environment_of(project.pids()["worker-cpu"]), check=True)

        # Found without exports, by the short name, in this folder; elsewhere with the variables of its .env.
        run = ["prefect", "deployment", "run"]
        assert "Created flow run" in project.ask(*run, "rollback-model")
        variables = dict(line.split("=") for line in (project.root / ".env").read_text().splitlines() if line[0] != "#")
        places = ["-p", "input=s3://photos", "-p", f"output={tmp_path / 'depth'}"]
        assert "Created flow run" in project.ask(*run, "batch-depth", *places, cwd=tmp_path, **variables)
        wait_until(lambda: ends_of(rows[0]["address"]) == FLOWS)
        before = project.pids()
        os.kill(before["worker-cpu"], signal.SIGKILL)
        wait_until(lambda: started(before["worker-cpu"]) is None)
        project.ask("metricgold.cli", "status", code=1)
        project.ask("metricgold.cli", "up")
        assert [line for line in project.said.splitlines() if "starting" in line] == ["worker-cpu: starting"]
        assert "deploying" not in project.said
        assert "{'concurrency_limit': 1} in place of {'concurrency_limit': 5}" in project.said
        assert urllib3.request("GET", pool, headers=ME).json()["concurrency_limit"] == 1
        automations = urllib3.request("POST", f"{api}/automations/filter", json={}, headers=ME).json()
        told_of = [(one["name"], one["enabled"]) for one in automations]
        assert told_of == [("runs of vanished machines", True), ("runs that never began", True)]
        after = project.pids()
        assert {name for name in NAMES if after[name] != before[name]} == {"worker-cpu"}
    finally:
        project.ask("metricgold.cli", "down")
    assert not [one for one in after.values() if started(one)]
    left = [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(project.root)]
    assert not left
    assert not (project.root / ".env").exists()
    assert told(tmp_path) == [], "a secret that was exported is in no file, log or database"
    with pytest.raises(BlockingIOError):
        proxy.accept()
