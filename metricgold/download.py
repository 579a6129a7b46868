"""Fetch what a manifest names, verify it, extract it, and keep account of it.

    into/manifest.yaml        the manifest that decided
    into/.ledger/*.json       one receipt per finished archive: source, digests, members; what a rerun trusts
    into/ledger.json          written last: all archives are here; no times or sources, equal data give equal bytes
    into/.part/               archives and members on their way; empty after a run

An archive's members appear in `into` only after all of them were extracted. What a receipt lists and the manifest
no longer does is removed, so `into` never mixes two versions of a data set.
"""

import hashlib
import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import yaml

from metricgold.archives import extract, is_archive
from metricgold.manifest import Archive, Manifest, Source
from metricgold.storage import BLOCK_BYTES, digest_json, only_writer, read_json, remove, write_aside, write_json

log = logging.getLogger(__name__)
Progress = Callable[[int], Any]  # told the number of bytes that just arrived

RESERVED = ("manifest.yaml", "ledger.json", ".ledger", ".part")
NUM_TRIES = 3
FIRST_WAIT_SECONDS = 1.0
TIMEOUT_SECONDS = 60
WORTH_A_LINE_BYTES = 10_000_000


def download(manifest: Manifest, into: Path, *, num_workers: int = 4, progress: Progress | None = None) -> Path:
    """Bring `into` to what the manifest says; answer the path of ledger.json.

    Finished archives are not fetched again while their members are there. Without `progress` a terminal gets a bar.
    One archive's fault does not stop the others; all are raised together, each naming its archive: ValueError for
    what is wrong with bytes or names, OSError when at least one could not be fetched.
    """
    into = Path(into)
    with only_writer(into):
        into.mkdir(parents=True, exist_ok=True)
        remove(into / ".part")
        sources = resolve_sources(manifest)
        todo = _drop_stale(manifest, sources, into)
        if todo:
            remove(into / "ledger.json")
        _write_manifest(manifest, into)
        try:
            with _bar(todo, manifest.name, progress) as advance, ThreadPoolExecutor(num_workers) as pool:
                _run_all(pool, lambda source: _finish(manifest, source, into, advance), todo)
        finally:
            remove(into / ".part")
        log.info("%s: %d of %d archives and files were fetched", manifest.name, len(todo), len(sources))
        return _write_ledger(manifest, sources, into)


def _run_all(pool: Executor, work: Callable[[Source], None], todo: list[Source]) -> None:
    futures = [pool.submit(work, source) for source in todo]
    errors = []
    try:
        for future in as_completed(futures):
            if isinstance(error := future.exception(), ValueError | OSError):
                errors.append(error)
            else:
                future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = ValueError if all(isinstance(error, ValueError) for error in errors) else OSError
        raise kind("\n".join([f"{len(errors)} of {len(todo)} failed:", *sorted(map(str, errors))]))


# What to fetch


def resolve_sources(manifest: Manifest) -> list[Source]:
    """Archives and files with their checksums filled in from the published list, if there is one."""
    listed = _published_checksums(manifest)
    algorithm = manifest.checksums.algorithm if manifest.checksums else None
    sources: Iterable[Source] = (*manifest.archives, *manifest.files)
    if not manifest.archives:
        known = {file.path for file in manifest.files}
        sources = (*manifest.files, *(Archive(path=path) for path in sorted(listed) if path not in known))
    return [_with_checksum(source, algorithm, listed.get(source.path)) for source in sources]


def _with_checksum(source: Source, algorithm: str | None, digest: str | None) -> Source:
    if digest is None:
        return source
    own = getattr(source, algorithm)
    if own not in (None, digest):
        raise ValueError(f"{source.path}: the manifest's {algorithm} is {own}, the published list has {digest}")
    return source.model_copy(update={algorithm: digest})


def _published_checksums(manifest: Manifest) -> dict[str, str]:
    if manifest.checksums is None:
        return {}
    chunks: list[bytes] = []
    _fetch_from_any(manifest, Source(path=manifest.checksums.path), lambda url: chunks.extend(_only(_read(url))))
    return parse_checksums(b"".join(chunks).decode(), manifest.checksums.path)


def _only(chunks: Iterator[bytes]) -> list[bytes]:
    return list(chunks)  # whole before it is kept: a broken try leaves nothing behind


