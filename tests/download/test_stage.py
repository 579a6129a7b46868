"""Download from real files and a real HTTP server: verified, resumable after a kill, equal bytes."""

import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest

from metricgold.datasets.manifest import Archive, Manifest, load_manifest, read_manifest
from metricgold.datasets.readers import list_frames, read_frame
from metricgold.datasets.synthetic.render import render_scene
from metricgold.datasets.synthetic.synthesize import RECIPES, synthesize
from metricgold.download import stage as module
from metricgold.download.fetcher import Fetcher
from metricgold.download.ledger import Ledger
from metricgold.download.raw_folder import RawFolder
from metricgold.download.selection import group_by_scene
from metricgold.download.sources import parse_checksums, want
from metricgold.download.stage import download, plan, verify
from metricgold.params.sections import Download, Synthesize
from metricgold.storage.files import digest_file, only_writer
from tests.support import ROOT, power_cut
from tests.support.power_cut import PowerCut, below
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures
from tests.support.server import FaultServer

FACTS = {
    "name": "tiny",
    "role": "train",
    "title": "Tiny",
    "source": "https://example.org",
    "licence": {
        "name": "CC BY 4.0",
        "url": "https://example.org/licence",
        "terms": "Attribution.",
        "needs_acceptance": False,
    },
    "citation": "Nobody, 2026",
    "depth": {"unit": "metre", "kind": "planar", "invalid": "0"},
}


def manifest_of(*mirrors, **changes):
    return Manifest(**FACTS | {"mirrors": mirrors, "archives": [{"path": "a.zip"}, {"path": "b/b.tar"}]} | changes)


@pytest.fixture
def upstream(tmp_path):
    """Two archives and a csv, with their list of checksums."""
    folder = tmp_path / "upstream"
    (folder / "b").mkdir(parents=True)
    write_zip(folder / "a.zip", {"scene1/rgb/1.png": b"red" * 1000, "scene1/rgb/._1.png": b"mac"})
    with tarfile.open(folder / "b/b.tar", "w") as file:
        info = tarfile.TarInfo("scene1/depth/1.npy")
        info.size = 5000
        file.addfile(info, io.BytesIO(b"d" * 5000))
    (folder / "split.csv").write_text("scene,split\n")
    write_sums(folder)
    return folder


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)


