"""Archives made to do harm, and archives that are merely broken."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib

import pytest

from metricgold import members
from metricgold.archives import extract


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


def make(path, members):
    if path.suffix == ".zip":
        return make_zip(path, members)
    return make_tar(path, members, "w:gz" if path.suffix == ".gz" else "w")


KINDS = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])


@KINDS
def test_members_come_out_whole_and_sorted(tmp_path, kind):
    archive = make(tmp_path / kind, [("b/2.txt", b"two"), ("b/1.txt", b"one"), ("c.txt", b"")])
    found = extract(archive, tmp_path / "out", label="x")
    assert {name: member.num_bytes for name, member in found.items()} == {"b/1.txt": 3, "b/2.txt": 3, "c.txt": 0}
    assert all(zlib.crc32((tmp_path / "out" / name).read_bytes()) == member.crc32 for name, member in found.items())
    assert (tmp_path / "out/b/2.txt").read_bytes() == b"two"


@KINDS
def test_side_cars_and_what_no_glob_names_stay_inside(tmp_path, kind):
    names = ["e/P000/1.npy", "e/P000/._1.npy", "__MACOSX/e/1.npy", "e/.DS_Store", "e/notes.txt"]
    archive = make(tmp_path / kind, [(name, b"x") for name in names])
    assert list(extract(archive, tmp_path / "out", label="x", globs=("*.npy",))) == ["e/P000/1.npy"]
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["1.npy"]
    with pytest.raises(ValueError, match=r"x: no member matches \['\*\.h5'\]"):
        extract(archive, tmp_path / "none", label="x", globs=("*.h5",))


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
    with pytest.raises(ValueError, match="x: member m lies in it twice"):
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
