import logging
import threading

import pytest

from metricgold.storage import progress as module
from metricgold.storage.progress import PROGRESS_FILE, Progress, StageProgress, read_progress, write_progress


def test_what_is_written_is_read(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    assert read_progress(path) is None
    write_progress(StageProgress(3, 8, "steps"))
    assert read_progress(path) == StageProgress(3, 8, "steps")
    assert read_progress(path).percent == 37.5
    assert [one.name for one in tmp_path.iterdir()] == ["progress.json"]


def test_without_a_file_to_write_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    write_progress(StageProgress(3, 8, "steps"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_costs_the_file_only(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "absent" / "file" / "progress.json"))
    (tmp_path / "absent").write_text("a file where a folder should be")
    write_progress(StageProgress(3, 8, "steps"))


def test_units_of_many_threads_are_counted(tmp_path, monkeypatch, caplog):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    caplog.set_level(logging.INFO)
    with Progress("frames of a set", 400, "frames") as progress:
        threads = [threading.Thread(target=lambda: [progress.advance() for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read_progress(path) == StageProgress(400, 400, "frames")
    assert caplog.messages[-1] == "frames of a set: 400 of 400 frames"


@pytest.mark.parametrize(("total", "line"), [(None, "images: 2 images"), (2, "images: 2 of 2 images")])
def test_lines_are_logged_where_there_is_no_terminal(monkeypatch, caplog, total, line):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    with Progress("images", total, "images") as progress:
        progress.advance(2)
    assert caplog.messages == [line]
