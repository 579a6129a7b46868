"""Download from real files and a real HTTP server: verified, resumable after a kill, equal bytes."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures

from metricgold import download as module
from metricgold.datasets import list_frames, read_frame
from metricgold.datasets.synthetic import render_scene, synthesize
from metricgold.download import download, parse_checksums, resolve_sources
from metricgold.manifest import Manifest, load_manifest, read_manifest
from metricgold.params import Synthesize
from metricgold.storage import digest_file, digest_folder, only_writer

FACTS = {
    "name": "tiny",
    "role": "train",
    "title": "Tiny",
    "source": "https://example.org",
    "licence": {"name": "CC BY 4.0", "url": "https://example.org/licence", "terms": "Attribution."},
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
    own = ("manifest.yaml", "ledger.json")
    files = (path.relative_to(raw).as_posix() for path in raw.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in own and not name.startswith(".ledger/"))


SUMS = {"checksums": {"path": "SHA256SUMS", "algorithm": "sha256"}, "archives": []}
EXTRACTED = ["scene1/depth/1.npy", "scene1/rgb/1.png", "split.csv"]


def test_all_that_the_checksum_list_names(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    ledger = download(manifest, tmp_path / "raw")
    assert ledger == tmp_path / "raw/ledger.json"
    assert contents(tmp_path / "raw") == EXTRACTED
    assert json.loads(ledger.read_text())["archives"]["a.zip"]["sha256"] == digest_file(upstream / "a.zip")
    assert read_manifest(tmp_path / "raw/manifest.yaml") == manifest
    assert not (tmp_path / "raw/.part").exists()


def test_file_urls_may_be_relative(upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download(manifest_of("file://upstream", **SUMS), Path("raw"))
    assert contents(tmp_path / "raw") == EXTRACTED


def test_equal_data_equal_bytes(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    first = download(manifest, tmp_path / "one", num_workers=1).read_bytes()
    again = download(manifest, tmp_path / "two", num_workers=8).read_bytes()
    assert first == again
    upstream.rename(tmp_path / "moved")
    moved = manifest_of(f"file://{tmp_path}/nowhere", f"file://{tmp_path}/moved", **SUMS)
    assert download(moved, tmp_path / "three").read_bytes() == first  # a mirror is no difference in the data


def test_a_second_call_fetches_nothing_more(upstream, tmp_path):
    arrived = []
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    download(manifest, tmp_path / "raw", progress=arrived.append)
    assert sum(arrived) == sum((upstream / name).stat().st_size for name in ("a.zip", "b/b.tar", "split.csv"))
    before = digest_folder(tmp_path / "raw")
    arrived.clear()
    download(manifest, tmp_path / "raw", progress=arrived.append)
    assert arrived == []
    assert digest_folder(tmp_path / "raw") == before


def test_a_lost_or_cut_member_is_fetched_again(upstream, tmp_path):
    manifest = manifest_of(f"file://{upstream}", **SUMS)
    download(manifest, tmp_path / "raw")
    before = digest_folder(tmp_path / "raw")
    (tmp_path / "raw/scene1/rgb/1.png").unlink()
    (tmp_path / "raw/scene1/depth/1.npy").write_bytes(b"d")
    download(manifest, tmp_path / "raw")
    assert digest_folder(tmp_path / "raw") == before


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
        ({"bytes": 7}, r"a\.zip from file.*: bytes is \d+, expected 7"),
    ],
)
def test_an_archive_that_is_not_what_was_published(upstream, tmp_path, facts, message):
    manifest = manifest_of(f"file://{upstream}", archives=[{"path": "a.zip", **facts}, {"path": "b/b.tar"}])
    with pytest.raises(ValueError, match=message):
        download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == ["scene1/depth/1.npy"]  # the other archive is not held up
    assert not (tmp_path / "raw/ledger.json").exists()


def test_manifest_and_published_list_must_agree(upstream):
    archives = [{"path": "a.zip", "sha256": "0" * 64}]
    with pytest.raises(ValueError, match=r"a\.zip: the manifest's sha256 is 0{64}, the published list has"):
        resolve_sources(manifest_of(f"file://{upstream}", checksums=SUMS["checksums"], archives=archives))


@pytest.mark.parametrize("name", ["../outside", "ledger.json", ".ledger/a.zip.json"])
def test_nothing_escapes_and_the_ledger_is_not_forged(upstream, tmp_path, name):
    write_zip(upstream / "a.zip", {"scene1/rgb/1.png": b"red", name: b"evil"})
    with pytest.raises(ValueError, match=rf"a\.zip: member '?{name}.*refused"):
        download(manifest_of(f"file://{upstream}", archives=[{"path": "a.zip"}]), tmp_path / "raw")
    assert contents(tmp_path / "raw") == []
    assert not list(tmp_path.rglob("outside"))


def test_two_archives_with_one_member(upstream, tmp_path):
    write_zip(upstream / "c.zip", {"scene1/rgb/1.png": b"other"})
    with pytest.raises(ValueError, match=r"scene1/rgb/1\.png lies in both a\.zip and c\.zip"):
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


class Server(ThreadingHTTPServer):
    """Serves a folder; `faults` names what goes wrong next on a path: an HTTP status, or "cut"."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.faults, self.asked = folder, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        fault = next(iter(self.server.faults.get(self.path, [])), None)
        if fault is not None:
            self.server.faults[self.path].pop(0)
        file = self.server.folder / self.path[1:]
        if isinstance(fault, int) or not file.exists():
            self.send_error(fault or 404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(upstream, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    server = Server(upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_with_a_busy_server_and_a_cut_line(server, tmp_path):
    server.faults = {"/SHA256SUMS": ["cut"], "/a.zip": [503, "cut"], "/b/b.tar": ["cut"]}
    download(manifest_of(server.url, **SUMS), tmp_path / "raw")
    assert contents(tmp_path / "raw") == EXTRACTED
    assert server.asked.count("/a.zip") == 3


def test_http_gives_up_with_every_address_and_reason(server, tmp_path):
    server.faults = {"/a.zip": [503] * 9}
    manifest = manifest_of(f"{server.url}/gone", server.url, archives=[{"path": "a.zip"}])
    with pytest.raises(OSError, match=r"a\.zip from http.*/gone/a\.zip: HTTP 404 .*; a\.zip from http.*: HTTP 503 "):
        download(manifest, tmp_path / "raw")
    assert server.asked.count("/gone/a.zip") == 1  # what is not there is not asked for again
    assert server.asked.count("/a.zip") == 3


def test_the_next_mirror_is_asked_when_one_hands_out_something_else(server, upstream, tmp_path):
    (upstream / "bad").mkdir()
    (upstream / "bad/a.zip").write_bytes(b"<html>Sign in</html>")
    digest = hashlib.md5((upstream / "a.zip").read_bytes()).hexdigest()
    manifest = manifest_of(f"{server.url}/bad", server.url, archives=[{"path": "a.zip", "md5": digest}])
    download(manifest, tmp_path / "raw")
    assert contents(tmp_path / "raw") == ["scene1/rgb/1.png"]


def test_an_own_address_beats_the_mirrors(server, tmp_path):
    files = [{"path": "split.csv", "url": f"{server.url}/split.csv"}]
    manifest = manifest_of(f"file://{server.folder}", files=files)
    download(manifest, tmp_path / "raw")
    assert server.asked == ["/split.csv"]
    assert contents(tmp_path / "raw") == EXTRACTED


def test_s3(s3_bucket, upstream, tmp_path):  # noqa: F811
    for name in ("SHA256SUMS", "a.zip", "b/b.tar", "split.csv"):
        s3_client().upload_file(str(upstream / name), s3_bucket, f"tiny/{name}")
    download(manifest_of(f"s3://{s3_bucket}/tiny", **SUMS), tmp_path / "raw")
    assert contents(tmp_path / "raw") == EXTRACTED
    with pytest.raises(OSError, match=rf"a\.zip from s3://{s3_bucket}/gone/a\.zip: .*NoSuchKey"):
        download(manifest_of(f"s3://{s3_bucket}/gone", archives=[{"path": "a.zip"}]), tmp_path / "other")


# Kills

KILLED = """
import os, signal, sys, yaml
from pathlib import Path
from metricgold.download import download
from metricgold.manifest import read_manifest

left = int(sys.argv[3])

def arrive(num_bytes):
    global left
    left -= num_bytes
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

download(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), num_workers=2, progress=arrive)
"""


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        write_zip(folder / f"{number}.zip", {f"s{number}/{member}.bin": rng.bytes(300_000) for member in range(4)})
    write_sums(folder)
    manifest = tmp_path / "many.yaml"
    manifest.write_text(json.dumps(manifest_of(f"file://{folder}", **SUMS).model_dump(mode="json", exclude_unset=True)))
    return manifest


@pytest.mark.parametrize("num_bytes", [0, 3_000_000, 7_500_000])
def test_killed_and_called_again(many, tmp_path, num_bytes):
    whole = tmp_path / "whole"
    download(read_manifest(many), whole)
    command = [sys.executable, "-c", KILLED, str(many), str(tmp_path / "raw"), str(num_bytes)]
    died = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1], timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (tmp_path / "raw/ledger.json").exists()
    finished = list((tmp_path / "raw/.ledger").glob("*.json"))
    arrived = []
    download(read_manifest(many), tmp_path / "raw", progress=arrived.append)
    assert digest_folder(tmp_path / "raw") == digest_folder(whole)
    assert len(finished) * 1_200_000 + sum(arrived) == pytest.approx(8 * 1_200_000, rel=0.01)


# The twins, the whole way: rendered, packed, fetched, extracted, read, and compared with the exact truth

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
        truths = {frame_name(dataset, truth): truth for index in scenes for truth in render_scene(dataset, TINY, index)}
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
