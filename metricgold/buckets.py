"""A folder or an S3 prefix behind one small interface: list, read, write, exists, delete.

Keys are relative, with `/` between segments. A file, a folder, a glob and `s3://bucket/prefix` are all buckets:
the first and the third list less. S3 takes endpoint, region and credentials from where boto3 looks for them
(AWS_ENDPOINT_URL and so on); none of them is ever an argument here.
"""

import glob
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from metricgold.storage import remove, write_aside


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object. `tag` changes when its bytes do: the ETag on S3, size and mtime in a folder."""

    key: str
    bytes: int
    tag: str


def open_bucket(location: str, *, create: bool = False) -> "Folder | S3Prefix":
    """Open a file, folder, glob or s3://bucket/prefix; with `create`, a folder or prefix to write into.

    Raises ValueError for a malformed location, FileNotFoundError or PermissionError naming the location.
    """
    if location.lower().startswith("s3://"):
        return _open_s3(location, create)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location):
        raise ValueError(f"{location}: expected a path or s3://bucket/prefix")
    path = Path(location).expanduser()
    if create:
        return _create_folder(path, location)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Folder(path.parent, only=path.name)
    if glob.has_magic(location):
        return _open_glob(path, location)
    raise FileNotFoundError(f"{location}: no such file or folder")


def _create_folder(path: Path, location: str) -> "Folder":
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{location}: expected a folder to write into, found a file") from error
    return Folder(path)


def _open_glob(path: Path, location: str) -> "Folder":
    plain = 0
    while plain < len(path.parts) and not glob.has_magic(path.parts[plain]):
        plain += 1
    root = Path(*path.parts[:plain])
    if not root.is_dir():
        raise FileNotFoundError(f"{location}: no such folder {root}")
    return Folder(root, pattern=str(Path(*path.parts[plain:])))


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder. Hidden names and links to folders are not listed; devices and pipes neither."""

    root: Path
    only: str | None = None
    pattern: str | None = None  # relative glob, ** for any depth

    def __str__(self) -> str:
        return str(self.root / (self.only or self.pattern or ""))

    def list(self) -> Iterator[Entry]:
        """Yield entries, folder by folder, in the order of their names."""
        if self.only is not None:
            yield self._entry(self.only, (self.root / self.only).stat())
        elif self.pattern is not None:
            for path in sorted(self.root.glob(self.pattern)):
                key = path.relative_to(self.root).as_posix()
                if path.is_file() and not any(part.startswith(".") for part in key.split("/")):
                    yield self._entry(key, path.stat())
        else:
            yield from self._walk("")

    def _walk(self, folder: str) -> Iterator[Entry]:
        with os.scandir(self.root / folder) as found:
            # Names only: a folder may hold a million. The slash of folders makes the order that of whole keys.
            names = sorted(
                item.name + "/" * item.is_dir(follow_symlinks=False) for item in found if not item.name.startswith(".")
            )
        for name in names:
            if name.endswith("/"):
                yield from self._walk(folder + name)
                continue
            try:
                status = (self.root / folder / name).stat()
            except FileNotFoundError:
                continue  # gone since, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                yield self._entry(folder + name, status)

    @staticmethod
    def _entry(key: str, status: os.stat_result) -> Entry:
        return Entry(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def read(self, key: str, limit: int = -1) -> bytes:
        """The object's bytes, or its first `limit`."""
        with self.path(key).open("rb") as file:
            return file.read(limit)

    def lines(self, key: str) -> Iterator[bytes]:
        """The object's lines, one after the other."""
        with self.path(key).open("rb") as file:
            yield from file

    def write(
        self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream", *, durable: bool = False
    ) -> str:
        """Write an object whole or not at all; its tag.

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

    client: Any
    bucket: str
    prefix: str
    only: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}{self.only or ''}"

    def list(self) -> Iterator[Entry]:
        """Yield entries in the order of their UTF-8 keys, a page of 1000 in memory at a time."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + (self.only or "")
        )
        with _plain_errors(str(self)):
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"][len(self.prefix) :]
                    if self.only is not None and key != self.only:
                        continue
                    if key and not (key.endswith("/") and not found["Size"]):  # markers of empty folders
                        yield Entry(key, found["Size"], found["ETag"].strip('"'))

    def read(self, key: str, limit: int = -1) -> bytes:
        """The object's bytes, or its first `limit`."""
        with self._plain_errors(key):
            return self._get(key).read(None if limit < 0 else limit)

    def lines(self, key: str) -> Iterator[bytes]:
        """The object's lines, one after the other."""
        with self._plain_errors(key):
            yield from self._get(key).iter_lines()

    def write(
        self, key: str, data: bytes | BinaryIO, content_type: str = "application/octet-stream", *, durable: bool = False
    ) -> str:
        """Write an object, which S3 shows whole or not at all; its tag."""
        with self._plain_errors(key):
            key = self.prefix + key
            answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)
        return answer["ETag"].strip('"')

    def exists(self, key: str) -> bool:
        try:
            with self._plain_errors(key):
                self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        with self._plain_errors(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    @staticmethod
    def own_key(key: str) -> str:
        """The key itself: S3 keys have no special segments."""
        return key

    def prefix_of(self, other: "Folder | S3Prefix") -> str | None:
        """What this bucket's keys begin with if they lie in `other`; None where other is elsewhere."""
        if not isinstance(other, S3Prefix) or self.bucket != other.bucket:
            return None
        return other.prefix[len(self.prefix) :] if other.prefix.startswith(self.prefix) else None

    def _get(self, key: str) -> Any:
        return self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"]

    def _plain_errors(self, key: str) -> Any:
        return _plain_errors(f"s3://{self.bucket}/{self.prefix}{key}")


def _open_s3(location: str, create: bool) -> S3Prefix:
    bucket, _, prefix = location[len("s3://") :].partition("/")
    if not bucket:
        raise ValueError(f"{location}: expected s3://bucket/prefix")
    client = _s3_client()
    with _plain_errors(location):
        client.head_bucket(Bucket=bucket)
    folder = S3Prefix(client, bucket, prefix if prefix.endswith("/") or not prefix else f"{prefix}/")
    if create or not prefix or prefix.endswith("/"):
        return folder
    parent, _, name = prefix.rpartition("/")
    single = S3Prefix(client, bucket, f"{parent}/" if parent else "", only=name)
    return single if _is_object(single, name) else folder


def _is_object(bucket: S3Prefix, key: str) -> bool:
    try:
        return bucket.exists(key)
    except PermissionError:
        return False  # listing will say what is allowed


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        max_pool_connections=64,
        s3={"addressing_style": "path"} if endpoint else None,  # own servers seldom have a name per bucket
    )
    return boto3.Session().client("s3", config=config)  # the shared session keeps old credentials


_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden", "ExpiredToken"}


@contextmanager
def _plain_errors(place: str) -> Iterator[None]:
    """Turn botocore's errors into OSErrors that name the place."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _NOT_FOUND:
            raise FileNotFoundError(f"{place}: no such bucket or key") from error
        if code in _DENIED:
            raise PermissionError(f"{place}: access denied ({code})") from error
        raise OSError(f"{place}: {error}") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise PermissionError(f"{place}: no complete S3 credentials in the environment") from error
    except boto.EndpointConnectionError as error:
        raise ConnectionError(f"{place}: cannot reach {urlsplit(error.kwargs['endpoint_url']).netloc}") from error
    except boto.ParamValidationError as error:
        raise ValueError(f"{place}: {error}") from error
    except boto.BotoCoreError as error:
        raise OSError(f"{place}: {error}") from error
