"""`metricgold init`: a new project from the files that the package carries."""

import shutil
import subprocess
from pathlib import Path

from metricgold.params.paths import SHIPPED
from metricgold.storage import write_aside

_DVC = (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html")
FILES = ("params.yaml", "dvc.yaml", "prefect.yaml", "prefect.toml", ".gitignore", ".dvcignore", *_DVC)
FOLDERS = ("data_manifests", "flows", "studies")
WITHOUT_GIT = "    no_scm = true\n"  # joins the section core


def lay_out_project(folder: Path) -> None:
    """Write a project into a new folder, completely or not at all: FILES, FOLDERS, and a Git repository that DVC needs.

    A folder inside a Git repository stays part of that one. Where there is no Git, DVC works without it, and without
    experiments. Raises ValueError where the folder exists and is not empty or is the working folder.
    """
    if folder.resolve() == Path.cwd() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ValueError(f"{folder} exists: name a folder that does not, nothing is overwritten")
    with write_aside(folder) as aside:
        aside.mkdir()
        for name in FILES:
            (aside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(SHIPPED / name, aside / name)
        for name in FOLDERS:
            shutil.copytree(SHIPPED / name, aside / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        if not _git(aside, "rev-parse", "--git-dir") and not _git(aside, "init", "--quiet"):
            with (aside / ".dvc/config").open("a") as config:
                config.write(WITHOUT_GIT)


def _git(folder: Path, *words: str) -> bool:
    """Whether a Git command succeeds in a folder; False without Git too."""
    try:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
