"""What lies below a prefix of an S3 store, in the order of keys; a large listing is read by several threads.

A store lists one page after the other, and each has to be waited for. Listings of other prefixes need not wait: so the
folders below the prefix are listed beside one another, and joined in order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Event
from typing import Any, NamedTuple

THREADS = 8
PAGES_AHEAD = 10  # that each of them reads of a folder; the rest follows when its turn has come
ENOUGH_FOLDERS = 2 * THREADS  # with fewer, those below them are asked for
MOST_PAGES_OF_FOLDERS = 10  # of one folder, else it is listed as a whole
MIN_KEYS_OF_FOLDER = 20  # on average: smaller folders would cost more requests than they save waiting

Request = Callable[..., dict[str, Any]]  # list_objects_v2 of one bucket


class ListedObject(NamedTuple):
    """An object of a bucket, by its whole key."""

    key: str
    bytes: int
    tag: str


Part = ListedObject | str  # of a listing: an object, or a folder by its prefix, with a slash at the end
Page = tuple[list[ListedObject], str | None]  # and where the next one begins


def list_objects(request: Request, prefix: str, after: str | None = None) -> Iterator[ListedObject]:
    """All objects below a prefix, or those after a key, in the order of their UTF-8 keys."""
    first = _page(request, prefix, StartAfter=after) if after else _page(request, prefix)
    if after is not None or first[1] is None or _has_small_folders(first[0], prefix):
        yield from _rest(request, prefix, first)
        return
    stop = Event()
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from _in_turn(request, _parts(request, prefix, pool), pool, stop)
    finally:  # also where the caller needs no more of it
        stop.set()
        pool.shutdown(cancel_futures=True)


def _page(request: Request, prefix: str, **options: str) -> Page:
    page = request(Prefix=prefix, **options)
    return _objects(page), page["NextContinuationToken"] if page.get("IsTruncated") else None


def _objects(page: dict[str, Any]) -> list[ListedObject]:
    return [ListedObject(item["Key"], item["Size"], item["ETag"].strip('"')) for item in page.get("Contents", ())]


def _rest(request: Request, prefix: str, page: Page) -> Iterator[ListedObject]:
    """The objects of a page and of those that follow it."""
    while True:
        objects, token = page
        yield from objects
        if token is None:
            return
        page = _page(request, prefix, ContinuationToken=token)


def _has_small_folders(objects: list[ListedObject], prefix: str) -> bool:
    folders = {found.key.rpartition("/")[0] for found in objects if "/" in found.key[len(prefix) :]}
    return len(folders) * MIN_KEYS_OF_FOLDER > len(objects)


def _parts(request: Request, prefix: str, pool: ThreadPoolExecutor) -> list[Part]:
    """The objects and folders that make up a listing, in order; folders of folders until there are enough."""
    parts: list[Part] = [prefix]
    whole: set[str] = set()  # folders that are not divided
    while folders := [part for part in parts if isinstance(part, str) and part not in whole]:
        if sum(isinstance(part, str) for part in parts) >= ENOUGH_FOLDERS:
            break
        found = dict(zip(folders, pool.map(lambda folder: _divide(request, folder), folders), strict=True))
        whole |= {folder for folder, inside in found.items() if inside is None}
        parts = [one for part in parts for one in (isinstance(part, str) and found.get(part)) or [part]]
    return parts


def _divide(request: Request, folder: str) -> list[Part] | None:
    """The objects and folders directly in a folder; None for one that begins without folders, or has too many."""
    parts: list[Part] = []
    options: dict[str, str] = {}
    for _ in range(MOST_PAGES_OF_FOLDERS):
        page = request(Prefix=folder, Delimiter="/", **options)
        folders = [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        parts += sorted([*_objects(page), *folders], key=lambda part: part if isinstance(part, str) else part.key)
        if not any(isinstance(part, str) for part in parts):
            return None
        if not page.get("IsTruncated"):
            return parts
        options = {"ContinuationToken": page["NextContinuationToken"]}
    return None


def _in_turn(request: Request, parts: list[Part], pool: ThreadPoolExecutor, stop: Event) -> Iterator[ListedObject]:
    """The objects of all parts in order, while the pool reads the beginnings of the next folders."""
    folders = (part for part in parts if isinstance(part, str))
    ahead = deque(pool.submit(_beginning, request, folder, stop) for folder in islice(folders, THREADS))
    for part in parts:
        if not isinstance(part, str):
            yield part
            continue
        page = ahead.popleft().result()
        ahead.extend(pool.submit(_beginning, request, folder, stop) for folder in islice(folders, 1))
        yield from _rest(request, part, page)


def _beginning(request: Request, folder: str, stop: Event) -> Page:
    """The first pages of a folder in one."""
    objects, token = _page(request, folder)
    for _ in range(PAGES_AHEAD - 1):
        if token is None or stop.is_set():
            break
        more, token = _page(request, folder, ContinuationToken=token)
        objects += more
    return objects, token
