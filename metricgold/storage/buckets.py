"""A folder or an S3 prefix behind one small interface: entries, read, write, exists, delete.

Keys are relative, with `/` between segments. A file, a folder, a glob and `s3://bucket/prefix` are all buckets:
the first and the third list less. S3 takes endpoint, region and credentials from where boto3 looks for them
(AWS_ENDPOINT_URL and so on); none of them is ever an argument here. Failures of S3 that pass are retried, see
metricgold.storage.s3_client; StoreLost means that every other key would fail as well.
"""

import errno
import glob
import io
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from math import ceil
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import quote

from metricgold.storage import globs, s3_client as s3
from metricgold.storage.files import make_folder, remove, sync_disk, write_aside
from metricgold.storage.globs import EVERYTHING, Wanted
from metricgold.storage.s3_client import ConditionFailed, StoreLost
from metricgold.storage.s3_listing import list_objects

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20  # of a large file written to S3, in memory at once; there may be 10,000 of them
MAX_KEY_BYTES = 1024  # of S3
MAX_METADATA_CHARS = 256  # of one value: as Swift comes; Amazon takes 2 KB of all together
_WRITES = {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload", "delete_object"}
_DISK_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no other file would fare better
T = TypeVar("T")
Fence = Callable[[], None]  # asked at the last moment before a write; raises where this process may not write

__all__ = ["ConditionFailed", "Fence", "Folder", "S3Prefix", "StoreLost", "StoredObject", "open_bucket"]


class StoredObject(NamedTuple):  # made in a third of a dataclass's time, and there are many
    """One listed object. `tag` changes when its bytes do: the ETag on S3, size and mtime in a folder."""

    key: str
    bytes: int
    tag: str


def open_bucket(
    location: str, *, create: bool = False, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> "Folder | S3Prefix":
    """Open a file, folder, glob or s3://bucket/prefix; with `create`, a folder or prefix to write into.

    A location may be a glob in its path or key (metricgold.storage.globs); `include` and `exclude` are globs over the
    keys that would be listed. A file or folder whose own name holds `*` or `[` is opened by that name.

    Raises ValueError for a malformed location, FileNotFoundError or PermissionError naming the location.
    """
    if not location:  # such as a variable that is not set; as a path it would be the working folder
        raise ValueError("'': expected a path or s3://bucket/prefix")
    wanted = Wanted("", tuple(include), tuple(exclude))
    if location.lower().startswith("s3://"):
        return _open_s3(location, create, wanted)
    # One slash is a slip of the finger, and would make a folder called `s3:`.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//?|$)|[Ss]3:", location):
        raise ValueError(f"{location}: expected a path or s3://bucket/prefix")
    path = Path(location).expanduser()
    if create:
        try:
            make_folder(path)
        except FileExistsError as error:
            raise NotADirectoryError(f"{location}: expected a folder to write into, found a file") from error
        return Folder(path)
    if path.is_dir():
        return Folder(path, wanted=wanted)
    if path.is_file():
        return Folder(path.parent, only=path.name, wanted=wanted)
    if not glob.has_magic(location):
        raise FileNotFoundError(f"{location}: no such file or folder")
    root, pattern = globs.split(path.as_posix())
    if not Path(root or ".").is_dir():
        raise FileNotFoundError(f"{location}: no such folder {root}")
    return Folder(Path(root or "."), wanted=replace(wanted, pattern=pattern + "/" * location.endswith("/")))


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder. Hidden names and links to folders are not listed; devices and pipes neither."""

    root: Path
    only: str | None = None
    wanted: Wanted = EVERYTHING
    fence: Fence | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return str(self.root / (self.only or self.wanted.pattern))

    def entries(self, after: str | None = None, *, below: str = "") -> Iterator[StoredObject]:
        """Yield entries in the order of their keys: all, those after a key, or those that begin with `below`."""
        found: Iterable[StoredObject]
        if self.only is not None:
            found = [self._entry(self.only, (self.root / self.only).stat())]
        else:
            found = self._walk(globs.depth(self.wanted.pattern) if self.wanted.pattern else None, after or "", below)
        for entry in found:
            if entry.key > (after or "") and entry.key.startswith(below) and entry.key in self.wanted:
                yield entry

    def _walk(self, depth: int | None, after: str, below: str) -> Iterator[StoredObject]:
        """Files down to a depth of folders. What cannot be looked at is left out, with one warning that counts it.

        Only the root must be readable: below it folders move away, and links lead back to themselves.
        """
        num_left_out, such_as, root = 0, "", str(self.root)
        walks = [iter(self._keys("", after, below))]  # not recursive: there may be more folders than Python has frames
        while walks:
            key = next(walks[-1], None)
            if key is None:
                walks.pop()
                continue
            is_folder = key.endswith("/")
            try:
                if is_folder and (depth is None or len(walks) <= depth):
                    walks.append(iter(self._keys(key, after, below)))
                elif not is_folder:
                    status = os.stat(f"{root}/{key}")  # noqa: PTH116 - a Path takes as long as all else here
                    if stat.S_ISREG(status.st_mode):
                        yield self._entry(key, status)
            except OSError as error:
                # A file that is not found was deleted meanwhile, or is a link to nothing.
                if is_folder or not isinstance(error, FileNotFoundError):
                    num_left_out, such_as = num_left_out + 1, such_as or f"{key!r}: {error.strerror}"
        if num_left_out:
            log.warning("%s: %d names are left out, such as %s", self, num_left_out, such_as)

    def _keys(self, folder: str, after: str, below: str) -> list[str]:
        """Keys in a folder, those of folders with a slash, sorted; without those before `after` or not `below`."""
        with os.scandir(self.root / folder) as items:
            # Names only: a folder may hold a million. The slash of folders makes the order that of complete keys.
            names = (item.name + "/" * item.is_dir(follow_symlinks=False) for item in items if item.name[0] != ".")
            keys = (folder + name for name in names)
            keys = (key for key in keys if key.startswith(below) or below.startswith(key))
            return sorted(key for key in keys if key > after or after.startswith(key))

    @staticmethod
    def _entry(key: str, status: os.stat_result) -> StoredObject:
        return StoredObject(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def read(self, key: str, limit: int = -1, *, start: int = 0, tag: str | None = None) -> bytes:
        """The object's bytes from `start` on, at most `limit`; ConditionFailed where its tag is not `tag`."""
        with self.path(key).open("rb") as file:
            before = self._entry(key, os.fstat(file.fileno())).tag
            file.seek(start)
            data = file.read(limit)
            after = self._entry(key, os.fstat(file.fileno())).tag
        if tag is not None and not before == after == tag:
            raise _replaced(self.path(key))
        return data

    def read_tagged(self, key: str, limit: int = -1) -> tuple[bytes, str, float]:
        """The object's bytes or its first `limit`, its tag, and how many seconds ago it was written."""
        with self.path(key).open("rb") as file:
            status = os.fstat(file.fileno())
            return file.read(limit), self._entry(key, status).tag, max(0.0, time.time() - status.st_mtime)

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
        """Write an object completely or not at all; returns its tag. A folder stores no content type or metadata.

        Without `durable` the bytes may reach the disk later, at the latest with `sync`: forcing each file there takes
        longer than making a small image. Raises StoreLost where the disk takes no more, or nothing.
        """
        path = self.path(key)
        try:
            with write_aside(path, durable=durable) as aside, aside.open("wb") as file:
                for block in _blocks(data):
                    file.write(block)
                file.flush()
                if self.fence is not None:
                    self.fence()
        except OSError as error:
            if error.errno not in _DISK_LOST:
                raise
            text = f"{error.strerror}; what is written stays, make room and run it again"
            raise StoreLost(error.errno, text, str(path)) from error
        return self._entry(key, path.stat()).tag

    def sync(self) -> None:
        """Wait until all that was written is on the disk; before anything that vouches for it."""
        sync_disk(self.root)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.path(key).is_file()

    def tag(self, key: str) -> str | None:
        """The object's tag; None where there is no such object."""
        path = self.path(key)
        return self._entry(key, path.stat()).tag if path.is_file() else None

    def delete(self, key: str) -> None:
        """Delete an object; quiet when there is none."""
        if self.fence is not None:
            self.fence()
        remove(self.path(key))

    def close(self) -> None:
        """Nothing to end here."""

    def path(self, key: str) -> Path:
        """The path of a key, always below the root. ValueError for a key that cannot be a file name."""
        segments = key.split("/")
        if "\0" in key or not {"", ".", ".."}.isdisjoint(segments):
            raise ValueError(f"{key!r} cannot be a file below {self.root}")
        return self.root.joinpath(*segments)

    def check_length(self, key: str) -> None:
        """Raise ValueError where a name of this key, or its path, is longer than the file system takes."""
        longest = max(len(os.fsencode(name)) for name in key.split("/"))
        most, most_of_path = os.pathconf(self.root, "PC_NAME_MAX"), os.pathconf(self.root, "PC_PATH_MAX")
        if longest > most:
            raise ValueError(f"a name of {longest} bytes is too long, {most} fit")
        if (length := len(os.fsencode(self.path(key)))) >= most_of_path:
            raise ValueError(f"a path of {length} bytes is too long, {most_of_path - 1} fit")

    @staticmethod
    def own_key(key: str) -> str:
        """The key under which this bucket can keep what `key` names elsewhere; different for different keys."""
        return "/".join(map(_safe_segment, key.split("/")))

    def prefix_of(self, other: "Folder | S3Prefix") -> str | None:
        """What the keys of `other` begin with in this bucket; None where other is not inside it."""
        if not isinstance(other, Folder):
            return None
        mine, theirs = self.root.resolve(), other.root.resolve()
        if not theirs.is_relative_to(mine):
            return None
        relative = theirs.relative_to(mine).as_posix()
        return "" if relative == "." else f"{relative}/"


def _replaced(place: object) -> ConditionFailed:
    return ConditionFailed(f"{place} was replaced after it had been listed; the next run reads it")


_HIDDEN = re.compile(r"(?:^|/)\.(?!\.?(?:/|$))")  # a segment with a dot before its name; . and .. are none


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
    """Objects of an S3 bucket whose key begins with `prefix` (empty or ending in `/`). Hidden names are not listed.

    Methods retry failures that pass until `hurry` is set, and raise the errors of s3_client.with_retries. `fence` is
    asked before each try of each request that writes, once more when the store takes the bytes: it keeps nothing of a
    body that breaks off.
    """

    store: s3.S3Client
    bucket: str
    prefix: str
    only: str | None = None
    wanted: Wanted = EVERYTHING
    fence: Fence | None = field(default=None, compare=False)
    hurry: Event = field(default_factory=Event, compare=False)

    def __str__(self) -> str:
        return self._place(self.only or self.wanted.pattern)

    @property
    def client(self) -> Any:
        """boto3's client of today's credentials."""
        return self.store.client

    def entries(self, after: str | None = None, *, below: str = "") -> Iterator[StoredObject]:
        """Yield entries in the order of their UTF-8 keys: all, those after a key, or those that begin with `below`.

        Several threads list large prefixes (metricgold.storage.s3_listing). A page that fails is requested again.
        """
        head = self.only or globs.literal_head(self.wanted.pattern)
        if not (head.startswith(below) or below.startswith(head)):
            return

        def page(**options: str) -> Any:
            return self._request("", "list_objects_v2", **options)

        begin = self.prefix + max(head, below, key=len)
        for found in list_objects(page, begin, self.prefix + after if after else None):
            key = found.key[len(self.prefix) :]
            is_folder_marker = not key or (key.endswith("/") and not found.bytes)
            is_hidden = self.only is None and _HIDDEN.search(key)
            if not (is_folder_marker or is_hidden) and self.only in (None, key) and key in self.wanted:
                yield StoredObject(key, found.bytes, found.tag)

    def read(self, key: str, limit: int = -1, *, start: int = 0, tag: str | None = None) -> bytes:
        """The object's bytes from `start` on, at most `limit`; ConditionFailed where its tag is not `tag`."""
        end = start + limit - 1 if limit > 0 else ""
        options = {"Range": f"bytes={start}-{end}"} if limit > 0 or start else {}

        def read_body(answer: dict[str, Any]) -> bytes:
            if tag not in (None, answer["ETag"].strip('"')):  # a store that knows no conditions
                raise ConditionFailed
            data: bytes = answer["Body"].read()
            return data

        try:
            return self._get(key, read_body, **options, **({"IfMatch": f'"{tag}"'} if tag else {}))
        except EOFError:
            return b""
        except ConditionFailed as error:
            raise _replaced(self._place(key)) from error

    def read_tagged(self, key: str, limit: int = -1) -> tuple[bytes, str, float]:
        """The object's bytes or its first `limit`, its tag, and how many seconds ago it was written.

        The age is taken from the store's own clock, in whole seconds.
        """

        def read_all(answer: dict[str, Any]) -> tuple[bytes, str, float]:
            try:
                now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
                age: timedelta = now - answer["LastModified"]
            except (KeyError, ValueError) as error:
                raise OSError(f"{self._place(key)}: the store does not say when it was written") from error
            data = answer["Body"].read(limit if limit >= 0 else None)
            return data, answer["ETag"].strip('"'), max(0.0, age.total_seconds())

        return self._get(key, read_all)

    def lines(self, key: str) -> Iterator[bytes]:
        """The object's lines, one after the other, by way of a temporary file: a read that breaks off is repeated."""

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
        """Write an object, which S3 shows complete or not at all; returns its tag. Values of `metadata` may be cut."""
        headers = {name: _header_value(text) for name, text in (metadata or {}).items()}
        options = {"ContentType": content_type, "Metadata": headers}
        if not isinstance(data, bytes):
            start = data.tell()
            num_bytes = data.seek(0, io.SEEK_END) - start
            data.seek(start)
            if num_bytes > PART_BYTES:
                return self._put_in_parts(key, data, **options)
            data = data.read()
        return self._put(key, data, **options)

    def sync(self) -> None:
        """Nothing to wait for: an object that was written stays."""

    def write_if(self, key: str, data: bytes, tag: str | None) -> None:
        """Write an object that still has this tag (None: that is not there); ConditionFailed where it has another.

        `data` must differ from what all others write. Some stores check and then write: a caller who must be the only
        writer reads the object again a little later. Raises io.UnsupportedOperation where a store knows no conditions.
        """
        try:
            self._put(key, data, **({"IfMatch": f'"{tag}"'} if tag else {"IfNoneMatch": "*"}))
        except (ConditionFailed, FileNotFoundError) as error:
            with suppress(FileNotFoundError):
                if self.read(key) == data:
                    return  # an earlier try has written it and lost the answer
            raise ConditionFailed(f"{self._place(key)}: another has written it meanwhile") from error

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.tag(key) is not None

    def tag(self, key: str) -> str | None:
        """The object's tag; None where there is no such object."""
        try:
            with self._missing_told(key):
                return str(self._request(key, "head_object", Key=self.prefix + key)["ETag"]).strip('"')
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Delete an object; quiet when there is none."""
        self._request(key, "delete_object", Key=self.prefix + key)

    def close(self) -> None:
        """Requests that wait for the store give up now, later ones are tried once."""
        self.hurry.set()

    def check_length(self, key: str) -> None:
        """Raise ValueError where the key is longer than S3 takes."""
        if (length := len((self.prefix + key).encode("utf-8", "surrogateescape"))) > MAX_KEY_BYTES:
            raise ValueError(f"a key of {length} bytes is too long, {MAX_KEY_BYTES} fit")

    @staticmethod
    def own_key(key: str) -> str:
        """The key itself: S3 keys have no special segments."""
        return key

    def prefix_of(self, other: "Folder | S3Prefix") -> str | None:
        """What the keys of `other` begin with in this bucket; None where other is not inside it."""
        if not isinstance(other, S3Prefix) or self.bucket != other.bucket:
            return None
        return other.prefix[len(self.prefix) :] if other.prefix.startswith(self.prefix) else None

    def _get(self, key: str, read: Callable[[dict[str, Any]], T], **options: str) -> T:
        def get() -> T:  # with its body, so that one that breaks off is requested again
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **options)
            with closing(answer["Body"]):
                return read(answer)

        with self._missing_told(key):
            return self._with_retries(key, get)

    @contextmanager
    def _missing_told(self, key: str) -> Iterator[None]:
        """FileNotFoundError in place of PermissionError where the listing, if it is allowed, lacks the object.

        Of one that is missing S3 says 403 and not 404 to whom it lets list some prefixes only.
        """
        try:
            yield
        except StoreLost:
            raise
        except PermissionError as error:
            listed = [{"Key": self.prefix + key}]
            with suppress(PermissionError):
                page = self._request(key, "list_objects_v2", Prefix=self.prefix + key, MaxKeys=1)
                listed = page.get("Contents", [])
            if all(item["Key"] != self.prefix + key for item in listed):
                raise FileNotFoundError(f"{self._place(key)}: no such key") from error
            raise

    def _put(self, key: str, data: bytes, **options: Any) -> str:
        answer = self._request(key, "put_object", Key=self.prefix + key, Body=data, **options)
        return str(answer["ETag"]).strip('"')

    def _put_in_parts(self, key: str, file: BinaryIO, **options: Any) -> str:
        """Write a large file: one request takes at most 5 GB, and would start over after each failure."""
        place = {"Key": self.prefix + key}
        begun = self._request(key, "create_multipart_upload", **place, **options)
        place |= {"UploadId": begun["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while block := file.read(PART_BYTES):
                number = len(parts) + 1
                done = self._request(key, "upload_part", **place, PartNumber=number, Body=block)
                parts.append({"PartNumber": number, "ETag": done["ETag"]})
            listed = {"MultipartUpload": {"Parts": parts}}
            whole = self._request(key, "complete_multipart_upload", **place, **listed)
        except BaseException:
            with suppress(OSError):  # parts of an upload that is never completed cost money
                self._request(key, "abort_multipart_upload", **place)
            raise
        return str(whole["ETag"]).strip('"')

    def _request(self, key: str, method: str, **options: Any) -> Any:
        """The answer of a method of boto3's client for this bucket; one that writes asks the fence first."""

        def request() -> Any:
            body = {}
            if method in _WRITES and self.fence is not None:
                self.fence()
                if "Body" in options:
                    body = {"Body": _FencedBody(options["Body"], self.fence)}
            return getattr(self.client, method)(Bucket=self.bucket, **options | body)

        return self._with_retries(key, request)

    def _with_retries(self, key: str, request: Callable[[], T]) -> T:
        return s3.with_retries(self._place(key), request, self.hurry, self.store.renew)

    def _place(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"


class _FencedBody(io.BytesIO):
    """Bytes that ask before they are handed on."""

    def __init__(self, data: bytes, fence: Fence) -> None:
        super().__init__(data)
        self.fence = fence

    def read(self, size: int | None = -1) -> bytes:
        self.fence()
        return super().read(size)


def _header_value(text: str) -> str:
    # Headers are ASCII in one line; other characters are percent-encoded as in a URL.
    quoted = quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="backslashreplace")
    too_long = len(quoted) - MAX_METADATA_CHARS
    return _header_value(text[: -ceil(too_long / 12)]) if too_long > 0 else quoted  # a character is at most 4 %XX


def _open_s3(location: str, create: bool, wanted: Wanted) -> S3Prefix:
    """The bucket that s3://bucket/key means: one object, all below a prefix, or what a glob matches."""
    name, _, key = location[len("s3://") :].partition("/")
    if not name:
        raise ValueError(f"{location}: expected s3://bucket/prefix")
    store, hurry = s3.S3Client(), Event()
    folder = S3Prefix(store, name, key if key.endswith("/") or not key else f"{key}/", wanted=wanted, hurry=hurry)
    # Not head_bucket: the answer to a HEAD has no words that tell expired or wrong credentials from missing rights. And
    # not of the whole bucket: the right to list may be limited to this prefix.
    probe = {"Bucket": name, "Prefix": globs.literal_head(key) if glob.has_magic(key) else folder.prefix, "MaxKeys": 1}
    s3.with_retries(location, lambda: store.client.list_objects_v2(**probe), hurry, store.renew)
    if create or not key or (key.endswith("/") and not glob.has_magic(key)):
        return folder
    parent, _, last = key.rpartition("/")
    single = replace(folder, prefix=f"{parent}/" if parent else "", only=last)
    with suppress(PermissionError):  # listing will show what is allowed
        if last and single.exists(last):
            return single
    if not glob.has_magic(key) or next(replace(folder, wanted=EVERYTHING).entries(), None):
        return folder
    root, pattern = globs.split(key)
    return replace(folder, prefix=root, wanted=replace(wanted, pattern=pattern))
