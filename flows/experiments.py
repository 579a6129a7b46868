"""Runs with other values than those of params.yaml: each in a workspace of its own, and an experiment of DVC after it.

A workspace is a clone of the project's Git repository below .dvc/tmp, with the working tree as it is now. It shares
Git's objects and DVC's cache, so that what does not differ is there at once, and raw data by hard links. The project
itself gets one thing, the finished experiment, in one step: a run that is killed leaves nothing else behind than its
workspace. `dvc exp run --temp` would write the values into the project's params.yaml first, and stash what else is
there; a kill at that moment leaves both.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.child_processes import DVC, run_child
from metricgold.params import Folders
from metricgold.storage import digest_json

HOME = Path(".dvc/tmp/metricgold")  # Git ignores it
STATES = "states"  # of trainers that were stopped, by the digest of their overrides
RAW = ("data/raw", "data/benchmarks")
# Besides what Git has: files that stages write for Git and that may not be committed yet. All small, by .gitignore.
WRITTEN = ("dvc.yaml", "dvc.lock", "params.yaml", "data_manifests", "data", "metrics", "plots", "reports")
REWRITTEN = {".json", ".yaml", ".csv", ".sqlite"}  # of raw data: records, which no two folders may share


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where stages work: the project itself, or the workspace of an experiment.

    folder      of dvc.yaml
    experiment  its name; none in the project itself
    variables   for the stages' environment
    """

    folder: Path = Path()
    experiment: str | None = None
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def folders(self) -> Folders:
        """Of the project there."""
        return Folders(self.folder)


PROJECT = Workspace()  # the working folder


@contextmanager
def experiment_workspace(overrides: Mapping[str, Any], name: str) -> Iterator[Workspace]:
    """A workspace whose params.yaml has other values; it is removed in the end.

    name  of the experiment; one that this commit has already gets a number

    A trainer's state stays for the next run with the same overrides, which resumes there, unless all went well.
    Raises ValueError where Git or a commit is missing, to which an experiment belongs.
    """
    prefix = _git("rev-parse", "--show-prefix")
    project = Path.cwd()
    home = project / HOME
    digest = digest_json(dict(overrides))[:12]
    top = home / f"{digest}-{uuid4().hex[:8]}"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(top)):
        try:
            folder = lay_out_workspace(project, top, prefix)
            write_values(folder / "params.yaml", overrides)
            take_state(home, digest, folder)
            yield Workspace(folder, free_name(name), tuple(variables_of(project).items()))
            shutil.rmtree(Folders(folder).state, ignore_errors=True)
        finally:
            try:
                _clear(top, prefix)
            except BaseException:  # the signal that ends a run may come while this clears
                _clear(top, prefix)
                raise


def lay_out_workspace(project: Path, top: Path, prefix: str) -> Path:
    """Clone the repository to `top` with the project's files as they are now; returns the project's folder there."""
    from dvc.repo import Repo

    _git("clone", "--quiet", "--shared", _git("rev-parse", "--show-toplevel"), str(top))
    folder = top / prefix
    kept = _git("ls-files", "-z").split("\0") + _git("ls-files", "-zo", "--exclude-standard", "--", *WRITTEN).split(
        "\0"
    )
    for path in map(Path, filter(None, kept)):
        (folder / path).unlink(missing_ok=True)
        if path.is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / path)
    for raw in filter(os.path.isdir, RAW):
        ignored = shutil.ignore_patterns(".part", ".*.part", ".*.lock")
        shutil.copytree(raw, folder / raw, ignore=ignored, copy_function=link_data, dirs_exist_ok=True)
    with Repo(str(project)) as repo, Repo(str(folder)) as other:
        settings, cache = repo.config.read("local"), repo.cache.local_cache_dir
        with other.config.edit("local") as own:
            own.update(settings)
            own["cache"] = {**settings.get("cache", {}), "dir": cache, "type": ["reflink", "hardlink", "symlink"]}
        made = {Path(out.fs_path).name for out in other.index.outs} | {Folders().state.name}
    for model in Path("models").glob("[!.]*"):  # that somebody put there, to start from
        if model.name not in made:
            (folder / "models").mkdir(exist_ok=True)
            (folder / model).symlink_to(project / model)
    subprocess.run([*DVC, "checkout", "--quiet", "--allow-missing"], cwd=folder, check=False, capture_output=True)
    return folder


