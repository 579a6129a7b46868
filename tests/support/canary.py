"""Secrets that nothing may keep: they are exported to what a test runs, and searched for in all that it leaves."""

import zlib
from contextlib import suppress
from pathlib import Path

CANARY = "canary-4711"
# By what programs here take secrets. A test that needs one of them right exports its own over it.
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"{CANARY}-id",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "HF_TOKEN": f"hf_{CANARY}",
    "METRICGOLD_SERVE_TOKEN": f"{CANARY}-token",
    "MLFLOW_TRACKING_USERNAME": "me",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-tracking",
}


def told(folder: Path) -> list[Path]:
    """Files below a folder that hold the canary, Git's packed objects too."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if CANARY.encode() in _content(path)]


def _content(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        content = path.read_bytes()
        if path.parent.parent.name == "objects":
            with suppress(zlib.error):
                return zlib.decompress(content)
        return content
    return b""
