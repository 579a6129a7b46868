"""What the runs of all studies share: models/studies/<stage>-<digest>, each stage's output once.

The digest is that of the params which decide the output and of the names of what it is made from, down to the bytes of
the raw data: equal names hold equal things, of whichever study. Whatever is deleted here is made again.

A study is a plain loop over runs and not one of DVC's experiments: those would share nothing but what DVC caches by a
stage's whole params file, leave a reference of Git for each of some hundred runs, and start each run in a clone. The
stages here resume after any kill by themselves, so that nothing else has to know how far a run has come.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricgold.datasets import list_frames
from metricgold.evaluate import data_digest
from metricgold.params import Folders, Params
from metricgold.storage import digest_json, only_writer, remove
from metricgold.study.definition import Run, World

FOLDER = Path("models/studies")


@dataclass(frozen=True, slots=True)
class Names:
    """Of a run's outputs in the store. depth_vae is None where depth is decoded as the backbone does."""

    backbone: str
    caches: Mapping[str, str]  # by data set
    depth_vae: str | None
    training: str


def names_of(params: Params, contents: Mapping[str, str]) -> Names:
    """What a run's outputs are called. contents: digests of the raw data, by data set."""
    range_m, raw = params.depth_range.model_dump(), {name: contents[name] for name in params.datasets}
    # The backbone sees training frames in the range of metres, whatever the U-Net learns.
    backbone = _named("backbone", params.backbone.model_dump(), params.log_depth.model_dump(exclude={"encoding"}), raw)
    encoding = params.encode.model_dump(), range_m, backbone
    caches = {name: _named("latents", name, content, *encoding) for name, content in raw.items()}
    size = [params.encode.height, params.encode.width]
    decoder = _named("depth-vae", params.depth_vae.model_dump(), range_m, size, backbone, raw)
    depth_vae = decoder if params.depth_vae.num_steps else None
    training = _named("model", params.train.model_dump(), range_m, caches, backbone, depth_vae)
    return Names(backbone, caches, depth_vae, training)


def floor_name(names: Names, params: Params, measured: str, dtype: str) -> str:
    """What the VAE floor of a set of frames is called. measured: digest of the set; dtype: of the VAE."""
    size = [params.encode.height, params.encode.width]
    return _named("floor", names.depth_vae or names.backbone, params.depth_range.model_dump(), size, measured, dtype)


def world_name(dataset: str, world: World) -> str:
    """What a data set is called that is rendered so."""
    return _named("raw", dataset, world.model_dump())


def _named(stage: str, *decided_by: Any) -> str:
    return f"{stage}-{digest_json(decided_by)[:12]}"


@dataclass(frozen=True, slots=True)
class Store:
    """The outputs of the project in `folders`."""

    folders: Folders
    digests: dict[Path, str] = field(default_factory=dict, compare=False)  # of raw folders that were looked at

    def path(self, name: str) -> Path:
        """Where an output is, or will be."""
        return self.folders.root / FOLDER / name

    def lock_path(self, name: str) -> Path:
        """The lock of who makes it; that of the stage itself lies beside the output."""
        return self.path("locks") / f"{name}.lock"

    def raws(self, run: Run) -> dict[str, Path]:
        """Raw folders of the data sets that a run trains on: the project's, or those rendered here."""
        return {name: self._raw(run, name, self.folders.raw(name)) for name in run.params.datasets}

    def benchmark(self, run: Run, name: str) -> Path:
        """Raw folder of a data set that only measures."""
        return self._raw(run, name, self.folders.benchmark(name))

    def _raw(self, run: Run, name: str, projects: Path) -> Path:
        return self.path(world_name(name, run.worlds[name])) if name in run.worlds else projects

    def contents(self, run: Run) -> dict[str, str]:
        """Digest of the raw data of each data set that a run trains on. ValueError where they are not there."""
        return {name: self._content(name, raw) for name, raw in self.raws(run).items()}

    def _content(self, name: str, raw: Path) -> str:
        if raw not in self.digests:
            self.digests[raw] = data_digest(raw, list_frames(name, raw).frames)
        return self.digests[raw]

    def measured(self, run: Run) -> list[str]:
        """The benchmarks of a run, and what else of them is there; each once."""
        return list(dict.fromkeys((*run.benchmarks, *filter(self.is_there, run.measures.if_there))))

    def is_there(self, benchmark: str) -> bool:
        """Whether the project has anything of a data set that only measures."""
        folder = self.folders.benchmark(benchmark)
        return folder.is_dir() and any(folder.iterdir())

    def make_once(self, name: str, mark: str, make: Callable[[Path], Any], scratch: Path | None = None) -> bool:
        """Make an output that is not there; another process that makes it is waited for. Whether it was made now.

        mark     a file that only a finished one has
        scratch  what only an unfinished one needs; deleted, also where a kill left it beside a finished one
        """
        out = self.path(name)
        with only_writer(out, self.lock_path(name), waits=True):
            is_missing = not (out / mark).is_file()
            if is_missing:
                make(out)
            if scratch is not None:
                remove(scratch)
            return is_missing
