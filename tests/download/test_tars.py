"""Tars that arrive in pieces, over several lives."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest

from metricgold.download.archives import extract, extract_tar

LONG = "long/" + "n" * 120 + "/" + "m" * 90 + ".bin"


def make_tar(members, fmt=tarfile.PAX_FORMAT, trailing=b"", **kwargs) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt, **kwargs) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            file.addfile(info, io.BytesIO(content))
    return out.getvalue() + trailing


def noise(num_bytes, seed=0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


class Upstream:
    """A tar behind `open_at`, with a count of what was asked for; breaks off at given offsets, once each."""

    def __init__(self, content, chunk_bytes=4096, breaks=()):
        self.content, self.chunk_bytes, self.breaks = content, chunk_bytes, sorted(breaks)
        self.times_asked = np.zeros(len(content), int)
        self.starts = []

    def __call__(self, start):
        self.starts.append(start)
        while start < len(self.content):
            end = min(start + self.chunk_bytes, len(self.content))
            if self.breaks and start <= self.breaks[0] < end:
                end = self.breaks.pop(0)
                self.times_asked[start:end] += 1
                yield self.content[start:end]
                raise OSError("line cut")
            self.times_asked[start:end] += 1
            yield self.content[start:end]
            start = end


def until_done(upstream, into, **kwargs):
    for _ in range(10_000):
        try:
            return extract_tar(upstream, into, label="x", **kwargs)
        except OSError as error:
            assert str(error) == "line cut"
    raise AssertionError("no end")


def check(result, members, content, into):
    assert list(result.members) == sorted(members)
    for name, wanted in members.items():
        found = result.members[name]
        assert (into / name).read_bytes() == wanted
        assert (found.num_bytes, found.crc32) == (len(wanted), zlib.crc32(wanted))
        assert content[found.start : found.start + found.num_bytes] == wanted
    assert result.num_bytes == len(content)
    for name, digest in result.digests.items():
        assert digest == hashlib.new(name, content).hexdigest()
    files = {path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file()}
    assert files == {*members, ".glue", ".members"}


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("chunk_bytes", [1, 700, 1 << 20])
def test_every_dialect_in_chunks_of_any_size(tmp_path, fmt, chunk_bytes):
    members = {"a.txt": b"a", "empty": b"", LONG: noise(513), "b/512": noise(512), "ü.bin": noise(3000, 1)}
    content = make_tar(members, fmt, trailing=b"behind the end")
    upstream = Upstream(content, chunk_bytes)
    result = extract_tar(upstream, tmp_path, label="x", algorithms=("md5", "sha512"))
    check(result, members, content, tmp_path)
    assert set(result.digests) == {"md5", "sha512"}
    assert extract_tar(upstream, tmp_path, label="x", algorithms=("md5",)).members == result.members
    assert upstream.starts == [0], "what is done asks for nothing"
    (tmp_path / "a.tar").write_bytes(content)
    whole = extract(tmp_path / "a.tar", tmp_path / "whole", label="x")
    assert whole == {name: found[:2] for name, found in result.members.items()}


@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_cut_at_every_kind_of_place(tmp_path, fmt):
    members = {"a": b"a", LONG: noise(5000), "c/512": noise(512), "d": b"", "e": noise(700)}
    content = make_tar(members, fmt, trailing=b"more")
    for at in range(0, len(content), 97):
        upstream = Upstream(content, breaks=[at])
        result = until_done(upstream, tmp_path / str(at), algorithms=("sha256",))
        check(result, members, content, tmp_path / str(at))
        assert upstream.times_asked.sum() < len(content) + 11_000  # the headers, padding and end mark of one place
        for found in result.members.values():
            assert upstream.times_asked[found.start : found.start + found.num_bytes].max(initial=1) == 1


def test_a_line_that_breaks_a_hundred_times(tmp_path):
    rng = np.random.default_rng(0)
    members = {f"{i % 7}/{i}.npy": noise(int(n), i) for i, n in enumerate(rng.integers(0, 60_000, 60))}
    content = make_tar(members)
    upstream = Upstream(content, 10_000, breaks=rng.integers(0, len(content), 100).tolist())
    result = until_done(upstream, tmp_path, algorithms=("md5",))
    check(result, members, content, tmp_path)
    assert upstream.times_asked.sum() < 1.2 * len(content)


def test_global_extensions_outlive_a_cut(tmp_path):
    members = {"a": noise(2000), "b": noise(2000)}
    content = make_tar(members, pax_headers={"comment": "kept", "mtime": "12"})
    result = until_done(Upstream(content, breaks=[3000, 4500]), tmp_path, algorithms=("md5",))
    check(result, members, content, tmp_path)
    assert '"comment": "kept"' in (tmp_path / ".members").read_text()


def test_what_nobody_wants_is_hashed_and_of_it_only_the_large_is_asked_for_again(tmp_path):
    big, small = noise(3 << 20), noise(100_000)
    members = {"1.jpg": small, "2.npy": small, "3.jpg": big, "4.npy": small, "5.npy": small}
    content = make_tar(members)
    wanted = {name: value for name, value in members.items() if name.endswith(".npy")}
    breaks = [120_000, 150_000, 1_000_000, len(content) - 100_000]
    upstream = Upstream(content, breaks=breaks)
    result = until_done(upstream, tmp_path / "hashed", globs=("*.npy",), algorithms=("md5",))
    check(result, wanted, content, tmp_path / "hashed")
    start = content.index(big)
    assert upstream.times_asked[start : start + len(big)].max() > 1
    upstream.times_asked[start : start + len(big)] = 1
    assert upstream.times_asked.sum() < len(content) + len(breaks) * 8192 + len(small)
    upstream = Upstream(content, breaks=breaks)
    result = until_done(upstream, tmp_path / "unhashed", globs=("*.npy",))
    check(result, wanted, content, tmp_path / "unhashed")
    assert upstream.times_asked[start : start + len(big)].max() == 1, "without a digest it does not matter"
    assert (tmp_path / "hashed/.glue").stat().st_size < 200_000


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from metricgold.download.archives import extract_tar

content, into, log = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), os.open(sys.argv[3], os.O_APPEND | os.O_WRONLY)

def open_at(start):
    while start < len(content):
        chunk = content[start : start + 4096]
        os.write(log, f"{start} {len(chunk)}\\n".encode())
        yield chunk
        start += len(chunk)

random.seed(int(sys.argv[4]))
kills = 0
while True:
    child = os.fork()
    if child == 0:
        result = extract_tar(open_at, into, label="x", algorithms=("sha256",), globs=("*.npy",))
        print(kills, result.num_bytes, result.digests["sha256"], flush=True)
        os._exit(0)
    # Short lives: a child hashes again what is there before it goes on, so each is given a little more time.
    time.sleep(random.random() * (0.004 + 0.0002 * kills))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0:
        break
    kills += 1
"""


