"""Where a project keeps what, as dvc.yaml has it, and where the package keeps the files that a project starts from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# The wheel carries these files inside the package; in the repository they are at its top.
SHIPPED = _PACKAGE / "project" if (_PACKAGE / "project").is_dir() else _PACKAGE.parent
MANIFESTS = SHIPPED / "data_manifests"
PROFILES = SHIPPED / "profiles"


def require_dataset_name(name: str) -> str:
    """The name, which becomes that of folders and a word of commands. ValueError for one that could be a path."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise ValueError(f"data set {name!r}: expected a name of a-z, 0-9, _, . and -, a letter or digit first")
    return name


@dataclass(frozen=True, slots=True)
class Folders:
    """The files and folders of the project at `root`, the working folder if not given.

    Those of one data set raise ValueError for what cannot name a data set.
    """

    root: Path = Path()

    # Of one data set

    def synthetic(self, dataset: str) -> Path:
        """Archives rendered for it."""
        return self.root / "data/synthetic" / require_dataset_name(dataset)

    def raw(self, dataset: str) -> Path:
        """Its frames in the publisher's layout, and the ledger."""
        return self.root / "data/raw" / require_dataset_name(dataset)

    def benchmark(self, dataset: str) -> Path:
        """The same of one that only measures: apart, so that no stage of training depends on it."""
        return self.root / "data/benchmarks" / require_dataset_name(dataset)

    def latents(self, dataset: str) -> Path:
        """Its latent cache."""
        return self.caches / require_dataset_name(dataset)

    def raw_of(self, datasets: Iterable[str]) -> dict[str, Path]:
        """Raw folder of each."""
        return {dataset: self.raw(dataset) for dataset in datasets}

    def latents_of(self, datasets: Iterable[str]) -> dict[str, Path]:
        """Latent cache of each."""
        return {dataset: self.latents(dataset) for dataset in datasets}

    def has_own_data(self, dataset: str) -> bool:
        """Whether its raw folder, or that of a benchmark, holds a team's own data, described by their dataset.yaml."""
        return any((folder / "dataset.yaml").is_file() for folder in (self.raw(dataset), self.benchmark(dataset)))

    @property
    def caches(self) -> Path:
        """The latent caches of all data sets."""
        return self.root / "data/latents"

    # Models

    @property
    def backbone(self) -> Path:
        """The pretrained diffusion model that training starts from."""
        return self.root / "models/backbone"

    @property
    def depth_vae(self) -> Path:
        """The VAE whose decoder was trained on depth, if there is one."""
        return self.root / "models/depth-vae"

    @property
    def model(self) -> Path:
        """The trained pipeline, a diffusers folder."""
        return self.root / "models/metricgold"

    @property
    def state(self) -> Path:
        """Checkpoints, rows and pictures of the training of `model`."""
        return self.root / "models/metricgold.state"

    @property
    def training_rows(self) -> Path:
        """Losses and figures of validation by step, one JSON line each."""
        return self.state / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Pictures of validation, step-NNNNNN.png."""
        return self.state / "samples"

    # Figures, plots, pages

    def metrics(self, stage: str) -> Path:
        """Figures of a stage: metrics/<stage>.json."""
        return self.root / "metrics" / f"{stage}.json"

    @property
    def headline(self) -> Path:
        """The few of all figures that commits and experiments are compared by."""
        return self.reports / "headline.json"

    @property
    def plots(self) -> Path:
        """Pictures and tables for `dvc plots`."""
        return self.root / "plots"

    @property
    def reports(self) -> Path:
        """Pages for people, and the seconds of each stage."""
        return self.root / "reports"
