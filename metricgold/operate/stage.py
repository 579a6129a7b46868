"""`metricgold up`, `down` and `status`: the servers and workers of the project in the working folder."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metricgold.operate.processes import end, is_alive, start
from metricgold.operate.services import HOST, POOLS, PORTS, QUIET, Service, api_url, ask, is_here, services
from metricgold.storage import digest_file, only_writer, read_json, read_yaml, write_aside, write_json
from metricgold.train import gpu_names

HOME = ".metricgold"  # of a project: what is started, and its logs
PATIENCE_S = 300.0  # with a program that starts; METRICGOLD_UP_PATIENCE_S overrides it
BEGIN, END = "# metricgold up: these lines are its own", "# metricgold up: end"

Say = Callable[[str], None]


def up(root: Path, say: Say) -> list[dict[str, Any]]:
    """Start what is not running, wait until all of it is well, and return `status`.

    Raises ValueError outside a project, TimeoutError or OSError naming a log where something does not get well.
    """
    root = root.resolve()
    if not (root / "prefect.yaml").is_file():
        raise ValueError(f"{root}: no prefect.yaml, expected a project's folder: metricgold init makes one")
    with only_writer(root / HOME, root / HOME / "lock"):
        state = _read(root)
        ports = state["ports"] = {name: _port(name, state) for name in PORTS}
        every = services(root, ports)
        servers = [one for one in every if not one.name.startswith("worker")]
        for service in servers:
            _start_missing(root, state, service, say)
        api = api_url(ports)
        for service in servers:
            if service.name == "prefect":
                _wait(root, state, service, say)
        if is_here("prefect", ports):
            # With both, whoever loads the file in another folder has the short names of deployments too.
            _write_env(root, {"PREFECT_API_URL": api, "PREFECT_PLUGINS_ENABLED": "true"})
        _make_pools(api, say, own=is_here("prefect", ports))
        for service in every[len(servers) :]:
            _start_missing(root, state, service, say)
        _deploy(root, state, api, say)
        for service in every:
            if service.name != "prefect":
                _wait(root, state, service, say)
    return status(root)


def down(root: Path, say: Say) -> None:
    """End what `up` started and nothing else, workers first; ports and logs are kept."""
    root = root.resolve()
    if not (root / HOME).is_dir():
        return
    with only_writer(root / HOME, root / HOME / "lock", waits=True):
        state = _read(root)
        limits = {one.name: one.ends_within_s for one in services(root, PORTS | state["ports"])}
        for name, known in reversed(list(state["processes"].items())):
            if is_alive(known):
                say(f"{name}: ending")
                end(known, limits.get(name, 20.0))
            _remove_temporary(known)
            del state["processes"][name]
            _write(root, state)
        _write_env(root, {})


def status(root: Path) -> list[dict[str, Any]]:
    """One row for each program: name, state (well, starting, down), pid, address, log."""
    root = root.resolve()
    state = _read(root)
    rows = []
    for service in services(root, PORTS | state["ports"]):
        known = state["processes"].get(service.name)
        alive = is_alive(known)
        word = "down" if not alive else "well" if service.is_well(known or {}) else "starting"
        row = {"name": service.name, "state": word, "pid": known["pid"] if known and alive else None}
        rows.append(row | {"address": service.address, "log": str(log_of(root, service.name))})
    return rows


def log_of(root: Path, name: str) -> Path:
    """Where a program's lines are."""
    return root / HOME / "logs" / f"{name}.log"


def _read(root: Path) -> dict[str, Any]:
    path = root / HOME / "services.json"
    return {"ports": {}, "processes": {}, "deployed": None} | (read_json(path) if path.exists() else {})


def _write(root: Path, state: dict[str, Any]) -> None:
    write_json(root / HOME / "services.json", state)


def _port(name: str, state: dict[str, Any]) -> int:
    """The port of last time or the usual one; one that is free where another program has that."""
    port = state["ports"].get(name, PORTS[name])
    if is_alive(state["processes"].get(name)):
        return port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended may still hold it
        try:
            probe.bind((HOST, port))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _start_missing(root: Path, state: dict[str, Any], service: Service, say: Say) -> None:
    """A program has a temporary folder of its own: of each run Prefect's worker leaves files there if it is killed."""
    known = state["processes"].get(service.name)
    if is_alive(known):
        return
    say(f"{service.name}: starting")
    _remove_temporary(known or {})
    since, temporary = time.time(), tempfile.mkdtemp(prefix="metricgold-")
    variables = service.variables | {"TMPDIR": temporary}
    known = start(service.command, variables, log_of(root, service.name), root)
    state["processes"][service.name] = known | {"since": since, "temporary": temporary}
    _write(root, state)


