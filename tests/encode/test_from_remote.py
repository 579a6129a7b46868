"""Scene by scene from a mirror: the bytes of download and encode, with little on the disk, whatever happens between."""

import multiprocessing
import shutil
import zipfile

import numpy as np
import pytest

from metricgold.datasets.manifest import Manifest, read_manifest
from metricgold.download.raw_folder import RawFolder
from metricgold.download.stage import download, verify
from metricgold.encode.from_remote import encode_from_remote
from metricgold.encode.scene_encoder import SceneEncoder
from metricgold.encode.stage import encode
from metricgold.params.sections import Download
from metricgold.shards import LatentCache
from metricgold.storage.files import read_json
from tests.support.server import FaultServer

SCENES = ("env101", "env102", "env103", "env901")  # the last is of another split


@pytest.fixture
def mirror(tiny_raw, tmp_path):
    """An archive for each scene: one is whole, one has gaps and a broken frame, one has no frame at all."""
    raw, folder = shutil.copytree(tiny_raw, tmp_path / "scenes"), tmp_path / "mirror"
    folder.mkdir()
    (raw / "manifest.yaml").unlink()
    frames = raw / "env102" / "Easy" / "P000"
    (frames / "depth_left" / "000001_left_depth.npy").unlink()
    (frames / "image_left" / "000002_left.png").write_bytes(b"no png")
    (raw / "env901" / "Easy" / "P000" / "depth_left" / "000003_left_depth.npy").unlink()
    (raw / "env103").mkdir()
    (raw / "env103" / "readme.txt").write_text("the frames will follow")
    for scene in SCENES:
        with zipfile.ZipFile(folder / f"{scene}.zip", "w") as file:
            for path in sorted((raw / scene).rglob("*.*")):
                file.write(path, path.relative_to(raw))
    with FaultServer(folder) as server:
        yield server


@pytest.fixture
def manifest(mirror, tiny_raw):
    facts = read_manifest(tiny_raw / "manifest.yaml").model_dump(exclude_unset=True)
    facts["licence"]["needs_acceptance"] = False
    archives = [{"path": f"{scene}.zip", "scenes": [scene]} for scene in SCENES]
    return Manifest(**facts | {"mirrors": [mirror.url], "archives": archives, "checksums": None})


@pytest.fixture
def stream(tiny, tiny_backbone, manifest, tmp_path):
    """encode_from_remote into tmp_path / "out"."""
    params = tiny.model_copy(update={"download": Download(num_workers=1, patience_s=2)})
    return lambda: encode_from_remote(manifest, params, tmp_path / "raw", tiny_backbone, tmp_path / "out").parent


@pytest.fixture
def expected(tiny, tiny_backbone, manifest, tmp_path):
    """Bytes of the cache that download and encode make."""
    raw, out = tmp_path / "whole", tmp_path / "expected"
    download(manifest, raw)
    encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, tiny_backbone, out)
    return bytes_of(out)


