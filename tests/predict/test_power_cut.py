"""No row is saved before the files that it names are on the disk."""

import errno
import json

import pytest

from metricgold.predict import receipt
from metricgold.predict.receipt import PARTIAL, RECEIPT
from metricgold.predict.stage import predict_all
from metricgold.storage import buckets
from metricgold.storage.buckets import Folder
from tests.predict.test_chaos import PARAMS, SteadyPipe, fill
from tests.support.power_cut import PowerCut


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(receipt, "FLUSH_SECONDS", 0.0)
    fill(Folder(tmp_path / "in"), 12)
    return tmp_path / "in"


def predict(photos, output):
    return predict_all(PARAMS, photos / "none", str(photos), str(output), model_name="steady", pipe=SteadyPipe())


def named_by(rows: str, output) -> list:
    return [output / file["key"] for row in rows.splitlines() for file in json.loads(row).get("outputs", {}).values()]


def test_files_are_on_the_disk_before_the_rows_that_name_them(photos, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def vouched(source, target):
        return named_by(source.read_text(), output) if target.suffix == ".jsonl" else []

    cut = PowerCut(monkeypatch, output, vouched)
    assert predict(photos, output)["images_done"] == 12
    assert RECEIPT in cut.seen and len([name for name in cut.seen if name.startswith(PARTIAL)]) > 2
    assert cut.lost == []


def test_where_the_disk_refuses_them_no_row_is_saved(photos, tmp_path, monkeypatch):
    output = tmp_path / "out"

    def refuse(folder):
        monkeypatch.undo()  # the system says it once
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(folder))

    monkeypatch.setattr(buckets, "sync_disk", refuse)
    with pytest.raises(OSError, match="Disk quota exceeded"):
        predict(photos, output)
    assert [named_by(part.read_text(), output) for part in (output / PARTIAL).iterdir()] == [[]]