def _remove_temporary(known: dict[str, Any]) -> None:
    """What a program that has ended, and what it had started, left in its temporary folder."""
    if folder := known.get("temporary"):  # projects of before have none
        shutil.rmtree(folder, ignore_errors=True)


def _wait(root: Path, state: dict[str, Any], service: Service, say: Say) -> None:
    """Until the program is well. OSError naming its log where it ends, TimeoutError where it takes too long."""
    known, log = state["processes"][service.name], log_of(root, service.name)
    start_s, limit_s = time.monotonic(), float(os.environ.get("METRICGOLD_UP_PATIENCE_S", PATIENCE_S))
    while not (is_well := service.is_well(known)) or not is_alive(known):
        if not is_alive(known):
            other = (
                "; another program answers in its place, `metricgold up` again takes another port" if is_well else ""
            )
            raise OSError(f"{service.name} ended as it started: see {log}{other}")
        if time.monotonic() - start_s > limit_s:
            raise TimeoutError(f"{service.name} is not well after {limit_s:g} s: see {log}")
        time.sleep(0.3)
    say(f"{service.name}: well, {service.address}; waited {time.monotonic() - start_s:.0f} s")


def _make_pools(api: str, say: Say, *, own: bool) -> None:
    """Work pools and limits as they are meant. On a server that others use too only what is missing is made."""
    for pool, limit in POOLS.items():
        body = {"name": pool, "type": "process", "concurrency_limit": limit}
        if ask(api, "POST", "/work_pools/", body) is None and own and limit is not None:
            _correct(api, f"/work_pools/{pool}", {"concurrency_limit": limit}, say)
    if names := gpu_names():
        limit_path, values = "/v2/concurrency_limits/", {"limit": len(names), "active": True}
        if ask(api, "POST", limit_path, {"name": "metricgold-gpu", **values}) is None and own:
            _correct(api, f"{limit_path}metricgold-gpu", values, say)


def _correct(api: str, path: str, values: dict[str, Any], say: Say) -> None:
    """Give a thing of the server the values that it should have, and tell which it had."""
    found = ask(api, "GET", path)
    had = {name: found[name] for name in values}
    if had != values:
        say(f"{path.strip('/')}: {values} in place of {had}")
        ask(api, "PATCH", path, values)


def _install_automation(path: Path, api: str, say: Say) -> None:
    """What the server does about runs that nobody else can end; an automation that was switched off stays off."""
    values = read_yaml(path)
    say(f"automation: installing flows/{path.name}")
    found = ask(api, "POST", "/automations/filter", {"automations": {"name": {"any_": [values["name"]]}}})
    if found:
        ask(api, "PUT", f"/automations/{found[0]['id']}", values | {"enabled": found[0]["enabled"]})
    else:
        ask(api, "POST", "/automations/", values)


def _deploy(root: Path, state: dict[str, Any], api: str, say: Say) -> None:
    """Deploy the flows and their automations, unless the server has these very files of them."""
    paths = [root / "prefect.yaml", *sorted((root / "flows").glob("*.*"))]
    this = {"api": api} | {path.name: digest_file(path) for path in paths}
    if state["deployed"] == this and ask(api, "POST", "/deployments/count", {}):
        return
    for automation in sorted((root / "flows").glob("*.yaml")):
        _install_automation(automation, api, say)
    say("deployments: deploying prefect.yaml")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    variables = os.environ | QUIET | {"PREFECT_API_URL": api}
    log = log_of(root, "deploy")
    with log.open("w") as lines:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": lines, "stderr": lines}
        code = subprocess.run(command, cwd=root, env=variables, **options).returncode
    if code:
        raise OSError(f"`prefect deploy --all` ended with code {code}: see {log}")
    state["deployed"] = this
    _write(root, state)


def _write_env(root: Path, variables: dict[str, str]) -> None:
    """Our lines of the project's .env, which Prefect reads in this folder; other lines stay, and so does an export."""
    path = root / ".env"
    text = path.read_text() if path.exists() else ""
    before, _, rest = text.partition(f"{BEGIN}\n")
    kept = before + rest.partition(f"{END}\n")[2]
    lines = [BEGIN, *(f"{name}={value}" for name, value in variables.items()), END]
    new = kept + ("\n".join([*lines, ""]) if variables else "")
    if new == text:
        return
    if not new:
        path.unlink()
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with write_aside(path) as aside:
        aside.write_text(new)
        aside.chmod(mode)
