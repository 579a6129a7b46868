"""Data sets that a study renders for itself, each once, into models/studies/raw-<digest> and not into data/."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from urllib.parse import quote

from metricgold.datasets import load_manifest, synthesize, synthesize_benchmark
from metricgold.download import download
from metricgold.params import Synthesize
from metricgold.storage import write_json
from metricgold.study.definition import Run, World
from metricgold.study.store import Store, world_name

log = logging.getLogger(__name__)

MARK = "rendered.json"  # written last, with what decided the data


def render_worlds(runs: Iterable[Run], store: Store) -> None:
    """Render what runs need and the store lacks; where another call does, wait for it.

    Raises ValueError for a data set that nobody can render, and as `download` does.
    """
    wanted = {world_name(name, world): (name, world) for run in runs for name, world in run.worlds.items()}
    for folder, (name, world) in wanted.items():
        archives = store.path(f"{folder}.archives")
        if store.make_once(folder, MARK, partial(render_world, name, world, archives), scratch=archives):
            log.info("%s was rendered as %s", name, store.path(folder))


def render_world(dataset: str, world: World, archives: Path, out: Path) -> None:
    """Render archives, and extract them into the raw folder `out`. Resumes after a kill."""
    if not archives.is_dir():
        if isinstance(world, Synthesize):
            synthesize(dataset, world, archives)
        else:
            synthesize_benchmark(dataset, world, archives)
    download(load_manifest(dataset).model_copy(update={"mirrors": (f"file://{quote(str(archives))}",)}), out)
    write_json(out / MARK, {"dataset": dataset, **world.model_dump()})
