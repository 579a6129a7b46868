"""A folder or an S3 prefix behind one small interface: list, read, write, exists, delete.

Keys are relative, with `/` between segments. A file, a folder, a glob and `s3://bucket/prefix` are all buckets:
the first and the third list less. S3 takes endpoint, region and credentials from where boto3 looks for them
(AWS_ENDPOINT_URL and so on); none of them is ever an argument here. Trouble with it that passes is waited out, see
metricgold.storage.s3_client; StoreLost says that no other key would fare better.
"""

import glob
import io
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from math import ceil
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from metricgold.storage import globs, s3_client as s3
from metricgold.storage.files import remove, write_aside
from metricgold.storage.globs import EVERYTHING, Wanted
from metricgold.storage.s3_client import StoreLost

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20  # of a large file written to S3, in memory at once; there may be 10,000 of them
MAX_METADATA_CHARS = 256  # of one value: as Swift comes; Amazon takes 2 KB of all together
T = TypeVar("T")

__all__ = ["Folder", "S3Prefix", "StoreLost", "StoredObject", "open_bucket"]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One listed object. `tag` changes when its bytes do: the ETag on S3, size and mtime in a folder."""

    key: str
    bytes: int
    tag: str


def open_bucket(
    location: str, *, create: bool = False, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> "Folder | S3Prefix":
    """Open a file, folder, glob or s3://bucket/prefix; with `create`, a folder or prefix to write into.

    A location may be a glob in its path or key (metricgold.storage.globs); `include` and `exclude` are globs over the
    keys that would be listed. What exists under a name with `*` or `[` is taken by its name.

    Raises ValueError for a malformed location, FileNotFoundError or PermissionError naming the location.
    """
    wanted = Wanted("", tuple(include), tuple(exclude))
    if location.lower().startswith("s3://"):
        return _open_s3(location, create, wanted)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location):
        raise ValueError(f"{location}: expected a path or s3://bucket/prefix")
    path = Path(location).expanduser()
    if create:
        return _create_folder(path, location)
    if path.is_dir():
        return Folder(path, wanted=wanted)
    if path.is_file():
        return Folder(path.parent, only=path.name, wanted=wanted)
    if glob.has_magic(location):
        return _open_glob(path, location, wanted)
    raise FileNotFoundError(f"{location}: no such file or folder")


def _create_folder(path: Path, location: str) -> "Folder":
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{location}: expected a folder to write into, found a file") from error
    return Folder(path)


def _open_glob(path: Path, location: str, wanted: Wanted) -> "Folder":
    folder, pattern = globs.split(path.as_posix())
    root = Path(folder or ".")
    if not root.is_dir():
        raise FileNotFoundError(f"{location}: no such folder {root}")
    return Folder(root, wanted=replace(wanted, pattern=pattern + "/" * location.endswith("/")))


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder. Hidden names and links to folders are not listed; devices and pipes neither."""

    root: Path
    only: str | None = None
    wanted: Wanted = EVERYTHING

    def __str__(self) -> str:
        return str(self.root / (self.only or self.wanted.pattern))

    def entries(self, after: str | None = None) -> Iterator[StoredObject]:
        """Yield entries in the order of their keys; those after a key only, if one is given."""
        if self.only is not None:
            found = [self._entry(self.only, (self.root / self.only).stat())]
        else:
            found = self._walk("", globs.depth(self.wanted.pattern) if self.wanted.pattern else None, after or "")
        for entry in found:
            if entry.key > (after or "") and entry.key in self.wanted:
                yield entry

    def _walk(self, folder: str, depth: int | None, after: str) -> Iterator[StoredObject]:
        for name in self._names(folder):
            key = folder + name
            if key <= after and not after.startswith(key):
                continue
            if name.endswith("/"):
                if depth is None or depth > 0:
                    yield from self._walk(key, depth and depth - 1, after)
                continue
            try:
                status = (self.root / key).stat()
            except FileNotFoundError:
                continue  # gone since, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                yield self._entry(key, status)

    def _names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none, with a warning, of a folder within the root that may not be read."""
        try:
            with os.scandir(self.root / folder) as found:
                # Names only: a folder may hold a million. The slash of folders makes the order that of whole keys.
                return sorted(
                    item.name + "/" * item.is_dir(follow_symlinks=False)
                    for item in found
                    if not item.name.startswith(".")
                )
        except PermissionError as error:
            if not folder:
                raise
            log.warning("%s is left out: %s", self.root / folder, error.strerror)
            return []

    @staticmethod
    def _entry(key: str, status: os.stat_result) -> StoredObject:
        return StoredObject(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def read(self, key: str, limit: int = -1) -> bytes:
        """The object's bytes, or its first `limit`."""
        with self.path(key).open("rb") as file:
            return file.read(limit)

    def lines(self, key: str) -> Iterator[bytes]:
        """The object's lines, one after the other."""
        with self.path(key).open("rb") as file:
            yield from file

    def write(
        self,
        key: str,
        data: bytes | BinaryIO,
        content_type: str = "application/octet-stream",
        *,
        durable: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object whole or not at all; its tag. A folder has no place for content type and metadata.

        Without `durable` the disk may come later: forcing it costs more than making a small image. A power cut
        then shows in the size, so in the tag.
        """
        path = self.path(key)
        with write_aside(path, durable=durable) as aside, aside.open("wb") as file:
            for block in _blocks(data):
                file.write(block)
        return self._entry(key, path.stat()).tag

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def delete(self, key: str) -> None:
        remove(self.path(key))

    def close(self) -> None:
        """Nothing to end here."""

    def path(self, key: str) -> Path:
        """Where a key lies, always below the root. ValueError for a key that no file name can hold."""
        segments = key.split("/")
        if "\0" in key or not {"", ".", ".."}.isdisjoint(segments):
            raise ValueError(f"{key!r} cannot be a file below {self.root}")
        return self.root.joinpath(*segments)

    @staticmethod
    def own_key(key: str) -> str:
        """The key under which this bucket can keep what `key` names elsewhere; different for different keys."""
        return "/".join(map(_safe_segment, key.split("/")))

    def prefix_of(self, other: "Folder | S3Prefix") -> str | None:
        """What this bucket's keys begin with if they lie in `other`; None where other is elsewhere."""
        if not isinstance(other, Folder):
            return None
        mine, theirs = self.root.resolve(), other.root.resolve()
        if not theirs.is_relative_to(mine):
            return None
        relative = theirs.relative_to(mine).as_posix()
        return "" if relative == "." else f"{relative}/"


def _safe_segment(segment: str) -> str:
    # `..`, `.` and the empty segment of `a//b` mean something in paths, NUL ends them. A %XX of the original is
    # escaped too, so that it cannot collide with an escape.
    segment = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", segment).replace("\0", "%00")
    if segment in ("", ".", ".."):
        return segment.replace(".", "%2E") or "%2F"
    return segment


def _blocks(data: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    while block := data.read(io.DEFAULT_BUFFER_SIZE * 16):
        yield block


@dataclass(frozen=True, slots=True)
class S3Prefix:
    """Objects of an S3 bucket whose key begins with `prefix` (empty or ending in `/`)."""

    store: s3.S3Client
    bucket: str
    prefix: str
    only: str | None = None
    wanted: Wanted = EVERYTHING
    hurry: Event = field(default_factory=Event, compare=False)

    def __str__(self) -> str:
        return self._place(self.only or self.wanted.pattern)

    @property
    def client(self) -> Any:
        return self.store.client

    def entries(self, after: str | None = None) -> Iterator[StoredObject]:
        """Yield entries in the order of their UTF-8 keys, a page of 1000 in memory at a time.

        Those after a key only, if one is given. A page that fails is asked for again.
        """
        for found in self._found(after):
            key = found["Key"][len(self.prefix) :]
            if self.only is not None and key != self.only:
                continue
            if key and not (key.endswith("/") and not found["Size"]) and key in self.wanted:  # no markers of folders
                yield StoredObject(key, found["Size"], found["ETag"].strip('"'))

    def _found(self, after: str | None) -> Iterator[dict[str, Any]]:
        begin = self.prefix + (self.only or globs.head(self.wanted.pattern))
        start = {"StartAfter": self.prefix + after} if after else {}
        while start is not None:
            page = self._ask("", "list_objects_v2", Prefix=begin, **start)
            yield from page.get("Contents", ())
            start = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else None

    def read(self, key: str, limit: int = -1) -> bytes:
        """The object's bytes, or its first `limit`."""
        part = {"Range": f"bytes=0-{limit - 1}"} if limit > 0 else {}
        try:
            return self._get(key, lambda answer: answer["Body"].read(), **part)
        except EOFError:
            return b""

    def read_aged(self, key: str) -> tuple[bytes, float]:
        """The object's bytes and how many seconds ago it was written, both times by the store's own clock."""
        return self._get(key, lambda answer: (answer["Body"].read(), _age_s(answer)))

    def lines(self, key: str) -> Iterator[bytes]:
        """The object's lines, one after the other, by way of a temporary file: it is read whole or again."""

        def copy(answer: dict[str, Any]) -> None:
            file.seek(0)
            file.truncate()
            shutil.copyfileobj(answer["Body"], file, io.DEFAULT_BUFFER_SIZE * 16)

        with tempfile.TemporaryFile() as file:
            self._get(key, copy)
            file.seek(0)
            yield from file

    def write(
        self,
        key: str,
        data: bytes | BinaryIO,
        content_type: str = "application/octet-stream",
        *,
        durable: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object, which S3 shows whole or not at all; its tag. Values of `metadata` may be cut."""
        said = {name: _header_value(text) for name, text in (metadata or {}).items()}
        about = {"ContentType": content_type, "Metadata": said}
        if isinstance(data, bytes) or _size_ahead(data) <= PART_BYTES:
            return self._put(key, data, **about)
        return self._put_in_parts(key, data, **about)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; whether it holds `data` now, which must be like no one else's.

        Some stores look and then write, others refuse the condition and we do so: whoever must be sure that no one
        came between reads it again a little later.
        """
        try:
            self._put(key, data, IfNoneMatch="*")
        except FileExistsError:
            return self.read(key) == data  # by an earlier try whose answer was lost
        except io.UnsupportedOperation:
            if self.exists(key):
                return self.read(key) == data
            self._put(key, data)
        return True

    def exists(self, key: str) -> bool:
        try:
            self._ask(key, "head_object", Key=self.prefix + key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        self._ask(key, "delete_object", Key=self.prefix + key)

    def close(self) -> None:
        """No more patience: requests that wait for the store give up now, later ones are tried once."""
        self.hurry.set()

    @staticmethod
    def own_key(key: str) -> str:
        """The key itself: S3 keys have no special segments."""
        return key

    def prefix_of(self, other: "Folder | S3Prefix") -> str | None:
        """What this bucket's keys begin with if they lie in `other`; None where other is elsewhere."""
        if not isinstance(other, S3Prefix) or self.bucket != other.bucket:
            return None
        return other.prefix[len(self.prefix) :] if other.prefix.startswith(self.prefix) else None

    def _get(self, key: str, take: Callable[[dict[str, Any]], Any], **options: str) -> Any:
        def ask() -> Any:  # with its body, so that one that breaks off is asked for again
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **options)
            with closing(answer["Body"]):
                return take(answer)

        return self._patiently(key, ask)

    def _put(self, key: str, data: bytes | BinaryIO, **options: Any) -> str:
        start = 0 if isinstance(data, bytes) else data.tell()

        def ask() -> dict[str, Any]:
            if not isinstance(data, bytes):
                data.seek(start)
            return self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, **options)

        return self._patiently(key, ask)["ETag"].strip('"')

    def _put_in_parts(self, key: str, file: BinaryIO, **options: Any) -> str:
        """A large file: one request takes at most 5 GB, and would begin anew with each failure."""
        place = {"Key": self.prefix + key}
        place |= {"UploadId": self._ask(key, "create_multipart_upload", **place, **options)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while block := file.read(PART_BYTES):
                number = len(parts) + 1
                done = self._ask(key, "upload_part", **place, PartNumber=number, Body=block)
                parts.append({"PartNumber": number, "ETag": done["ETag"]})
            whole = self._ask(key, "complete_multipart_upload", **place, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(OSError):  # parts that nobody completes cost money
                self._ask(key, "abort_multipart_upload", **place)
            raise
        return whole["ETag"].strip('"')

    def _ask(self, key: str, request: str, **options: Any) -> Any:
        return self._patiently(key, lambda: getattr(self.client, request)(Bucket=self.bucket, **options))

    def _patiently(self, key: str, ask: Callable[[], T]) -> T:
        return s3.patiently(self._place(key), ask, self.hurry, self.store.renew)

    def _place(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


def _size_ahead(file: BinaryIO) -> int:
    start = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    return end - start


def _age_s(answer: dict[str, Any]) -> float:
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - answer["LastModified"]).total_seconds())


def _header_value(text: str) -> str:
    # Headers are ASCII in one line; what else there is travels as in an address.
    quoted = quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="backslashreplace")
    too_long = len(quoted) - MAX_METADATA_CHARS
    return _header_value(text[: -ceil(too_long / 12)]) if too_long > 0 else quoted  # a character is at most 4 %XX


def _open_s3(location: str, create: bool, wanted: Wanted) -> S3Prefix:
    name, _, key = location[len("s3://") :].partition("/")
    if not name:
        raise ValueError(f"{location}: expected s3://bucket/prefix")
    store, hurry = s3.S3Client(), Event()
    s3.patiently(location, lambda: store.client.head_bucket(Bucket=name), hurry)
    folder = S3Prefix(store, name, key if key.endswith("/") or not key else f"{key}/", wanted=wanted, hurry=hurry)
    if create or not key or (key.endswith("/") and not glob.has_magic(key)):
        return folder
    parent, _, last = key.rpartition("/")
    single = replace(folder, prefix=f"{parent}/" if parent else "", only=last)
    if last and _is_object(single, last):
        return single
    if not glob.has_magic(key) or next(replace(folder, wanted=EVERYTHING).entries(), None):
        return folder
    root, pattern = globs.split(key)
    return replace(folder, prefix=root, wanted=replace(wanted, pattern=pattern))


def _is_object(bucket: S3Prefix, key: str) -> bool:
    try:
        return bucket.exists(key)
    except PermissionError:
        return False  # listing will say what is allowed