def test_killed_at_random_moments_it_ends_the_same_and_fetches_no_member_twice(tmp_path):
    rng = np.random.default_rng(1)
    sizes = rng.choice([10, 600, 5000, 70_000, 200_000], 120)
    members = {f"{i % 5}/{i}.{'jpg' if i % 6 == 0 else 'npy'}": noise(int(n), i) for i, n in enumerate(sizes)}
    content = make_tar(members, trailing=b"end")
    wanted = {name: value for name, value in members.items() if name.endswith(".npy")}
    (tmp_path / "a.tar").write_bytes(content)
    num_kills = 0
    for seed in range(2):
        into, log = tmp_path / f"out{seed}", tmp_path / f"log{seed}"
        log.touch()
        arguments = [tmp_path / "a.tar", into, log, seed]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        kills, num_bytes, digest = done.stdout.split()[-3:]
        assert (int(num_bytes), digest) == (len(content), hashlib.sha256(content).hexdigest())
        num_kills += int(kills)
        upstream = Upstream(content)
        check(extract_tar(upstream, into, label="x", globs=("*.npy",)), wanted, content, into)
        assert not upstream.starts
        times_asked = np.zeros(len(content), int)
        for line in log.read_text().splitlines():
            start, length = map(int, line.split())
            times_asked[start : start + length] += 1
        assert times_asked.min() == 1
        # Small unwanted members (here to 200,000 bytes) may come again, of those wanted only the last few kilobytes.
        for name, value in wanted.items():
            start = content.index(value) if len(value) > 600 else 0
            assert len(value) <= 8192 + 4096 or times_asked[start : start + len(value)].min() == 1, name
    assert num_kills >= 30
    print(f"{num_kills} kills")


def test_other_globs_or_a_damaged_folder_start_anew(tmp_path):
    members = {"a.npy": noise(3000), "b.jpg": noise(3000, 1), "c.npy": noise(3000, 2)}
    content = make_tar(members)
    only = {name: value for name, value in members.items() if name.endswith(".npy")}
    result = extract_tar(Upstream(content), tmp_path, label="x", globs=("*.npy",), algorithms=("md5",))
    check(result, only, content, tmp_path)
    (tmp_path / "a.npy").write_bytes(b"short")
    result = extract_tar(Upstream(content), tmp_path, label="x", globs=("*.npy",), algorithms=("md5",))
    check(result, only, content, tmp_path)
    (tmp_path / "a.npy").unlink()
    result = extract_tar(Upstream(content), tmp_path, label="x", globs=("*.npy",), algorithms=("md5",))
    check(result, only, content, tmp_path)
    result = extract_tar(Upstream(content), tmp_path, label="x", globs=("[ab].*",), algorithms=("md5",))
    assert list(result.members) == ["a.npy", "b.jpg"]
    result = extract_tar(Upstream(content), tmp_path, label="x", globs=("[ab].*",), algorithms=("sha256",))
    assert result.digests == {"sha256": hashlib.sha256(content).hexdigest()}, "another digest than the one known"


