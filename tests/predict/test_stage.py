import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from threading import Event
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

import metricgold.predict.entries as entries_module
import metricgold.predict.receipt as receipt_module
import metricgold.predict.stage as stage_module
from metricgold.images.depth_files import read_depth, read_log_depth_png, read_uncertainty_png
from metricgold.images.photo import Photo
from metricgold.params.sections import Predict
from metricgold.predict.entries import (
    ImageCamera,
    ReadImage,
    batches_of_one_size,
    predict_entries,
    read_ahead,
    read_job_photo,
    write_image,
)
from metricgold.predict.gallery import make_thumbnail
from metricgold.predict.job import BatchJob
from metricgold.predict.outputs import DEPTH
from metricgold.predict.row_blocks import index_of
from metricgold.predict.stage import over_budget, predict_all
from metricgold.storage import buckets
from metricgold.storage.buckets import Folder, StoredObject, StoreLost, open_bucket
from metricgold.storage.files import digest_folder, write_aside
from metricgold.storage.output_lock import LEASE, LOCK
from tests.support import SHARED
from tests.support.pipes import FakePipe
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401
from tests.support.waiting import wait_until
from tests.support.workers import sent

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
PARAMS = Predict(num_inference_steps=2, ensemble_size=2, batch_size=6, num_threads=2, gallery=0)
ODD = SHARED / "samples" / "odd_images"


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n}.png").write_bytes(picture(n))
    return folder


def receipt(bucket) -> list[dict]:
    return [json.loads(line) for line in bucket.lines("receipt.jsonl")]


def same_rows(rows: list[dict], others: list[dict]) -> bool:
    """Whether two runs say the same but for when; tags of a folder's files are times too."""
    plain = [[{**row, "seconds": None, "finished": None} for row in run] for run in (rows, others)]
    for row in [*plain[0], *plain[1]]:
        row["outputs"] = {kind: file["key"] for kind, file in row.get("outputs", {}).items()}
    return plain[0] == plain[1]


def run(source, out, pipe=None, params=PARAMS, model_name="metricgold/1", model=Path("no-such-model")) -> dict:
    return predict_all(params, model, str(source), str(out), model_name=model_name, pipe=pipe or FakePipe())


def test_folder_to_folder(tmp_path):
    source = fill(tmp_path / "in")
    (source / "deep").mkdir()
    (source / "deep" / "0.jpg").write_bytes(picture(9, 64, 20))
    summary = run(source, tmp_path / "out")
    assert (summary["images_done"], summary["images_failed"], summary["images_skipped"]) == (6, 0, 0)
    rows = receipt(Folder(tmp_path / "out"))
    assert [row["input"] for row in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png", "deep/0.jpg"]
    for row in rows:
        rgb = np.asarray(Image.open(source / row["input"]))
        depth_m, attributes = read_log_depth_png(tmp_path / "out" / row["output"])
        np.testing.assert_allclose(depth_m, FakePipe.seen_depth_m(rgb), rtol=5e-5)
        assert (attributes["unit"], attributes["model"], attributes["input"]) == (
            "metres",
            "metricgold/1",
            row["input"],
        )
        uncertainty, _ = read_uncertainty_png(tmp_path / "out" / f"{row['input']}.uncertainty.png")
        np.testing.assert_allclose(uncertainty, 0.02, rtol=1e-5)
        with Image.open(tmp_path / "out" / f"{row['input']}.preview.jpg") as preview:
            assert preview.format == "JPEG"
        assert row["median_m"] == pytest.approx(np.median(depth_m[np.isfinite(depth_m)]), rel=1e-4)
        assert (row["height"], row["width"]) == rgb.shape[:2]
        assert row["sha256"] == hashlib.sha256((tmp_path / "out" / row["output"]).read_bytes()).hexdigest()
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    left = {path.name for path in (tmp_path / "out").iterdir() if "." not in path.name or path.name.startswith(".")}
    assert left == {"deep", LOCK, LEASE, index_of("receipt.jsonl")}  # no partial receipt, no files aside


def test_images_of_one_size_share_a_batch(tmp_path):
    source = fill(tmp_path / "in", 9)
    for n in range(4):
        (source / f"{n}-wide.png").write_bytes(picture(n, 80, 30))
    pipe = FakePipe()
    run(source, tmp_path / "out", pipe)
    assert sorted(pipe.calls) == [1, 3, 3, 3, 3]


def test_rerun_computes_only_what_changed(tmp_path):
    source, out = fill(tmp_path / "in"), tmp_path / "out"
    run(source, out)
    before = (out / "receipt.jsonl").read_bytes()
    idle = FakePipe()
    summary = run(source, out, idle)
    assert (idle.calls, summary["images_done"], summary["images_kept"]) == ([], 5, 5)
    assert (out / "receipt.jsonl").read_bytes() == before

    (source / "1.png").write_bytes(picture(77))
    (out / "2.png.preview.jpg").unlink()
    (out / "3.png.depth.png").write_bytes(b"something else")
    (source / "4.png").unlink()
    pipe = FakePipe()
    summary = run(source, out, pipe)
    assert (pipe.calls, summary["images_done"], summary["images_kept"]) == ([3], 4, 1)
    assert [row["input"] for row in receipt(Folder(out))] == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    "change",
    [{"model_name": "metricgold/2"}, {"params": PARAMS.model_copy(update={"seed": 1})}],
    ids=["model", "params"],
)
def test_another_model_or_other_params_compute_anew(tmp_path, change):
    source = fill(tmp_path / "in")
    run(source, tmp_path / "out")
    pipe = FakePipe()
    run(source, tmp_path / "out", pipe, **change)
    assert sum(pipe.calls) == 5


def test_new_weights_under_the_old_name_compute_anew(tmp_path):
    source, model = fill(tmp_path / "in"), tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"one")
    run(source, tmp_path / "out", model=model)
    (model / "weights").write_bytes(b"two")
    pipe = FakePipe()
    run(source, tmp_path / "out", pipe, model=model)
    assert sum(pipe.calls) == 5


def test_batch_size_and_threads_do_not_compute_anew(tmp_path):
    source = fill(tmp_path / "in")
    run(source, tmp_path / "out")
    pipe = FakePipe()
    run(source, tmp_path / "out", pipe, params=PARAMS.model_copy(update={"batch_size": 1, "num_threads": 1}))
    assert pipe.calls == []


def test_bad_and_foreign_files_are_rows(tmp_path):
    source = fill(tmp_path / "in", 2)
    (source / "broken.png").write_bytes(picture(0)[:300])
    (source / "empty.jpg").write_bytes(b"")
    (source / "notes.txt").write_text("not a picture")
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    summary = run(source, tmp_path / "out")
    assert (summary["images_done"], summary["images_failed"], summary["images_skipped"]) == (2, 2, 1)
    rows = {row["input"]: row for row in receipt(Folder(tmp_path / "out"))}
    assert {name: row["status"] for name, row in rows.items()} == {
        "0.png": "done",
        "1.png": "done",
        "broken.png": "failed",
        "empty.jpg": "failed",
        "notes.txt": "skipped",
    }
    assert "broken.png: cannot be read" in rows["broken.png"]["reason"]
    assert rows["empty.jpg"]["reason"] == "empty.jpg: empty file"
    assert "notes.txt: not an image" in rows["notes.txt"]["reason"]
    assert all("read" in row["seconds"] and row["finished"] for row in rows.values())