def bytes_of(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def fetched(mirror):
    """Scenes whose archives were asked for."""
    return {path.strip("/").removesuffix(".zip") for method, path, _ in mirror.requests if method == "GET"}


def test_the_bytes_of_download_and_encode_and_nothing_stays(stream, expected, mirror, tmp_path):
    mirror.reset_counts()
    out = stream()
    assert bytes_of(out) == expected
    assert fetched(mirror) == {"env101", "env102", "env103"}
    assert not [path for path in (tmp_path / "raw").glob("env*")], "raw scenes are deleted"
    cache = LatentCache(out)
    assert len(cache) == 6 and cache.index["dropped"] == {"depth missing": 1, "unreadable": 1}
    assert read_json(out / "env103.scene.json")["shards"] == []


def test_asked_again_it_fetches_nothing(stream, mirror):
    before = bytes_of(stream())
    mirror.reset_counts()
    assert bytes_of(stream()) == before
    assert fetched(mirror) == set()


def test_stopped_in_the_middle_it_fetches_no_finished_scene_again(stream, expected, mirror, tmp_path, monkeypatch):
    encode_scene = SceneEncoder.encode_scene

    def stop(self, scene, *rest):
        if scene == "env102":
            raise KeyboardInterrupt
        encode_scene(self, scene, *rest)

    monkeypatch.setattr(SceneEncoder, "encode_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        stream()
    assert not (tmp_path / "out" / "index.json").exists()
    assert not (tmp_path / "raw" / "env101").exists() and (tmp_path / "raw" / "env102").exists()
    monkeypatch.undo()
    mirror.reset_counts()
    assert bytes_of(stream()) == expected
    assert "env101" not in fetched(mirror)
    assert not [path for path in (tmp_path / "raw").glob("env*")], "nor does what was fetched stay for good"


def test_killed_before_it_could_delete_it_deletes_then(stream, mirror, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RawFolder, "drop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stream()
    assert (tmp_path / "raw" / "env101").exists()
    mirror.reset_counts()
    stream()
    assert "env101" not in fetched(mirror)
    assert not [path for path in (tmp_path / "raw").glob("env*")]


def test_what_was_downloaded_after_a_kill_stays(stream, manifest, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RawFolder, "drop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stream()
    download(manifest, tmp_path / "raw")
    stream()
    assert sorted(path.name for path in (tmp_path / "raw").glob("env*")) == list(SCENES)


def test_a_scene_that_cannot_be_fetched_stops_no_other(stream, expected, mirror, tmp_path):
    archive, aside = mirror.folder / "env101.zip", tmp_path / "aside.zip"
    archive.rename(aside)
    with pytest.raises((ValueError, OSError), match=r"env101\.zip"):
        stream()
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"env102.scene.json", "env103.scene.json"} <= found
    assert not {"index.json", "env101.scene.json"} & found
    aside.rename(archive)
    mirror.reset_counts()
    assert bytes_of(stream()) == expected
    assert fetched(mirror) == {"env101"}


def test_what_was_in_raw_before_stays(stream, expected, manifest, tmp_path):
    download(manifest, tmp_path / "raw", params=Download(scenes={manifest.name: ["env102"]}))
    assert bytes_of(stream()) == expected
    assert [path.name for path in (tmp_path / "raw").glob("env*")] == ["env102"]


def test_a_damaged_shard_brings_its_scene_back_and_no_other(stream, expected, mirror):
    shard = stream() / "env102-000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    mirror.reset_counts()
    assert bytes_of(stream()) == expected
    assert fetched(mirror) == {"env102"}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(tiny, tiny_backbone, manifest, expected, tmp_path):
    """kill -9 of the process that fetches and encodes; the last run is left alone."""
    rng, context = np.random.default_rng(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metricgold.encode.from_remote"])
    params = tiny.model_copy(update={"download": Download(num_workers=1, patience_s=2)})
    args = (manifest, params, tmp_path / "raw", tiny_backbone, tmp_path / "out")
    for seconds in rng.uniform(0, 0.4, size=10):
        child = context.Process(target=encode_from_remote, args=args)
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
    encode_from_remote(*args)
    assert bytes_of(tmp_path / "out") == expected
    assert not [path for path in (tmp_path / "raw").glob("env*")]


def edit(path):
    """Other depth in the same file."""
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())


DEPTH = "env101/Easy/P000/depth_left/000001_left_depth.npy"


def test_downloaded_depth_that_was_edited_in_place_is_refused(tiny, tiny_backbone, manifest, stream, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    download(manifest, raw)
    encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, tiny_backbone, out)
    before = bytes_of(out)
    edit(raw / DEPTH)
    for call in (lambda: encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, tiny_backbone, out), stream):
        with pytest.raises(ValueError, match=rf"{DEPTH}: not what was downloaded .*download raw --verify"):
            call()
    verify(manifest, raw)
    encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, tiny_backbone, out)
    assert bytes_of(out) == before, "the digest is the ledger's again"


def test_a_frame_put_beside_downloaded_ones_counts_by_its_content(tiny, tiny_backbone, manifest, expected, tmp_path):
    raw, out = tmp_path / "whole", tmp_path / "expected"
    folder = raw / DEPTH.rpartition("/depth_left")[0]
    added = folder / "depth_left/000009_left_depth.npy"
    shutil.copy(raw / DEPTH, added)
    shutil.copy(folder / "image_left/000001_left.png", folder / "image_left/000009_left.png")

    def records():
        encode(tiny.datasets[0], tiny.encode, tiny.log_depth, raw, tiny_backbone, out)
        return {path.name: path.read_bytes() for path in out.glob("*.scene.json")}

    first = records()
    edit(added)
    second = records()
    assert first["env101.scene.json"] != second["env101.scene.json"]
    assert first["env102.scene.json"] == second["env102.scene.json"] == expected["env102.scene.json"]
