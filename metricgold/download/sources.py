"""The archives and files that a manifest wants, with their checksums, also those of a published list."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from metricgold.datasets import ALGORITHMS, Archive, Manifest, Source
from metricgold.download.fetcher import Fetcher
from metricgold.download.remote_file import read_small
from metricgold.storage import digest_json


@dataclass(frozen=True, slots=True)
class WantedSource:
    """An archive or plain file: where it can be had, what it must be, what of it is kept."""

    path: str
    urls: tuple[str, ...]  # in order of preference
    num_bytes: int | None  # None: not published
    digests: Mapping[str, str]  # algorithm -> hex digest, those that are published
    identity: str  # digest of all that decides what is kept; where it comes from is left out
    is_file: bool  # one of the manifest's plain files
    globs: tuple[str, ...] = ()  # of members that are kept; empty: all
    into: str = "."  # folder of the members, below the raw folder
    scenes: tuple[str, ...] = ()  # that have members here; empty: not known, or none


def resolve_sources(manifest: Manifest, fetcher: Fetcher) -> list[WantedSource]:
    """Files and archives of a manifest; the list of checksums, if there is one, is fetched.

    Raises ValueError where manifest and list disagree, else as `RemoteFile`.
    """
    listed: dict[str, str] = {}
    if manifest.checksums is not None:
        path = manifest.checksums.path
        text = read_small(fetcher, [join_url(mirror, path) for mirror in manifest.mirrors]).decode(errors="replace")
        listed = parse_checksums(text, path)
    archives = manifest.archives
    if not archives:
        known = {file.path for file in manifest.files}
        archives = tuple(Archive(path=path) for path in sorted(listed) if path not in known)
    return [want(manifest, source, listed.get(source.path)) for source in (*manifest.files, *archives)]


def want(manifest: Manifest, source: Source, listed_digest: str | None = None) -> WantedSource:
    """One entry of a manifest, with its checksum in the published list."""
    if listed_digest is not None and manifest.checksums is not None:
        algorithm = manifest.checksums.algorithm
        if (own := getattr(source, algorithm)) not in (None, listed_digest):
            raise ValueError(
                f"{source.path}: the manifest's {algorithm} is {own}, the published list has {listed_digest}"
            )
        source = source.model_copy(update={algorithm: listed_digest})
    archive = source if isinstance(source, Archive) else Archive(path=source.path)
    globs = manifest.members if archive.members is None else archive.members
    deciding = source.model_dump(exclude={"url", "scenes", "members"}) | {"members": list(globs)}
    mirrors = [join_url(mirror, source.path) for mirror in manifest.mirrors]
    return WantedSource(
        path=source.path,
        urls=(source.url,) if source.url else tuple(mirrors),
        num_bytes=source.bytes,
        digests={name: digest for name in ALGORITHMS if (digest := getattr(source, name))},
        identity=digest_json(deciding),
        is_file=not isinstance(source, Archive),
        globs=globs,
        into=archive.into,
        scenes=archive.scenes,
    )


def join_url(mirror: str, path: str) -> str:
    """The URL of a path below a mirror."""
    return f"{mirror.rstrip('/')}/{quote(path) if mirror.startswith('http') else path}"


def parse_checksums(text: str, label: str) -> dict[str, str]:
    """path -> hex digest of a list in md5sum's form. ValueError names `label` and a line of another form."""
    digests = {}
    for line in filter(str.strip, text.splitlines()):
        digest, _, name = line.strip().partition(" ")
        path = name.strip().removeprefix("*").removeprefix("./")
        if not path or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{label}: not a line of a checksum list: {line!r}")
        digests[Source(path=path).path] = digest
    return digests