def test_what_is_no_image_is_looked_at_once(tmp_path, monkeypatch):
    source, out = fill(tmp_path / "in", 2), tmp_path / "out"
    for name in ("notes.txt", "film.mp4"):
        (source / name).write_text("not a picture")
    (source / "empty.jpg").touch()
    run(source, out)
    first, read, looked_at = receipt(Folder(out)), Folder.read, []
    (source / "film.mp4").write_bytes(picture(5))
    monkeypatch.setattr(Folder, "read", lambda self, key, *more, **tag: looked_at.append(key) or read(self, key, *more))
    summary = run(source, out)
    # What failed is tried again; rows are read, and the summary has the figures of the run before.
    assert set(looked_at) == {"empty.jpg", "film.mp4", "receipt.jsonl", "summary.json"}
    counted = [summary[f"images_{name}"] for name in ("done", "kept", "failed", "skipped")]
    assert counted == [3, 2, 1, 1]
    assert receipt(Folder(out))[-1] == first[-1] and first[-1]["status"] == "skipped"


def test_an_image_the_model_cannot_do_costs_no_other(tmp_path):
    source = fill(tmp_path / "in", 4)
    (source / "wide.png").write_bytes(picture(0, 99))
    summary = run(source, tmp_path / "out", FakePipe(break_on_width=99))
    assert (summary["images_done"], summary["images_failed"]) == (4, 1)
    failed = next(row for row in receipt(Folder(tmp_path / "out")) if row["status"] == "failed")
    assert failed["reason"] == "wide.png: the model failed: out of memory"


def test_a_failing_write_is_a_row(tmp_path):
    source = fill(tmp_path / "in", 3)
    (tmp_path / "out" / "1.png.depth.png" / "in the way").mkdir(parents=True)
    (tmp_path / "out" / "1.png.uncertainty.png").mkdir()
    (tmp_path / "out" / "2.png.depth.png").write_bytes(b"old")
    long = "x" * 245 + ".png"
    (source / long).write_bytes(picture(3))
    summary = run(source, tmp_path / "out")
    rows = {row["input"]: row for row in receipt(Folder(tmp_path / "out"))}
    assert rows[long]["status"] == "failed"
    assert "too long" in rows[long]["reason"]
    assert summary["images_failed"] >= 1
    assert rows["0.png"]["status"] == rows["2.png"]["status"] == "done"


def test_a_key_too_long_for_one_of_its_outputs_leaves_none_of_them(tmp_path):
    source = fill(tmp_path / "in", 1)
    for letter in "xy":
        (source / (letter * 239 + ".png")).write_bytes(picture(3))  # 243 bytes, and .uncertainty.png has 16
    summary = run(source, tmp_path / "out")
    rows = receipt(Folder(tmp_path / "out"))
    assert [row["status"] for row in rows] == ["done", "failed", "failed"]
    assert rows[1]["reason"] == f"writing {'x' * 239}.png: a name of 259 bytes is too long, 255 fit"
    assert list(summary["reasons"].values()) == [2]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(("x", "y"))]


@pytest.mark.parametrize("inside", ["", "depth", "depth/today"])
def test_output_inside_the_input_is_not_read_again(tmp_path, inside):
    source = fill(tmp_path / "in", 3)
    run(source, source / inside)
    pipe = FakePipe()
    summary = run(source, source / inside, pipe)
    assert pipe.calls == []
    assert (summary["images_done"], summary["images_skipped"], summary["images_failed"]) == (3, 0, 0)


