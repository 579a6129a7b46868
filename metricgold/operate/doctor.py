"""`metricgold doctor`: whether what a project needs is here and answers, and what to do where it does not."""

import configparser
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from subprocess import run
from typing import NamedTuple

from metricgold.operate.services import QUIET
from metricgold.operate.stage import status
from metricgold.storage import S3Prefix, one_line, open_bucket, read_yaml, without_passwords

GB = 1_000_000_000
LEAST_DISK_GB, LEAST_MEMORY_GB = 10, 4  # what the demo takes, with room
MOST_SKEW_S = 60  # S3 refuses requests that are 15 minutes off
PATIENCE = {"METRICGOLD_S3_PATIENCE_S": "10", "METRICGOLD_MLFLOW_PATIENCE_S": "10"}  # unless it is set
SECRET_NAMES = ("KEY", "SECRET", "TOKEN", "PASSWORD", "AUTH")


class Finding(NamedTuple):
    """One line: `state` is ok, note (nothing that is needed here) or wrong; `text` says what was found or to do."""

    name: str
    state: str
    text: str


class _Note(Exception):
    """Nothing is wrong, and nothing was found well."""


def diagnose(root: Path, datasets: list[str], s3: str | None = None) -> list[Finding]:
    """A finding for each thing that a project in `root` needs; no secret is in any.

    s3  s3://bucket/prefix in which a small object is written, listed, read and deleted; else DVC's remote, if on S3
    """
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "disk": lambda: _disk(root),
        "memory": _memory,
        "s3": lambda: _s3(s3),
        "dvc remote": lambda: _dvc_remote(root),
        "dvc.lock": lambda: _dvc_lock(root),
        "mlflow": lambda: _mlflow(root),
        "prefect": lambda: _prefect(root),
        "licences": lambda: _licences(datasets),
    }
    with _patience():
        return [_finding(name, check) for name, check in checks.items()]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        state, text = "ok", check()
    except _Note as note:
        state, text = "note", str(note)
    except Exception as error:  # whatever is wrong with one thing, the others are still looked at
        state, text = "wrong", str(error) or type(error).__name__
    return Finding(name, state, one_line(without_secrets(text)))


def without_secrets(text: str) -> str:
    """As without_passwords, and without the values of variables that hold secrets."""
    for name, value in os.environ.items():
        if len(value) > 5 and any(word in name.upper() for word in SECRET_NAMES):
            text = text.replace(value, "***")
    return without_passwords(text)


