"""By what a model is known."""

from pathlib import Path

from metricgold.storage import digest_folder

BESIDE = ("README.md", "LICENSE.md", "example.py", ".gitattributes")  # what lies beside a model on a hub


def digest_model(folder: Path) -> str:
    """sha256 over names and bytes of all files of a checkpoint; what a model hub has beside it does not count.

    So an exported model, and one that was downloaded from a hub, are known as the version that they are of.
    """
    return digest_folder(folder, without=BESIDE)
