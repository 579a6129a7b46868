"""Tars: every dialect comes out right, and what tarfile lets pass is refused."""

import gzip
import io
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest

from metricgold.download.archives import extract

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


def check(content, members, tmp_path, **kwargs):
    """Extracted from the tar and from the same in gzip: these members, and nothing else."""
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content, 1))
    for archive in (tmp_path / "a.tar", tmp_path / "a.tar.gz"):
        into = tmp_path / f"{archive.name}.out"
        found = extract(archive, into, label="x", **kwargs)
        assert list(found) == sorted(members)
        for name, wanted in members.items():
            assert (into / name).read_bytes() == wanted
            assert found[name] == (len(wanted), zlib.crc32(wanted))
        files = {path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file()}
        assert files == members.keys()


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect(tmp_path, fmt):
    members = {"a.txt": b"a", "empty": b"", LONG: noise(513), "b/512": noise(512), "ü.bin": noise(3000, 1)}
    check(make_tar(members, fmt, trailing=b"behind the end"), members, tmp_path)


def test_global_extensions(tmp_path):
    members = {"a": noise(2000), "b": noise(2000)}
    check(make_tar(members, pax_headers={"comment": "kept", "mtime": "12"}), members, tmp_path)


def test_unwanted_members_are_passed_over(tmp_path):
    big, small = noise(3 << 20), noise(100_000)
    members = {"1.jpg": small, "2.npy": small, "3.jpg": big, "4.npy": small, "5.npy": small}
    wanted = {name: value for name, value in members.items() if name.endswith(".npy")}
    check(make_tar(members), wanted, tmp_path, globs=("*.npy",))


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
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content, 1))
    for name in ("a.tar", "a.tar.gz"):
        with pytest.raises(ValueError, match=match) as fault:
            extract(tmp_path / name, tmp_path / "whole", label="x")
        assert str(fault.value).startswith("x: ")


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
    check(content, {"a": b"1"}, tmp_path, globs=("a",))


def test_an_empty_tar_has_nothing_to_offer(tmp_path):
    refused(bytes(10240), tmp_path, "x: no member matches anything")


def test_names_of_our_own_are_refused(tmp_path):
    for name in (".part", "./.part/x"):
        refused(make_tar({name: b""}), tmp_path, "has a name that extraction itself uses, refused")


def test_memory_does_not_grow_with_a_member(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header("zeros", 64 << 20))
        file.truncate(512 + (64 << 20) + len(END))
    tracemalloc.start()
    try:
        assert extract(tmp_path / "a.tar", tmp_path / "out", label="x")["zeros"].num_bytes == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
