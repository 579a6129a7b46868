"""Build hook of the wheel: what `metricgold init` lays out, and the profiles, are part of the package.

metricgold.params.paths finds them there or, in an editable install, in the repository. An editable install gets no
copies: Python would take the folder metricgold/ that they make in site-packages for a package.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("data_manifests", "profiles", "flows")
FILES = ("params.yaml", "dvc.yaml", "prefect.yaml", "prefect.toml", ".gitignore", ".dvcignore")
DVC = (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html")


class ProjectFiles(BuildHookInterface):
    """Adds them as metricgold/project/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; `version` is standard or editable."""
        if version == "standard":
            studies = [f"studies/{path.name}" for path in Path(self.root, "studies").glob("*.yaml")]  # not their rows
            names = (*FOLDERS, *FILES, *DVC, *studies)
            build_data["force_include"] |= {name: f"metricgold/project/{name}" for name in names}
