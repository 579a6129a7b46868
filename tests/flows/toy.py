"""A toy project, the real dvc.yaml over a stand-in for the console script, and a Prefect server of its own."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from metricgold.params.project import FILES, FOLDERS
from tests.support import ROOT
from tests.support.canary import SECRETS
from tests.support.waiting import wait_until

SCRIPTS = Path(sys.executable).parent
COPIED = (*FILES, *FOLDERS)


def quiet_environment(**more: str) -> dict[str, str]:
    """Ours without Prefect's and MLflow's settings; the stand-in comes first on PATH."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    path = os.pathsep.join([str(Path(__file__).parent), str(SCRIPTS), env.get("PATH", os.defpath)])
    git = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return env | git | {"PATH": path, "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1", "NO_COLOR": "1"} | more


def make_project(folder: Path) -> Path:
    """A copy of what the outer rings read, without benchmarks, in a repository of its own."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    params = folder / "params.yaml"
    params.write_text(
        re.sub(r"^benchmarks:.*\n(?:  - .*\n)*", "benchmarks: []\n", params.read_text(), flags=re.MULTILINE)
    )
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "toy"]):
        subprocess.run(["git", *command], cwd=folder, env=quiet_environment(), check=True)
    return folder


def calls(project: Path) -> list[str]:
    """What the stand-in was asked since the last look."""
    log = project / "calls.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


class Server:
    """A local Prefect server with state of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.env = SECRETS | quiet_environment(
            PREFECT_HOME=str(home), PREFECT_API_URL=f"http://127.0.0.1:{port}/api", PREFECT_SERVER_ANALYTICS_ENABLED="0"
        )
        self.log, self.port = home / "server.log", port
        home.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        """Begin to answer, again after a stop, on the same port and database."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.env, stdout=self.log.open("a"), stderr=subprocess.STDOUT)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.get("/health") is not None

        try:
            wait_until(is_ready, every_s=0.25, what="the server")
        except TimeoutError as error:
            raise TimeoutError(self.log.read_text()) from error

    def get(self, path: str) -> object:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: object = None) -> object:
        import httpx

        try:
            answer = httpx.request(method, self.env["PREFECT_API_URL"] + path, json=body, timeout=30)
        except httpx.TransportError:
            return None
        answer.raise_for_status()
        return answer.json()

    def forget_limit(self, name: str) -> None:
        """No concurrency limit of this name, whatever other tests of this server have made."""
        import httpx

        status = httpx.delete(f"{self.env['PREFECT_API_URL']}/v2/concurrency_limits/{name}", timeout=30).status_code
        assert status in (204, 404)

    def make_pool(self, name: str, limit: int | None) -> None:
        """A work pool of processes, unless another test of this server has made it."""
        import httpx
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        body = {"name": name, "type": "process", "base_job_template": template, "concurrency_limit": limit}
        try:
            self.ask("POST", "/work_pools/", body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=cwd, env=self.env, capture_output=True, text=True, timeout=120
        )
