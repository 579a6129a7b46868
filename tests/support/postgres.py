"""A real PostgreSQL for tests: Debian's, on 127.0.0.1, in a folder of its own, or a stated reason to skip."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

USER, PASSWORD = "tester", "sesame"


class Postgres:
    """A server that `start` and `stop` make come and go; `uri` names a fresh database of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.process: subprocess.Popen | None = None
        self.count = 0
        # PostgreSQL refuses to work for root.
        self.account = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.account:
            shutil.chown(folder, "postgres", "postgres")
        word = folder / "password"
        word.write_text(PASSWORD)
        word.chmod(0o644)
        options = [f"--username={USER}", f"--pwfile={word}", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"]
        command = [shutil.which("initdb"), "-D", self.data, *options, "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self.account)

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-p", str(self.port), "-k", self.folder, "-c", "fsync=off"]
        with (self.folder / "log").open("a") as log:
            command = [shutil.which("postgres"), "-D", self.data, *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self.account)
        wait_until(self._answers, what="PostgreSQL")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(2)  # ends sessions, keeps what was committed
            self.process.wait(30)

    def uri(self, *, password: str = PASSWORD, database: str = "postgres") -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """The address of a new, empty database."""
        self.count += 1
        with self._connected() as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE test{self.count}")
        return self.uri(database=f"test{self.count}")

    @contextmanager
    def _connected(self) -> Iterator:
        import psycopg2

        connection = psycopg2.connect(self.uri())
        try:
            yield connection
        finally:
            connection.close()

    def _answers(self) -> bool:
        import psycopg2

        assert self.process.poll() is None, (self.folder / "log").read_text()
        with suppress(psycopg2.OperationalError), self._connected():
            return True
        return False


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One running server for the session."""
    pytest.importorskip("psycopg2", reason="no psycopg2, of the extra postgres")
    if not (shutil.which("postgres") and shutil.which("initdb")):
        pytest.skip("no PostgreSQL: neither postgres nor initdb is on PATH")
    with tempfile.TemporaryDirectory(prefix="metricgold-postgres-") as name:
        server = Postgres(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
