"""What `metricgold up` starts: each program's command, variables, and how it says that it is well."""

import os
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from metricgold.extras import naming_the_extra

HOST = "127.0.0.1"
POOLS = {"metricgold-gpu": 1, "metricgold-cpu": None}  # runs at a time, of each worker pool of prefect.yaml
PORTS = {"prefect": 4200, "mlflow": 5000}  # unless they are taken
MLFLOW_ASKS = "MLFLOW_AUTH_ADMIN_PASSWORD"  # MLflow's own variable: with it its server asks who one is
QUIET = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of its own, which nobody here asks for
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Service:
    """A program; `is_well` asks it, given the record of its process."""

    name: str
    command: list[str]
    is_well: Callable[[dict[str, Any]], bool]
    address: str
    variables: dict[str, str] = field(default_factory=dict)
    ends_within_s: float = 20.0


def services(root: Path, ports: dict[str, int]) -> list[Service]:
    """All of a project that are not elsewhere, servers first.

    PREFECT_API_URL and MLFLOW_TRACKING_URI name a server elsewhere; a database in the latter gets its server here.
    """
    api, python = api_url(ports), [sys.executable, "-m"]
    ours = []
    if is_here("prefect", ports):
        variables = QUIET | {"PREFECT_HOME": os.environ.get("PREFECT_HOME", str(root / ".prefect"))}
        command = [*python, "prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]
        page = f"http://{HOST}:{ports['prefect']}"
        ours.append(Service("prefect", command, _answers(f"{page}/api/health"), page, variables))
    if is_here("mlflow", ports):
        page = f"http://{HOST}:{ports['mlflow']}"
        # By variables, for an address may hold a password, and everybody may read the words of a command.
        variables = QUIET | {
            "MLFLOW_BACKEND_STORE_URI": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}",
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or str(root / "mlruns"),
        }
        command = [*python, "mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"]), "--workers", "1"]
        command += ["--no-serve-artifacts"]
        if os.environ.get(MLFLOW_ASKS):
            with naming_the_extra():
                import flask_wtf  # noqa: F401 - else MLflow's server would end with a page of traceback
            command += ["--app-name", "basic-auth"]
            # Of the cookies of its page of new accounts; one process needs no other to know it.
            variables["MLFLOW_FLASK_SERVER_SECRET_KEY"] = token_urlsafe()
        ours.append(Service("mlflow", command, _answers(f"{page}/health"), page, variables))
    for pool in POOLS:
        command = [*python, "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", pool]
        variables = QUIET | {"PREFECT_API_URL": api}
        name = f"worker-{pool.removeprefix('metricgold-')}"
        ours.append(Service(name, command, _beats(api, pool), f"pool {pool}", variables, ends_within_s=45.0))
    return ours


def is_here(server: str, ports: dict[str, int]) -> bool:
    """Whether the server is one of this project and not one that the environment names."""
    if server == "prefect":
        return os.environ.get("PREFECT_API_URL", api_url(ports, ours=True)) == api_url(ports, ours=True)
    return not os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://", "databricks"))


def api_url(ports: dict[str, int], *, ours: bool = False) -> str:
    """Address of Prefect's API: the environment's, or with `ours` and without it this project's."""
    url = f"http://{HOST}:{ports['prefect']}/api"
    return url if ours else os.environ.get("PREFECT_API_URL", url)


def _answers(url: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a server answers a question with success, at once."""
    import urllib3

    def is_well(_: dict[str, Any]) -> bool:
        try:
            return urllib3.request("GET", url, timeout=5.0, retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    return is_well


def ask(api: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """An answer of Prefect's API; None where there is no such thing, or it is there already.

    Raises OSError with the server's own words where it refuses, or does not answer.
    """
    import urllib3

    headers = {}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {b64encode(secret.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    # It says 503 where its database is busy; such a request has done nothing.
    other: dict[str, Any] = dict.fromkeys(("connect", "read", "redirect", "other"), False)
    often: dict[str, Any] = {"status": 7, "status_forcelist": [503], "backoff_factor": 0.3, "backoff_max": 4.0}
    busy = urllib3.Retry(None, allowed_methods=None, **often, **other)
    try:
        answer = urllib3.request(method, f"{api}{path}", json=body, headers=headers, timeout=30.0, retries=busy)
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(f"Prefect at {api} does not answer: {error}") from None
    if answer.status in (404, 409):
        return None
    if answer.status >= 400:
        raise OSError(f"Prefect at {api} refuses {method} {path}: {answer.status} {answer.data.decode()[:300]}")
    return answer.json() if answer.data else {}


def _beats(api: str, pool: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the server has heard of the pool's worker since its process was started."""

    def is_well(known: dict[str, Any]) -> bool:
        try:
            workers = ask(api, "POST", f"/work_pools/{pool}/workers/filter", {})
        except OSError:
            return False
        heard = [
            datetime.fromisoformat(one["last_heartbeat_time"]).timestamp()
            for one in workers or []
            if one["name"] == pool and one["status"] == "ONLINE"
        ]
        return any(at >= known["since"] for at in heard)

    return is_well
