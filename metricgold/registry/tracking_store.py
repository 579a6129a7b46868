"""The store behind MLflow, made ready before MLflow is asked: it answers in time, has its tables, knows its files.

MLflow by itself tries for minutes, prints a page for each try and ends with a traceback.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_exponential

from metricgold.extras import EXTRA_OF, naming_the_extra
from metricgold.storage import clear_left, without_passwords, write_aside

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = logging.getLogger(__name__)

NAME = "metricgold"  # of the registered model and of the experiment
PATIENCE_S = 30.0  # with a store that is away; METRICGOLD_MLFLOW_PATIENCE_S overrides it
ARTIFACTS = "MLFLOW_DEFAULT_ARTIFACT_ROOT"  # MLflow's own variable for its server; here of a database without one
LOCK_KEY = 0x6D676F6C64  # of PostgreSQL's advisory lock around the making of tables
# PostgreSQL says FATAL when it answers and refuses; these refusals pass.
PASSING = ("starting up", "shutting down", "recovery mode", "too many clients", "remaining connection slots")
# Columns of MLflow's tables that hold where files are, as absolute paths.
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


class _Away(ConnectionError):
    """Nothing answers yet; the same question may be answered a little later."""


def prepare_store(uri: str) -> None:
    """Make the store at a tracking address, which mlflow.set_tracking_uri has too, ready for an MLflow client.

    Raises ValueError without passwords: once patience with a store that is away has run out; at once where it refuses,
    its driver is missing or the address has no meaning.
    """
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        prepare_sqlite(Path(uri.removeprefix("sqlite:///")))
        return
    try:
        require_encoded(uri)
        if scheme in ("http", "https"):
            _patiently(partial(_ask_server, uri))
        elif scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
            prepare_database(_engine(uri))
    except (ConnectionError, PermissionError, ValueError) as error:
        raise ValueError(without_passwords(f"MLflow at {uri}: {error}")) from None


def require_encoded(uri: str) -> None:
    """ValueError for a password that cuts its address in the wrong place: libraries would quote pieces of it."""
    rest = uri.partition("://")[2]
    if rest.count("@") > 1 or (uri.startswith("http") and "@" in rest.partition("/")[2]):
        raise ValueError("user and password of an address have / as %2F and @ as %40")


def patience_s() -> float:
    """Seconds for which a store that is away is waited for."""
    value = os.environ.get("METRICGOLD_MLFLOW_PATIENCE_S", PATIENCE_S)
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"METRICGOLD_MLFLOW_PATIENCE_S: expected seconds, got {value!r}") from error


def prepare_sqlite(database: Path) -> None:
    """Make MLflow's tables in a SQLite file, or bring those of an older MLflow up to date; see follow_the_folder."""
    import mlflow
    from filelock import FileLock

    # Processes that create the tables at the same moment crash: one after the other.
    with FileLock(f"{database}.lock"):
        clear_left(database)
        if not database.exists():
            # A kill in the middle would leave half the tables for ever.
            with write_aside(database) as aside:
                mlflow.MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        try:
            if database == Path.cwd() / "mlflow.db":
                follow_the_folder(database)
        except sqlite3.DatabaseError as error:
            tried = f" (tried for {patience_s():g} s)" if "locked" in str(error) else ""
            raise ValueError(f"MLflow at sqlite:///{database}: {error}{tried}") from None
        make_experiment()


