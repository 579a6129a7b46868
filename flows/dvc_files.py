"""What DVC writes in place, and leaves torn where it is killed or the disk is full as it does."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from metricgold.storage import write_aside

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK = "lock"  # under which DVC writes dvc.lock
COPY = "dvc.lock.whole"  # in DVC's own temporary folder, which Git ignores


def forget_torn_locks(project: Path = Path()) -> None:
    """Remove DVC's list of locks where it holds half of one: from then on every DVC here would end at once.

    It is written under the lock that is taken here; a DVC that lives writes it whole.
    """
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    with _locked(project, RWLOCK_LOCK) as (_, folder):
        listed = folder / RWLOCK_FILE
        try:
            json.loads(listed.read_bytes() if listed.exists() else b"{}")
        except ValueError:
            listed.unlink()


def keep_or_restore_lock_file(project: Path = Path()) -> bool:
    """Keep a copy of dvc.lock where it is whole; where it is torn put the last copy back, and return True.

    What ran since that copy was made is looked at again by DVC, and its stages find their work done.
    """
    with _locked(project, LOCK) as (repo, folder):
        path, copy = project / "dvc.lock", folder / COPY
        if not path.exists():
            return False
        if is_whole(path, repo):
            with suppress(OSError):  # the disk may be full: the earlier copy stays, and the work is done
                _copy(path, copy)
            return False
        if not copy.exists():
            return False  # DVC itself says what is wrong
        copy.replace(path)  # a rename needs no room
        return True


def is_whole(path: Path, repo: "Repo") -> bool:
    """Whether DVC can read its dvc.lock, and it has an end: cut within a number or a digest it is YAML all the same."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    try:
        Lockfile(repo, str(path.resolve())).load()
    except DvcException:
        return False
    return path.read_bytes().endswith(b"\n")


def _copy(path: Path, copy: Path) -> None:
    if not copy.exists() or copy.read_bytes() != path.read_bytes():
        with write_aside(copy, durable=False) as aside:
            shutil.copyfile(path, aside)


@contextmanager
def open_dvc(folder: Path) -> Iterator["Repo"]:
    """The DVC project of a folder. ValueError, which names it, where there is none or DVC cannot read it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        raise ValueError(f"{folder.resolve()}: {error}") from error


@contextmanager
def _locked(project: Path, name: str) -> Iterator[tuple["Repo", Path]]:
    """The project's DVC and its temporary folder, under one of the locks there; other DVCs are waited for."""
    from dvc.lock import make_lock

    with open_dvc(project) as repo:
        folder, hardlink = Path(str(repo.tmp_dir)), repo.config["core"].get("hardlink_lock", False)
        with make_lock(str(folder / name), tmp_dir=str(folder), hardlink_lock=hardlink, wait=True):
            yield repo, folder
