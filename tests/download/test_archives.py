"""Archives made to do harm, and archives that are merely broken."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
import zlib

import py7zr
import pytest
from hypothesis import given, settings, strategies as st

from metricgold.datasets.manifest import is_archive
from metricgold.download import gate as members
from metricgold.download.archives import extract
from metricgold.download.gate import Extracted
from metricgold.download.ranges import join_ranges
from metricgold.download.zips import list_zip


def make_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make_7z(path, members, **kwargs):
    with py7zr.SevenZipFile(path, "w", **kwargs) as file:
        file.set_encoded_header_mode(False)  # names in clear, for `rewrite_7z`
        for name, content in members:
            file.writestr(content, name)
    return path


def rewrite_7z(path, old, new):
    """Put another name of the same length into a 7z, and make its checksums agree."""
    raw = bytearray(path.read_bytes().replace(old.encode("utf-16le"), new.encode("utf-16le")))
    offset, size = struct.unpack_from("<QQ", raw, 12)
    struct.pack_into("<I", raw, 28, zlib.crc32(raw[32 + offset : 32 + offset + size]))
    struct.pack_into("<I", raw, 8, zlib.crc32(raw[12:32]))
    path.write_bytes(raw)


def make(path, members):
    if path.suffix == ".zip":
        return make_zip(path, members)
    if path.suffix == ".7z":
        return make_7z(path, members)
    return make_tar(path, members, "w:gz" if path.suffix == ".gz" else "w")


KINDS = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
ALL_KINDS = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz", "a.7z"])


@ALL_KINDS
def test_members_come_out_whole_and_sorted(tmp_path, kind):
    archive = make(tmp_path / kind, [("b/2.txt", b"two"), ("b/1.txt", b"one"), ("c.txt", b"")])
    found = extract(archive, tmp_path / "out", label="x")
    assert {name: member.num_bytes for name, member in found.items()} == {"b/1.txt": 3, "b/2.txt": 3, "c.txt": 0}
    assert all(zlib.crc32((tmp_path / "out" / name).read_bytes()) == member.crc32 for name, member in found.items())
    assert (tmp_path / "out/b/2.txt").read_bytes() == b"two"


@ALL_KINDS
def test_side_cars_and_what_no_glob_names_stay_inside(tmp_path, kind):
    names = ["e/P000/1.npy", "e/P000/._1.npy", "__MACOSX/e/1.npy", "e/.DS_Store", "e/notes.txt"]
    archive = make(tmp_path / kind, [(name, b"x") for name in names])
    assert list(extract(archive, tmp_path / "out", label="x", globs=("*.npy",))) == ["e/P000/1.npy"]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["1.npy"]
    with pytest.raises(ValueError, match=r"x: no member matches \['\*\.h5'\]"):
        extract(archive, tmp_path / "none", label="x", globs=("*.h5",))


CLUTTER = [
    *(
        "__MACOSX/e/1.npy",
        "e/__MACOSX/1.npy",
        "e/._1.npy",
        "e/.DS_Store",
        ".Trash-1000/files/1.npy",
        "e/.Trashes/1.npy",
    ),
    *("e/Thumbs.db", "e/thumbs.db", "desktop.ini", "e/1.npy:Zone.Identifier"),
]


@ALL_KINDS
def test_what_operating_systems_add_stays_inside(tmp_path, kind):
    archive = make(tmp_path / kind, [(name, b"x") for name in ["e/1.npy", *CLUTTER]])
    assert list(extract(archive, tmp_path / "out", label="x")) == ["e/1.npy"]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["1.npy"]


@KINDS
def test_only_members_that_somebody_wants_are_judged(tmp_path, kind):
    names = ["e/1.npy", "C:\\notes.txt", "../notes.txt", "a:b.txt", "b" * 256, "b\x1b[2J"]
    archive = make(tmp_path / kind, [(name, b"x") for name in names])
    assert list(extract(archive, tmp_path / "out", label="x", globs=("*.npy",))) == ["e/1.npy"]
    with pytest.raises(ValueError, match=r"x: member .* would leave the folder, refused"):
        extract(archive, tmp_path / "all", label="x", globs=("*.txt",))


def test_windows_writes_zips_with_backslashes(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("scene\\rgb\\1.png", b"a"), ("scene\\", b""), ("good/1.png", b"b")])
    assert list(list_of(archive)) == ["good/1.png", "scene/rgb/1.png"]
    assert list(extract(archive, tmp_path / "out", label="x")) == ["good/1.png", "scene/rgb/1.png"]
    assert (tmp_path / "out/scene/rgb/1.png").read_bytes() == b"a"
    assert list(extract(archive, tmp_path / "one", label="x", globs=("scene/rgb/*",))) == ["scene/rgb/1.png"]
    with pytest.raises(ValueError, match=r"x: member a/1\.png is in it twice"):
        extract(make_zip(tmp_path / "b.zip", [("a/1.png", b"a"), ("a\\1.png", b"b")]), tmp_path / "twice", label="x")


@KINDS
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:\\evil", "a\\..\\evil"])
def test_nothing_leaves_the_folder(tmp_path, kind, name):
    archive = make(tmp_path / kind, [("good", b"1"), (name, b"2")])
    with pytest.raises(ValueError, match=r"x: member .*evil' would leave the folder, refused"):
        extract(archive, tmp_path / "in/out", label="x")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("way/out")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(ValueError, match="x: member way/out is a link or device, refused"):
        extract(tmp_path / "a.tar", tmp_path / "out", label="x")


def test_zip_links_are_refused(tmp_path):
    info = zipfile.ZipInfo("way/out")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "a.zip", [(info, "/etc/passwd")])
    with pytest.raises(ValueError, match="x: member way/out is a link or device, refused"):
        extract(archive, tmp_path / "out", label="x")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_bombs_are_refused_before_they_are_written(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(members, "SMALL_BYTES", 1 << 16)
    bomb = [("seed", b"1"), ("bomb", bytes(8 << 20))]
    if kind == "a.zip":
        make_zip(tmp_path / kind, bomb, zipfile.ZIP_DEFLATED)
    else:
        make(tmp_path / kind, bomb)
    with pytest.raises(ValueError, match="x: member bomb is a bomb: 8,388,609 bytes declared so far, refused"):
        extract(tmp_path / kind, tmp_path / "out", label="x")
    assert not (tmp_path / "out/bomb").exists()


def test_a_zip_that_declares_less_than_it_holds_is_refused(tmp_path):
    """The declared size is what limits are checked against, so it has to be true."""
    archive = make_zip(tmp_path / "a.zip", [("m", bytes(100_000))], zipfile.ZIP_DEFLATED)
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    with pytest.raises(ValueError, match="x: broken archive: Bad CRC-32 for file 'm'"):
        extract(archive, tmp_path / "out", label="x")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@KINDS
def test_a_name_given_twice_is_refused(tmp_path, kind):
    archive = make(tmp_path / kind, [("m", b"1"), ("m", b"2")])
    with pytest.raises(ValueError, match="x: member m is in it twice"):
        extract(archive, tmp_path / "out", label="x")


@KINDS
def test_damage_is_named(tmp_path, kind):
    archive = make(tmp_path / kind, [("one", bytes(range(256)) * 40), ("two", bytes(range(256)) * 40)])
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^x: "):
        extract(archive, tmp_path / "cut", label="x")
    archive.write_bytes(b"<html>Service unavailable</html>")
    with pytest.raises(ValueError, match="x: broken archive"):
        extract(archive, tmp_path / "page", label="x")


def test_a_flipped_bit_in_a_zip_is_found(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("m", b"planar depth" * 100)])
    content = bytearray(archive.read_bytes())
    content[200] ^= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="x: broken archive: Bad CRC-32 for file 'm'"):
        extract(archive, tmp_path / "out", label="x")


def test_is_archive():
    assert all(is_archive(name) for name in ("a.zip", "b/a.tar", "a.tar.gz", "a.tgz", "a.7z"))
    assert not any(is_archive(name) for name in ("a.npy", "zip", "a.zip.md5"))


# Names


@ALL_KINDS
@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (("a/M.npy", "A/m.npy"), "member A/m.npy differs from a/M.npy in case or Unicode form only, refused"),
        (("caf\u00e9", "cafe\u0301"), "in case or Unicode form only, refused"),
        (("a", "a/b/c"), "member a/b/c needs a folder where a is a file, refused"),
        (("a/b/c", "A/B"), "member A/B is a file where another member needs a folder, refused"),
        (("good", "b" * 256), "a part over 255 bytes, refused"),
        (("good", "b/" * 600 + "c"), "has a name longer than 1024"),
        (("good", "b\x1b[2Jc"), r"member 'b\\x1b\[2Jc' has the character '\\x1b' in its name, refused"),
        (("good", ".part"), "has a name that extraction itself uses, refused"),
    ],
)
def test_names_that_another_file_system_would_mix_up_are_refused(tmp_path, kind, pair, why):
    # Refused whatever their order is: a zip is read in the order of its bytes, a 7z in its own.
    archive = make(tmp_path / kind, [(name, b"x") for name in pair])
    with pytest.raises(ValueError, match=f"^x: .*{why}"):
        extract(archive, tmp_path / "out", label="x")


@KINDS
def test_what_is_in_the_way_of_nobody_may_stay(tmp_path, kind):
    archive = make(tmp_path / kind, [("a.npy", b"x"), ("A.jpg", b"x"), ("a.jpg", b"y")])
    assert list(extract(archive, tmp_path / "out", label="x", globs=("*.npy",))) == ["a.npy"]
    assert list(extract(archive, tmp_path / "out", label="x", names=["a.jpg"])) == ["a.jpg"]
    with pytest.raises(ValueError, match=r"x: member b\.jpg is not in it"):
        extract(archive, tmp_path / "out", label="x", names=["a.jpg", "b.jpg"])


# Zip


def test_encrypted_members_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("m", b"1"), ("n", b"2")])
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="x: member m is encrypted, refused"):
        extract(archive, tmp_path / "out", label="x")
    assert list(extract(archive, tmp_path / "out", label="x", globs=("n",))) == ["n"]


def test_a_quoted_bomb_is_refused(tmp_path):
    """Many entries of the directory over the same bytes: a hundred times the content, each of a fair ratio."""
    members = [(f"{i:02}", b"") for i in range(100)] + [("99+", bytes(100_000))]
    archive = make_zip(tmp_path / "a.zip", members)
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"PK\1\2")
    sizes = raw[raw.rindex(b"PK\1\2") + 16 : raw.rindex(b"PK\1\2") + 28]
    raw[at + 16 : at + 28] = sizes
    archive.write_bytes(raw)
    for action in (extract_to(tmp_path), list_of):
        with pytest.raises(ValueError, match="x: member 00 overlaps what comes before or after it, refused"):
            action(archive)
    # The same hidden in the local header, which only extraction sees.
    archive = make_zip(tmp_path / "b.zip", [("a", bytes(99)), ("b", bytes(99))])
    raw = bytearray(archive.read_bytes())
    struct.pack_into("<H", raw, 28, 50)
    archive.write_bytes(raw)
    assert list(list_of(archive)) == ["a", "b"]
    with pytest.raises(ValueError, match="x: broken archive: member a overlaps what follows it"):
        extract(archive, tmp_path / "out", label="x")


def extract_to(tmp_path):
    return lambda archive: extract(archive, tmp_path / "out", label="x")


def list_of(archive, **kwargs):
    with archive.open("rb") as file:
        return list_zip(file, label="x", **kwargs)


def test_broken_members_may_be_noted_instead(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [(name, name.encode() * 1000) for name in "abc"])
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(b"b" * 1000, b"b" * 999 + b"!"))
    broken = []
    found = extract(archive, tmp_path / "out", label="x", broken=broken)
    assert (list(found), broken) == (["a", "c"], ["b"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "c"], "nothing of it is left"
    archive.write_bytes(raw)
    assert list(extract(archive, tmp_path / "out", label="x", names=broken, broken=[])) == ["b"]


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", [("m", b"1")]).read_bytes()
    archive = make_tar(tmp_path / "a.tar", [("x.zip", inner)])
    assert list(extract(archive, tmp_path / "out", label="x")) == ["x.zip"]


def test_of_an_empty_zip_nothing_matches(tmp_path):
    with pytest.raises(ValueError, match="x: no member matches anything"):
        list_of(make_zip(tmp_path / "a.zip", []))


def test_a_dead_network_is_no_bad_zip(tmp_path):
    class Dead(io.BytesIO):
        def read(self, *_):
            raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        list_zip(Dead(make_zip(tmp_path / "a.zip", [("m", b"1")]).read_bytes()), label="x")


def test_the_checksum_at_the_end_of_a_tar_gz_is_read(tmp_path):
    raw = make_tar(tmp_path / "a.tar", [("m", b"planar depth")]).read_bytes()
    packed = bytearray(gzip.compress(raw))
    packed[-8] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="x: broken archive: CRC check failed"):
        extract(tmp_path / "a.tar.gz", tmp_path / "out", label="x")


# Zip, of which only a part is there

CONTENTS = st.lists(st.binary(max_size=2000) | st.integers(0, 9000).map(bytes), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.integers(0, 300), st.randoms())
def test_a_range_is_all_that_a_member_needs(tmp_path_factory, contents, compression, prefix, rng):
    folder = tmp_path_factory.mktemp("part")
    archive = make_zip(folder / "a.zip", [(f"{i}/m.npy", value) for i, value in enumerate(contents)], compression)
    raw = bytes(prefix) + archive.read_bytes()  # zips may have something in front of them
    archive.write_bytes(raw)
    listed = list_of(archive)
    assert list(listed) == [f"{i}/m.npy" for i in range(len(contents))]
    wanted = [name for name in listed if rng.random() < 0.5] or [rng.choice(list(listed))]
    directory = max(member.end for member in listed.values())
    sparse = bytearray(rng.choice([b"\0", b"\xff"]) * directory + raw[directory:])
    for start, end in join_ranges([listed[name][2:] for name in wanted], spare=0):
        sparse[start:end] = raw[start:end]
    (folder / "sparse").write_bytes(sparse)
    found = extract(folder / "sparse", folder / "out", label="x", names=wanted)
    assert found == {name: Extracted(*listed[name][:2]) for name in wanted}
    assert all((folder / "out" / name).read_bytes() == contents[int(name.split("/")[0])] for name in wanted)
    for name in listed.keys() - wanted:
        assert listed[name].end <= len(raw)
        assert not (folder / "out" / name).exists()


def test_bytes_that_belong_to_nobody_are_not_asked_for(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a", bytes(10))
        hole = out.tell()
        file.writestr("hole", bytes(1 << 20))
        file.writestr("b", bytes(10))
        file.filelist.pop(1)
    (tmp_path / "a.zip").write_bytes(out.getvalue())
    listed = list_of(tmp_path / "a.zip")
    assert listed["a"].end < hole + 70_000
    assert listed["b"].start > hole + (1 << 20)


# 7z


@pytest.mark.parametrize("name", ["../e", "/ab/", "C:\\e", "a\\.."])
def test_nothing_leaves_the_folder_of_a_7z(tmp_path, name):
    archive = make_7z(tmp_path / "a.7z", [("good", b"1"), ("evil", b"2")])
    rewrite_7z(archive, "evil", name)
    with pytest.raises(ValueError, match=r"x: member .* would leave the folder, refused"):
        extract(archive, tmp_path / "in/out", label="x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.7z"]


def test_a_7z_may_not_give_a_name_twice(tmp_path):
    archive = make_7z(tmp_path / "a.7z", [("good", b"1"), ("evil", b"2")])
    rewrite_7z(archive, "evil", "good")
    with pytest.raises(ValueError, match="x: member good is in it twice"):
        extract(archive, tmp_path / "out", label="x")


def test_links_of_a_7z_are_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as file:
        file.write(tmp_path / "link", "way/out")
    with pytest.raises(ValueError, match="x: member way/out is a link or device, refused"):
        extract(tmp_path / "a.7z", tmp_path / "out", label="x")


def test_an_encrypted_7z_is_refused(tmp_path):
    for header in (False, True):
        with py7zr.SevenZipFile(tmp_path / "a.7z", "w", password="p", header_encryption=header) as file:
            file.writestr(b"1", "m")
        with pytest.raises(ValueError, match=r"x: member m is encrypted, refused|x: broken archive: PasswordRequired"):
            extract(tmp_path / "a.7z", tmp_path / "out", label="x")


def test_a_7z_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "SMALL_BYTES", 1 << 16)
    archive = make_7z(tmp_path / "a.7z", [("seed", b"1"), ("bomb", bytes(8 << 20))])
    with pytest.raises(ValueError, match="x: member bomb is a bomb: 8,388,609 bytes declared so far, refused"):
        extract(archive, tmp_path / "out", label="x")
    assert not (tmp_path / "out").exists()


def test_a_7z_of_folders_and_empty_files_from_the_disk(tmp_path):
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/a/b/c.npy").write_bytes(b"depth" * 1000)
    (tmp_path / "tree/a/empty.npy").touch()
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as file:
        file.writeall(tmp_path / "tree", "tree")
    found = extract(tmp_path / "a.7z", tmp_path / "out", label="x")
    crc32 = zlib.crc32(b"depth" * 1000)
    assert found == {"tree/a/b/c.npy": Extracted(5000, crc32), "tree/a/empty.npy": Extracted(0, 0)}
    assert (tmp_path / "out/tree/a/b/c.npy").read_bytes() == b"depth" * 1000
    found = extract(tmp_path / "a.7z", tmp_path / "one", label="x", names=["tree/a/empty.npy"])
    assert [path.name for path in (tmp_path / "one").rglob("*") if path.is_file()] == ["empty.npy"]


@pytest.mark.filterwarnings("ignore")
def test_a_broken_7z_is_refused_or_right(tmp_path):
    contents = {"a": b"", "b/c": b"depth" * 3000, "d": random.Random(0).randbytes(2000)}
    raw = make_7z(tmp_path / "a.7z", contents.items()).read_bytes()
    rng, num_refused = random.Random(1), 0
    for seed in range(200):
        wrong = bytearray(raw)
        if seed % 4:
            wrong[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            if seed % 4 == 1 and (size := struct.unpack_from("<QQ", wrong, 12)[1]) < len(raw):  # in the directory
                start = len(raw) - size
                wrong[start + rng.randrange(size)] = rng.randrange(256)
                struct.pack_into("<I", wrong, 28, zlib.crc32(wrong[start:]))
                struct.pack_into("<I", wrong, 8, zlib.crc32(wrong[12:32]))
        else:
            del wrong[rng.randrange(len(raw)) :]
        (tmp_path / "a.7z").write_bytes(wrong)
        out = tmp_path / "in" / str(seed)
        try:
            found = extract(tmp_path / "a.7z", out, label="x")
            assert all((out / name).read_bytes() in contents.values() for name in found)
        except ValueError as error:
            assert str(error).startswith("x: ")
            num_refused += 1
        assert {path.name for path in tmp_path.iterdir()} <= {"a.7z", "in"}
    assert num_refused > 100
