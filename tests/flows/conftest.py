"""Fixtures of the outer rings' tests: a toy project each, one Prefect server for all."""

from pathlib import Path

import pytest

from tests.flows.toy import Server, make_project, quiet_environment


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A toy project of its own, as working folder."""
    for key, value in quiet_environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(make_project(tmp_path / "project"))
    return Path.cwd()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for the session: it takes seconds to start."""
    server = Server(tmp_path_factory.mktemp("prefect") / "home")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


@pytest.fixture
def at_server(server):
    """This process talks to the session's server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        yield server
