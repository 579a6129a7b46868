"""What a power cut would cost: which files are on the disk, by what was synced, whenever a name appears."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from metricgold.storage import buckets
from metricgold.storage.files import sync_disk


class PowerCut:
    """Records fsync and renames below a folder. A file counts as on the disk when its bytes and its name were synced.

    `vouched` says of a name that appears (where its bytes are now, what it will be called) which files it vouches for;
    `seen` are the names for which it said anything, `lost` what a power cut at that moment would have cost.
    """

    def __init__(self, monkeypatch, root: Path, vouched) -> None:
        self.root, self.vouched = root.resolve(), vouched
        self.bytes_on_disk: set[tuple] = set()
        self.names_on_disk: set[tuple] = set()
        self.seen: list[str] = []
        self.lost: list[str] = []
        fsync = os.fsync

        def watched_fsync(descriptor):
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self.names_on_disk |= {(path, entry.name, entry.inode()) for entry in os.scandir(path)}
            else:
                self.bytes_on_disk.add(state(path))

        def watched_sync_disk(folder):
            present = [Path(folder), *Path(folder).rglob("*")]  # what comes during the sync may not be on the disk
            states = []
            for path in present:
                with suppress(FileNotFoundError):  # written aside, and renamed by another thread meanwhile
                    states.append((path, state(path)))
            sync_disk(folder)
            for path, (inode, *rest) in states:
                self.names_on_disk.add((path.parent, path.name, inode))
                self.bytes_on_disk.add((inode, *rest))

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(buckets, "sync_disk", watched_sync_disk)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, move):
        def watched_move(source, target):
            source, target = Path(source).resolve(), Path(target).resolve()
            if target.is_relative_to(self.root):
                vouched = list(self.vouched(source, target) or ())
                self.seen += [target.relative_to(self.root).as_posix()] * bool(vouched)
                self.lost += [f"{path} of {target}" for path in vouched if not self.has(path, source)]
            move(source, target)

        return watched_move

    def has(self, path: Path, moving: Path | None = None) -> bool:
        """Whether a file would be there after a power cut: its bytes, and its names below the root.

        Of what is in a folder that is `moving`, the names below that.
        """
        path = path.resolve()
        top = moving if moving and path.is_relative_to(moving) else self.root
        above = [path, *path.parents][: len(path.relative_to(top).parts)]
        names = {(one.parent, one.name, one.stat().st_ino) for one in above}
        return names <= self.names_on_disk and (path.is_dir() or state(path) in self.bytes_on_disk)


def state(path: Path) -> tuple:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def below(folder: Path) -> Iterable[Path]:
    """All files of a folder."""
    return (path for path in folder.rglob("*") if path.is_file())
