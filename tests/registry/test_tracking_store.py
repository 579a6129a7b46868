"""The store behind MLflow: away, refusing, new, moved with its folder; PostgreSQL and S3 as they are."""

# ruff: noqa: F811

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from metricgold.cli import main
from metricgold.registry.mlflow_client import open_client
from metricgold.registry.promotion import promote, rollback
from metricgold.registry.pyfunc import fetch_model
from tests.registry.project import GATE, change_model, register_scores
from tests.support import ROOT
from tests.support.postgres import postgres  # noqa: F401
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401
from tests.support.waiting import wait_until

PROMOTE = ["promote", "--dry-run"]


@pytest.fixture
def enter(monkeypatch):
    """Changes the working folder, as a new process would start there."""

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it for child processes

    return enter


def test_a_moved_or_copied_project_uses_its_own_models(project, tmp_path_factory, enter):
    register_scores()
    with open_client() as client:  # files that lie elsewhere by intent
        elsewhere = str(tmp_path_factory.mktemp("shared") / "mlruns")
        client.create_experiment("shared", artifact_location=elsewhere)
    copy = shutil.copytree(project, tmp_path_factory.mktemp("copies") / "my project")
    before = sorted(project.rglob("*"))

    enter(copy)
    assert fetch_model("models:/metricgold@candidate")[0].is_relative_to(copy)
    change_model()
    assert register_scores()["version"] == "2"
    assert fetch_model("models:/metricgold/2")[0].is_relative_to(copy)
    assert sorted(project.rglob("*")) == before
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection:
        dump = "\n".join(connection.iterdump())
    assert f"{project}/" not in dump and elsewhere in dump

    enter(project)
    assert fetch_model("models:/metricgold@candidate")[0].is_relative_to(project)
    moved = project.rename(project.with_name("moved"))
    enter(moved)
    assert fetch_model("models:/metricgold@candidate")[0].is_relative_to(moved)


def test_a_database_without_its_files_does_not_reach_for_those_of_another_folder(project, tmp_path_factory, enter):
    register_scores()
    alone = tmp_path_factory.mktemp("alone")
    shutil.copy("mlflow.db", alone)
    enter(alone)
    done = CliRunner().invoke(main, ["predict", "in", "out", "--model", "models:/metricgold@candidate"])
    assert done.exit_code == 1 and "No such artifact" in done.stderr.splitlines()[-1]


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A working folder with params, and little patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "2")
    Path("params.yaml").write_text("datasets: [mine]\n")
    return tmp_path


