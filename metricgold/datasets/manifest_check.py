"""`metricgold manifest check`: what is wrong with a manifest, and where."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from metricgold.datasets.manifest import ALGORITHMS, ARCHIVE_SUFFIXES, Manifest, is_archive, read_manifest
from metricgold.datasets.splits import matches_name, plain_start, splits_of_scene

WARNING = "warning: "  # begins a line of check_manifest that does not make a manifest wrong

Fault = tuple[str, str]  # key, what is wrong and what was expected


def check_manifests(paths: Iterable[Path]) -> list[str]:
    """check_manifest over many, in their order."""
    return [line for path in paths for line in check_manifest(path)]


def check_manifest(path: Path) -> list[str]:
    """Everything that is wrong with a manifest, one line each: `file: key: what is wrong and what was expected`.

    A line that begins with WARNING is worth a look and does not make the manifest wrong. A file that cannot be read
    is a line too, not an error.
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
    return lines + [f"{WARNING}{path}: {key}: {what}" for key, what in plain_http_warnings(manifest)]


def text_faults(manifest: Manifest) -> Iterator[Fault]:
    """Texts that a reader needs and that are blank; a licence that cannot be looked up."""
    texts = {
        "title": manifest.title,
        "source": manifest.source,
        "licence.name": manifest.licence.name,
        "licence.terms": manifest.licence.terms,
        "citation": manifest.citation,
        "depth.unit": manifest.depth.unit,
        "depth.invalid": manifest.depth.invalid,
    } | {f"exclude.{i}.reason": exclusion.reason for i, exclusion in enumerate(manifest.exclude)}
    for key, text in texts.items():
        if not text.strip():
            yield key, "is empty, expected a text"
    if not manifest.licence.url.startswith(("http://", "https://")):
        yield "licence.url", f"is {manifest.licence.url!r}, expected where the licence can be read"


def source_faults(manifest: Manifest) -> Iterator[Fault]:
    """Archives whose names do not say so, files that are archives, addresses given twice."""
    for i, archive in enumerate(manifest.archives):
        if not is_archive(archive.path):
            suffixes = ", ".join(ARCHIVE_SUFFIXES)
            yield f"archives.{i}.path", f"{archive.path} has no suffix of an archive, expected {suffixes}"
    for i, file in enumerate(manifest.files):
        if is_archive(file.path):
            yield f"files.{i}.path", f"{file.path} is an archive, expected under archives"
    first_keys: dict[str, str] = {}
    for key, url in _urls(manifest):
        first = first_keys.setdefault(url, key)
        if first != key:
            yield key, f"is the same address as {first}, expected another"


def split_faults(manifest: Manifest) -> Iterator[Fault]:
    """No splits at all, globs for scenes that do not exist, scenes in no split or in several."""
    if manifest.splits is None:
        yield "splits", "are missing, expected scenes or a csv, so that each scene is on one side only"
        return
    csv = manifest.splits.csv
    if csv is not None and not manifest.checksums and csv not in {file.path for file in manifest.files}:
        yield "splits.csv", f"{csv} is not fetched, expected among files"
    globs_of_split, named = manifest.splits.scenes or {}, _scenes(manifest)
    globs = [(split, glob) for split, globs in globs_of_split.items() for glob in globs]
    for split, glob in globs:
        if named and not any(matches_name(scene, glob) for scene in named):
            yield f"splits.scenes.{split}", f"{glob} matches none of the {len(named)} scenes that archives name"
    # Where archives name no scenes, only those that splits spell out are known.
    spelt_out = sorted({glob for _, glob in globs if plain_start(glob) == glob})
    for scene in (named or spelt_out) if globs_of_split else ():
        splits = splits_of_scene(scene, globs_of_split)
        if len(splits) != 1:
            where = f"in {' and '.join(splits)}" if splits else "in no split"
            yield "splits.scenes", f"scene {scene} is {where}, expected in one split"


def exclusion_faults(manifest: Manifest) -> Iterator[Fault]:
    """Globs that no frame can match, because no scene's `<scene>/` begins as they do."""
    scenes = _scenes(manifest)
    for i, exclusion in enumerate(manifest.exclude):
        start = plain_start(exclusion.frames)
        is_plain = start == exclusion.frames
        if scenes and not any(
            start.startswith(f"{scene}/") or (f"{scene}/".startswith(start) and not is_plain) for scene in scenes
        ):
            expected = "expected one that archives name"
            yield f"exclude.{i}.frames", f"{exclusion.frames} matches nothing below any scene, {expected}"


def member_faults(manifest: Manifest) -> Iterator[Fault]:
    """Members spelt out that are below no scene's folder; a glob with a wildcard may match at any depth."""
    globs = [(f"members.{i}", glob, _scenes(manifest)) for i, glob in enumerate(manifest.members)]
    for i, archive in enumerate(manifest.archives):
        globs += [
            (f"archives.{i}.members.{j}", glob, list(archive.scenes)) for j, glob in enumerate(archive.members or ())
        ]
    for key, glob, scenes in globs:
        is_below_a_scene = plain_start(glob) != glob or any(f"/{scene}/" in f"/{glob}" for scene in scenes)
        if scenes and not is_below_a_scene:
            yield key, f"{glob} can match nothing below a scene, expected the scene's folder or * before it"


def plain_http_warnings(manifest: Manifest) -> Iterator[Fault]:
    """Addresses from which files come unencrypted and without a checksum."""
    sources = () if manifest.checksums else (*manifest.archives, *manifest.files)
    unchecked = [source for source in sources if not any(getattr(source, name) for name in ALGORITHMS)]
    for key, url in _urls(manifest):
        by_url = None if key.startswith("mirrors") else url
        paths = [source.path for source in unchecked if source.url == by_url]
        if url.startswith("http://") and paths:
            yield key, f"plain http for {len(paths)} without a checksum, {paths[0]} first; expected https or checksums"


CHECKS: tuple[Callable[[Manifest], Iterator[Fault]], ...] = (
    text_faults,
    source_faults,
    split_faults,
    exclusion_faults,
    member_faults,
)


def _urls(manifest: Manifest) -> Iterator[Fault]:
    yield from ((f"mirrors.{i}", mirror.rstrip("/")) for i, mirror in enumerate(manifest.mirrors))
    for key, sources in (("archives", manifest.archives), ("files", manifest.files)):
        yield from ((f"{key}.{i}.url", source.url) for i, source in enumerate(sources) if source.url)


def _scenes(manifest: Manifest) -> list[str]:
    return sorted({scene for archive in manifest.archives for scene in archive.scenes})
