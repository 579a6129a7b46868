"""One archive on its way into a raw folder: fetched, verified, extracted beside the data, then moved among it.

    .part/<archive>           its bytes, some of which may be missing, with their journal (partial_file)
    .part/<archive>.members/  its members, under the paths that they will have in the raw folder

Of a zip without a published checksum only the bytes of wanted members are fetched, each member checked by its CRC-32.
Every other archive is fetched in full and compared with its checksum before the first member is extracted.
"""

import logging
import shutil
from collections.abc import Collection
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from metricgold.datasets import is_archive, settle
from metricgold.download.archives import extract
from metricgold.download.fetcher import Fetcher
from metricgold.download.gate import Extracted
from metricgold.download.ledger import MemberRow
from metricgold.download.progress import Advance, no_progress
from metricgold.download.ranges import join_ranges
from metricgold.download.remote_file import RemoteFile
from metricgold.download.sources import WantedSource
from metricgold.download.zips import END_BYTES, ZipMember, list_zip
from metricgold.storage import remove, sync_tree

log = logging.getLogger(__name__)

NUM_TRIES = 3  # of an archive whose bytes were wrong, each with another mirror first
SELF_CHECKED = (".zip", ".tar.gz", ".tgz", ".7z")  # archives with checksums of what is in them


class Cost(NamedTuple):
    """Bytes to fetch, and bytes of the members, as far as they can be known before."""

    transfer_bytes: int
    disk_bytes: int