def parse_checksums(text: str, label: str) -> dict[str, str]:
    """path -> hex digest of a list in md5sum's form. ValueError names `label` and the line that is not."""
    digests = {}
    for line in filter(str.strip, text.splitlines()):
        digest, _, name = line.strip().partition(" ")
        path = name.strip().removeprefix("*").removeprefix("./")
        if not path or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{label}: not a line of a checksum list: {line!r}")
        digests[Source(path=path).path] = digest
    return digests


# What is there already


def _receipt_path(into: Path, source_path: str) -> Path:
    return into / ".ledger" / f"{quote(source_path, safe='')}.json"


def _identity(manifest: Manifest, source: Source) -> str:
    wanted = source.model_dump(exclude={"url", "scenes"}) | {"members": list(manifest.members)}
    return digest_json(wanted)


def _drop_stale(manifest: Manifest, sources: list[Source], into: Path) -> list[Source]:
    """Remove what receipts list and the manifest does not want; answer the sources that are still to be fetched."""
    wanted = {_receipt_path(into, source.path): source for source in sources}
    for path in sorted((into / ".ledger").glob("*.json")):
        receipt = read_json(path)
        source = wanted.get(path)
        if source and receipt["identity"] == _identity(manifest, source) and _is_whole(receipt, into):
            del wanted[path]
        else:
            log.info("%s: removing what came from %s, to be replaced or no longer wanted", into, receipt["path"])
            _remove_members(receipt, into)
            path.unlink()
    return list(wanted.values())


def _is_whole(receipt: dict, into: Path) -> bool:
    try:
        return all((into / name).stat().st_size == num_bytes for name, num_bytes in receipt["members"].items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove_members(receipt: dict, into: Path) -> None:
    folders = set()
    for name in receipt["members"]:
        (into / name).unlink(missing_ok=True)
        folders.update(parent for parent in (into / name).parents if parent.is_relative_to(into) and parent != into)
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# One archive


def _finish(manifest: Manifest, source: Source, into: Path, advance: Progress) -> None:
    """Fetch, verify, extract, move into place, write the receipt, drop the archive."""
    slug = quote(source.path, safe="")
    fetched, staged = into / ".part" / slug, into / ".part" / f"{slug}.members"
    fetched.parent.mkdir(exist_ok=True)
    digests: dict[str, Any] = {}
    url = _fetch_from_any(manifest, source, lambda url: digests.update(_fetch(url, source, fetched, advance)))
    if is_archive(source.path):
        folder = Path(getattr(source, "into", "."))
        sizes = extract(fetched, staged, label=url, globs=manifest.members)
        members = {(folder / name).as_posix(): num_bytes for name, num_bytes in sizes.items()}
        moves = {into / folder / name: staged / name for name in sizes}
    else:
        members, moves = {source.path: digests["bytes"]}, {into / source.path: fetched}
    _place(moves, members, url)
    write_json(
        _receipt_path(into, source.path),
        {"path": source.path, "identity": _identity(manifest, source), "source": url, "members": members, **digests},
    )
    remove(fetched)
    remove(staged)
    # Hundreds of small archives would drown a log; the receipts name each of them.
    level = logging.INFO if digests["bytes"] >= WORTH_A_LINE_BYTES else logging.DEBUG
    log.log(level, "%s: %s, %d bytes, %d members", manifest.name, source.path, digests["bytes"], len(members))


def _place(moves: dict[Path, Path], members: dict[str, int], label: str) -> None:
    for name in members:
        if name.split("/")[0] in RESERVED:
            raise ValueError(f"{label}: member {name} has a name that is kept for the ledger, refused")
    for target, staged in moves.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)  # noqa: PTH105 - same as Path.replace, said of two paths


def _fetch(url: str, source: Source, path: Path, advance: Progress) -> dict[str, Any]:
    """Stream a URL to a file and hash on the way. ValueError when it is not what the manifest or its list says."""
    hashes = {"sha256": hashlib.sha256()} | ({"md5": hashlib.md5(usedforsecurity=False)} if source.md5 else {})
    num_bytes = 0
    with path.open("wb") as file:
        for chunk in _read(url):
            file.write(chunk)
            num_bytes += len(chunk)
            for running in hashes.values():
                running.update(chunk)
            advance(len(chunk))
    found = {"bytes": num_bytes} | {name: running.hexdigest() for name, running in hashes.items()}
    for key, value in found.items():
        expected = getattr(source, key)
        if expected not in (None, value):
            raise ValueError(f"{key} is {value}, expected {expected}")
    return found