@contextmanager
def _patience() -> Iterator[None]:
    missing = {name: value for name, value in PATIENCE.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise ValueError(f"{version}: install Python 3.11, 3.12 or 3.13")
    return version


def _packages() -> str:
    """Bounds of the package's own metadata: beyond them something is known to break, or was never tried."""
    from packaging.requirements import Requirement

    beyond, installed = [], 0
    for requirement in map(Requirement, metadata.requires("metricgold") or ()):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        installed += 1
        if not requirement.specifier.contains(version, prereleases=True):
            beyond.append(f"pip install '{requirement.name}{requirement.specifier}' ({version} is installed)")
    if beyond:
        raise ValueError("; ".join(sorted(set(beyond))))
    return f"{installed} within their bounds"


def _torch() -> str:
    import torch

    from metricgold.train import gpu_names

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        card = torch.cuda.get_device_name()
        return f"{torch.__version__}, {card}, {free / GB:.1f} of {total / GB:.1f} GB free"
    if gpu_names():
        raise ValueError(
            f"{torch.__version__} does not see the NVIDIA GPU that is here: install a driver and a torch with CUDA "
            "that go together"
        )
    return f"{torch.__version__}, no GPU here"


def _disk(root: Path) -> str:
    free = shutil.disk_usage(root).free / GB
    if free < LEAST_DISK_GB:
        raise ValueError(f"{free:.1f} GB free in {root.resolve()}: make room, the demo needs {LEAST_DISK_GB}")
    return f"{free:.0f} GB free"


def _memory() -> str:
    import psutil

    total, free = psutil.virtual_memory().total / GB, psutil.virtual_memory().available / GB
    if free < LEAST_MEMORY_GB:
        raise ValueError(f"{free:.1f} of {total:.1f} GB free: end other programs, the demo needs {LEAST_MEMORY_GB}")
    return f"{free:.1f} of {total:.1f} GB free"


def _s3(location: str | None) -> str:
    if location is None:
        raise _Note("not tried: name a place with --s3 s3://bucket/prefix")
    if not location.startswith("s3://"):
        raise ValueError(f"--s3 {location}: expected s3://bucket/prefix")
    try:
        bucket = open_bucket(location, create=True)
    except PermissionError as error:
        if "RequestTimeTooSkewed" in str(error):
            raise OSError(f"{error}: the clock here is wrong, set it (timedatectl set-ntp true)") from error
        raise
    assert isinstance(bucket, S3Prefix)
    key, data = f"metricgold-doctor-{uuid.uuid4().hex}", os.urandom(32)
    bucket.write(key, data)
    try:
        if bucket.read(key) != data:
            raise OSError(f"{location}: {key} is read with other bytes than were written")
        if key not in {entry.key for entry in bucket.entries()}:
            raise OSError(f"{location}: {key} was written and is not listed")
    finally:
        bucket.delete(key)
    return f"{location}: written, read, listed, deleted; {_clock(bucket)}"


def _clock(bucket: S3Prefix) -> str:
    answer = bucket.client.list_objects_v2(Bucket=bucket.bucket, Prefix=bucket.prefix, MaxKeys=1)
    skew_s = time.time() - parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    if abs(skew_s) > MOST_SKEW_S:
        raise OSError(f"the clock here is {skew_s:+.0f} s from the store's: set it (timedatectl set-ntp true)")
    return f"clocks within {abs(skew_s) + 1:.0f} s"


def _dvc_remote(root: Path) -> str:
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"])
    name = config.get("core", "remote", fallback=None)
    if name is None:
        raise _Note("none: dvc push needs one, dvc remote add --default NAME s3://bucket/dvc")
    section = f"'remote \"{name}\"'"
    url = config.get(section, "url", fallback=None)
    if url is None:
        raise ValueError(f"core.remote is {name}, which has no url: dvc remote add --default {name} URL")
    if url.startswith("s3://"):
        return _s3(url)
    if "://" in url:
        raise _Note(f"{url}: not tried")
    folder = root / ".dvc" / url
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ValueError(f"{url}: cannot be written to")
    return url


def _dvc_lock(root: Path) -> str:
    """DVC writes it in place, so that a full disk leaves half of it: a line without end, or a name without value."""
    path = root / "dvc.lock"
    if not path.exists():
        raise _Note("none yet: the first flow or dvc repro writes it")
    try:
        stages = (read_yaml(path) or {}).get("stages", {})
        is_whole = path.read_bytes().endswith(b"\n") and all("cmd" in stage for stage in stages.values())
    except (ValueError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            "torn, as a full disk leaves it: make room, and start a flow, which puts its copy back, or give "
            "git checkout dvc.lock"
        )
    return f"{len(stages)} stages"


def _mlflow(root: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not (root / "mlflow.db").exists():
        raise _Note("no mlflow.db yet: the first training or registration makes it")
    # In a process of its own: MLflow is not imported here.
    command = [sys.executable, "-m", "metricgold.cli", "versions", "--json"]
    answer = run(command, cwd=root, env=os.environ | QUIET, capture_output=True, text=True, timeout=120)
    if answer.returncode:
        raise ValueError((answer.stderr.strip().splitlines() or ["no answer"])[-1])
    return f"{uri or 'mlflow.db'} answers"


def _prefect(root: Path) -> str:
    rows = [row for row in status(root) if row["name"] != "mlflow"]
    down = [row for row in rows if row["state"] != "well"]
    if len(down) == len(rows) and "PREFECT_API_URL" not in os.environ:
        raise _Note("nothing is started here: metricgold up")
    if down:
        raise ValueError("metricgold up; " + ", ".join(f"{row['name']} is {row['state']}" for row in down))
    return ", ".join(f"{row['name']} {row['state']}" for row in rows)


def _licences(datasets: list[str]) -> str:
    from metricgold.datasets import load_manifest, raw_folder
    from metricgold.download import check_licence
    from metricgold.params import Folders

    folders = Folders()
    published = [name for name in datasets if not folders.has_own_data(name)]
    faults = []
    for name in published:
        try:
            check_licence(load_manifest(name), raw_folder(name, folders))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return f"accepted where needed, of {len(published)} data sets"