class Arrival:
    """An archive or plain file on its way, in the folder `parts`. Several may be at once, each in a thread."""

    def __init__(self, source: WantedSource, parts: Path, fetcher: Fetcher, advance: Advance = no_progress) -> None:
        self.source, self._fetcher, self._advance = source, fetcher, advance
        self._path = parts / part_name(source.path)
        self.staged = self._path.with_name(f"{self._path.name}.members")

    def cost(self) -> Cost:
        """What fetching it will cost; of a zip its directory is fetched for that. Raises as `fetch`."""
        num_bytes = self.source.num_bytes
        if num_bytes is not None and not self.source.path.endswith(".zip"):
            return Cost(num_bytes, num_bytes)  # as published; fetching will show whether that is true
        with closing(self._open(self.source.urls)) as remote:
            if not self.source.path.endswith(".zip"):
                return Cost(remote.total_bytes, remote.total_bytes)
            members = self._list_zip(remote)
            ranges = [(0, remote.total_bytes)] if self.source.digests else _ranges_of(members)
            return Cost(sum(end - start for start, end in ranges), sum(one.num_bytes for one in members.values()))

    def fetch(self, only: Collection[str] | None = None) -> tuple[str, list[MemberRow]]:
        """Fetch and verify, and extract into `staged`; returns the mirror and what is there, and on the disk, now.

        only  members of a zip, by their paths in the raw folder, of which alone the bytes are fetched

        Wrong bytes are fetched again, from another mirror first. ValueError when they stay wrong, OSError when no
        mirror delivers or the disk is full.
        """
        urls, faults = self.source.urls, []
        for number in range(1 if len(urls) == 1 and urls[0].startswith("file:") else max(NUM_TRIES, len(urls))):
            turn = number % len(urls)
            try:
                with closing(self._open([*urls[turn:], *urls[:turn]])) as remote:
                    remove(self.staged)  # what a killed run extracted is extracted again
                    members = self._receive(remote, only)
                    for name in members:
                        settle(self.staged / self.source.into / name)
                    sync_tree(self.staged)  # before anything vouches for them
                    origin = remote.url
            except ValueError as error:
                log.warning("%s", error)
                faults.append(str(error))
                self.remove()
            else:
                folder = Path(self.source.into)
                return origin, [MemberRow((folder / name).as_posix(), *member) for name, member in members.items()]
        raise ValueError("; ".join(dict.fromkeys(faults)))

    def remove(self) -> None:
        """Delete what has arrived and what was extracted."""
        remove_parts(self._path.parent, self.source.path)

    def _open(self, urls: Collection[str]) -> RemoteFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return RemoteFile(
            self._fetcher,
            list(urls),
            self._path,
            tail_bytes=END_BYTES,
            is_checked=bool(self.source.digests) or self.source.path.endswith(SELF_CHECKED),
            total_bytes=self.source.num_bytes,
            advance=self._advance,
        )

    def _list_zip(self, remote: RemoteFile) -> dict[str, ZipMember]:
        with closing(remote.reader()) as reader:
            return list_zip(reader, label=self._label(remote), globs=self.source.globs)

    def _label(self, remote: RemoteFile) -> str:
        return f"{self.source.path} from {remote.url}"

    def _receive(self, remote: RemoteFile, only: Collection[str] | None) -> dict[str, Extracted]:
        """Fetch what is needed, compare published checksums, extract; name in the archive -> bytes and CRC-32."""
        source, folder = self.source, self.staged / self.source.into
        is_plain = not is_archive(source.path)
        algorithms = (*source.digests, *(["crc32"] if is_plain else []))
        with remote.partial.synced_meanwhile() if is_plain else nullcontext():
            found = remote.digests(algorithms) if algorithms else {}
        for name, expected in source.digests.items():
            if found[name] != expected:
                raise ValueError(f"{self._label(remote)}: {name} is {found[name]}, expected {expected}")
        if is_plain:
            copy_plain_file(remote, folder / source.path)
            return {source.path: Extracted(remote.total_bytes, int(found["crc32"], 16))}
        if source.path.endswith(".zip"):
            return self._receive_zip(remote, folder, only)
        remote.need([(0, remote.total_bytes)])
        return extract(remote.partial.path, folder, label=self._label(remote), globs=source.globs)

    def _receive_zip(self, remote: RemoteFile, folder: Path, only: Collection[str] | None) -> dict[str, Extracted]:
        """Fetch and extract wanted members. Those that arrive broken are fetched again, and nothing else is.

        All are members of one directory: when that changes meanwhile, those that do not fit it are fetched again.
        """
        found: dict[str, Extracted] = {}
        listed: dict[str, ZipMember] = {}
        num_directories = num_tries = 0
        while True:
            wanted = self._list_zip(remote)
            if only is not None:
                inside = {Path(name).relative_to(self.source.into).as_posix() for name in only}
                wanted = {name: member for name, member in wanted.items() if name in inside}
            if wanted != listed:  # of another version of the archive, perhaps: nothing of the earlier one may stay
                remove(self.staged)
                found, listed, num_directories, num_tries = {}, wanted, num_directories + 1, 0
            remote.need(_ranges_of(wanted))
            broken: list[str] = []
            label, names = self._label(remote), wanted.keys() - found.keys()
            found |= extract(remote.partial.path, folder, label=label, names=names, broken=broken)
            if not broken:
                return found
            num_tries += 1
            if NUM_TRIES in (num_tries, num_directories):
                raise ValueError(f"{label}: member {broken[0]} does not have its CRC-32, {NUM_TRIES} times over")
            log.warning("%s: %d members arrived broken, first %s", label, len(broken), broken[0])
            for name in broken:
                remote.mark_wrong(wanted[name].start, wanted[name].end)
            if num_tries > 1:  # twice wrong: what the directory says of them may be wrong instead
                remote.mark_wrong(max(member.end for member in wanted.values()), remote.total_bytes)


def part_name(path: str) -> str:
    """A file name for an archive's path. Its last letter is one that quote() escapes: no name begins another's."""
    return f"{quote(path, safe='')}@"


def remove_parts(parts: Path, path: str) -> None:
    """Delete what belongs to one archive on its way."""
    for left in parts.glob(f"{part_name(path)}*"):
        remove(left)


def _ranges_of(members: dict[str, ZipMember]) -> list[tuple[int, int]]:
    return join_ranges((member.start, member.end) for member in members.values())


def copy_plain_file(remote: RemoteFile, target: Path) -> None:
    """A plain file to where members are staged: a hard link, so a kill before it is in the ledger loses nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if remote.partial.is_local:
        shutil.copyfile(remote.partial.path, target)
        return
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(remote.partial.path)
    except OSError:  # not every file system has hard links
        remote.partial.path.replace(target)