def test_nothing_to_predict_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="/in: no files to predict"):
        run(tmp_path / "in", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "in" / "A.JPG").write_bytes(picture(0))
    with pytest.raises(ValueError, match="no files to predict; globs are case-sensitive"):
        run(tmp_path / "in" / "*.jpg", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_a_receipt_that_is_none_is_named(tmp_path):
    source = fill(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "receipt.jsonl").write_text("something else\n")
    with pytest.raises(ValueError, match=r"out: receipt\.jsonl holds a line that is not a row"):
        run(source, tmp_path / "out")


def test_two_jobs_do_not_share_an_output(tmp_path):
    source = fill(tmp_path / "in", 1)

    class Nested(FakePipe):
        def __call__(self, image, **options):
            with pytest.raises(BlockingIOError, match="out is being written"):
                run(source, tmp_path / "out")
            return super().__call__(image, **options)

    assert run(source, tmp_path / "out", Nested())["images_done"] == 1


def test_names_that_are_no_text(tmp_path):
    source = fill(tmp_path / "in", 1)
    Path(os.fsdecode(os.fsencode(source) + b"/\xff\xe4.png")).write_bytes(picture(1))
    (source / "日本 +#%.png").write_bytes(picture(2))
    assert run(source, tmp_path / "out")["images_done"] == 3
    pipe = FakePipe()
    assert run(source, tmp_path / "out", pipe)["images_done"] == 3
    assert pipe.calls == []


def start_slow_job(source: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("slow_job.py")), str(source), str(out), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("least", [1, 12, 30])
def test_a_killed_job_goes_on_where_it_was(tmp_path, least):
    source, out = fill(tmp_path / "in", 40), tmp_path / "out"
    job = start_slow_job(source, out)
    wait_until(lambda: len(list(out.glob("*.depth.png"))) >= least)
    job.kill()
    job.communicate()
    present = len(list(out.glob("*.depth.png")))
    assert least <= present < 40
    assert not (out / "receipt.jsonl").exists()

    pipe = FakePipe()
    summary = run(source, out, pipe)
    assert summary["images_done"] == 40
    assert summary["images_kept"] >= present - 8  # what was in the writers' hands, or just out of them
    assert sum(pipe.calls) == 40 - summary["images_kept"]
    run(source, tmp_path / "undisturbed")
    for path in (tmp_path / "undisturbed").glob("*.png*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert same_rows(receipt(Folder(out)), receipt(Folder(tmp_path / "undisturbed")))
    assert not (out / "receipt.partial").exists()


def test_a_killed_job_leaves_half_a_file_only_until_the_next_one(tmp_path, monkeypatch):
    source, out, temporary = fill(tmp_path / "in", 6), tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    job = start_slow_job(source, out, "--halt-in-pictures")
    wait_until(lambda: list(out.glob(".*.png.*.part")))
    job.kill()
    job.communicate()
    assert list(out.glob(".*.png.*.part")) and not list(out.glob("*.png"))
    assert not any(temporary.iterdir())
    assert run(source, out)["images_done"] == 6
    assert not list(out.glob("**/.*.part"))


def test_sigterm_saves_what_is_done(tmp_path):
    source, out = fill(tmp_path / "in", 40), tmp_path / "out"
    job = start_slow_job(source, out, "--flush-s", "1e9", "--exit-on-sigterm")
    wait_until(lambda: len(list(out.glob("*.json"))) >= 8)
    job.terminate()
    assert "the same job resumes" in job.communicate(timeout=30)[1]
    assert job.returncode == 128 + signal.SIGTERM
    assert not list(out.glob("**/*.part"))
    kept = run(source, out)["images_kept"]
    assert 0 < kept < 40


def test_broken_off_at_any_write_it_ends_as_if_undisturbed(tmp_path, monkeypatch):
    source, write = fill(tmp_path / "in", 3), Folder.write
    monkeypatch.setattr(receipt_module, "FLUSH_SECONDS", 0.0)
    params = PARAMS.model_copy(update={"gallery": 2, "batch_size": 2})
    run(source, tmp_path / "undisturbed", params=params)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").glob("*.png*")}
    for last in range(50):
        out, count = tmp_path / f"out{last}", iter(range(100))

        def write_some(self, key, *options, count=count, last=last, **more):
            if key != LEASE and next(count) == last:
                # The receipt comes last, but for its index.
                assert Folder.exists(self, "receipt.jsonl") == (key == index_of("receipt.jsonl"))
                raise KeyboardInterrupt
            return write(self, key, *options, **more)

        monkeypatch.setattr(Folder, "write", write_some)
        try:
            run(source, out, params=params)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(Folder, "write", write)
        run(source, out, params=params)
        assert {path.name: path.read_bytes() for path in out.glob("*.png*")} == whole
        assert same_rows(receipt(Folder(out)), receipt(Folder(tmp_path / "undisturbed")))
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert last > 12 + 3  # the files, the parts, summary, page and receipt


def test_rows_of_a_broken_run_with_another_model_are_not_believed(tmp_path):
    source, out = fill(tmp_path / "in", 3), tmp_path / "out"
    run(source, out, model_name="one")

    class Dying(FakePipe):
        def __call__(self, image, **options):
            raise KeyboardInterrupt

    run(source, tmp_path / "elsewhere", model_name="two")
    # As a run with model two leaves it that dies after its files and before its rows.
    for suffix in (".depth.png", ".uncertainty.png", ".preview.jpg"):
        (out / f"1.png{suffix}").write_bytes((tmp_path / "elsewhere" / f"1.png{suffix}").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run(source, out, Dying(), model_name="two")
    pipe = FakePipe()
    run(source, out, pipe, model_name="one")
    assert pipe.calls == [1]
    assert read_log_depth_png(out / "1.png.depth.png")[1]["model"] == "one"


@pytest.mark.skipif(not ODD.is_dir(), reason="shared/samples/odd_images is not there")
def test_every_odd_image_ends_as_output_or_reasoned_row(tmp_path):
    summary = run(ODD, tmp_path / "out", params=PARAMS.model_copy(update={"max_pixels": 7_500_000}))
    rows = receipt(Folder(tmp_path / "out"))
    assert (summary["images_done"], summary["images_failed"], summary["images_skipped"]) == (len(rows) - 10, 10, 0)
    assert len(rows) == sum(path.is_file() for path in ODD.rglob("*"))
    reasons = {row["input"]: row["reason"] for row in rows}
    assert "3264x2448 is more than 7500000 pixels" in reasons["exif/jpg/mobile/jolla.jpg"]
    for row in rows:
        done = row["status"] == "done"
        assert done == (tmp_path / "out" / f"{row['input']}.depth.png").is_file()
        assert done or row["reason"].startswith(row["input"])


# Batches


def test_one_aspect_shares_a_batch_whatever_the_sizes(tmp_path):
    sizes = [(40, 30), (80, 60), (120, 90), (60, 45), (30, 40), (60, 80)]
    source = tmp_path / "in"
    source.mkdir()
    for n, (width, height) in enumerate(sizes):
        (source / f"{n}.png").write_bytes(picture(n, width, height))
    pipe = FakePipe()
    run(source, tmp_path / "out", pipe)
    assert sorted(pipe.calls) == [1, 2, 3]  # 3 images x 2 members make 6
    assert pipe.options == {
        **{"num_inference_steps": 2, "ensemble_size": 2, "timestep_spacing": "trailing", "seed": 0, "merge": "depth"},
        **{"max_ensemble_size": 10, "uncertainty_target": 0.01, "windows": "auto", "batch_size": 6},
        **{"assumed_fov_deg": 60.0, "intrinsics": [None] * pipe.calls[-1]},
    }
    for row, (width, height) in zip(receipt(Folder(tmp_path / "out")), sizes, strict=True):
        assert (row["width"], row["height"]) == (width, height)
        assert read_log_depth_png(tmp_path / "out" / row["output"])[0].shape == (height, width)


@pytest.mark.parametrize(
    ("batch_size", "ensemble_size", "images"), [(16, 10, 1), (16, 4, 4), (4, 10, 1), (16, "auto", 5)]
)
def test_batch_size_counts_images_times_members(batch_size, ensemble_size, images):
    params = Predict(batch_size=batch_size, ensemble_size=ensemble_size)
    assert BatchJob(params, "in", "out", Path("m"), "m", "").images_at_once == images


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 4))
def test_no_image_waits_for_ever_and_none_is_lost(sizes, images_at_once):
    images = [read_image_of(n, 1, size + 1) for n, size in enumerate(sizes)]
    pulled = [0]

    def read():
        for image in images:
            pulled[0] += 1
            yield image

    given_out = []
    for batch in batches_of_one_size(read(), lambda photo: photo.rgb.shape[:2], images_at_once):
        assert 1 <= len(batch) <= images_at_once
        assert len({image.photo.rgb.shape for image in batch}) == 1
        given_out += [image.entry.bytes for image in batch]
        assert pulled[0] - len(given_out) <= 4 * images_at_once
    assert sorted(given_out) == list(range(len(images)))


def read_image_of(number: int, height: int, width: int) -> ReadImage:
    photo = Photo(np.zeros((height, width, 3), np.uint8))
    return ReadImage(StoredObject(f"{number}.png", number, "tag"), photo, ImageCamera(*photo.camera(60)), {})


def test_large_images_do_not_wait_in_numbers(monkeypatch):
    monkeypatch.setattr(entries_module, "HELD_BYTES", 1000)
    images = [read_image_of(n, 10, 10 + n) for n in range(9)]
    sizes = [len(batch) for batch in batches_of_one_size(images, lambda photo: photo.rgb.shape[:2], 9)]
    assert sizes == [1] * 9  # 330 bytes and more each


def test_images_that_unpack_to_much_are_not_decoded_in_numbers(tmp_path, monkeypatch):
    for n in range(12):
        Image.new("RGB", (400, 300)).save(tmp_path / f"{n:02d}.png")  # 1 kB each, and 360 kB once decoded
    (tmp_path / "05.png").write_bytes(b"broken")
    monkeypatch.setattr(entries_module, "HELD_BYTES", 2 * entries_module.DECODING_BYTES * 400 * 300)
    held, most = [0], []

    def counting(job, data, key):
        held[0] += key != "05.png"
        most.append(held[0])
        return read_job_photo(job, data, key)

    monkeypatch.setattr(entries_module, "read_job_photo", counting)
    job = BatchJob(PARAMS.model_copy(update={"num_threads": 8}), str(tmp_path), "out", tmp_path, "m", "")
    with ThreadPoolExecutor(16) as pool:
        images = read_ahead(pool, job, Folder(tmp_path), Folder(tmp_path).entries())
        for n, image in enumerate(images):
            assert (image["input"] if n == 5 else image.entry.key) == f"{n:02d}.png"
            time.sleep(0.01)  # while the model works, all that may be decoded is
            held[0] -= n != 5
    assert (n, max(most)) == (11, 3)  # two, beside the one in use


def test_images_are_decoded_while_the_model_works(tmp_path, monkeypatch):
    source, decoded, arrived = fill(tmp_path / "in", 6), [], Event()

    def read(self, key, *args, **options):
        if key != "0.png":
            assert arrived.wait(30)
        return (source / key).read_bytes()

    def counting(job, data, key):
        decoded.append(key)
        return read_job_photo(job, data, key)

    monkeypatch.setattr(Folder, "read", read)
    monkeypatch.setattr(entries_module, "read_job_photo", counting)
    job = BatchJob(PARAMS.model_copy(update={"num_threads": 6}), str(source), "out", tmp_path, "m", "")
    with ThreadPoolExecutor(6) as pool:
        images = read_ahead(pool, job, Folder(source), Folder(source).entries())
        first = next(images).entry.key  # with which the model is at work from here on
        arrived.set()
        wait_until(lambda: len(decoded) == 6)
        assert [first, *(image.entry.key for image in images)] == sorted(decoded)


def test_large_images_share_no_batch(monkeypatch):
    monkeypatch.setattr(entries_module, "BATCH_PIXELS", 250)
    images = [read_image_of(n, 10, 10 if n < 5 else 30) for n in range(8)]
    sizes = [len(batch) for batch in batches_of_one_size(images, lambda photo: photo.rgb.shape[:2], 9)]
    assert sizes == [2, 2, 1, 1, 1, 1]


def test_large_images_are_not_written_in_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(entries_module, "WRITTEN_PIXELS", 2 * 40 * 30)
    writing, most = [], []

    def slowly(job, sink, image, result, sample):
        writing.append(image)
        most.append(len(writing))
        time.sleep(0.01)
        writing.remove(image)
        return write_image(job, sink, image, result, sample)

    monkeypatch.setattr(entries_module, "write_image", slowly)
    source = fill(tmp_path / "in", 12)
    (source / "large.png").write_bytes(picture(0, 80, 60))  # more than fits, so alone
    job = BatchJob(PARAMS, str(source), str(tmp_path / "out"), tmp_path, "m", "")
    assert len(list(predict_entries(job, Folder(source).entries(), pipe=FakePipe()))) == 13
    assert max(most) == 2


def test_entries_are_taken_only_as_fast_as_they_are_done(tmp_path):
    source, pulled = fill(tmp_path / "in", 60), []
    entries = (pulled.append(entry) or entry for entry in Folder(source).entries())
    job = BatchJob(PARAMS, str(source), str(tmp_path / "out"), tmp_path, "m", "")
    with closing(predict_entries(job, entries, pipe=FakePipe())) as rows:
        for n, row in enumerate(rows, 1):
            assert row["status"] == "done"
            assert len(pulled) - n <= 5 + 3 + 4 + 3  # read ahead, in a batch, behind, and written in between
    assert n == 60


def test_a_job_travels(tmp_path):
    source = fill(tmp_path / "in", 3)
    job = BatchJob(PARAMS, str(source), str(tmp_path / "out"), tmp_path, "m", "", exclude=("1.*",))
    copy = sent(job)
    assert copy == job and copy.identity == job.identity
    entries = sent(list(copy.open_source().entries()))
    rows = list(predict_entries(copy, entries, pipe=FakePipe()))
    assert sorted(row["output"] for row in rows) == ["0.png.depth.png", "2.png.depth.png"]


def test_a_failing_batch_is_halved(tmp_path):
    source = fill(tmp_path / "in", 3)
    (source / "9.png").write_bytes(picture(0, 80, 60))
    pipe = FakePipe(break_on_width=80)
    summary = run(source, tmp_path / "out", pipe, params=PARAMS.model_copy(update={"batch_size": 8}))
    assert (pipe.calls, summary["images_done"], summary["images_failed"]) == ([4, 2, 2, 1, 1], 3, 1)
    assert summary["reasons"] == {"the model failed: out of memory": 1}


def test_a_one_step_model_is_not_asked_for_more(tmp_path):
    pipe = FakePipe()
    pipe.is_one_step = True
    source = fill(tmp_path / "in", 2)
    with pytest.raises(ValueError, match=r"trained for one step.*--preset one-step\), got 2"):
        run(source, tmp_path / "out", pipe)
    one = PARAMS.model_copy(update={"num_inference_steps": 1, "ensemble_size": 1})
    assert run(source, tmp_path / "out", pipe, params=one)["images_done"] == 2


def test_more_steps_than_the_model_knows_are_refused_at_once(tmp_path):
    pipe = FakePipe()
    pipe.max_steps = 1
    with pytest.raises(ValueError, match="metricgold/1 takes num_inference_steps up to 1, got 2"):
        run(fill(tmp_path / "in", 2), tmp_path / "out", pipe)


# What is kept


def kinds(*names: str) -> Predict:
    return PARAMS.model_copy(update={"outputs": list(names)})


def test_one_more_kind_is_computed_only_where_it_is_missing(tmp_path):
    source, out, pipe = fill(tmp_path / "in", 3), tmp_path / "out", FakePipe()
    run(source, out, params=kinds("log-png", "json"))
    more = kinds("log-png", "json", "npz")
    assert run(source, out, pipe, params=more)["images_kept"] == 0
    assert sum(pipe.calls) == 3
    (out / "1.png.depth.npz").unlink()
    assert run(source, out, pipe, params=kinds("json"))["images_kept"] == 3  # fewer kinds: nothing is missing
    rows = receipt(Folder(out))
    assert [sorted(row["outputs"]) for row in rows] == [
        ["json", "log-png", "npz"],
        ["json", "log-png"],
        ["json", "log-png", "npz"],
    ]
    assert run(source, out, pipe, params=more)["images_kept"] == 2
    assert sum(pipe.calls) == 4


def test_a_job_over_a_part_costs_the_others_nothing(tmp_path):
    source, out, idle = fill(tmp_path / "in"), tmp_path / "out", FakePipe()
    run(source, out)
    whole = (out / "receipt.jsonl").read_bytes()
    for _ in range(2):
        assert run(source / "1.png", out, idle)["images_kept"] == 1
        assert [row["input"] for row in receipt(Folder(out))] == ["1.png"]
        left = (out / "receipt.earlier.jsonl").read_text().splitlines()
        assert [json.loads(line)["input"] for line in left] == ["0.png", "2.png", "3.png", "4.png"]
    assert run(source, out, idle)["images_kept"] == 5
    assert idle.calls == []
    assert (out / "receipt.jsonl").read_bytes() == whole
    assert (out / "receipt.earlier.jsonl").read_bytes() == b""
    for name in ("0.png", "2.png"):
        (source / name).unlink()
    for path in out.glob("0.png.*"):
        path.unlink()
    run(source, out, idle)
    (line,) = (out / "receipt.earlier.jsonl").read_text().splitlines()  # of what has files still
    assert json.loads(line)["input"] == "2.png"


@pytest.mark.parametrize("kills_at", ["receipt.earlier.jsonl", ".receipt.earlier.jsonl.index", "receipt.jsonl"])
@pytest.mark.parametrize(("first", "then"), [("[0-2].png", "[3-5].png"), ("[0-2].png", "[24].png")])
def test_killed_while_rows_move_between_both_files_it_loses_none(tmp_path, monkeypatch, first, then, kills_at):
    """Jobs over parts take turns: each puts aside what the other takes back, a block of rows or single ones."""
    source, out, idle = fill(tmp_path / "in", 6), tmp_path / "out", FakePipe()
    run(source, out)
    run(source / first, out)
    write = Folder.write

    def write_or_die(self, key, *args, **options):
        if key == kills_at:
            os._exit(9)
        return write(self, key, *args, **options)

    if not (child := os.fork()):
        monkeypatch.setattr(Folder, "write", write_or_die)
        run(source / then, out, idle)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert run(source, out, idle)["images_kept"] == 6
    assert idle.calls == [] and not list(out.glob("receipt.partial/*"))


def test_a_kind_asked_for_alone_leaves_the_others_kept(tmp_path):
    source, out, idle = fill(tmp_path / "in", 2), tmp_path / "out", FakePipe()
    run(source, out)
    first = receipt(Folder(out))
    assert run(source, out, params=kinds("npz"))["images_kept"] == 0
    assert [set(row["outputs"]) for row in receipt(Folder(out))] == [{*first[0]["outputs"], "npz"}] * 2
    assert run(source, out, idle)["images_kept"] == 2
    assert idle.calls == []
    run(source, out, model_name="metricgold/2", params=kinds("ply"))
    (row, _) = receipt(Folder(out))
    assert (list(row["outputs"]), row["output"], row["sha256"]) == (["ply"], None, None)  # not the other model's


def test_a_lost_depth_file_that_is_not_asked_for_is_not_named(tmp_path):
    source, out = fill(tmp_path / "in", 1), tmp_path / "out"
    run(source, out)
    (out / "0.png.depth.png").unlink()
    assert run(source, out, params=kinds("preview"))["images_kept"] == 1
    (row,) = receipt(Folder(out))
    assert (row["output"], row["sha256"], "log-png" in row["outputs"]) == (None, None, False)


def test_another_field_of_view_computes_anew(tmp_path):
    source = fill(tmp_path / "in", 1)
    run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", params=PARAMS.model_copy(update={"fov_deg": 70.0}))["images_kept"] == 0


def test_params_of_auto_matter_only_to_auto():
    def job(**changes) -> BatchJob:
        return BatchJob(PARAMS.model_copy(update=changes), "in", "out", Path("m"), "m", "")

    assert job().identity == job(max_ensemble_size=20, batch_size=1, gallery=3).identity
    auto = {"ensemble_size": "auto"}
    assert job(**auto).identity != job(**auto, max_ensemble_size=20).identity != job().identity


# What a row and its files say


def test_row_and_side_car_say_the_same(tmp_path):
    source, out = fill(tmp_path / "in", 1), tmp_path / "out"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50  # focal length for 35 mm film
    Image.open(io.BytesIO(picture(1, 80, 60))).save(source / "camera.jpg", exif=exif)
    run(source, out)
    plain, camera = receipt(Folder(out))
    assert (plain["focal_from"], plain["focal_px"]) == ("fov_deg", pytest.approx(20 / np.tan(np.radians(30))))
    assert (camera["focal_from"], camera["focal_px"]) == ("exif", pytest.approx(50 / 43.27 * 100, rel=1e-3))
    for row in (plain, camera):
        said = json.loads((out / row["outputs"]["json"]["key"]).read_bytes())
        assert (said["unit"], said["kind"], said["near_m"], said["far_m"]) == ("metres", "planar depth", 0.5, 80.0)
        f, x, y = row["focal_px"], row["width"] / 2, row["height"] / 2
        assert said["intrinsics"] == [[f, 0, x], [0, f, y], [0, 0, 1]]
        assert said["sha256"] == row["sha256"]
        shared = set(said) & set(row)
        assert {key: said[key] for key in shared} == {key: row[key] for key in shared}
        assert {"input", "input_tag", "identity", "num_members", "model", "params", "median_m", "saturated"} <= shared
        assert set(row["seconds"]) == {"read", "model", "write"}
        assert datetime.fromisoformat(row["finished"]).tzinfo is not None
        _, attributes = read_log_depth_png(out / row["output"])
        assert {key: attributes[key] for key in ("input", "input_tag", "identity")} == {
            key: row[key] for key in ("input", "input_tag", "identity")
        }


def test_a_camera_that_cannot_be_is_not_used_and_the_row_says_why(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 1  # mm on 35 mm film
    (tmp_path / "in").mkdir()
    Image.open(io.BytesIO(picture(1, 80, 60))).save(tmp_path / "in" / "camera.jpg", exif=exif)
    run(tmp_path / "in", tmp_path / "out")
    (row,) = receipt(Folder(tmp_path / "out"))
    assert (row["focal_from"], row["panorama"]) == ("fov_deg", None)
    assert "a field of view of 173 degrees" in row["focal_reason"]


def panorama(path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA405: 26, 0xA401: 6})  # the camera of one of its shots; rendered: panorama
    Image.open(io.BytesIO(picture(1, 80, 40))).save(path, exif=exif)


def test_depth_of_a_panorama_is_not_called_planar_and_has_no_camera(tmp_path):
    (tmp_path / "in").mkdir()
    panorama(tmp_path / "in" / "pano.jpg")
    run(tmp_path / "in", tmp_path / "out", params=kinds("log-png", "npz", "json"))
    (row,) = receipt(Folder(tmp_path / "out"))
    assert (row["status"], row["panorama"], row["focal_px"], row["focal_from"]) == ("done", "stitched", None, "none")
    side_car = json.loads((tmp_path / "out" / "pano.jpg.json").read_text())
    assert (side_car["kind"], side_car["intrinsics"]) == ("depth of a panorama, not planar", None)
    for name in ("pano.jpg.depth.png", "pano.jpg.depth.npz"):
        file = read_depth(tmp_path / "out" / name)
        assert "not planar" in file.attributes["panorama"]
        assert file.intrinsics is None


@pytest.mark.parametrize("kind", ["ply", "glb", "normals"])
def test_points_and_normals_of_a_panorama_are_refused(tmp_path, kind):
    source = fill(tmp_path / "in", 1)
    panorama(source / "pano.jpg")
    assert run(source, tmp_path / "out", params=kinds("log-png", kind))["images_failed"] == 1
    row = receipt(Folder(tmp_path / "out"))[1]
    assert row["reason"] == f"pano.jpg: a panorama (stitched) has no pinhole camera, which {kind} need"
    assert sorted(path.name for path in (tmp_path / "out").glob("pano*")) == []


def test_names_beyond_ascii_come_back_from_the_files(tmp_path):
    name = "日本 100%25.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(picture(2))
    run(tmp_path / "in", tmp_path / "out")
    (row,) = receipt(Folder(tmp_path / "out"))
    _, attributes = read_log_depth_png(tmp_path / "out" / row["output"])
    assert attributes["input"].isascii() and unquote(attributes["input"]) == row["input"] == name
    assert json.loads((tmp_path / "out" / row["outputs"]["json"]["key"]).read_bytes())["input"] == name


@pytest.mark.parametrize("name", ["summary", LEASE.removesuffix(".json"), "receipt.partial/00000000-a"])
def test_no_image_is_written_over_what_is_the_job_s_own(tmp_path, name):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(picture(0))
    summary = run(path if name.startswith(".") else tmp_path / "in", tmp_path / "out")
    (row,) = receipt(Folder(tmp_path / "out"))
    assert (row["status"], row.get("outputs", {})) == ("failed", {})
    assert f"the job's own {name}" in row["reason"] and "give it another name" in row["reason"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "out" / LEASE).read_text())["ended"]


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_an_input_replaced_after_it_was_listed_is_read_by_the_next_run(tmp_path, place, request):
    location = tmp_path / "in" if place == "folder" else f"s3://{request.getfixturevalue('s3_bucket')}/in"
    source = open_bucket(str(location), create=True)
    for n in range(4):
        source.write(f"{n}.png", picture(n))
    listed = list(source.entries())
    for n in (1, 2):
        source.write(f"{n}.png", picture(100 + n))
    job = BatchJob(PARAMS, str(location), str(tmp_path / "out"), Path("none"), "metricgold/1", "")
    rows = {row["input"]: row for row in predict_entries(job, listed, pipe=FakePipe())}
    assert [rows[f"{n}.png"]["status"] for n in range(4)] == ["done", "failed", "failed", "done"]
    assert "1.png was replaced after it had been listed; the next run reads it" in rows["1.png"]["reason"]
    run(source, tmp_path / "out")
    for row, entry in zip(receipt(Folder(tmp_path / "out")), source.entries(), strict=True):
        rgb = np.asarray(Image.open(io.BytesIO(source.read(entry.key))))
        depth_m, _ = read_log_depth_png(tmp_path / "out" / row["output"])
        np.testing.assert_allclose(depth_m, FakePipe.seen_depth_m(rgb), rtol=5e-5)
        assert row["input_tag"] == entry.tag


