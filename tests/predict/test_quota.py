"""Runs that do a part of a job: what they begin, what they say, and what the next one does."""

import json
import time

import pytest

from metricgold.predict.quota import Quota
from metricgold.predict.stage import list_inputs, predict_all
from metricgold.storage.buckets import Folder, open_bucket
from tests.predict.test_stage import PARAMS, fill, picture, receipt
from tests.support.pipes import FakePipe
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401


def run(source, out, *, params=PARAMS, **limits) -> dict:
    first = limits.pop("first", ())
    options = {"model_name": "metricgold/1", "pipe": FakePipe(), "first": first, "quota": Quota(**limits)}
    return predict_all(params, source.parent / "no-such-model", str(source), str(out), **options)


def done(out) -> set[str]:
    return {row["input"] for row in receipt(Folder(out)) if row["status"] == "done"}


def test_slices_follow_each_other_until_all_is_done_and_nothing_is_done_twice(tmp_path):
    source, out = fill(tmp_path / "in", 5), tmp_path / "out"
    said = []
    for _ in range(4):
        summary = run(source, out, max_images=2)
        said.append((summary["images_done"], summary["images_kept"], summary["ended_by"]))
        assert json.loads((out / "summary.json").read_text()) == summary
    spent = "max_images 2; the next run goes on"
    assert said == [(2, 0, spent), (4, 2, spent), (5, 4, None), (5, 5, None)]
    assert done(out) == {f"{n}.png" for n in range(5)}


def test_what_lies_behind_the_end_of_a_slice_is_not_forgotten(tmp_path):
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    run(source, out)
    for name in ("0.png", "1.png"):
        (source / name).write_bytes(picture(77))
    assert run(source, out, max_images=1)["images_done"] == 1
    assert (done(out), len(list(Folder(out).lines("receipt.earlier.jsonl")))) == ({"0.png"}, 3)
    whole = run(source, out)
    assert (whole["images_done"], whole["images_kept"]) == (4, 3)


def test_failed_images_do_not_use_up_every_slice(tmp_path):
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    for n in range(3):
        (source / f"{n}.png").write_bytes(picture(n)[:200])  # broken, and first in the listing
    counts = [run(source, out, max_images=2) for _ in range(3)]
    assert [(one["images_done"], one["images_failed"]) for one in counts] == [(0, 2), (1, 3), (1, 3)]
    assert [row["status"] for row in receipt(Folder(out))] == ["failed", "failed", "failed", "done"]
    (source / "0.png").write_bytes(picture(0))
    assert (run(source, out, max_images=1)["images_done"], done(out)) == (2, {"0.png", "3.png"})


def test_seconds_count_from_the_first_image(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    quota = Quota(max_seconds=10)
    now = 1000.0
    assert quota.takes_one()
    now = 1009.9
    assert quota.takes_one() and quota.ended_by is None
    now = 1010.0
    assert not quota.takes_one() and quota.ended_by == "max_seconds 10; the next run goes on"
    assert all(Quota().takes_one() for _ in range(100))


FILES = ["a/1.png", "b.png", "b/1.png", "b/2/1.png", "ba/1.png", "c/1.png"]


@pytest.mark.parametrize(
    ("first", "order"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        (("c/",), [5, 0, 1, 2, 3, 4]),
        (("c/", "b/"), [5, 2, 3, 0, 1, 4]),
        (("b/2/", "b"), [3, 1, 2, 4, 0, 5]),
        (("b", "b/2/"), [1, 2, 3, 4, 0, 5]),
        (("x/",), [0, 1, 2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("store", ["folder", "s3"])
def test_prefixes_come_first(tmp_path, request, store, first, order, caplog):
    if store == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        source = open_bucket(f"s3://{bucket}/in/", create=True)
    else:
        source = Folder(tmp_path / "in")
    for name in FILES:
        source.write(name, b"x")
    listed = [entry.key for entry in list_inputs(source, Folder(tmp_path / "out"), first)]
    assert listed == [FILES[n] for n in order]
    assert ("no key begins with x/" in caplog.text) == (first == ("x/",))


def test_a_prefix_and_a_slice_together(tmp_path):
    source, out = fill(tmp_path / "in", 3), tmp_path / "out"
    (source / "new").mkdir()
    (source / "new" / "0.png").write_bytes(picture(5))
    run(source, out, first=("new/",), max_images=1)
    assert done(out) == {"new/0.png"}


def test_a_prefix_within_a_glob(tmp_path):
    for name in FILES:
        Folder(tmp_path / "in").write(name, b"x")
    source = open_bucket(f"{tmp_path}/in/b*/*.png")
    assert [entry.key for entry in source.entries(below="ba/")] == ["ba/1.png"]
    assert [entry.key for entry in source.entries(below="a")] == []
