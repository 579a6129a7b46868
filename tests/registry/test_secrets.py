"""MLflow's server that asks for passwords: it is used, and no secret is told or kept."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import urllib3
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.operate.services import QUIET
from metricgold.registry.promotion import promote
from tests.registry.project import GATE, register_scores
from tests.support.canary import CANARY, SECRETS, told
from tests.support.waiting import wait_until

PASSWORD = f"{CANARY}/@:word"  # what an address cannot hold as it is


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Host, port and folder of a server that `metricgold up` would start with MLFLOW_AUTH_ADMIN_PASSWORD."""
    pytest.importorskip("flask_wtf")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{sock.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", place.partition(":")[2], "--no-serve-artifacts"]
    variables = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(folder / "mlruns"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": f"{CANARY}-key",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env | QUIET | variables, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            return urllib3.request("GET", f"http://{place}/health", retries=False, timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    try:
        wait_until(answers, what="MLflow's server")
        yield place, folder
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def secretive(project, server, monkeypatch):
    """The project with that server, its user and password in variables, among all other secrets."""
    rows = Path("models/metricgold.state/metrics.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:9]))  # each request costs the server a hash
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server[0]}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "2")
    return project


def say(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == code, done.output
    assert CANARY not in done.output
    return done.output


@pytest.mark.slow
def test_a_project_works_with_it_and_keeps_no_secret(secretive, server):
    register_scores()
    promote(GATE)
    assert "promote" in say("versions", "--history")
    say("lineage", "models:/metricgold@champion", code=1)  # a chain that ends: nobody trained this model
    Path("photos").mkdir()
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save("photos/a.png")
    say("predict", "photos", "depth", "--model", "models:/metricgold@champion", "--steps", "1", "--ensemble", "1")
    assert told(secretive) == told(server[1]) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", ["versions", "promote --dry-run"])
@pytest.mark.parametrize("where", ["variables", "address"])
def test_a_wrong_password_is_one_line_without_it(where, words, secretive, server, monkeypatch):
    Path("params.yaml").write_text("datasets: [mine]\n")
    if where == "address":
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://admin:{CANARY}@{server[0]}")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{CANARY}-wrong")
    *_, line = say(*words.split(), code=1).splitlines()
    assert line.startswith("Error: ") and server[0] in line and "401" in line
    assert told(secretive) == []


AWAY = f"http://me:{CANARY}@127.0.0.1:1"
DATABASE = f"postgresql://me:{CANARY}/{CANARY}@127.0.0.1:1/mlflow?password={CANARY}"


@pytest.mark.parametrize(
    ("words", "uri", "names"),
    [
        ("versions", AWAY, ["http://***@127.0.0.1:1", "tried for"]),
        ("versions", DATABASE, ["postgresql://***@127.0.0.1:1/mlflow", "tried for"]),
        ("versions", f"http://me:{CANARY}/{CANARY}@127.0.0.1:1", ["%2F", "***@127.0.0.1:1"]),
        ("versions", f"http://me:{CANARY}@{CANARY}@127.0.0.1:1", ["%40", "***@127.0.0.1:1"]),
        ("versions", f"postgresql://me:{CANARY}@{CANARY}@127.0.0.1:1/mlflow", ["%40", "***@127.0.0.1:1"]),
        ("versions", f"nonsense://me:{CANARY}@127.0.0.1:1", ["***@127.0.0.1:1"]),
        ("predict photos depth --model models:/metricgold@champion", AWAY, ["http://***@127.0.0.1:1"]),
    ],
)
def test_a_store_that_is_away_is_named_without_its_password(words, uri, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "0.1")
    Path("params.yaml").write_text("datasets: [mine]\n")
    said = say(*words.split(), code=1)
    assert "Traceback" not in said
    assert [name for name in names if name not in said] == []
    assert told(tmp_path) == []