def _one_line(monkeypatch, uri: str) -> str:
    """What a command says of a store, without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    done = CliRunner().invoke(main, PROMOTE)
    assert time.monotonic() - started < 60  # with the imports, on a busy machine; MLflow itself would take 100 to 250
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(done.stderr.splitlines()) <= 2 and "sesame" not in done.output  # with the warning that it waits
    return line


@pytest.mark.parametrize("uri", ["http://me:sesame@127.0.0.1:1", "postgresql://me:sesame@127.0.0.1:1/mlflow"])
def test_a_store_that_is_away_is_waited_for_as_long_as_is_said(params, monkeypatch, uri):
    pytest.importorskip("psycopg2")
    assert "127.0.0.1:1" in (line := _one_line(monkeypatch, uri)) and line.endswith("(tried for 2 s)")


@pytest.mark.parametrize("answer", ["503", "never"])
def test_a_server_without_an_answer_is_away(params, monkeypatch, answer):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if answer == "503":
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        line = _one_line(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        assert line.endswith("(tried for 2 s)") and ("503" in line) == (answer == "503")
        if answer == "503":
            server.shutdown()


def test_a_database_that_another_process_holds_is_waited_for_and_then_said(params, first_use, monkeypatch):
    shutil.copy(first_use[0] / "mlflow.db", params)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with closing(sqlite3.connect("mlflow.db", isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        done = CliRunner().invoke(main, ["versions"])
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
        assert done.stderr.endswith(f"{params}/mlflow.db: database is locked (tried for 2 s)\n")
        release = threading.Timer(1.0, holder.rollback)
        release.start()
        done = CliRunner().invoke(main, ["versions"])
        release.join()
        assert done.exit_code == 0, done.stderr
    Path("mlflow.db").write_text("no database")
    assert "file is not a database" in CliRunner().invoke(main, ["versions"]).stderr.splitlines()[-1]


def test_a_store_that_comes_in_time_is_used(params, monkeypatch, caplog):
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "20")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    def serve():
        time.sleep(1)
        with HTTPServer(("127.0.0.1", port), Handler) as server:
            server.handle_request()

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with open_client():
        thread.join()
    assert caplog.text.count("trying for 20 s") == 1


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgres://me:sesame@127.0.0.1/mlflow", "postgresql"),
        ("postgresql://me:sesame@127.0.0.1:port/mlflow", "address of a database"),
        ("mysql+nothing://me:sesame@127.0.0.1/mlflow", "address of a database"),
        ("mysql://me:sesame@127.0.0.1/mlflow", "MySQLdb is not installed"),
    ],
)
def test_an_address_without_meaning_is_one_line_at_once(params, monkeypatch, uri, said):
    assert said in _one_line(monkeypatch, uri)


def test_a_missing_driver_names_its_extra(params, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    assert "pip install 'metricgold[postgres]'" in _one_line(monkeypatch, "postgresql://me:sesame@127.0.0.1/mlflow")


def test_patience_that_is_no_number_is_said(params, monkeypatch):
    monkeypatch.setenv("METRICGOLD_MLFLOW_PATIENCE_S", "long")
    assert "METRICGOLD_MLFLOW_PATIENCE_S" in _one_line(monkeypatch, "http://127.0.0.1:1")


@pytest.mark.slow
def test_postgresql_refuses_in_one_line(postgres, params, monkeypatch):
    assert "password authentication failed" in _one_line(monkeypatch, postgres.uri(password="sesam"))
    assert '"nothing" does not exist' in _one_line(monkeypatch, postgres.uri(database="nothing"))


@pytest.mark.slow
def test_first_use_of_postgresql_by_three_processes_at_once(postgres, tmp_path):
    code = "from metricgold.registry.mlflow_client import open_client\n"
    code += "with open_client() as client: client.search_experiments()"
    env = os.environ | {"MLFLOW_TRACKING_URI": postgres.fresh(), "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://bucket/runs/"}

    def start(_):
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(start, range(3)))
    assert [done.returncode for done in outcomes] == [0, 0, 0], outcomes


@pytest.fixture
def grown(project, postgres, s3_bucket, monkeypatch):
    """The project, with versions in PostgreSQL and their files in S3."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.fresh())
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", f"s3://{s3_bucket}/runs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    return project


@pytest.mark.slow
def test_two_variables_put_versions_into_postgresql_and_files_into_s3(grown, s3_bucket):
    first = register_scores()
    assert not register_scores()["created"]
    promote(GATE)
    change_model()
    second = register_scores()
    assert promote(GATE)["previous"] == first["version"] and second["version"] == "2"
    assert rollback()["version"] == first["version"]
    folder, name = fetch_model("models:/metricgold@champion")
    assert name == "metricgold/1" and folder.is_relative_to(grown / "cache")
    assert (folder / "unet/config.json").read_bytes() == Path("models/metricgold/unet/config.json").read_bytes()
    keys = [found["Key"] for found in s3_client().list_objects_v2(Bucket=s3_bucket)["Contents"]]
    assert keys and all(key.startswith("runs/metricgold/") for key in keys)
    assert not Path("mlruns").exists() and not Path("mlflow.db.lock").exists()


@pytest.mark.slow
def test_artifacts_that_are_away_are_one_line(grown):
    register_scores()
    # In a process of its own: MLflow keeps its client of the store that it knows.
    env = os.environ | {"PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "metricgold.cli", "predict", "in", "out", "--model", "models:/metricgold/1"]
    started = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert time.monotonic() - started < 100
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "127.0.0.1:1" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_job_that_has_its_model_goes_on_without_the_store(grown, postgres):
    register_scores()
    for number in range(150):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(f"photos/{number:03d}.png")
    command = [sys.executable, "-m", "metricgold.cli", "predict", "photos", "depth", "--ensemble", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--steps", "1", "--model", "models:/metricgold@candidate"], env=env) as job:
        wait_until(Path("depth").exists, what="the job")
        postgres.stop()
        try:
            assert job.poll() is None and job.wait(120) == 0
        finally:
            postgres.start()
    assert len(list(Path("depth").glob("*.png"))) >= 150