def write_sums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{digest_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def contents(raw):
    """Data files by name; what download keeps for itself left out."""
    return sorted(data(raw))


def data(raw):
    """Bytes of all data files by name."""
    own = ("manifest.yaml", "ledger.json", ".content.sqlite")
    files = {path.relative_to(raw).as_posix(): path for path in raw.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if name not in own and not name.startswith((".ledger/", ".part/"))
    }


def rows(raw):
    """The ledger's archives."""
    ledger = Ledger(raw / ".ledger/ledger.sqlite")
    try:
        return ledger.archives()
    finally:
        ledger.close()


SUMS = {"checksums": {"path": "SHA256SUMS", "algorithm": "sha256"}, "archives": []}
EXTRACTED = ["scene1/depth/1.npy", "scene1/rgb/1.png", "split.csv"]


def test_all_that_the_checksum_list_names(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    ledger = download(manifest, tmp_path / "raw")
    assert ledger == tmp_path / "raw/ledger.json"
    assert contents(tmp_path / "raw") == EXTRACTED
    entry = json.loads(ledger.read_text())["archives"]["a.zip"]
    assert (entry["members"], entry["bytes"]) == (1, 3000)
    assert read_manifest(tmp_path / "raw/manifest.yaml") == manifest
    assert not (tmp_path / "raw/.part").exists()


def test_file_urls_may_be_relative(upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download(manifest_of("file://upstream", **SUMS), Path("raw"))
    assert contents(tmp_path / "raw") == EXTRACTED


def test_equal_data_equal_bytes(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    first = download(manifest, tmp_path / "one", params=Download(num_workers=1)).read_bytes()
    again = download(manifest, tmp_path / "two", params=Download(num_workers=8)).read_bytes()
    assert first == again
    upstream.rename(tmp_path / "moved")
    moved = manifest_of(f"file://{tmp_path}/nowhere", f"file://{tmp_path}/moved", **SUMS)
    assert download(moved, tmp_path / "three").read_bytes() == first  # a mirror is no difference in the data


def test_a_second_call_fetches_nothing_more(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    download(manifest, tmp_path / "raw")
    before = {path: path.stat() for path in (tmp_path / "raw").rglob("*.*") if ".ledger" not in path.parts}
    for name in ("a.zip", "b/b.tar", "split.csv"):
        (upstream / name).unlink()  # nobody looks
    download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == EXTRACTED
    for name in EXTRACTED:
        path = tmp_path / "raw" / name
        assert path.stat().st_ino == before[path].st_ino


def test_a_lost_or_cut_member_is_fetched_again(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    download(manifest, tmp_path / "raw")
    before, ledger = data(tmp_path / "raw"), (tmp_path / "raw/ledger.json").read_bytes()
    (tmp_path / "raw/scene1/rgb/1.png").unlink()
    (tmp_path / "raw/scene1/depth/1.npy").write_bytes(b"d")
    download(manifest, tmp_path / "raw")
    assert data(tmp_path / "raw") == before
    assert (tmp_path / "raw/ledger.json").read_bytes() == ledger


def test_what_upstream_no_longer_has_goes(upstream, tmp_path):
    """Two versions of a data set are never mixed, and the ledger says that something changed."""
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    old = download(manifest, tmp_path / "raw").read_bytes()
    write_zip(upstream / "a.zip", {"scene2/rgb/1.png": b"blue"})
    (upstream / "b/b.tar").unlink()
    write_sums(upstream)
    new = download(manifest, tmp_path / "raw").read_bytes()
    assert contents(tmp_path / "raw") == ["scene2/rgb/1.png", "split.csv"]
    assert not (tmp_path / "raw/scene1").exists()
    assert new != old


def test_a_change_of_splits_shows_in_the_ledger(upstream, tmp_path):
    splits = [{"scenes": {"train": ["scene1"]}}, {"scenes": {"test": ["scene1"]}}]
    ledgers = [
        download(manifest_of(f"file://{upstream}", splits=split), tmp_path / "raw").read_bytes() for split in splits
    ]
    assert ledgers[0] != ledgers[1]


def test_members_and_into(upstream, tmp_path):
    archives = [{"path": "a.zip", "into": "left"}, {"path": "b/b.tar"}]
    manifest = manifest_of(f"file://{upstream}", archives=archives, members=["*.png", "*.npy"])
    download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == ["left/scene1/rgb/1.png", "scene1/depth/1.npy"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sha256": "0" * 64}, r"a\.zip from file.*: sha256 is [0-9a-f]{64}, expected 0{64}"),
        ({"md5": "0" * 32}, r"a\.zip from file.*: md5 is [0-9a-f]{32}, expected 0{32}"),
        ({"bytes": 7}, r"a\.zip from file.*: it has \d+ bytes, 7 were expected"),
    ],
)
def test_an_archive_that_is_not_what_was_published(upstream, tmp_path, facts, message):
    manifest = manifest_of(f"file://{upstream}", archives=[{"path": "a.zip", **facts}, {"path": "b/b.tar"}])
    with pytest.raises(ValueError, match=message):
        download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == ["scene1/depth/1.npy"]  # the other archive is not held up
    assert not (tmp_path / "raw/ledger.json").exists()


def test_manifest_and_published_list_must_agree(upstream, tmp_path):
    archives = [{"path": "a.zip", "sha256": "0" * 64}]
    manifest = manifest_of(f"file://{upstream}", checksums=SUMS["checksums"], archives=archives)
    with pytest.raises(ValueError, match=r"a\.zip: the manifest's sha256 is 0{64}, the published list has"):
        download(manifest, tmp_path / "raw")


@pytest.mark.parametrize("name", ["../outside", "ledger.json", ".ledger/ledger.sqlite"])
def test_nothing_escapes_and_the_ledger_is_not_forged(upstream, tmp_path, name):
    write_zip(upstream / "a.zip", {"scene1/rgb/1.png": b"red", name: b"evil"})
    with pytest.raises(ValueError, match=rf"a\.zip: member '?{name}.*refused"):
        download(manifest_of(f"file://{upstream}", archives=[{"path": "a.zip"}]), tmp_path / "raw")
    assert contents(tmp_path / "raw") == []
    assert not list(tmp_path.rglob("outside"))


def test_two_archives_with_one_member(upstream, tmp_path):
    write_zip(upstream / "c.zip", {"scene1/rgb/1.png": b"other"})
    with pytest.raises(ValueError, match=r"scene1/rgb/1\.png is in both a\.zip and c\.zip"):
        download(manifest_of(f"file://{upstream}", archives=[{"path": "a.zip"}, {"path": "c.zip"}]), tmp_path / "raw")
    assert not (tmp_path / "raw/ledger.json").exists()


def test_all_faults_are_told_at_once(upstream, tmp_path):
    archives = [{"path": "a.zip"}, {"path": "x.zip"}, {"path": "y.zip"}]
    with pytest.raises(OSError, match=r"2 of 3 failed:\nx\.zip from .*No such file.*\ny\.zip from "):
        download(manifest_of(f"file://{upstream}", archives=archives), tmp_path / "raw")


def test_only_one_writer(upstream, tmp_path):
    with only_writer(tmp_path / "raw"), pytest.raises(BlockingIOError, match="raw is being written"):
        download(manifest_of(f"file://{upstream}"), tmp_path / "raw")


def test_checksum_lists():
    text = f"{'a' * 32}  one.tar\n\n{'b' * 32} *./two.tar\n"
    assert parse_checksums(text, "x") == {"one.tar": "a" * 32, "two.tar": "b" * 32}
    with pytest.raises(ValueError, match="x: not a line of a checksum list: '<html>'"):
        parse_checksums("<html>", "x")
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        parse_checksums(f"{'a' * 32}  ../../etc/passwd", "x")


# Over HTTP

QUICK = Download(patience_s=2, stall_s=0.5)


@pytest.fixture
def server(upstream, monkeypatch):
    monkeypatch.setattr(Fetcher, "first_wait_s", 0.01)
    with FaultServer(upstream) as server:
        yield server


def asked(server, path):
    return [span for _, name, span in server.requests if name == path]


def test_http_with_a_busy_server_and_a_cut_line(server, tmp_path):
    server.script = {"/SHA256SUMS": ["truncate"], "/a.zip": ["503", "truncate"], "/b/b.tar": ["reset"]}
    download(manifest_of(server.url, **SUMS), tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == EXTRACTED


def test_http_gives_up_with_every_address_and_reason(server, tmp_path):
    server.faults = {"503": 1.0}
    manifest = manifest_of(f"{server.url}/gone", server.url, archives=[{"path": "a.zip"}])
    with pytest.raises(OSError, match=r"a\.zip from http.*/gone/a\.zip: .*503.*http.*/a\.zip: .*503"):
        download(manifest, tmp_path / "raw", params=QUICK)
    assert rows(tmp_path / "raw")["a.zip"].state == "failed"
    assert "503" in rows(tmp_path / "raw")["a.zip"].reason


def test_the_next_mirror_is_asked_when_one_hands_out_something_else(server, upstream, tmp_path):
    (upstream / "bad").mkdir()
    (upstream / "bad/a.zip").write_bytes(b"<html>Sign in</html>")
    digest = hashlib.md5((upstream / "a.zip").read_bytes()).hexdigest()
    manifest = manifest_of(f"{server.url}/bad", server.url, archives=[{"path": "a.zip", "md5": digest}])
    download(manifest, tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == ["scene1/rgb/1.png"]
    assert rows(tmp_path / "raw")["a.zip"].source == f"{server.url}/a.zip"


def test_an_own_address_beats_the_mirrors(server, tmp_path):
    files = [{"path": "split.csv", "url": f"{server.url}/split.csv"}]
    manifest = manifest_of(f"file://{server.folder}", files=files)
    download(manifest, tmp_path / "raw")
    assert {path for _, path, _ in server.requests} == {"/split.csv"}
    assert contents(tmp_path / "raw") == EXTRACTED


def test_a_server_without_ranges_serves_whole_archives(server, tmp_path):
    server.faults = {"no_range": 1.0}
    download(manifest_of(server.url, **SUMS), tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == EXTRACTED


def test_of_a_zip_only_the_wanted_members_travel(server, upstream, tmp_path):
    rng = np.random.default_rng(0)
    members = {f"s/{n}.{kind}": rng.bytes(200_000) for n in range(8) for kind in ("png", "flow", "seg")}
    write_zip(upstream / "c.zip", members)
    manifest = manifest_of(server.url, archives=[{"path": "c.zip"}], members=["*.png"])
    download(manifest, tmp_path / "raw", params=QUICK)
    assert data(tmp_path / "raw") == {name: content for name, content in members.items() if name.endswith(".png")}
    assert server.bytes_sent < 8 * 200_000 * 1.02 + 70_000  # 70 kB: the zip's directory


def test_wrong_bytes_are_asked_for_again_and_nothing_else_is(server, upstream, tmp_path):
    rng = np.random.default_rng(0)
    write_zip(upstream / "c.zip", {f"s/{n}.png": rng.bytes(2_000_000) for n in range(10)})
    manifest = manifest_of(server.url, archives=[{"path": "c.zip"}])
    server.script = {"/c.zip": ["ok", "wrong_bytes"]}
    download(manifest, tmp_path / "raw", params=QUICK)
    assert len(contents(tmp_path / "raw")) == 10
    assert server.bytes_sent < 12 * 2_000_000 + 200_000  # at most the member that the flipped bit hit, once more


def test_a_tar_with_a_wrong_checksum_is_fetched_from_the_next_mirror(server, upstream, tmp_path):
    md5 = hashlib.md5((upstream / "b/b.tar").read_bytes()).hexdigest()
    content = bytearray((upstream / "b/b.tar").read_bytes())
    content[600] ^= 1
    write(upstream / "bad/b/b.tar", bytes(content))
    manifest = manifest_of(f"{server.url}/bad", server.url, archives=[{"path": "b/b.tar", "md5": md5}])
    download(manifest, tmp_path / "raw", params=QUICK)
    assert data(tmp_path / "raw") == {"scene1/depth/1.npy": b"d" * 5000}
    assert rows(tmp_path / "raw")["b/b.tar"].source == f"{server.url}/b/b.tar"
    (upstream / "b/b.tar").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"b/b\.tar from http.*: md5 is [0-9a-f]{32}, expected "):
        download(manifest, tmp_path / "none", params=QUICK)
    assert contents(tmp_path / "none") == []
    assert not list((tmp_path / "none/.part").rglob("*")), "nothing wrong is kept"


def test_bytes_that_stay_wrong_are_refused(server, upstream, tmp_path):
    content = bytearray((upstream / "a.zip").read_bytes())
    content[60] ^= 1
    (upstream / "a.zip").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.zip from http.*member scene1/rgb/1\.png.*CRC-32"):
        download(manifest_of(server.url, archives=[{"path": "a.zip"}]), tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == []


VERSIONS = [{f"s/{n}.png": np.random.default_rng(seed + n).bytes(200_000) for n in range(5)} for seed in (0, 100)]


@pytest.mark.parametrize("at_member", range(5))
@pytest.mark.parametrize("changed", [range(5), (0, 1), (4,)])
@pytest.mark.parametrize("is_killed", [False, True])
def test_one_archive_is_never_a_mix_of_two_versions(
    server, upstream, tmp_path, at_member, changed, is_killed, monkeypatch
):
    """A server without validators whose zip is replaced by one of equal size while it is fetched."""
    old = VERSIONS[0]
    new = old | {f"s/{n}.png": VERSIONS[1][f"s/{n}.png"] for n in changed}
    write_zip(upstream / "c.zip", old)
    write_zip(upstream / "new.zip", new)
    server.etag = lambda _tag: None
    left = [70_000 + at_member * 200_000]

    def arrive(num_bytes):
        left[0] -= num_bytes
        if left[0] < 0 and (upstream / "new.zip").exists():
            (upstream / "new.zip").replace(upstream / "c.zip")
            if is_killed:
                raise KeyboardInterrupt

    monkeypatch.setattr(Fetcher, "part_bytes", 100_000, raising=False)
    manifest = manifest_of(server.url, archives=[{"path": "c.zip"}])
    if is_killed:
        with pytest.raises(KeyboardInterrupt):
            download(manifest, tmp_path / "raw", params=QUICK, progress=arrive)
    download(manifest, tmp_path / "raw", params=QUICK, progress=arrive)
    assert data(tmp_path / "raw") in (old, new)


def test_a_zip_under_an_etag_that_differs_by_node(server, upstream, tmp_path):
    write_zip(upstream / "c.zip", VERSIONS[0])
    nodes = itertools.cycle("ab")
    server.etag = lambda _tag: f'"{next(nodes)}"'
    arrived = []
    manifest = manifest_of(server.url, archives=[{"path": "c.zip"}])
    download(manifest, tmp_path / "raw", params=QUICK, progress=arrived.append)
    assert data(tmp_path / "raw") == VERSIONS[0]
    assert sum(arrived) == (upstream / "c.zip").stat().st_size


@pytest.mark.parametrize("status", [400, 416, 501])
def test_a_zip_from_a_server_that_refuses_ranges_from_the_end(server, upstream, tmp_path, status):
    server.suffix_status = status
    write_zip(upstream / "c.zip", VERSIONS[0])
    archives = [{"path": "a.zip"}, {"path": "b/b.tar"}, {"path": "c.zip"}]
    download(manifest_of(server.url, archives=archives), tmp_path / "raw", params=QUICK)
    assert len(contents(tmp_path / "raw")) == 7


def test_s3(s3_bucket, upstream, tmp_path):  # noqa: F811
    for name in ("SHA256SUMS", "a.zip", "b/b.tar", "split.csv"):
        s3_client().upload_file(str(upstream / name), s3_bucket, f"tiny/{name}")
    download(manifest_of(f"s3://{s3_bucket}/tiny", **SUMS), tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == EXTRACTED
    with pytest.raises(OSError, match=rf"a\.zip from s3://{s3_bucket}/gone/a\.zip: "):
        manifest = manifest_of(f"s3://{s3_bucket}/gone", archives=[{"path": "a.zip"}])
        download(manifest, tmp_path / "other", params=QUICK)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(Fetcher, "first_wait_s", 0.01)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(OSError, match=rf"a\.zip from {url}/a\.zip: .*[Rr]efused"):
            download(manifest_of(url, archives=[{"path": "a.zip"}]), tmp_path / "raw", params=QUICK)


# Kills

KILLED = """
import os, signal, sys, yaml
from pathlib import Path
from metricgold.download.stage import download
from metricgold.datasets.manifest import read_manifest
from metricgold.params.sections import Download

left = int(sys.argv[3])

def arrive(num_bytes):
    global left
    left -= num_bytes
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

download(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), params=Download(num_workers=2), progress=arrive)
"""


@pytest.fixture
def many(tmp_path):
    """Eight zips and a tar behind HTTP; the manifest and the server."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        write_zip(folder / f"{number}.zip", {f"s{number}/{member}.bin": rng.bytes(300_000) for member in range(4)})
    with tarfile.open(folder / "t.tar", "w") as file:
        for member in range(4):
            info = tarfile.TarInfo(f"t/{member}.bin")
            info.size = 300_000
            file.addfile(info, io.BytesIO(rng.bytes(300_000)))
    write_sums(folder)
    with FaultServer(folder) as server:
        manifest = tmp_path / "many.yaml"
        values = manifest_of(server.url, **SUMS).model_dump(mode="json", exclude_unset=True)
        manifest.write_text(json.dumps(values))
        yield manifest, server


@pytest.mark.parametrize("num_bytes", [0, 4_000_000, 9_500_000])
def test_killed_and_called_again(many, tmp_path, num_bytes):
    manifest, server = many
    whole = tmp_path / "whole"
    download(read_manifest(manifest), whole)
    server.reset_counts()
    command = [sys.executable, "-c", KILLED, str(manifest), str(tmp_path / "raw"), str(num_bytes)]
    died = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (tmp_path / "raw/ledger.json").exists()
    download(read_manifest(manifest), tmp_path / "raw")
    assert data(tmp_path / "raw") == data(whole)
    assert (tmp_path / "raw/ledger.json").read_bytes() == (whole / "ledger.json").read_bytes()
    assert server.bytes_sent < 9 * 1_200_000 + 3_000_000  # what was in flight when it died, no more


def test_killed_while_members_move_into_place(many, tmp_path, monkeypatch):
    """All bytes had come: the next run asks for none of them."""
    manifest, server = many
    move = RawFolder.move_in

    def half(self, arrival, rows):
        move(self, arrival, rows[: len(rows) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RawFolder, "move_in", half)
        with pytest.raises(KeyboardInterrupt):
            download(read_manifest(manifest), tmp_path / "raw", params=Download(num_workers=1))
    assert [row.state for row in rows(tmp_path / "raw").values()].count("placing") >= 1
    moved = contents(tmp_path / "raw")
    assert len(moved) in (2, 4)
    sent = server.bytes_sent
    download(read_manifest(manifest), tmp_path / "raw")
    assert len(contents(tmp_path / "raw")) == 9 * 4
    assert server.bytes_sent < 9 * 1_200_000 + 500_000 and sent > 1_200_000
    assert not (tmp_path / "raw/.part").exists()


# A ledger as earlier versions wrote it: they extracted a tar while it arrived, and knew each member's place in it

EARLIER_LEDGER = """
CREATE TABLE archives (path TEXT PRIMARY KEY, identity TEXT NOT NULL, state TEXT NOT NULL, transfer_bytes INTEGER,
    disk_bytes INTEGER, source TEXT, time TEXT NOT NULL, reason TEXT, num_members INTEGER, members_sha256 TEXT);
CREATE TABLE members (name TEXT PRIMARY KEY, archive TEXT NOT NULL REFERENCES archives (path), bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL, start INTEGER);
INSERT INTO archives VALUES ('a.zip', 'b9b6a785ec446f520aaab95e691cb1e8c421867dfec8b9b16ec3c7786777f8ed', 'done', 3047,
    3000, 'file:///a.zip', '2026-01-01T00:00:00+00:00', NULL, 1,
    '969cabc6e502704269eba1417307a1d02c380fa576147288a9f45528806140de');
INSERT INTO members VALUES ('scene1/rgb/1.png', 'a.zip', 3000, 2942368887, NULL);
INSERT INTO archives VALUES ('b/b.tar', 'ea9707fe023d47abc06a8461ff2d151537cc59ac69a4ac0369c4d65e9b608ae3', ?, 10240,
    5000, 'file:///b/b.tar', '2026-01-01T00:00:00+00:00', NULL, 1,
    '07f7144f1f40683d8fad193476ca2cbc2c6f251191cd4b92681b4ba2c5572463');
"""
EARLIER_MEMBER = "INSERT INTO members VALUES ('scene1/depth/1.npy', 'b/b.tar', 5000, 858434985, 512)"
EARLIER_LEDGER_JSON = "93b55e3c83e38082bfb9783b2184e3537713e06bca121b07d155ad5b70721d5d"  # sha256 of what it wrote


@pytest.mark.parametrize("state", ["fetching", "placing", "done"])
def test_a_raw_folder_of_an_earlier_version_is_finished(upstream, tmp_path, state):
    raw, staged = tmp_path / "raw", tmp_path / "raw/.part/b%2Fb.tar@.members"
    write(raw / "scene1/rgb/1.png", b"red" * 1000)
    if state == "fetching":  # killed while the tar arrived
        write(staged / ".members", b'{"name": "scene1/depth/1.npy", "start": 512, "num_bytes": 5000, "pax": {}}\n')
        write(staged / ".glue", bytes(512))
        write(staged / ".part", b"d" * 3000)
    else:
        write((raw if state == "done" else staged) / "scene1/depth/1.npy", b"d" * 5000)
    (raw / ".ledger").mkdir()
    with closing(sqlite3.connect(raw / ".ledger/ledger.sqlite")) as ledger:
        ledger.executescript(EARLIER_LEDGER.replace("?", f"'{state}'"))
        if state != "fetching":
            ledger.execute(EARLIER_MEMBER)
            ledger.commit()
    if state != "fetching":  # then nothing is asked for
        (upstream / "b/b.tar").unlink()
    path = download(manifest_of(f"file://{upstream}"), raw)
    assert contents(raw) == ["scene1/depth/1.npy", "scene1/rgb/1.png"]
    assert (raw / "scene1/depth/1.npy").read_bytes() == b"d" * 5000
    assert not (raw / ".part").exists()
    assert digest_file(path) == EARLIER_LEDGER_JSON


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["zip", "tar", "csv"])
def test_members_are_on_the_disk_before_the_ledger_vouches_for_them(upstream, server, tmp_path, monkeypatch, suffix):
    """Bytes before they are placed, names before they are done: a power cut makes no ledger lie."""
    raw, vouched = tmp_path / "raw", []
    disk = PowerCut(monkeypatch, raw, lambda *_: ())
    placing, done = Ledger.placing, Ledger.done

    def watched_placing(self, path, identity, source, rows):
        vouched.extend(path for path in below(raw / ".part") if ".members" in str(path.parent))
        assert all(power_cut.state(path) in disk.bytes_on_disk for path in vouched)
        placing(self, path, identity, source, rows)

    def watched_done(self, path, identity, source, rows):
        assert rows and all(disk.has(raw / row.name) for row in rows)
        done(self, path, identity, source, rows)

    monkeypatch.setattr(Ledger, "placing", watched_placing)
    monkeypatch.setattr(Ledger, "done", watched_done)
    source = {"path": {"zip": "a.zip", "tar": "b/b.tar", "csv": "split.csv"}[suffix]}
    chosen = {"archives": [], "files": [source], "role": "evaluate"} if suffix == "csv" else {"archives": [source]}
    manifest = manifest_of(server.url, **chosen)
    download(manifest, raw, params=QUICK)
    assert len(vouched) == len(contents(raw)) == 1
    damage(raw / contents(raw)[0])
    verify(manifest, raw, params=QUICK)
    assert disk.has(raw / contents(raw)[0])


# Looking again


def damage(path):
    """Other bytes of the same length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def test_verify_repairs_what_is_broken_and_only_that(server, upstream, tmp_path):
    rng = np.random.default_rng(0)
    write_zip(upstream / "c.zip", {f"c/{n}.png": rng.bytes(500_000) for n in range(6)})
    with tarfile.open(upstream / "d.tar", "w") as file:
        for n in range(6):
            info = tarfile.TarInfo(f"d/{n}.npy")
            info.size = 500_000
            file.addfile(info, io.BytesIO(rng.bytes(500_000)))
    archives = [{"path": path} for path in ("a.zip", "c.zip", "d.tar")]
    manifest = manifest_of(server.url, archives=archives, files=[{"path": "split.csv"}])
    raw = tmp_path / "raw"
    download(manifest, raw, params=QUICK)
    before, ledger = data(raw), (raw / "ledger.json").read_bytes()
    damage(raw / "c/3.png")
    (raw / "d/2.npy").unlink()
    damage(raw / "split.csv")
    server.reset_counts()
    said = verify(manifest, raw, params=QUICK)
    assert sorted(said["members"]) == ["c/3.png", "d/2.npy", "split.csv"]
    assert data(raw) == before
    assert (raw / "ledger.json").read_bytes() == ledger
    assert server.bytes_sent < 500_000 + 6 * 500_000 + 200_000  # of the zip a member, of the tar all
    assert asked(server, "/a.zip") == []
    server.reset_counts()
    assert verify(manifest, raw, params=QUICK)["repaired"] == 0
    assert server.requests == []


def test_plan_fetches_listings_only_and_needs_no_licence(server, upstream, tmp_path):
    rng = np.random.default_rng(0)
    write_zip(upstream / "c.zip", {f"s/{n}.{kind}": rng.bytes(400_000) for n in range(4) for kind in ("png", "flow")})
    licence = FACTS["licence"] | {"needs_acceptance": True}
    manifest = manifest_of(server.url, archives=[{"path": "c.zip"}], members=["*.png"], licence=licence)
    said = plan(manifest, tmp_path / "raw", params=QUICK)
    assert said["licence_accepted"] is False
    assert (said["archives"], said["archives_here"], said["archives_of_unknown_size"]) == (1, 0, 0)
    assert said["bytes_on_disk_after"] == 1_600_000
    assert said["bytes_to_fetch"] == pytest.approx(1_600_000, rel=0.02)
    assert server.bytes_sent < 70_000
    assert contents(tmp_path / "raw") == []
    server.reset_counts()
    download(manifest, tmp_path / "raw", params=QUICK, accept_licence=True)
    assert server.bytes_sent < 1_600_000 * 1.02 + 70_000


def state_of(folder):
    """All that is in a folder, with times and bytes; times of the folders tell of what came and went again."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths]


def test_a_plan_changes_nothing(server, upstream, tmp_path):
    """Not even after an edit of the manifest, such as the checksum that an archive has."""
    upstream.joinpath("big.csv").write_bytes(bytes(2_000_000))
    files = [{"path": "split.csv"}, {"path": "big.csv"}]
    data_folder = tmp_path / "data"
    download(manifest_of(server.url, files=files[:1]), data_folder / "tiny", params=QUICK)
    before = state_of(data_folder)
    archives = [{"path": "a.zip", "sha256": digest_file(upstream / "a.zip")}]
    licence = FACTS["licence"] | {"needs_acceptance": True}
    edited = manifest_of(server.url, archives=archives, files=files, licence=licence)
    server.reset_counts()
    with only_writer(data_folder / "tiny", tmp_path / "lock"):
        said = plan(edited, data_folder / "tiny", params=QUICK, accept_licence=True)
    assert state_of(data_folder) == before
    assert (said["archives"], said["archives_here"], said["archives_to_delete"]) == (1, 0, 2)
    assert (said["files"], said["files_here"], said["files_of_unknown_size"]) == (2, 1, 0)
    assert said["bytes_to_fetch"] == 2_000_000 + (upstream / "a.zip").stat().st_size
    assert server.bytes_sent < 100_000
    said = plan(edited, data_folder / "none/tiny", params=QUICK)
    assert (said["archives_here"], said["licence_accepted"]) == (0, False)
    assert state_of(data_folder) == before


def test_a_plan_asks_for_no_size_that_the_manifest_says(server, upstream, tmp_path):
    files = [{"path": "nyu.mat", "bytes": 2_972_037_809, "md5": "1" * 32}]
    said = plan(manifest_of(server.url, files=files, archives=[], role="evaluate"), tmp_path / "raw", params=QUICK)
    assert (said["files"], said["bytes_to_fetch"], said["bytes_on_disk_after"]) == (1, 2_972_037_809, 2_972_037_809)
    assert server.requests == []


def test_a_plan_fetches_no_full_file_from_a_server_without_ranges(server, upstream, tmp_path):
    upstream.joinpath("big.csv").write_bytes(bytes(60_000_000))
    server.faults = {"no_range": 1.0}
    said = plan(manifest_of(server.url, files=[{"path": "big.csv"}]), tmp_path / "raw", params=QUICK)
    assert (said["files_of_unknown_size"], said["archives_of_unknown_size"]) == (1, 2)
    assert server.bytes_sent < 40_000_000  # three answers that were not read


def test_a_plan_knows_splits_that_a_csv_decides(server, upstream, tmp_path):
    rows = ["included_in_public_release,scene_name,camera_name,frame_id,split_partition_name"]
    rows += [f"True,{scene},cam_00,0,{split}" for scene, split in (("s1", "train"), ("s2", "test"))]
    upstream.joinpath("split.csv").write_text("\n".join(rows))
    archives = [{"path": "a.zip", "scenes": ["s1"]}, {"path": "b/b.tar", "scenes": ["s2"]}]
    files, splits = [{"path": "split.csv"}], {"csv": "split.csv"}
    manifest = manifest_of(server.url, files=files, splits=splits, archives=archives)
    said = plan(manifest, tmp_path / "raw", params=QUICK.model_copy(update={"streamed": ["tiny"]}))
    assert (said["archives"], said["bytes_to_fetch"]) == (1, 10_240 + len("\n".join(rows)))
    assert not (tmp_path / "raw").exists()


def test_files_are_counted_too(upstream, tmp_path, caplog):
    caplog.set_level("INFO")
    manifest = manifest_of(f"file://{upstream}", files=[{"path": "split.csv"}])
    for num_fetched in (3, 0):
        download(manifest, tmp_path / "raw")
        assert f"tiny: {num_fetched} of 3 archives and files were fetched" in caplog.text


def test_no_signature_of_an_address_is_kept(server, upstream, tmp_path):
    signed = {"url": f"{server.url}/a.zip?X-Amz-Signature=SECRET"}
    files = [{"path": "split.csv", "url": f"{server.url}/split.csv?sig=SECRET"}]
    download(manifest_of(archives=[{"path": "a.zip", **signed}], files=files), tmp_path / "raw", params=QUICK)
    assert read_manifest(tmp_path / "raw/manifest.yaml").archives[0].url == f"{server.url}/a.zip"
    assert not [
        path for path in tmp_path.joinpath("raw").rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()
    ]


def test_a_7z_needs_its_package_before_it_is_fetched(server, upstream, tmp_path, monkeypatch):
    upstream.joinpath("c.7z").write_bytes(bytes(2_000_000))
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(ModuleNotFoundError, match="py7zr"):
        download(
            manifest_of(server.url, archives=[{"path": "a.zip"}, {"path": "c.7z"}]), tmp_path / "raw", params=QUICK
        )
    assert server.bytes_sent < 100_000


# A ledger from somebody else


@pytest.mark.parametrize("name", ["../../victim/x", "/{}/victim/x", "way/x", "./x", "manifest.yaml"])
@pytest.mark.parametrize(
    ("state", "look"), [("done", download), ("done", verify), ("done", plan), ("placing", download)]
)
@pytest.mark.parametrize("is_stale", [False, True])
def test_names_in_a_ledger_cannot_leave_the_folder(upstream, tmp_path, name, state, look, is_stale):
    raw, victim, name = tmp_path / "raws/raw", tmp_path / "victim", name.format(tmp_path)
    write(victim / "x", b"precious")
    manifest = manifest_of(f"file://{upstream}", archives=[{"path": "a.zip"}])
    download(manifest, raw)
    (raw / "way").symlink_to(victim)
    write(raw / f".part/a.zip@.members/{name.lstrip('/')}", b"evil" * 2)
    with closing(sqlite3.connect(raw / ".ledger/ledger.sqlite")) as ledger:
        ledger.execute("UPDATE archives SET state = ?", [state])
        ledger.execute("UPDATE members SET name = ?, bytes = 8", [name])
        ledger.commit()
    before = [state_of(raw / "scene1"), (raw / "manifest.yaml").read_bytes(), state_of(victim)]
    if is_stale:
        manifest = manifest_of(f"file://{upstream}", archives=[{"path": "b/b.tar"}])
    with (
        nullcontext()  # it does not look at the archive
        if is_stale and look is plan
        else pytest.raises(
            ValueError, match=r"sqlite is not a ledger: .*(leave the folder|for the ledger), refused; move"
        )
    ):
        look(manifest, raw)
    assert [state_of(raw / "scene1"), (raw / "manifest.yaml").read_bytes(), state_of(victim)] == before


# Licence, choice of scenes, disk


def test_the_licence_is_accepted_once(upstream, tmp_path):
    licence = FACTS["licence"] | {"needs_acceptance": True}
    manifest = manifest_of(f"file://{upstream}", licence=licence)
    with pytest.raises(ValueError, match=r"tiny is under CC BY 4\.0 \(https.*--accept-licence"):
        download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == []
    download(manifest, tmp_path / "raw", accept_licence=True)
    record = json.loads((tmp_path / "raw/.ledger/licence.json").read_text())
    assert record["name"] == "CC BY 4.0" and record["accepted"][:2] == "20"
    download(manifest, tmp_path / "raw")
    other = manifest_of(f"file://{upstream}", licence=licence | {"name": "CC BY-NC 4.0"})
    with pytest.raises(ValueError, match=r"CC BY-NC 4\.0"):  # other terms, asked again
        download(other, tmp_path / "raw")


@pytest.fixture
def scenes(upstream):
    for scene in ("s1", "s2", "s3"):
        for kind in ("rgb", "depth"):
            write_zip(upstream / f"{scene}_{kind}.zip", {f"{scene}/{kind}.bin": os.urandom(400_000)})
    archives = [
        {"path": f"{scene}_{kind}.zip", "scenes": [scene]} for kind in ("rgb", "depth") for scene in ("s1", "s2", "s3")
    ]
    return manifest_of(
        f"file://{upstream}", archives=archives, splits={"scenes": {"train": ["s1", "s3"], "test": ["s2"]}}
    )


def test_scenes_and_limit(scenes, tmp_path):
    raw = tmp_path / "raw"
    download(scenes, raw, params=Download(scenes={"tiny": ["s[23]"]}))
    assert contents(raw) == ["s2/depth.bin", "s2/rgb.bin", "s3/depth.bin", "s3/rgb.bin"]
    download(scenes, raw, params=Download(scenes={"tiny": ["s1"]}))  # adds, does not take away
    assert len(contents(raw)) == 6
    assert len(json.loads((raw / "ledger.json").read_text())["archives"]) == 6
    limited = tmp_path / "limited"
    download(scenes, limited, params=Download(limit_gb={"tiny": 0.0017}))
    assert contents(limited) == ["s1/depth.bin", "s1/rgb.bin", "s2/depth.bin", "s2/rgb.bin"]
    with pytest.raises(ValueError, match=r"limit_gb 0\.0001 holds no scene; the first has 800\.0 kB"):
        download(scenes, tmp_path / "none", params=Download(limit_gb={"tiny": 0.0001}))
    with pytest.raises(ValueError, match=r"no scene of tiny matches \['x\*'\]; it has 3, from s1 to s3"):
        download(scenes, tmp_path / "none", params=Download(scenes={"tiny": ["x*"]}))


def test_a_streamed_data_set_keeps_what_is_measured_on(scenes, tmp_path):
    download(scenes, tmp_path / "raw", params=Download(streamed=["tiny"]))
    assert contents(tmp_path / "raw") == ["s2/depth.bin", "s2/rgb.bin"]


def test_groups_share_no_scene():
    manifest = manifest_of("file:///nowhere")
    scenes = [["a"], ["b"], ["a", "c"], ["c", "b"]]
    archives = [want(manifest, Archive(path=f"{n}.zip", scenes=names)) for n, names in enumerate(scenes)]
    assert [group.scenes for group in group_by_scene(archives[:3])] == [("b",), ("a", "c")]
    assert len(group_by_scene(archives)) == 1
    assert group_by_scene([*archives, want(manifest, Archive(path="all.tar"))])[0].scenes == ()


Usage = namedtuple("Usage", "total used free")


def test_a_disk_too_small_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10_000, 5_000, 5_000))
    manifest = manifest_of(server.url, archives=[{"path": "b/b.tar", "bytes": 10_240}])
    # The tar of 10.2 kB, and as much for its members.
    assert plan(manifest, tmp_path / "raw", params=QUICK)["bytes_on_disk_at_most"] == 2 * 10_240
    assert plan(manifest, tmp_path / "raw", params=QUICK)["bytes_on_disk_after"] == 10_240
    with pytest.raises(OSError, match=r"disk too small: 20\.5 kB needed, 5\.0 kB free, 15\.5 kB missing"):
        download(manifest, tmp_path / "raw", params=QUICK)
    assert contents(tmp_path / "raw") == []


def test_a_disk_that_fills_up_stops_the_run_and_the_next_goes_on(many, tmp_path, monkeypatch):
    manifest, server = many
    move, left = RawFolder.move_in, [3]

    def full_after_three(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return move(self, *args)

    monkeypatch.setattr(RawFolder, "move_in", full_after_three)
    with pytest.raises(OSError, match=r"disk full: about .* are still to come, .* free; make room and run it again"):
        download(read_manifest(manifest), tmp_path / "raw")
    assert len(contents(tmp_path / "raw")) == 3 * 4
    assert not (tmp_path / "raw/ledger.json").exists()
    monkeypatch.undo()
    server.reset_counts()
    download(read_manifest(manifest), tmp_path / "raw")
    assert len(contents(tmp_path / "raw")) == 9 * 4
    assert server.bytes_sent < 6 * 1_200_000 + 500_000


def test_the_raw_folder_is_a_file(upstream, tmp_path):
    (tmp_path / "raw").write_text("")
    with pytest.raises(OSError, match="raw"):
        download(manifest_of(f"file://{upstream}"), tmp_path / "raw")


def test_moved_to_another_disk(many, tmp_path):
    manifest, server = many
    download(read_manifest(manifest), tmp_path / "raw")
    shutil.move(tmp_path / "raw", tmp_path / "elsewhere")
    server.reset_counts()
    download(read_manifest(manifest), tmp_path / "elsewhere")
    assert {path for _, path, _ in server.requests} == {"/SHA256SUMS"}


# The twins, end to end: rendered, packed, fetched, extracted, read, and compared with the exact truth

TINY = Synthesize(height=24, width=32, num_train_scenes=4, num_test_scenes=1, frames_per_scene=4)


def frame_name(dataset, frame):
    number = frame.number
    return {
        "hypersim": f"{frame.scene}/cam_00/frame.{number + (number + 1) // 4:04d}",
        "vkitti2": f"{frame.scene}/{frame.variation}/Camera_0/{frame.pose_number:05d}",
        "tartanair": f"{frame.scene}/Easy/P000/{number:06d}",
        "tartanair2": f"{frame.scene}/Data_easy/P000/{number:06d}",
    }[dataset.removesuffix("-synthetic")]


@pytest.mark.parametrize(
    ("dataset", "far_m", "step_m"),
    [  # (how far the format reaches, half a step of it at 1 m, None: relative)
        ("hypersim-synthetic", np.inf, None),
        ("vkitti2-synthetic", 655.345, 0.005),
        ("tartanair-synthetic", np.inf, None),
        ("tartanair2-synthetic", np.inf, None),
    ],
)
def test_twins_come_out_exact(dataset, far_m, step_m, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize(dataset, TINY, Path("data/synthetic") / dataset)
    raw = Path("data/raw") / dataset
    download(load_manifest(dataset), raw)
    for split, scenes in (("train", range(4)), ("test", range(4, 5))):
        listing = list_frames(dataset, raw, split=split)
        rendered = [frame for index in scenes for frame in render_scene(RECIPES[dataset], TINY, index)]
        truths = {frame_name(dataset, truth): truth for truth in rendered}
        assert [ref.name for ref in listing.frames] == sorted(truths)
        for ref in listing.frames:
            frame, truth = read_frame(ref), truths[ref.name]
            compare(frame, truth, far_m, step_m)
            if dataset.startswith("tartanair"):  # the others store JPEG or radiance
                np.testing.assert_array_equal(frame.rgb, truth.srgb)


def compare(frame, truth, far_m, step_m):
    ray_distance_m = truth.ray_distance_m
    expected = np.isfinite(truth.planar_depth_m) & (truth.planar_depth_m < far_m) & (ray_distance_m < 1000)
    np.testing.assert_array_equal(frame.valid_mask, expected)
    tolerance = {"rtol": 2**-11 + 1e-6} if step_m is None else {"rtol": 1e-6, "atol": step_m}
    np.testing.assert_allclose(frame.planar_depth_m[expected], truth.planar_depth_m[expected], **tolerance)
    pixels = truth.rays @ frame.intrinsics.T
    y, x = np.mgrid[0.5 : frame.rgb.shape[0], 0.5 : frame.rgb.shape[1]]
    assert np.abs(pixels[..., 0] - x).max() < 0.5  # a tilted camera fits a pinhole only so well
    assert np.abs(pixels[..., 1] - y).max() < 0.5
    assert frame.scene == truth.scene