def test_a_torn_journal_is_one_without_its_last_line(tmp_path):
    members = {"a.npy": noise(3000), "c.npy": noise(3000, 2)}
    content = make_tar(members)
    extract_tar(Upstream(content), tmp_path, label="x", algorithms=("md5",))
    lines = tmp_path / ".members"
    whole = lines.read_bytes()
    for cut in range(0, len(whole), 5):
        lines.write_bytes(whole[:cut])
        result = extract_tar(Upstream(content), tmp_path, label="x", algorithms=("md5",))
        check(result, members, content, tmp_path)


def test_another_tar_upstream_shows_in_the_digest(tmp_path):
    content = make_tar({"a": noise(3000), "b": noise(3000, 1)})
    with pytest.raises(OSError, match="line cut"):
        extract_tar(Upstream(content, breaks=[5000]), tmp_path, label="x", algorithms=("md5",))
    other = make_tar({"a": noise(3000, 5), "b": noise(3000, 6)})
    result = extract_tar(Upstream(other), tmp_path, label="x", algorithms=("md5",))
    assert result.digests["md5"] != hashlib.md5(other).hexdigest()


def test_what_the_stream_raises_passes(tmp_path):
    def open_at(start):
        raise LookupError("not ours to explain")
        yield

    with pytest.raises(LookupError, match="not ours"):
        extract_tar(open_at, tmp_path, label="x")


# What tarfile lets pass


def header(name, size, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.size, info.type = 0, kind
    for key, value in fields.items():
        setattr(info, key, value)
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    raw[148:156] = b"%06o\0 " % (256 + sum(raw[:148]) + sum(raw[156:]))
    return bytes(raw)


def refused(content, tmp_path, match):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=match) as fault:
        extract_tar(Upstream(content), tmp_path / hashlib.md5(content).hexdigest(), label="x")
    assert str(fault.value).startswith("x: ")
    with pytest.raises(ValueError, match=match):
        extract(tmp_path / "a.tar", tmp_path / "whole", label="x")


END = bytes(1024)


def test_a_broken_header_is_no_end(tmp_path):
    content = bytearray(make_tar({"a": b"1", "b": b"2"}, tarfile.USTAR_FORMAT))
    content[1024] ^= 1
    refused(bytes(content), tmp_path, "x: broken archive: no header at byte 1,024")


def test_a_tar_without_its_end_mark_is_cut(tmp_path):
    content = make_tar({"a": b"1", "b": b"2"}, tarfile.USTAR_FORMAT)
    refused(content[:2048], tmp_path, "x: broken archive: it ends 512 bytes early")
    refused(content[:1536], tmp_path, "x: broken archive: it ends 1 bytes early")
    refused(content[:1000], tmp_path, "x: broken archive: it ends 23 bytes early")


def test_negative_sizes_do_not_turn_back(tmp_path):
    refused(header("a", -1024) + END, tmp_path, "x: member 'a' declares -1,024 bytes, refused")
    refused(header("a", -1024, tarfile.GNUTYPE_LONGNAME) + END, tmp_path, "x: broken archive: a header at byte")


def test_a_size_from_a_global_extension_is_not_believed(tmp_path):
    content = tarfile.TarInfo.create_pax_global_header({"size": "5"}) + header("a", 600) + bytes(1024) + END
    refused(content, tmp_path, "x: member a declares 5 bytes and has 1,024: sparse or forged, refused")


def test_endless_names_are_not_read(tmp_path):
    refused(header("a", 1 << 40, tarfile.GNUTYPE_LONGNAME) + END, tmp_path, "a header at byte 512 of 1,099,511,627,776")


def test_sparse_members_are_refused_where_they_are_wanted(tmp_path):
    content = header("hole", 512, tarfile.GNUTYPE_SPARSE) + noise(512) + make_tar({"a": b"1"})
    refused(content, tmp_path, "x: member hole declares 0 bytes and has 512: sparse or forged, refused")
    result = extract_tar(Upstream(content), tmp_path / "rest", label="x", globs=("a",))
    assert list(result.members) == ["a"]


def test_an_empty_tar_has_nothing_to_offer(tmp_path):
    refused(bytes(10240), tmp_path, "x: no member matches anything")


def test_names_of_our_own_are_refused(tmp_path):
    for name in (".glue", ".members", ".part", "./.part/x"):
        refused(make_tar({name: b""}), tmp_path, "has a name that extraction itself uses, refused")


def test_memory_does_not_grow_with_a_member(tmp_path):
    import tracemalloc

    def open_at(start):
        yield header("zeros", 64 << 20)
        for _ in range(64):
            yield bytes(1 << 20)
        yield END

    tracemalloc.start()
    try:
        extract_tar(open_at, tmp_path, label="x", algorithms=("sha256",))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
