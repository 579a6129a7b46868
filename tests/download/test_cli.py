"""`metricgold download` and `metricgold manifest check` as a person at the keyboard meets them."""

import json
import socket
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.datasets import manifest as manifests

FACTS = {
    "name": "tiny",
    "role": "train",
    "title": "Tiny",
    "source": "https://example.org",
    "licence": {"name": "CC BY 4.0", "url": "https://example.org/licence", "terms": "Attribution."},
    "citation": "Nobody, 2026",
    "depth": {"unit": "metre", "kind": "planar", "invalid": "0"},
    "splits": {"scenes": {"train": ["s1"], "test": ["s2"]}},
    "archives": [{"path": "s1.zip", "scenes": ["s1"]}, {"path": "s2.zip", "scenes": ["s2"]}],
}


Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params, a manifest called tiny, and its archives as a local mirror."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manifests, "MANIFESTS", tmp_path / "data_manifests")
    Path("params.yaml").write_text("datasets: [tiny]\ndownload: {patience_s: 1}\n")
    Path("data_manifests").mkdir()
    Path("upstream").mkdir()
    for scene in ("s1", "s2"):
        with zipfile.ZipFile(f"upstream/{scene}.zip", "w") as file:
            file.writestr(f"{scene}/rgb/1.png", scene.encode() * 1000)
    write_manifest(mirrors=["file://upstream"])
    return tmp_path


def write_manifest(**changes):
    Path("data_manifests/tiny.yaml").write_text(yaml.safe_dump(FACTS | changes))


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def refused(*words):
    """The one message of a run that fails."""
    result = run(*words, code=1)
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.output
    return lines[0]


def test_plan_accept_download_verify(project):
    said = json.loads(run("download", "tiny", "--plan", "--json").stdout)
    assert (said["licence_accepted"], said["archives"], said["bytes_on_disk_after"]) == (False, 2, 4000)
    assert not Path("data/raw/tiny/s1").exists()
    run("download", "tiny", "--accept-licence")
    assert Path("data/raw/tiny/s1/rgb/1.png").read_bytes() == b"s1" * 1000
    Path("data/raw/tiny/s2/rgb/1.png").write_bytes(b"xx" * 1000)
    said = json.loads(run("download", "tiny", "--verify", "--json").stdout)
    assert said["members"] == ["s2/rgb/1.png"]
    assert Path("data/raw/tiny/s2/rgb/1.png").read_bytes() == b"s2" * 1000


def test_scenes_and_limit(project):
    run("download", "tiny", "--accept-licence", "--scenes", "s2")
    assert not Path("data/raw/tiny/s1").exists() and Path("data/raw/tiny/s2").exists()
    assert "limit_gb 1e-09 holds no scene" in refused("download", "tiny", "--limit-gb", "1e-9")
    assert "no scene of tiny matches ['x']" in refused("download", "tiny", "--scenes", "x")


def test_unknown_data_set(project):
    assert "no manifest of data set 'nothing'" in refused("download", "nothing")


def test_no_licence(project):
    assert "tiny is under CC BY 4.0" in refused("download", "tiny")


def test_wrong_manifest(project):
    write_manifest(mirrors=["gopher://example.org"])
    assert "data_manifests/tiny.yaml: mirrors.0: " in refused("download", "tiny", "--accept-licence")


def test_no_network(project):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        write_manifest(mirrors=[url])
        assert f"from {url}/s" in refused("download", "tiny", "--accept-licence")


def test_no_such_archive(project):
    Path("upstream/s2.zip").unlink()
    assert "s2.zip from file://upstream/s2.zip: " in refused("download", "tiny", "--accept-licence")
    assert Path("data/raw/tiny/s1").exists()  # the other one is here
    assert not Path("data/raw/tiny/ledger.json").exists()


def test_no_disk(project, monkeypatch):
    from metricgold.download import stage as download

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _path: Usage(10, 9, 1))
    assert "disk too small: " in refused("download", "tiny", "--accept-licence")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root may write")
def test_no_write_permission(project):
    Path("data").mkdir()
    Path("data/raw").symlink_to("/proc")
    assert "data/raw" in refused("download", "tiny", "--accept-licence")


def test_a_file_where_the_folder_should_be(project):
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/tiny").write_text("")
    assert "data/raw/tiny" in refused("download", "tiny", "--accept-licence")


def test_manifest_check(project):
    assert "tiny.yaml is right" in run("manifest", "check").output
    write_manifest(mirrors=["https://example.org"], licence={"name": "x", "url": "https://x.org"}, speed=3)
    said = run("manifest", "check", "tiny", code=1).output
    assert "data_manifests/tiny.yaml: licence.terms: " in said
    assert "data_manifests/tiny.yaml: speed: " in said
    assert "Traceback" not in said
    run("manifest", "check", "nothing", code=1)


def test_the_project_s_own_manifests_are_right():
    assert "manifests are right" in run("manifest", "check").output