def test_the_page_shows_no_picture_that_was_replaced(tmp_path, caplog):
    source, out, params = fill(tmp_path / "in", 3), tmp_path / "out", PARAMS.model_copy(update={"gallery": 3})
    run(source, out)
    read = Folder.read

    def replace_then_read(self, key, *more, **tag):
        if self.root == source and key == "1.png":
            (source / key).write_bytes(picture(9))
        return read(self, key, *more, **tag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "read", replace_then_read)
        run(source, out, params=params)
    assert "gallery.html lacks 1 images that are done, such as 1.png" in caplog.text


def test_large_images_are_not_looked_at_again_in_numbers(tmp_path, monkeypatch):
    source, out, params = fill(tmp_path / "in", 9), tmp_path / "out", PARAMS.model_copy(update={"gallery": 9})
    (source / "large.png").write_bytes(picture(0, 80, 60))  # more than fits, so alone
    run(source, out, params=params.model_copy(update={"gallery": 0}))
    monkeypatch.setattr(stage_module, "WRITTEN_PIXELS", 2 * 40 * 30)
    looking, most = [], []

    def slowly(rgb, planar_depth_m):
        looking.append(rgb)
        most.append(len(looking))
        time.sleep(0.01)
        looking.pop()
        return make_thumbnail(rgb, planar_depth_m)

    monkeypatch.setattr(stage_module, "make_thumbnail", slowly)
    run(source, out, params=params.model_copy(update={"num_threads": 8}))
    assert (len(most), max(most)) == (9, 2)


