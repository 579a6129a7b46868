"""What a raw folder's ledger says of each archive, computed again from the bytes that are here; nothing is fetched."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metricgold.datasets import Manifest, read_manifest
from metricgold.download.fetcher import Fetcher
from metricgold.download.ledger import DROPPED, LEDGER, ArchiveRow, MemberRow, read_ledger
from metricgold.download.raw_folder import ledger_entry
from metricgold.download.sources import WantedSource, resolve_sources
from metricgold.download.transport import local_path
from metricgold.storage import digest_crc32, digest_file, digest_json, paths_below, read_json


class Fault(NamedTuple):
    """Why bytes are not what the ledger or the publisher says, what was expected and what was found."""

    why: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class AuditedArchive:
    """An archive of a ledger.

    checksums    the publisher's, by algorithm; empty where none is known here
    num_hashed   digests that were computed again and are right
    num_gone     of its members, those that are not here
    fault        the first digest that is not right, None without one
    """

    path: str
    checksums: Mapping[str, str]
    num_hashed: int
    num_gone: int
    fault: Fault | None


def archives_of(raw: Path) -> dict[str, dict[str, Any]]:
    """By archive, the entries of a raw folder's ledger.json and those that were encoded and deleted again.

    Of the latter only where `.ledger` is here. Empty without a ledger.
    """
    listed: dict[str, dict[str, Any]] = {}
    if (raw / "ledger.json").is_file():
        listed = read_json(raw / "ledger.json").get("archives", {})
    if not (raw / LEDGER).is_file():
        return listed
    manifest = raw / "manifest.yaml"
    scenes = {one.path: one.scenes for one in read_manifest(manifest).archives} if manifest.is_file() else {}
    with read_ledger(raw) as ledger:
        dropped = {path: row for path, row in ledger.archives().items() if row.state == DROPPED}
    return {path: ledger_entry(row, scenes.get(path, ())) for path, row in dropped.items()} | listed


def audit_archives(raw: Path, archives: Mapping[str, Mapping[str, Any]]) -> Iterator[AuditedArchive]:
    """Audit what archives_of has of a raw folder: of each the list of its members, each member, its own checksum.

    An archive itself is read only where it came from a file of this machine that is still there. Without `.ledger`
    there is nothing to compute from, and of what was deleted again only the digest of its members remains.
    """
    if not (raw / LEDGER).is_file():
        yield from (AuditedArchive(path, {}, 0, entry["members"], None) for path, entry in archives.items())
        return
    wanted = published(read_manifest(raw / "manifest.yaml")) if (raw / "manifest.yaml").is_file() else {}
    with read_ledger(raw) as ledger:
        rows = ledger.archives()
        for path, entry in archives.items():
            checksums = wanted[path].digests if path in wanted else {}
            if (row := rows.get(path)) is None or row.state == DROPPED:
                yield AuditedArchive(path, checksums, 0, entry["members"], None)
                continue
            members, expected = ledger.members(path), entry["members_sha256"]
            found = digest_json({member.name: [member.bytes, member.crc32] for member in members})
            of_list = None if found == expected else Fault(f"{path}: its list of members is another", expected, found)
            num_right, num_gone, of_member = audit_members(raw, members)
            num_checked, of_archive = audit_source(row, wanted.get(path))
            num_hashed = (of_list is None) + num_right + num_checked
            yield AuditedArchive(path, checksums, num_hashed, num_gone, of_list or of_member or of_archive)


def audit_members(raw: Path, members: list[MemberRow]) -> tuple[int, int, Fault | None]:
    """How many members have the CRC-32 of the ledger, how many are gone, and the first that has another."""
    num_right = num_gone = 0
    fault = None
    for row, path in zip(members, paths_below(raw, (row.name for row in members)), strict=True):
        if not path.is_file():
            num_gone += 1
        elif (found := digest_crc32(path)) == row.crc32:
            num_right += 1
        else:
            fault = fault or Fault(f"{path} is not what was downloaded", f"CRC-32 {row.crc32:08x}", f"{found:08x}")
    return num_right, num_gone, fault


def audit_source(row: ArchiveRow, wanted: WantedSource | None) -> tuple[int, Fault | None]:
    """How many checksums an archive on this machine has as published, and the first that it has not."""
    if wanted is None:
        return 0, None
    if row.identity != wanted.identity:
        return 0, Fault(f"{row.path}: what the manifest wants of it has changed", row.identity, wanted.identity)
    num_right = 0
    if row.source and row.source.startswith("file://") and (path := local_path(row.source)).is_file():
        for algorithm, expected in wanted.digests.items():
            if (found := digest_file(path, algorithm)) != expected:
                return num_right, Fault(f"{path} is not what was published", f"{algorithm} {expected}", found)
            num_right += 1
    return num_right, None


def published(manifest: Manifest) -> dict[str, WantedSource]:
    """What is published of the archives, as far as it can be known without a network."""
    if manifest.checksums and not all(mirror.startswith("file://") for mirror in manifest.mirrors):
        return {}
    try:
        with Fetcher(patience_s=0) as fetcher:
            return {source.path: source for source in resolve_sources(manifest, fetcher)}
    except (OSError, ValueError):  # the list lay on this machine and is gone
        return {}
