"""A bucket in memory: what a Receipt needs of one, with tags that follow from the bytes alone."""

import zlib
from collections.abc import Iterator

from metricgold.storage.buckets import StoredObject


class MemoryBucket:
    """Objects by key. `num_read` counts the bytes that were read."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.num_read = 0

    def entries(self, after: str | None = None, *, below: str = "") -> Iterator[StoredObject]:
        for key in sorted(self.objects):
            if key > (after or "") and key.startswith(below) and not key.startswith("."):
                yield StoredObject(key, len(self.objects[key]), self.tag(key))

    def read(self, key: str, limit: int = -1, *, start: int = 0, tag: str | None = None) -> bytes:
        assert tag in (None, self.tag(key))
        data = self.objects[key][start : start + limit if limit > 0 else None]
        self.num_read += len(data)
        return data

    def lines(self, key: str) -> Iterator[bytes]:
        yield from self.read(key).splitlines(keepends=True)

    def write(self, key: str, data, content_type: str = "", *, durable: bool = False, metadata=None) -> str:
        self.objects[key] = data if isinstance(data, bytes) else data.read()
        return self.tag(key)

    def tag(self, key: str) -> str | None:
        data = self.objects.get(key)
        return None if data is None else f"{len(data)}-{zlib.crc32(data)}"

    def exists(self, key: str) -> bool:
        return key in self.objects

    def delete(self, key: str) -> None:
        for name in [name for name in self.objects if name == key or name.startswith(f"{key}/")]:
            del self.objects[name]

    def sync(self) -> None:
        pass