def follow_the_folder(database: Path) -> None:
    """Let mlflow.db of a project name the mlruns/ beside it, also once the folder was moved or copied.

    MLflow writes absolute paths, by which a copy would use the models of the old folder. Its own choice for an
    experiment, <folder>/mlruns/<number>, or ours, <folder>/mlruns/metricgold, tells which folder that was; files in
    other places stay there.
    """
    here = database.parent
    with closing(sqlite3.connect(database, timeout=patience_s())) as connection, connection:
        places = connection.execute("SELECT artifact_location, experiment_id FROM experiments").fetchall()
        chosen = {
            Path(place).parents[1]
            for place, number in places
            if place.endswith((f"/mlruns/{number}", f"/mlruns/{NAME}"))
        }
        for old in filter(partial(_is_another_project, here), chosen):
            logger.info("%s was made in %s: its paths are those of this folder now", database, old)
            for table, columns in PLACES.items():
                for column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                        (f"{here}/mlruns/", len(f"{old}/mlruns/") + 1, len(f"{old}/mlruns/"), f"{old}/mlruns/"),
                    )


def _is_another_project(here: Path, folder: Path) -> bool:
    """Whether mlruns/ in `folder` is what the database here once lay beside, and not a place that somebody chose."""
    was_a_project = (folder / "mlflow.db").exists() or not (folder / "mlruns").exists() or (here / "mlruns").exists()
    return was_a_project and folder.resolve() != here.resolve()


def prepare_database(engine: "Engine") -> None:
    """Make MLflow's tables in a database of a server; processes that do so at the same moment wait for each other."""
    _patiently(partial(_ask_database, engine))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # the lock ends with the connection
            connection.exec_driver_sql(f"SET lock_timeout = {int(1000 * patience_s())}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
        make_experiment()


def make_experiment() -> None:
    """Make the tables, if they are not there, and the experiment where MLFLOW_DEFAULT_ARTIFACT_ROOT wants its files."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client, root = mlflow.MlflowClient(), os.environ.get(ARTIFACTS)
    client.search_experiments(max_results=1)
    if not root or client.get_experiment_by_name(NAME) is not None:
        return
    try:
        client.create_experiment(NAME, artifact_location=f"{root.rstrip('/')}/{NAME}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _patiently(ask: Callable[[], None]) -> None:
    """Ask until it is answered. ConnectionError once patience has run out."""
    seconds = patience_s()

    def say_once(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            logger.warning("MLflow: %s; trying for %g s", state.outcome.exception(), seconds)

    retrying = Retrying(
        retry=retry_if_exception_type(_Away),
        wait=wait_exponential(multiplier=0.25, max=2.0),
        stop=stop_before_delay(seconds),
        before_sleep=say_once,
        reraise=True,
    )
    try:
        retrying(ask)
    except _Away as error:
        raise ConnectionError(f"{error} (tried for {seconds:g} s)") from None


def _ask_server(uri: str) -> None:
    """_Away where nobody speaks HTTP, or a proxy says that nobody is behind it. Who asks is not checked here."""
    import requests

    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=max(1.0, patience_s())).status_code
    except requests.exceptions.SSLError as error:
        raise ValueError(f"no trust in its certificate: {error}") from None
    except (requests.ConnectionError, requests.Timeout):
        raise _Away("no answer") from None
    if status >= 500:
        raise _Away(f"the answer is HTTP {status}")


def _ask_database(engine: "Engine") -> None:
    """_Away where no server answers, or one that is starting; PermissionError where it refuses."""
    from sqlalchemy.exc import OperationalError

    try:
        engine.connect().close()
    except OperationalError as error:
        lines = str(error.orig).strip().splitlines()
        for refusal in (line.partition("FATAL:")[2].strip() for line in lines):
            if refusal and not any(words in refusal for words in PASSING):
                raise PermissionError(refusal) from None
        raise _Away(lines[0]) from None


def _engine(uri: str) -> "Engine":
    """An engine without a pool. ValueError for a missing driver or an address that is none."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    options = {"connect_timeout": max(2, int(patience_s()))} if uri.startswith("postgresql") else {}
    with naming_the_extra():
        try:
            return create_engine(uri, poolclass=NullPool, connect_args=options)
        except ModuleNotFoundError as error:
            if error.name in EXTRA_OF:
                raise
            raise ValueError(f"the driver {error.name} is not installed") from None
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise ValueError(f"not the address of a database: {error}") from None