def test_summary_counts_and_reasons(tmp_path):
    source = fill(tmp_path / "in", 2)
    for n in range(3):
        (source / f"broken{n}.jpg").write_bytes(b"")
    (source / "strip.png").write_bytes(picture(0, 100, 5))
    summary = run(source, tmp_path / "out")
    assert summary["reasons"].pop("empty file") == 3
    (reason,) = summary["reasons"]
    assert "NxN is a strip" in reason and "strip.png" not in reason
    assert (summary["images_done"], summary["images_failed"], summary["share_failed"]) == (2, 4, round(4 / 6, 6))
    assert summary["images_per_s"] > 0
    assert (summary["max_failed"], summary["over_budget"]) == (None, None)
    strict = run(source, tmp_path / "out", params=PARAMS.model_copy(update={"max_failed": 3}))
    assert strict["over_budget"].startswith("4 of 6 images failed, max_failed is 3; ")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == strict


def test_truncated_images_are_said_to_be(tmp_path):
    source = fill(tmp_path / "in", 1)
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(0, 200, 150))).save(file, "JPEG")
    (source / "cut.jpg").write_bytes(file.getvalue()[:5000])
    assert run(source, tmp_path / "out")["images_failed"] == 1
    allowed = PARAMS.model_copy(update={"allow_truncated": True})
    assert run(source, tmp_path / "out", params=allowed)["images_failed"] == 0
    assert [row["truncated"] for row in receipt(Folder(tmp_path / "out"))] == [False, True]


