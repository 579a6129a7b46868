"""An environment of its own with some packages of this one, and nothing else."""

import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from tests.support.without_extras import distributions_of


def python_with(folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment that has these packages and those that they require, as links."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for name in distributions_of(*packages):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (site / top).symlink_to(distribution(name).locate_file(top))
    return folder / "bin" / "python"