# Bytes from somewhere


def _fetch_from_any(manifest: Manifest, source: Source, fetch: Callable[[str], Any]) -> str:
    """Try every mirror in turn, a few times over; answer the URL that worked."""
    urls = [source.url] if source.url else [_join(mirror, source.path) for mirror in manifest.mirrors]
    faults: dict[str, Exception] = {}
    for number in range(NUM_TRIES):
        left = [url for url in urls if not isinstance(faults.get(url), ValueError | FileNotFoundError)]
        for url in left:
            try:
                fetch(url)
                return url
            except (OSError, ValueError) as error:
                log.warning("%s: %s", url, error)
                faults[url] = error
        if left and number < NUM_TRIES - 1 and not all(url.startswith("file:") for url in left):
            time.sleep(FIRST_WAIT_SECONDS * 2**number)
    kind = ValueError if all(isinstance(fault, ValueError) for fault in faults.values()) else OSError
    raise kind("; ".join(f"{source.path} from {url}: {fault}" for url, fault in faults.items()))


def _join(mirror: str, path: str) -> str:
    return f"{mirror.rstrip('/')}/{quote(path) if mirror.startswith('http') else path}"


def _read(url: str) -> Iterator[bytes]:
    """Bytes of a URL in blocks. FileNotFoundError when there is no such thing, OSError for all else."""
    readers = {"file": _read_file, "http": _read_http, "https": _read_http, "s3": _read_s3}
    return readers[urlsplit(url).scheme](url)


def _read_file(url: str) -> Iterator[bytes]:
    # file://data/x is relative to the working directory, file:///data/x is absolute.
    with Path(unquote(url.removeprefix("file://"))).open("rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            yield chunk


def _read_http(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - manifests allow no other
            yield from _whole(answer, answer.headers.get("Content-Length"), url)
    except urllib.error.HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise OSError(f"HTTP answer broken: {error!r}") from error


def _read_s3(url: str) -> Iterator[bytes]:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = urlsplit(url).netloc, url.removeprefix("s3://").partition("/")[2]
    try:
        answer = boto3.client("s3").get_object(Bucket=bucket, Key=key)
        yield from _whole(answer["Body"], answer["ContentLength"], url)
    except ClientError as error:
        missing = error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404")
        raise (FileNotFoundError if missing else OSError)(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error


def _whole(stream: Any, content_length: str | int | None, url: str) -> Iterator[bytes]:
    left = None if content_length is None else int(content_length)
    while chunk := stream.read(BLOCK_BYTES):
        left = None if left is None else left - len(chunk)
        yield chunk
    if left:
        raise OSError(f"answer ended {left} bytes early")


# What is left behind


def _write_manifest(manifest: Manifest, into: Path) -> None:
    values = manifest.model_dump(mode="json", exclude_unset=True)
    with write_aside(into / "manifest.yaml") as aside:
        aside.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _write_ledger(manifest: Manifest, sources: list[Source], into: Path) -> Path:
    archives, owner = {}, {}
    for source in sources:
        receipt = read_json(_receipt_path(into, source.path))
        for name in receipt["members"]:
            if name in owner:
                raise ValueError(f"{into / name} lies in both {owner[name]} and {source.path}")
            owner[name] = source.path
        archives[source.path] = {
            "bytes": receipt["bytes"],
            "sha256": receipt["sha256"],
            "members": len(receipt["members"]),
            "members_sha256": digest_json(receipt["members"]),
        }
    # Where archives came from may change between runs; what decides frames may not without a trace.
    decided_by = manifest.model_dump(mode="json", include={"name", "members", "splits", "exclude"})
    ledger = {"dataset": manifest.name, "archives": archives, "manifest_sha256": digest_json(decided_by)}
    write_json(into / "ledger.json", ledger)
    return into / "ledger.json"


@contextmanager
def _bar(todo: list[Source], name: str, progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    from tqdm import tqdm

    total = sum(source.bytes or 0 for source in todo) or None
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=quiet) as bar:
        yield bar.update
