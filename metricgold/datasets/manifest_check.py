"""`metricgold manifest check`: what is wrong with a manifest, and where."""

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from metricgold.datasets.manifest import ALGORITHMS, ARCHIVE_SUFFIXES, Manifest, _splits_of, is_archive, read_manifest

WARNING = "warning: "  # begins a line of check_manifest that does not make a manifest wrong


Fault = tuple[str, str]  # key, what is wrong and what was expected


def check_manifests(paths: Iterable[Path]) -> list[str]:
    """check_manifest over many, in their order."""
    return [line for path in paths for line in check_manifest(path)]


def check_manifest(path: Path) -> list[str]:
    """Everything that is wrong with a manifest, one line each: `file: key: what is wrong and what was expected`.

    A line that begins with WARNING is worth a look and does not make the manifest wrong. Raises nothing for
    what a file holds, nor for one that cannot be read.
    """
    try:
        manifest = read_manifest(path)
    except OSError as error:
        return [f"{path}: manifest: cannot be read: {error.strerror or error}"]
    except ValueError as error:
        return str(error).splitlines()
    faults = [fault for check in CHECKS for fault in check(manifest)]
    if manifest.name != Path(path).stem:
        faults.insert(0, ("name", f"is {manifest.name!r}, expected {Path(path).stem!r} as in the file's name"))
    lines = [f"{path}: {key}: {what}" for key, what in faults]
    return lines + [f"{WARNING}{path}: {key}: {what}" for key, what in _warnings(manifest)]


def _text_faults(manifest: Manifest) -> Iterator[Fault]:
    said = {
        "title": manifest.title,
        "source": manifest.source,
        "licence.name": manifest.licence.name,
        "licence.terms": manifest.licence.terms,
        "citation": manifest.citation,
        "depth.unit": manifest.depth.unit,
        "depth.invalid": manifest.depth.invalid,
    } | {f"exclude.{i}.reason": exclusion.reason for i, exclusion in enumerate(manifest.exclude)}
    for key, text in said.items():
        if not text.strip():
            yield key, "is empty, expected a text"
    if not manifest.licence.url.startswith(("http://", "https://")):
        yield "licence.url", f"is {manifest.licence.url!r}, expected where the licence can be read"


def _source_faults(manifest: Manifest) -> Iterator[Fault]:
    for i, archive in enumerate(manifest.archives):
        if not is_archive(archive.path):
            yield f"archives.{i}.path", f"{archive.path} ends like no archive, expected {', '.join(ARCHIVE_SUFFIXES)}"
    for i, file in enumerate(manifest.files):
        if is_archive(file.path):
            yield f"files.{i}.path", f"{file.path} is an archive, expected under archives"
    seen: dict[str, str] = {}
    for key, url in _urls(manifest):
        if url in seen:
            yield key, f"is the same address as {seen[url]}, expected another"
        seen.setdefault(url, key)


def _urls(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from ((f"mirrors.{i}", mirror.rstrip("/")) for i, mirror in enumerate(manifest.mirrors))
    for key in ("archives", "files"):
        sources = enumerate(getattr(manifest, key))
        yield from ((f"{key}.{i}.url", source.url) for i, source in sources if source.url)


def _split_faults(manifest: Manifest) -> Iterator[Fault]:
    if manifest.splits is None:
        yield "splits", "are missing, expected scenes or a csv, so that no scene lies on two sides"
    elif manifest.splits.csv is not None:
        if not manifest.checksums and manifest.splits.csv not in {file.path for file in manifest.files}:
            yield "splits.csv", f"{manifest.splits.csv} is not fetched, expected among files"
    else:
        yield from _scene_faults(_scenes(manifest), manifest.splits.scenes)


def _scene_faults(named: list[str], splits: dict[str, tuple[str, ...]]) -> Iterator[Fault]:
    for split, globs in splits.items():
        for glob in globs:
            if named and not any(fnmatchcase(scene, glob) for scene in named):
                yield f"splits.scenes.{split}", f"{glob} matches none of the {len(named)} scenes that archives name"
    # Where archives name no scenes, those that splits spell out are all that is known.
    for scene in named or sorted({glob for globs in splits.values() for glob in globs if _is_plain(glob)}):
        found = _splits_of(scene, splits)
        if len(found) != 1:
            where = f"in {' and '.join(found)}" if found else "in no split"
            yield "splits.scenes", f"scene {scene} is {where}, expected in one split"


def _exclusion_faults(manifest: Manifest) -> Iterator[Fault]:
    scenes = _scenes(manifest)
    for i, exclusion in enumerate(manifest.exclude):
        if scenes and not any(overlap(exclusion.frames, f"{scene}/*") for scene in scenes):
            expected = "expected one that archives name"
            yield f"exclude.{i}.frames", f"{exclusion.frames} matches nothing below any scene, {expected}"


def _member_faults(manifest: Manifest) -> Iterator[Fault]:
    yield from _globs_off_scenes("members", manifest.members, _scenes(manifest))
    for i, archive in enumerate(manifest.archives):
        yield from _globs_off_scenes(f"archives.{i}.members", archive.members or (), archive.scenes)


def _globs_off_scenes(key: str, globs: Iterable[str], scenes: Iterable[str]) -> Iterator[Fault]:
    for i, glob in enumerate(globs):
        if scenes and not any(overlap(f"/{glob}", f"*/{scene}/*") for scene in scenes):
            yield f"{key}.{i}", f"{glob} can match nothing below a scene, expected the scene's folder or * before it"


def _warnings(manifest: Manifest) -> Iterator[Fault]:
    sources = () if manifest.checksums else (*manifest.archives, *manifest.files)
    bare = [source for source in sources if not any(getattr(source, name) for name in ALGORITHMS)]
    for key, url in _urls(manifest):
        by_url = None if key.startswith("mirrors") else url
        paths = [source.path for source in bare if source.url == by_url]
        if url.startswith("http://") and paths:
            yield key, f"plain http for {len(paths)} without a checksum, {paths[0]} first; expected https or checksums"


CHECKS: tuple[Callable[[Manifest], Iterator[Fault]], ...] = (
    _text_faults,
    _source_faults,
    _split_faults,
    _exclusion_faults,
    _member_faults,
)


def _scenes(manifest: Manifest) -> list[str]:
    return sorted({scene for archive in manifest.archives for scene in archive.scenes})


def _is_plain(glob: str) -> bool:
    return not set(glob) & set("*?[")


def overlap(one: str, other: str) -> bool:
    """Whether some name matches both globs. A [set] is taken for any letter, so the answer may be yes too often."""
    if _is_plain(one):
        return fnmatchcase(one, other)
    one, other = (re.sub(r"\[.[^]]*\]", "?", glob) for glob in (one, other))
    todo, seen = [(0, 0)], set()
    while todo:
        i, j = place = todo.pop()
        if place == (len(one), len(other)):
            return True
        if place not in seen:
            seen.add(place)
            todo += _next_places(one[i : i + 1], other[j : j + 1], i, j)
    return False


def _next_places(a: str, b: str, i: int, j: int) -> Iterator[tuple[int, int]]:
    """Where two globs may stand after their letters a at i and b at j; empty letters are an end."""
    if "*" in (a, b):
        yield from [(i + 1, j)] if a else []
        yield from [(i, j + 1)] if b else []
    elif a and b and ("?" in (a, b) or a == b):
        yield i + 1, j + 1