# When a job fails


@pytest.mark.parametrize(
    ("done", "failed", "max_failed", "message"),
    [
        (0, 0, 20, "none of 2 files is an image; out/receipt.jsonl says why"),
        (5, 0, None, None),
        (1, 99, None, None),
        (0, 3, None, "all 3 images failed; out/receipt.jsonl says why"),
        (99, 1, 0.01, None),
        (98, 2, 0.01, "2 of 100 images failed, max_failed is 1 %; out/receipt.jsonl says why"),
        (5, 1, 0.0, "1 of 6 images failed, max_failed is 0 %; out/receipt.jsonl says why"),
        (0, 4, 1.0, None),
        (5, 20, 20, None),
        (1000, 21, 20, "21 of 1021 images failed, max_failed is 20; out/receipt.jsonl says why"),
    ],
)
def test_failure_budget(done, failed, max_failed, message):
    summary = {"images_done": done, "images_failed": failed, "images_skipped": 2, "receipt": "out/receipt.jsonl"}
    assert over_budget(summary, max_failed) == message


def test_an_error_that_no_one_thought_of_is_a_row(tmp_path, monkeypatch):
    source = fill(tmp_path / "in", 3)

    def refuse(self, key, data, *options, **more):
        if key == "1.png.preview.jpg":
            raise PermissionError("access denied")
        if key == "2.png.json":
            raise TypeError("of our own making")
        return write(self, key, data, *options, **more)

    write = Folder.write
    monkeypatch.setattr(Folder, "write", refuse)
    summary = run(source, tmp_path / "out")
    rows = receipt(Folder(tmp_path / "out"))
    assert [row["reason"] for row in rows] == [
        None,
        "writing 1.png: access denied",
        "writing 2.png: TypeError: of our own making",
    ]
    assert (summary["images_done"], summary["images_failed"]) == (1, 2)
    monkeypatch.undo()
    assert run(source, tmp_path / "out")["images_kept"] == 1


