"""The content of a raw folder's files: read once, and again only where something says that they changed."""

import os

import pytest

from metricgold.datasets import content
from metricgold.datasets.content import CONTENT_CACHE, read_contents


@pytest.fixture
def raw(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
        os.utime(tmp_path / name, (1, 1))  # long ago
    return tmp_path


@pytest.fixture
def hashed(monkeypatch):
    names = []
    digest = content.digest_crc32
    monkeypatch.setattr(content, "digest_crc32", lambda path: names.append(path.name) or digest(path))
    return names


def look(raw, *names):
    return read_contents(raw, [raw / name for name in names or ("a", "b")])


def test_a_file_is_read_again_only_where_size_time_or_inode_changed(raw, hashed):
    first = look(raw)
    assert look(raw) == first and sorted(hashed) == ["a", "b"]
    (raw / "a").write_bytes(b"c" * 100)
    assert look(raw)["a"] != first["a"] and hashed[2:] == ["a"]
    (raw / "other").write_bytes(b"d" * 100)
    os.utime(raw / "other", (1, 1))
    (raw / "other").replace(raw / "b")
    assert look(raw, "b")["b"] != first["b"]


def test_a_file_written_just_now_is_not_trusted_by_its_time(raw, hashed):
    (raw / "a").write_bytes(b"x" * 100)
    stat = (raw / "a").stat()
    look(raw)
    (raw / "a").write_bytes(b"y" * 100)
    os.utime(raw / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # within one tick of the disk's clock
    look(raw)
    assert hashed.count("a") == 2 and hashed.count("b") == 1


def test_a_broken_cache_is_no_cache(raw, hashed):
    first = look(raw)
    (raw / CONTENT_CACHE).write_bytes(b"not a database" * 100)
    assert look(raw) == first and len(hashed) == 4
    assert look(raw) == first and len(hashed) == 4, "another has taken its place"


def test_a_cache_that_cannot_be_opened_is_done_without(raw, hashed):
    (raw / CONTENT_CACHE).mkdir()
    assert look(raw) == look(raw) and len(hashed) == 4


def test_an_unreadable_file_has_no_checksum_until_it_can_be_read(raw):
    assert look(raw, "a", "gone")["gone"].crc32 is None
    (raw / "gone").write_bytes(b"back")
    assert look(raw, "gone")["gone"].crc32 is not None
