"""Fixtures of the outer rings' tests: a toy project each, one Prefect server for all."""

from pathlib import Path

import pytest

from tests.flows.toy import Server, make_project, quiet_environment
from tests.support.canary import SECRETS, told


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A toy project of its own, as working folder; of the secrets that are exported nothing may stay in it."""
    for key, value in (SECRETS | quiet_environment()).items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(make_project(tmp_path / "project"))
    yield Path.cwd()
    assert told(tmp_path) == []


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for the session: it takes seconds to start. None of the secrets that its flows have may stay in it."""
    home = tmp_path_factory.mktemp("prefect") / "home"
    server = Server(home)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
    assert told(home) == []


@pytest.fixture
def at_server(server):
    """This process talks to the session's server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        yield server
