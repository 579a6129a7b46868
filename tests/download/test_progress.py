"""Progress of bytes, as lines for a log and as numbers for a listener."""

import logging
import re

import pytest

from metricgold.download import progress as module
from metricgold.download.progress import ByteProgress, show_bytes, show_seconds
from metricgold.storage import progress as shown


def test_a_line_says_share_bytes_archives_rate_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = ByteProgress("tiny")
    progress.expect(2_000_000_000, 4)
    with progress.part("a.zip", None):
        progress.advance(500_000_000)
    now[0] = 10.0
    assert progress.line() == "progress 25.0 %: tiny, 500.0 MB of 2.0 GB, 1 of 4 archives, 50.0 MB/s, 30 s left"


def test_lines_come_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_LINES", 0.0)
    progress = ByteProgress("tiny")
    progress.expect(10, 1)
    with caplog.at_level(logging.INFO, logger="metricgold.storage.progress"):
        for _ in range(3):
            progress.advance(2)
    assert [re.match(r"progress (\S+) %", record.message)[1] for record in caplog.records] == ["20.0", "40.0", "60.0"]


def test_a_listener_hears_every_byte_and_nothing_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_LINES", 0.0)
    heard = []
    progress = ByteProgress("tiny", listener=heard.append)
    progress.expect(10, 1)
    with progress.part("a.zip", 10):
        progress.advance(4)
        progress.advance(6)
    assert heard == [4, 6]
    assert not caplog.records


def test_on_a_terminal_large_archives_have_bars_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    progress = ByteProgress("tiny")
    progress.expect(30_000_000, 2)
    with progress.part("a.zip", 20_000_000) as advance, progress.part("small.zip", 10) as small:
        advance(5_000_000)
        small(10)
        progress.advance(5_000_010)
    progress.close()
    bars = capsys.readouterr().err
    assert "tiny:  17%" in bars and "5.00M/30.0M" in bars
    assert "a.zip" in bars and "small.zip" not in bars


def test_the_progress_file_holds_the_share_of_a_whole_stage_and_never_more_than_all(monkeypatch, tmp_path):
    monkeypatch.setenv(shown.PROGRESS_FILE, str(tmp_path / "progress.json"))
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_WRITES", 0.0)
    for is_whole_stage in (False, True):
        progress = ByteProgress("tiny", is_whole_stage=is_whole_stage)
        progress.expect(10, 1)
        progress.advance(4)
        assert (tmp_path / "progress.json").exists() == is_whole_stage
    assert shown.read_progress(tmp_path / "progress.json").percent == 40
    progress.advance(7)  # some bytes came twice
    assert shown.read_progress(tmp_path / "progress.json").percent == 100
    assert progress.bytes_done == 11


def test_a_part_that_fails_is_not_counted(tmp_path):
    progress = ByteProgress("tiny", listener=lambda _n: None)
    progress.expect(10, 2)
    with pytest.raises(OSError), progress.part("a.zip", 10):
        raise OSError("gone")
    assert progress.parts_done == 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_234_567, "1.2 MB"), (280_100_000_000, "280.1 GB"), (1.9e12, "1.90 TB")],
)
def test_bytes_as_people_say_them(num_bytes, text):
    assert show_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min"), (59.6, "1 min 0 s")]
)
def test_seconds_as_people_say_them(seconds, text):
    assert show_seconds(seconds) == text
