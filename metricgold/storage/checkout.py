"""The git checkout that work is done in."""

import subprocess
from pathlib import Path

WRITTEN = ("dvc.lock", "data", "metrics", "plots", "reports", "studies/results")  # by stages, tracked by Git in part


def git_commit(root: Path) -> tuple[str, bool] | None:
    """The commit of a checkout, and whether tracked files differ from it; None outside one or without git.

    What stages write is not looked at: figures and dvc.lock are committed after a run, and so always differ in it.
    """
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ":/", *(f":!{name}" for name in WRITTEN))
    try:
        sha, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha, bool(changes)
