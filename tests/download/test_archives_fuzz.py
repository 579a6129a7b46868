"""Two thousand archives that are wrong somehow: each is refused by name, or what comes out of it is right."""

import gzip
import io
import random
import re
import shutil
import signal
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections import Counter

import pytest

from metricgold.download import gate as members
from metricgold.download.archives import extract
from metricgold.download.zips import list_zip

NUM_CASES = 2000
EVIL = ["../e", "/e", "a/../../e", "a\\..\\e", "C:e", "a\0b", "\x1b[2J", "", ".", "..", "a" * 300, "b/" * 900, ".part"]
EVIL += ["one", "ONE", "one/two", "dir", "caf\u00e9", "cafe\u0301", "bad\udcff", ".glue/x", "//", "\u202eexe", "dir/"]
CONTENTS = [b"", b"x", b"depth" * 200, bytes(range(256)) * 20, random.Random(1).randbytes(3000), bytes(9000)]


class Hang(BaseException):
    pass


# Makers: sound archives, some with members that are not


def make_zip(rng):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names(rng):
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED])
            info.compress_type = rng.choice([info.compress_type] * 8 + [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            if rng.random() < 0.05:
                info.external_attr = rng.choice([stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFREG]) << 16
            # zipfile writes what it is given, a surrogate excepted.
            info.filename = info.orig_filename = name.encode("utf-8", "replace").decode()
            file.writestr(info, rng.choice(CONTENTS))
    return out.getvalue()


def make_tar(rng):
    out = io.BytesIO()
    pax = {"comment": "x"} if rng.random() < 0.1 else {}
    fmt = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=out, mode="w", format=fmt, pax_headers=pax) as file:
        for name in names(rng):
            info = tarfile.TarInfo(name[:90] if fmt == tarfile.USTAR_FORMAT else name)
            content = rng.choice(CONTENTS)
            info.size = len(content)
            if rng.random() < 0.05:
                info.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"])
                info.linkname, info.size = "../../e", info.size if info.type == b"Z" else 0
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def names(rng):
    chosen = ["one", "dir/two", "dir/sub/three", "four.npy", "long/" + "l" * 120]
    for _ in range(rng.choice([0, 0, 0, 1])):
        chosen.insert(rng.randrange(len(chosen)), rng.choice(EVIL))
    return chosen


# What goes wrong


def flip(raw, rng):
    for _ in range(rng.choice([1, 1, 2, 8])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def flip_in_headers(raw, rng):
    marks = [found.start() for found in re.finditer(rb"PK[\1\5]|ustar", bytes(raw))]
    start = rng.choice(marks or [0])
    raw[min(start + rng.randrange(-257 if raw[start] == ord("u") else 0, 60), len(raw) - 1)] = rng.randrange(256)


def cut(raw, rng):
    del raw[rng.randrange(len(raw)) :]


def cut_out(raw, rng):
    start = rng.randrange(len(raw))
    del raw[start : start + rng.choice([1, 512, 1024, 5000])]


def splice(raw, rng):
    start = rng.randrange(0, len(raw), rng.choice([1, 512]))
    at = rng.randrange(0, len(raw), rng.choice([1, 512]))
    raw[at:at] = raw[start : start + rng.choice([46, 512, 1536, 4000])]


def overwrite(raw, rng):
    start, at = rng.randrange(0, len(raw), 512), rng.randrange(0, len(raw), 512)
    piece = raw[start : start + 1024]
    raw[at : at + len(piece)] = piece


def wipe(raw, rng):
    start = rng.randrange(len(raw))
    raw[start : start + 700] = bytes(len(raw[start : start + 700]))


def append(raw, rng):
    raw += rng.randbytes(rng.choice([1, 100, 70_000]))


def nothing(raw, rng):
    pass


def directory(raw):
    return [found.start() for found in re.finditer(b"PK\1\2", bytes(raw))]


def zip_sizes(raw, rng):
    for at in directory(raw):
        if rng.random() < 0.4:
            field = rng.choice([20, 24])
            struct.pack_into("<I", raw, at + field, rng.choice([0, 1, 5000, 1 << 20, 1 << 31, (1 << 32) - 1]))


def zip_crc(raw, rng):
    at = rng.choice(directory(raw))
    struct.pack_into("<I", raw, at + 16, rng.getrandbits(32))


def zip_flags(raw, rng):
    at = rng.choice(directory(raw))
    struct.pack_into("<HH", raw, at + 8, rng.choice([0, 1, 0x20, 0x40, 0x41, 0x800, 0x2000]), rng.randrange(100))


def zip_overlap(raw, rng):
    entries = directory(raw)
    first, second = rng.choice(entries), rng.choice(entries)
    (offset,) = struct.unpack_from("<I", raw, first + 42)
    struct.pack_into("<I", raw, second + 42, max(0, offset + rng.choice([0, 0, 1, -1, 30, 1 << 20])))


def zip_lengths(raw, rng):
    at = rng.choice(directory(raw)) if rng.random() < 0.5 else rng.choice(re_starts(raw, b"PK\3\4")) - 2
    struct.pack_into("<H", raw, at + rng.choice([28, 30]), rng.choice([0, 1, 2, 1000, 65535]))


def zip_end(raw, rng):
    at = raw.rindex(b"PK\5\6")
    struct.pack_into("<I", raw, at + rng.choice([8, 12, 12, 16, 16]), rng.choice([0, 46, 100, 1 << 20, (1 << 32) - 1]))


def zip_renamed(raw, rng):
    new = rng.choice([b"../", b"/ne", b"C:e", b"o\0e", b"o\\e", b"...", b"ONE", b"o\xff\xff"])
    raw[:] = bytes(raw).replace(b"one", new)


def re_starts(raw, magic):
    return [found.start() for found in re.finditer(re.escape(magic), bytes(raw))]


def tar_field(raw, rng):
    """Any field of a header, with a checksum that agrees."""
    at = rng.choice([found - 257 for found in re_starts(raw, b"ustar")])
    start, length = rng.choice([(0, 100), (124, 12), (124, 12), (124, 12), (156, 1), (156, 1), (345, 155), (257, 8)])
    number = rng.choice([-1, -512, -5000, 0, 1, 511, 513, 1 << 20, 1 << 33, 1 << 62])
    values = {
        0: rng.choice([name.encode("utf-8", "surrogateescape") for name in EVIL]),
        124: tarfile.itn(number, 12, tarfile.GNU_FORMAT),
        156: rng.choice([b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"X", b"V", b"Z"]),
        345: rng.choice([b"..", b"/", b"one", b"a/b"]),
        257: rng.choice([b"ustar  \0", b"ustar\00000", b"\0" * 8]),
    }
    raw[at + start : at + start + length] = values[start][:length].ljust(length, b"\0")
    sign(raw, at)


def tar_pax(raw, rng):
    """An extension in front of a member; some with forged lengths, sizes and sparse maps."""
    keys = ["size", "path", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name", "hdrcharset", "mtime", "linkpath"]
    values = ["-5", "0", "3", "99999999", "x", "1,2,3", "../e", "BINARY", "9" * 5000, "\xff", "nan", "inf"]
    records = {rng.choice(keys): rng.choice(values)}
    if rng.random() < 0.2:
        records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "e"}
    make = rng.choice([tarfile.TarInfo.create_pax_global_header, pax_of_one])
    extension = bytearray(make(records))
    if rng.random() < 0.3:
        extension[512 + rng.randrange(10)] = rng.randrange(256)
    at = rng.choice([found - 257 for found in re_starts(raw, b"ustar")])
    raw[at:at] = extension


def pax_of_one(records):
    return tarfile.TarInfo._create_pax_generic_header(records, tarfile.XHDTYPE, "utf-8")


def tar_endless(raw, rng):
    kind, size = rng.choice([b"L", b"K", b"x", b"g", b"S"]), rng.choice([1 << 16, 1 << 20, 1 << 40])
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    head[124:136], head[156:157] = tarfile.itn(size, 12, tarfile.GNU_FORMAT), kind
    head[482] = 1  # a sparse map that goes on
    sign(head, 0)
    raw[0:0] = head * rng.choice([1, 1, 300])


def sign(raw, at):
    block = raw[at : at + 512]
    raw[at + 148 : at + 156] = b"%06o\0 " % ((256 + sum(block[:148]) + sum(block[156:])) & 0o777777)


def bomb(rng):
    content = bytes(rng.choice([1 << 20, 4 << 20]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("one", content)
    raw = bytearray(out.getvalue())
    if rng.random() < 0.5:  # one that denies it
        at = directory(raw)[0]
        struct.pack_into("<I", raw, at + 24, rng.choice([0, 100, 60_000]))
    return bytes(raw)


def tar_bomb(rng):
    info = tarfile.TarInfo(rng.choice(["one", "._one"]))
    info.size = 4 << 20
    return info.tobuf() + bytes(info.size) + bytes(rng.choice([1024, 1 << 20]))


ANY = [flip, flip, flip_in_headers, flip_in_headers, cut, cut_out, splice, overwrite, wipe, append, nothing]
OF_ZIP = [zip_sizes, zip_crc, zip_flags, zip_overlap, zip_overlap, zip_lengths, zip_end, zip_renamed, *ANY]
OF_TAR = [tar_field, tar_field, tar_field, tar_pax, tar_pax, tar_endless, *ANY]


def make_case(seed):
    """Kind, what was done to it, bytes."""
    rng = random.Random(seed)
    kind = rng.choice(["zip", "zip", "tar", "tar", "tar.gz"])
    if rng.random() < 0.02:
        return ("zip", "bomb", bomb(rng)) if kind == "zip" else ("tar.gz", "bomb", gzip.compress(tar_bomb(rng), 1))
    raw = bytearray(make_zip(rng) if kind == "zip" else make_tar(rng))
    fault = rng.choice(OF_ZIP if kind == "zip" else OF_TAR)
    if kind == "tar.gz" and fault in ANY and rng.random() < 0.7:  # else the fault is inside
        raw = bytearray(gzip.compress(raw, 1))
        fault(raw, rng)
    else:
        fault(raw, rng)
        if kind == "tar.gz":
            raw = bytearray(gzip.compress(raw, 1))
    return kind, fault.__name__, bytes(raw)


# The judges


def attempt(action):
    """What it answers, or its refusal."""
    try:
        return action(), None
    except ValueError as error:
        assert re.match(r"x: (member |broken archive: |no member |more than )", str(error)), str(error)
        assert "\x1b" not in str(error)
        assert len(str(error)) < 3000
        return None, str(error)


def check_files(found, out):
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    assert files == set(found)
    for name, (num_bytes, crc32, *_) in found.items():
        assert not (out / name).is_symlink()
        content = (out / name).read_bytes()
        assert (len(content), zlib.crc32(content)) == (num_bytes, crc32), name
    return {name: (out / name).read_bytes() for name in found}


def judge_zip(path, raw, jail):
    found, refusal = attempt(lambda: extract(path, jail / "out", label="x"))
    with path.open("rb") as file:
        listed, _ = attempt(lambda: list_zip(file, label="x"))
    assert listed is not None or found is None, "what is extracted could be listed"
    if found is not None:
        assert {name: tuple(value) for name, value in found.items()} == {name: m[:2] for name, m in listed.items()}
        for content in check_files(found, jail / "out").values():
            assert content in CONTENTS or len(set(content)) == 1
    return refusal


def judge_tar(path, raw, jail):
    found, refusal = attempt(lambda: extract(path, jail / "out", label="x"))
    if found is not None:
        for content in check_files(found, jail / "out").values():
            assert path.name != "a.tar" or content in raw
    return refusal


@pytest.fixture
def watchdog():
    def bark(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, bark)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 10)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
def test_two_thousand_wrong_archives(tmp_path, monkeypatch, watchdog):
    monkeypatch.setattr(members, "SMALL_BYTES", 1 << 18)
    refused, extracted = Counter(), Counter()
    began = time.monotonic()
    for seed in range(NUM_CASES):
        kind, fault, raw = make_case(seed)
        jail = tmp_path / "in"
        jail.mkdir()
        path = tmp_path / f"a.{kind}"
        path.write_bytes(raw)
        watchdog()
        try:
            refusal = (judge_zip if kind == "zip" else judge_tar)(path, raw, jail)
        except BaseException as error:
            raise AssertionError(f"case {seed}: {kind}, {fault}: {error!r}") from error
        (extracted if refusal is None else refused)[kind, fault] += 1
        assert {entry.name for entry in tmp_path.iterdir()} == {"in", path.name}
        assert {entry.name for entry in jail.iterdir()} <= {"out"}
        shutil.rmtree(jail)
        path.unlink()
    print(f"\n{refused.total()} refused, {extracted.total()} right, {time.monotonic() - began:.1f} s")
    assert refused.total() > NUM_CASES / 4
    assert extracted.total() > NUM_CASES / 8
    harmful = [("zip", "zip_crc"), ("zip", "zip_end"), ("zip", "bomb"), ("tar.gz", "bomb"), ("tar", "tar_endless")]
    assert all(refused[case] > 2 for case in harmful)
    assert all(not extracted[case] for case in [("tar", "tar_endless"), ("tar.gz", "bomb")])
    assert all(extracted[kind, "nothing"] for kind in ("zip", "tar", "tar.gz"))