def link_data(source: str, target: str) -> None:
    """Give a file of raw data a second name; a link by path on another disk, and a copy of what is written again."""
    if os.path.lexists(target):
        return
    if Path(source).suffix in REWRITTEN:
        shutil.copy2(source, target)
        return
    try:
        Path(target).hardlink_to(source)
    except OSError:
        Path(target).symlink_to(Path(source).resolve())


def write_values(path: Path, overrides: Mapping[str, Any]) -> None:
    """Put values, by `section.key`, into a params file, whose comments stay; missing sections are added."""
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(path) as values:
        for key, value in overrides.items():
            *sections, last = key.split(".")
            inner = values
            for section in sections:
                if not isinstance(inner.get(section), dict):
                    inner[section] = {}
                inner = inner[section]
            inner[last] = value


def variables_of(project: Path) -> dict[str, str]:
    """Variables by which stages elsewhere track into the project's own MLflow."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(project / "mlruns"),
        }
    scheme, slashes, path = uri.partition(":///")
    return {"MLFLOW_TRACKING_URI": f"{scheme}{slashes}{project / path}"} if scheme == "sqlite" else {}


def free_name(name: str) -> str:
    """A name for a new experiment of the current commit: letters that Git takes, and a number if it is taken."""
    name = re.sub("[^A-Za-z0-9_-]+", "-", name).strip("-") or "experiment"
    taken = set(_git("for-each-ref", "--format=%(refname)", _refs()).splitlines())
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(one for one in names if f"{_refs()}/{one}" not in taken)


@task(task_run_name="experiment", cache_policy=NO_CACHE)
def save_experiment(workspace: Workspace, overrides: Mapping[str, Any]) -> str:
    """Make what the workspace holds an experiment of the project; returns its name."""
    name, log = str(workspace.experiment), get_run_logger().info
    _git("add", "--all", at=workspace.folder)
    run_child([*DVC, "exp", "save", "--quiet", "--name", name], log, cwd=workspace.folder)
    ref = f"{_refs()}/{name}"
    _git("fetch", "--quiet", "--no-write-fetch-head", str(workspace.folder), f"{ref}:{ref}")
    values = "\n".join(f"- `{key}`: `{json.dumps(value)}`" for key, value in overrides.items())
    text = f"Experiment `{name}`\n\n{values}\n\nCompare: `dvc exp show`. Take it over: `dvc exp apply {name}`."
    create_markdown_artifact(text, key="experiment", description="other values than those of params.yaml")
    return name


def clear_workspaces() -> None:
    """Remove workspaces of this project whose run is gone; the state of their trainers stays."""
    for top in [one for one in HOME.glob("*-*") if one.is_dir()]:
        with suppress(Timeout), FileLock(_lock_of(top), timeout=0):
            _clear(top, _git("rev-parse", "--show-prefix"))


def _clear(top: Path, prefix: str) -> None:
    keep_state(top, prefix)
    shutil.rmtree(top, ignore_errors=True)
    _lock_of(top).unlink(missing_ok=True)


def take_state(home: Path, digest: str, folder: Path) -> None:
    """Let a trainer resume where one with the same overrides was stopped; it looks itself whether it may."""
    with suppress(FileNotFoundError):
        state = Folders(folder).state
        state.parent.mkdir(parents=True, exist_ok=True)
        (home / STATES / digest).replace(state)


def keep_state(top: Path, prefix: str) -> None:
    """Keep what a trainer has saved in a workspace that is about to go."""
    state, kept = Folders(top / prefix).state, top.parent / STATES / top.name.partition("-")[0]
    if state.is_dir():
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        state.replace(kept)


def _refs() -> str:
    """Where Git keeps the experiments of the current commit, as DVC names them."""
    commit = _git("rev-parse", "HEAD")
    return f"refs/exps/{commit[:2]}/{commit[2:]}"


def _lock_of(top: Path) -> Path:
    return top.with_name(f"{top.name}.lock")


def _git(*words: str, at: Path = Path()) -> str:
    done = subprocess.run(["git", *words], cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"other values make an experiment, which needs a Git repository with a commit: {said}")
    return done.stdout.strip()