def test_a_store_that_lets_nothing_be_deleted_will_do(tmp_path, monkeypatch, caplog):
    def refuse(self, key):
        raise PermissionError(f"{key}: access denied")

    source, out = fill(tmp_path / "in", 3), tmp_path / "out"
    monkeypatch.setattr(Folder, "delete", refuse)
    for kept in (0, 3):
        assert run(source, out)["images_kept"] == kept
        assert "receipt.partial/ of" in caplog.text
    assert len(receipt(Folder(out))) == 3


def test_a_lost_store_ends_the_job_which_goes_on_later(tmp_path, monkeypatch):
    source, out = fill(tmp_path / "in", 6), tmp_path / "out"

    def lose(self, key, *more, **tag):
        if key == "4.png":
            wait_until((out / "1.png.json").exists)  # there is something to keep
            raise StoreLost("the store: not there")
        return read(self, key, *more, **tag)

    read = Folder.read
    monkeypatch.setattr(Folder, "read", lose)
    monkeypatch.setattr(receipt_module, "FLUSH_SECONDS", 0.0)
    with pytest.raises(StoreLost, match="the store: not there"):
        run(source, out, params=PARAMS.model_copy(update={"batch_size": 2}))
    assert not (out / "receipt.jsonl").exists()
    monkeypatch.undo()
    summary = run(source, out)
    assert (summary["images_done"], summary["images_failed"]) == (6, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_ends_the_job_at_once(tmp_path, monkeypatch, code):
    source, out = fill(tmp_path / "in", 12), tmp_path / "out"
    read, seen = Folder.read, []

    def refuse(path, **how):
        if ".png." in path.name:
            raise OSError(code, os.strerror(code), str(path))
        return write_aside(path, **how)

    monkeypatch.setattr(buckets, "write_aside", refuse)
    monkeypatch.setattr(
        Folder, "read", lambda self, key, *more, **tag: seen.append(key) or read(self, key, *more, **tag)
    )
    words = f"{re.escape(os.strerror(code))}; what is written stays, make room and run it again: .*out/"
    with pytest.raises(StoreLost, match=words):
        run(source, out, params=PARAMS.model_copy(update={"batch_size": 1, "num_threads": 1}))
    assert 0 < len(seen) < 12, "images after it are neither read nor predicted"
    monkeypatch.undo()
    assert run(source, out)["images_done"] == 12


def test_a_format_that_cannot_be_written_here_is_said_first(tmp_path, monkeypatch):
    def missing(*_):
        raise ValueError("OpenEXR is not installed")

    monkeypatch.setattr("metricgold.predict.outputs.write_depth_exr", missing)
    pipe = FakePipe()
    with pytest.raises(ValueError, match="OpenEXR is not installed"):
        run(fill(tmp_path / "in", 1), tmp_path / "out", pipe, params=kinds("exr"))
    assert pipe.calls == []


# The page


def test_gallery_shows_new_and_kept_images(tmp_path):
    source, out = fill(tmp_path / "in", 6), tmp_path / "out"
    page = PARAMS.model_copy(update={"gallery": 4})
    run(source, out, params=PARAMS)
    assert not (out / "gallery.html").exists()
    (source / "broken.jpg").write_bytes(b"")
    run(source, out, params=page)
    kept = (out / "gallery.html").read_text()
    assert kept.count("data:image/jpeg") == 8 and "empty file" in kept
    run(source, tmp_path / "fresh", params=page)

    def shown(text: str) -> set[str]:
        return {name for name in "012345" if f"{name}.png" in text}

    assert shown(kept) == shown((tmp_path / "fresh" / "gallery.html").read_text())
    assert len(shown(kept)) == 4
    run(source, out, params=PARAMS)
    assert not (out / "gallery.html").exists()  # it would show another state than the receipt


@pytest.mark.parametrize("kind", DEPTH)
def test_gallery_shows_kept_images_whatever_file_holds_their_depth(tmp_path, kind):
    if kind == "exr":
        pytest.importorskip("OpenEXR")
    source, out = fill(tmp_path / "in", 1), tmp_path / "out"
    params = kinds(kind).model_copy(update={"gallery": 1})
    for kept in (0, 1):
        assert run(source, out, params=params)["images_kept"] == kept
        assert (out / "gallery.html").read_text().count("data:image/jpeg") == 2


def test_images_that_the_page_lacks_are_said_with_a_reason(tmp_path, monkeypatch, caplog):
    source, out, page = fill(tmp_path / "in", 3), tmp_path / "out", PARAMS.model_copy(update={"gallery": 3})

    def fail(*_):
        raise MemoryError("too large")

    with monkeypatch.context() as patch:
        patch.setattr(entries_module, "make_thumbnail", fail)
        assert run(source, out, params=page)["images_done"] == 3
    for n in range(3):
        assert f"{n}.png: no thumbnail for gallery.html: MemoryError: too large" in caplog.text
    # The end of the job tries again, from the files.
    assert (out / "gallery.html").read_text().count("data:image/jpeg") == 6
    caplog.clear()
    monkeypatch.setattr(stage_module, "make_thumbnail", fail)
    assert run(source, out, params=page)["images_kept"] == 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("gallery.html lacks 3 images that are done, such as ")
    assert warning.endswith(".png: MemoryError: too large")
    assert (out / "gallery.html").read_text().count("data:image/jpeg") == 0


def test_a_page_that_fails_costs_nothing(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("no such thing")

    monkeypatch.setattr("metricgold.predict.stage.render_gallery", fail)
    summary = run(fill(tmp_path / "in", 2), tmp_path / "out", params=PARAMS.model_copy(update={"gallery": 4}))
    assert summary["images_done"] == len(receipt(Folder(tmp_path / "out"))) == 2
    assert "gallery.html is left out" in caplog.text


# S3

ODD_KEYS = [
    "a b.png",
    "a+b.png",
    "a#b.png",
    "100%25.png",
    "ä/日本.png",
    "x/../y.png",
    "/lead.png",
    "x//y.png",
    "../up.png",
]


@pytest.fixture
def s3_photos(s3_bucket) -> str:  # noqa: F811
    bucket = open_bucket(f"s3://{s3_bucket}/in", create=True)
    for n, key in enumerate(ODD_KEYS):
        bucket.write(key, picture(n))
    bucket.write("notes.txt", b"not a picture")
    return f"s3://{s3_bucket}"


def test_s3_to_s3_and_again(s3_photos):
    summary = run(f"{s3_photos}/in", f"{s3_photos}/out")
    assert (summary["images_done"], summary["images_failed"], summary["images_skipped"]) == (len(ODD_KEYS), 0, 1)
    out = open_bucket(f"{s3_photos}/out")
    rows = receipt(out)
    assert [row["input"] for row in rows] == sorted([*ODD_KEYS, "notes.txt"], key=str.encode)
    for n, key in enumerate(ODD_KEYS):
        rgb = np.asarray(Image.open(io.BytesIO(picture(n))))
        depth_m, _ = read_log_depth_png(io.BytesIO(out.read(f"{key}.depth.png")))
        np.testing.assert_allclose(depth_m, FakePipe.seen_depth_m(rgb), rtol=5e-5)
    assert not [entry.key for entry in out.entries() if entry.key.startswith("receipt.partial")]

    pipe = FakePipe()
    again = run(f"{s3_photos}/in", f"{s3_photos}/out", pipe)
    assert (pipe.calls, again["images_kept"]) == ([], len(ODD_KEYS))
    open_bucket(f"{s3_photos}/in").write("a b.png", picture(99))
    run(f"{s3_photos}/in", f"{s3_photos}/out", pipe)
    assert pipe.calls == [1]


def test_s3_to_folder_stays_in_the_folder(s3_photos, tmp_path):
    out = tmp_path / "a" / "out"
    summary = run(f"{s3_photos}/in", out)
    assert summary["images_done"] == len(ODD_KEYS)
    assert len(list(out.rglob("*.depth.png"))) == len(ODD_KEYS)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"out"}
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_folder_to_s3(s3_bucket, tmp_path):  # noqa: F811
    source = fill(tmp_path / "in", 3)
    assert run(source, f"s3://{s3_bucket}")["images_done"] == 3
    assert len(receipt(open_bucket(f"s3://{s3_bucket}"))) == 3
    head = s3_client().head_object(Bucket=s3_bucket, Key="0.png.depth.png")
    assert head["ContentType"] == "image/png"


def test_s3_broken_run_goes_on(s3_bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(receipt_module, "FLUSH_SECONDS", 0.0)
    source = fill(tmp_path / "in", 9)

    class Dying(FakePipe):
        def __call__(self, image, **options):
            if len(self.calls) == 2:
                wait_until(lambda: open_bucket(f"s3://{s3_bucket}/out").exists("1.png.json"))
                raise KeyboardInterrupt
            return super().__call__(image, **options)

    one = PARAMS.model_copy(update={"batch_size": 2})
    with pytest.raises(KeyboardInterrupt):
        run(source, f"s3://{s3_bucket}/out", Dying(), params=one)
    pipe = FakePipe()
    assert run(source, f"s3://{s3_bucket}/out", pipe, params=one)["images_done"] == 9
    assert sum(pipe.calls) <= 9


def test_s3_objects_say_whose_output_they_are(s3_photos):
    run(f"{s3_photos}/in", f"{s3_photos}/out")
    rows = {row["input"]: row for row in receipt(open_bucket(f"{s3_photos}/out"))}
    for key in ("a b.png", "100%25.png", "ä/日本.png"):
        for file in rows[key]["outputs"].values():
            head = s3_client().head_object(Bucket=s3_photos[5:], Key=f"out/{file['key']}")
            assert head["ETag"].strip('"') == file["tag"]
            about = {name: unquote(head["Metadata"][name]) for name in ("input", "input_tag", "identity", "model")}
            assert about == {name: rows[key][name] for name in about}


def test_s3_one_key_in_trouble_is_one_row(s3_photos, tmp_path):
    source = open_bucket(f"{s3_photos}/in")

    class Deleting(FakePipe):
        def processing_size(self, height, width):
            source.delete("ä/日本.png")
            return super().processing_size(height, width)

    params = PARAMS.model_copy(update={"num_threads": 1, "batch_size": 2})
    summary = run(f"{s3_photos}/in", tmp_path / "out", Deleting(), params=params)
    assert (summary["images_done"], summary["images_failed"]) == (len(ODD_KEYS) - 1, 1)
    (failed,) = (row for row in receipt(Folder(tmp_path / "out")) if row["status"] == "failed")
    assert failed["reason"] == f"{s3_photos}/in/ä/日本.png: no such bucket or key"


def test_s3_output_is_held_by_one_job(s3_photos):
    class Nested(FakePipe):
        def __call__(self, image, **options):
            with pytest.raises(BlockingIOError, match=f"{s3_photos}/out/ is being written"):
                run(f"{s3_photos}/in", f"{s3_photos}/out")
            return super().__call__(image, **options)

    params = PARAMS.model_copy(update={"batch_size": 40})
    assert run(f"{s3_photos}/in", f"{s3_photos}/out", Nested(), params=params)["images_done"] == len(ODD_KEYS)
    assert json.loads(open_bucket(f"{s3_photos}/out/").read(LEASE))["ended"]


def test_s3_refusals_are_named_before_any_work(s3_environment, s3_photos, tmp_path, monkeypatch):  # noqa: F811
    pipe = FakePipe()
    source = fill(tmp_path / "in", 1)
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/out"):
        run(source, "s3://no-such-bucket-here/out", pipe)
    with pytest.raises(ValueError, match=f"{s3_photos}/nothing/: no files to predict"):
        run(f"{s3_photos}/nothing", tmp_path / "out", pipe)
    if "S3_NOBODY_ACCESS_KEY_ID" in s3_environment:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_environment["S3_NOBODY_ACCESS_KEY_ID"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_environment["S3_NOBODY_SECRET_ACCESS_KEY"])
        with pytest.raises(PermissionError, match=f"{s3_photos}/in: access denied"):
            run(f"{s3_photos}/in", tmp_path / "out", pipe)
    assert pipe.calls == []


def test_the_real_pipeline(tiny_model, tiny, tmp_path):
    source = fill(tmp_path / "in", 3)
    (source / "wide.png").write_bytes(picture(5, 60, 30))
    summary = predict_all(tiny.predict, tiny_model, str(source), str(tmp_path / "out"), model_name="tiny")
    assert summary["images_done"] == 4
    depth_m, attributes = read_log_depth_png(tmp_path / "out" / "wide.png.depth.png")
    assert depth_m.shape == (30, 60)
    assert float(attributes["near_m"]) <= depth_m.min() <= depth_m.max() <= float(attributes["far_m"])
    again = predict_all(tiny.predict, tiny_model, str(source), str(tmp_path / "out"), model_name="tiny")
    assert again["images_kept"] == 4


def test_a_model_replaced_while_the_job_starts_is_not_named_by_another_s_digest(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    job = BatchJob(Predict(), "in", "out", model, "model", digest_folder(model), (), ())
    assert job.load_model()
    (model / "lineage.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{model} was replaced while it was read; run it again"):
        job.load_model()
