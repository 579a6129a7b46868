"""Downloaded files that were edited in place, at their size: noticed, and without a pass over what was not."""

import os
import shutil
import sqlite3
import zipfile
from contextlib import closing

import pytest

from metricgold.datasets import content
from metricgold.datasets.content import CONTENT_CACHE
from metricgold.datasets.listing import FrameRef
from metricgold.datasets.manifest import Manifest
from metricgold.download.edits import refuse_edited
from metricgold.download.stage import download, verify


@pytest.fixture
def manifest(tmp_path):
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    (upstream / "split.csv").write_text("scene,split\na,train\n")
    with zipfile.ZipFile(upstream / "a.zip", "w") as file:
        for name in ("a/0.png", "a/0.npy", "a/1.png", "a/1.npy", "a/cameras.txt"):
            file.writestr(name, name.encode() * 100)
    return Manifest.model_validate(
        {
            "name": "tiny",
            "role": "train",
            "title": "Tiny",
            "source": "file://nowhere",
            "citation": "none",
            "licence": {"name": "none", "url": "file://x", "terms": "for tests", "needs_acceptance": False},
            "depth": {"unit": "metre", "kind": "planar", "invalid": "0"},
            "mirrors": [f"file://{upstream}"],
            "archives": [{"path": "a.zip"}],
            "files": [{"path": "split.csv"}],
        }
    )


@pytest.fixture
def raw(manifest, tmp_path):
    raw = tmp_path / "tiny"
    download(manifest, raw)
    return raw


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read."""
    names = []
    digest = content.digest_crc32
    monkeypatch.setattr(content, "digest_crc32", lambda path: names.append(path.name) or digest(path))
    return names


def edit(path):
    """Other bytes of the same size in the same file."""
    with path.open("r+b") as file:
        file.write(b"EDITED")


def frame(raw):
    return FrameRef("tiny", "a", "a/0", raw / "a/0.png", raw / "a/0.npy")


def test_what_arrived_is_known_without_reading_it(raw, hashed):
    vouched = refuse_edited(raw)
    assert {path.relative_to(raw).as_posix() for path in vouched} >= {"a/0.png", "a/cameras.txt", "split.csv"}
    assert hashed == []


@pytest.mark.parametrize("name", ["a/1.npy", "a/cameras.txt", "split.csv"])
def test_a_file_edited_in_place_is_refused_by_name(raw, manifest, hashed, name):
    edit(raw / name)
    with pytest.raises(ValueError, match=rf"{name}: not what was downloaded .*download tiny --verify") as caught:
        refuse_edited(raw)
    assert "\n" not in str(caught.value) and hashed == [name.rpartition("/")[2]]
    verify(manifest, raw)
    hashed.clear()
    assert refuse_edited(raw) and hashed == [], "what was fetched again is known too"


def test_an_edit_within_the_same_tick_shows(raw):
    """A disk whose clock counts whole seconds would show a file's old time after a write right after its arrival."""
    arrived = (raw / "a/0.png").stat()
    edit(raw / "a/0.png")
    assert (raw / "a/0.png").stat().st_mtime - arrived.st_mtime > content.SETTLED_S


def test_a_touched_file_with_the_same_bytes_is_read_once(raw, hashed):
    os.utime(raw / "a/0.png", (1, 1))
    shutil.copy(raw / "a/1.npy", raw / "copy")
    (raw / "copy").replace(raw / "a/1.npy")
    os.utime(raw / "a/1.npy", (1, 1))
    assert refuse_edited(raw) and sorted(hashed) == ["0.png", "1.npy"]
    assert refuse_edited(raw) and len(hashed) == 2


def test_without_the_cache_everything_is_read_once_against_the_ledger(raw, hashed):
    """A folder that was downloaded by an earlier version, or moved to another disk."""
    (raw / CONTENT_CACHE).unlink()
    os.utime(raw / "a/0.npy", (1, 1))
    edit(raw / "a/1.npy")
    with pytest.raises(ValueError, match=r"a/1\.npy: not what was downloaded \(1 of 6 files\)"):
        refuse_edited(raw)
    assert len(hashed) == 6


def test_a_cache_that_cannot_be_written_is_done_without(raw, hashed):
    (raw / CONTENT_CACHE).unlink()
    (raw / CONTENT_CACHE).mkdir()
    assert refuse_edited(raw) and refuse_edited(raw) and len(hashed) == 12
    edit(raw / "a/0.png")
    with pytest.raises(ValueError, match=r"a/0\.png"):
        refuse_edited(raw)


def test_what_is_gone_is_warned_of(raw, caplog):
    (raw / "a/1.npy").unlink()
    assert refuse_edited(raw)
    assert "a/1.npy: gone or unreadable (1 of 6 files); `metricgold download tiny`" in caplog.text


def test_a_stage_that_reads_few_frames_looks_at_these_and_at_cameras(raw, hashed):
    (raw / CONTENT_CACHE).unlink()
    edit(raw / "a/1.npy")
    refuse_edited(raw, [frame(raw)])
    assert sorted(hashed) == ["0.npy", "0.png", "cameras.txt", "split.csv"]
    edit(raw / "a/cameras.txt")
    with pytest.raises(ValueError, match=r"cameras\.txt: not what was downloaded"):
        refuse_edited(raw, [frame(raw)])


def test_names_of_a_ledger_from_somebody_else_are_not_followed(raw):
    with closing(sqlite3.connect(raw / ".ledger/ledger.sqlite")) as ledger:
        ledger.execute("UPDATE members SET name = '../../x' WHERE name = 'a/0.png'")
        ledger.commit()
    with pytest.raises(ValueError, match=r"sqlite is not a ledger: .* would leave the folder"):
        refuse_edited(raw)


def test_where_no_ledger_vouches_there_is_nothing_to_compare(raw, caplog):
    shutil.rmtree(raw / ".ledger")
    edit(raw / "a/0.png")
    assert refuse_edited(raw) is None and "nobody can tell" in caplog.text
    caplog.clear()
    (raw / "ledger.json").unlink()
    assert refuse_edited(raw) is None and not caplog.text
