"""A real S3 server for tests: the one the environment names, else a local Swift, else a stated reason to skip.

METRICGOLD_TEST_SWIFT=own passes over a server script that lies beside the project.
"""

import atexit
import os
import subprocess
import sys
import tempfile
import uuid
from functools import cache
from pathlib import Path

import pytest

from tests.support import SHARED

SWIFT = Path(__file__).with_name("swift.py")
SERVER = SHARED / "services" / "s3_server"


@cache
def _server() -> dict[str, str] | str:
    """Variables of one server for the whole test process, or why there is none."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        return {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "S3_"))}
    if not SERVER.is_file() or os.environ.get("METRICGOLD_TEST_SWIFT") == "own":
        return _started([SWIFT, "run"], [])
    if _script("check").returncode and (installed := _script("install")).returncode:
        return f"Swift cannot be installed: {installed.stderr.strip()[-300:]}"
    return _started([SERVER, "run"], ["0"])


def _script(word: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SERVER, word], capture_output=True, text=True, timeout=240)


def _started(command: list, options: list[str]) -> dict[str, str] | str:
    folder = tempfile.TemporaryDirectory(prefix="metricgold-s3-")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, *command, f"{folder.name}/server", *options], **pipes)
    atexit.register(lambda: (server.terminate(), server.wait(20), folder.cleanup()))
    values = {}
    for line in server.stdout:
        if line.strip() == "READY=1":
            return values
        key, _, value = line.strip().removeprefix("export ").partition("=")
        values[key] = value.strip("'\"")
    return f"AWS_ENDPOINT_URL is not set and {server.communicate()[1].strip()[-400:]}"


@pytest.fixture
def s3_environment(monkeypatch) -> dict[str, str]:
    """Set the variables of a real S3 server for this test and return them."""
    values = _server()
    if isinstance(values, str):
        pytest.skip(f"no S3 server: {values}")
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    return values


@pytest.fixture
def s3_bucket(s3_environment) -> str:
    """Name of a fresh, empty bucket."""
    name = f"metricgold-{uuid.uuid4().hex[:12]}"
    s3_client().create_bucket(Bucket=name)
    return name


def s3_client():
    """A plain client, as a user would make one."""
    import boto3
    from botocore.config import Config

    return boto3.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
