"""The git checkout that work is done in."""

import subprocess
from pathlib import Path


def git_commit(root: Path) -> tuple[str, bool] | None:
    """The commit of a checkout, and whether tracked files differ from it; None outside one or without git."""
    try:
        sha, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha, bool(changes)
