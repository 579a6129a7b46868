"""Which archives a run fetches: by scene, as `scenes`, `limit_gb` and `streamed` of the params ask."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from metricgold.datasets import matches_name, scene_splits
from metricgold.download.progress import show_bytes
from metricgold.download.raw_folder import RawFolder
from metricgold.download.sources import WantedSource
from metricgold.params import Download

log = logging.getLogger(__name__)

GB = 1_000_000_000


class Group(NamedTuple):
    """Archives that go together, because some scene needs them all."""

    scenes: tuple[str, ...]  # empty where the manifest does not say
    sources: tuple[WantedSource, ...]


def wanted_groups(folder: RawFolder, params: Download, *, skip_training: bool = False) -> list[Group]:
    """Archives by scene as params ask: `scenes`, then `limit_gb`. ValueError when no scene is among them."""
    name = folder.manifest.name
    groups = group_by_scene([source for source in folder.sources if not source.is_file])
    if globs := (params.scenes or {}).get(name):
        groups = match_scenes(name, groups, globs)
    if skip_training:
        splits_of = scene_splits(folder.manifest, folder.folder_of_splits())
        groups = [group for group in groups if not group.scenes or any(splits_of(s) - {"train"} for s in group.scenes)]
    if limit_gb := (params.limit_gb or {}).get(name):
        groups = within_limit(folder, groups, limit_gb)
    return groups


def group_by_scene(sources: Iterable[WantedSource]) -> list[Group]:
    """Sets of archives that share no scene, in the manifest's order; an archive that names none holds all."""
    sources = list(sources)
    if any(not source.scenes for source in sources):
        return [Group((), tuple(sources))] if sources else []
    groups: list[tuple[dict[str, None], list[WantedSource]]] = []
    for source in sources:
        scenes, together = dict.fromkeys(source.scenes), [source]
        apart = []
        for group in groups:
            if scenes.keys() & group[0].keys():
                scenes, together = group[0] | scenes, [*group[1], *together]
            else:
                apart.append(group)
        groups = [*apart, (scenes, together)]
    return [Group(tuple(scenes), tuple(together)) for scenes, together in groups]


def match_scenes(name: str, groups: Sequence[Group], globs: Sequence[str]) -> list[Group]:
    """Groups with a scene that matches a glob."""
    if any(not group.scenes for group in groups):
        raise ValueError(f"the archives of {name} do not say which scenes they hold: cannot select {list(globs)}")
    matching = [group for group in groups if any(matches_name(s, glob) for s in group.scenes for glob in globs)]
    if not matching:
        known = [scene for group in groups for scene in group.scenes]
        raise ValueError(
            f"no scene of {name} matches {list(globs)}; it has {len(known)}, from {known[0]} to {known[-1]}"
        )
    return matching


def within_limit(folder: RawFolder, groups: Sequence[Group], limit_gb: float) -> list[Group]:
    """The first groups whose members fit into the limit together."""
    kept, num_bytes = [], 0
    for group in groups:
        num_bytes += sum(folder.cost(source).disk_bytes for source in group.sources)
        if num_bytes > limit_gb * GB:
            break
        kept.append(group)
    name = folder.manifest.name
    if not kept:
        raise ValueError(f"{name}: limit_gb {limit_gb:g} holds no scene; the first has {show_bytes(num_bytes)}")
    log.info("%s: %d of %d groups of scenes fit into %g GB", name, len(kept), len(groups), limit_gb)
    return kept
