import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from s3 import s3_bucket, s3_client, s3_environment  # noqa: F401

import metricgold.receipt as receipt_module
from metricgold.buckets import Folder, open_bucket
from metricgold.depth_files import read_log_depth_png, read_uncertainty_png
from metricgold.log_depth import LogDepth
from metricgold.params import Predict
from metricgold.predict import predict_all

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
PARAMS = Predict(num_inference_steps=2, ensemble_size=2, batch_size=6, num_threads=2, gallery=0)
ODD = Path(__file__).parents[2] / "shared" / "samples" / "odd_images"


class FakePipe:
    """The pipeline's signature; depth is a plain function of the red channel, 1 to 11 m."""

    log_depth = LogDepth(0.5, 80.0)

    def __init__(self, break_on_width: int | None = None) -> None:
        self.calls: list[int] = []
        self.options: dict = {}
        self.break_on_width = break_on_width

    def processing_size(self, height, width):
        """An area of about 96 x 96, in multiples of 8."""
        scale = 96 / (height * width) ** 0.5
        return round(height * scale / 8) * 8, round(width * scale / 8) * 8

    def __call__(self, image, **options):
        self.calls.append(len(image))
        self.options = options
        if self.break_on_width in {rgb.shape[1] for rgb in image}:
            raise RuntimeError("out of memory")
        return [self.predict(rgb) for rgb in image]

    @staticmethod
    def predict(rgb):
        depth_m = 1 + rgb[..., 0].astype(np.float32) / 25.5
        uncertainty, valid_mask = np.full_like(depth_m, 0.02), depth_m < 10.9
        return SimpleNamespace(
            planar_depth_m=depth_m, uncertainty=uncertainty, valid_mask=valid_mask, intrinsics=None, num_members=2
        )


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
        np.testing.assert_allclose(depth_m, FakePipe.predict(rgb).planar_depth_m, rtol=5e-5)
        assert (attributes["unit"], attributes["model"], attributes["input"]) == (
            "metres",
            "metricgold/1",
            row["input"],
        )
        uncertainty, _ = read_uncertainty_png(tmp_path / "out" / f"{row['input']}.uncertainty.png")
        np.testing.assert_allclose(uncertainty, 0.02, rtol=1e-5)
        with Image.open(tmp_path / "out" / f"{row['input']}.preview.jpg") as preview:
            assert preview.format == "JPEG"
        assert row["median_m"] == pytest.approx(np.median(depth_m), rel=1e-4)
        assert (row["height"], row["width"]) == rgb.shape[:2]
        assert row["sha256"] == hashlib.sha256((tmp_path / "out" / row["output"]).read_bytes()).hexdigest()
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    left = {path.name for path in (tmp_path / "out").iterdir() if "." not in path.name or path.name.startswith(".")}
    assert left == {"deep"}  # no partial receipt, no files aside


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
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_a_receipt_that_is_none_is_named(tmp_path):
    source = fill(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "receipt.jsonl").write_text("something else\n")
    with pytest.raises(ValueError, match=r"out: receipt\.jsonl holds a line that is no row"):
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


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import metricgold.receipt
from test_predict import FakePipe, PARAMS, run
metricgold.receipt.FLUSH_SECONDS = 0.0
class Slow(FakePipe):
    def __call__(self, image, **options):
        time.sleep(0.1)
        return super().__call__(image, **options)
run(sys.argv[2], sys.argv[3], Slow(), params=PARAMS.model_copy(update={"batch_size": 2}))
"""


def test_a_killed_job_goes_on_where_it_was(tmp_path):
    source, out = fill(tmp_path / "in", 40), tmp_path / "out"
    job = subprocess.Popen([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(source), str(out)])
    deadline = time.monotonic() + 30
    while len(list(out.glob("*.depth.png"))) < 12 and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    present = len(list(out.glob("*.depth.png")))
    assert 12 <= present < 40
    assert not (out / "receipt.jsonl").exists()

    pipe = FakePipe()
    summary = run(source, out, pipe)
    assert summary["images_done"] == 40
    assert summary["images_kept"] >= present - 3  # what was in the writers' hands
    assert sum(pipe.calls) == 40 - summary["images_kept"]
    run(source, tmp_path / "undisturbed")
    for path in (tmp_path / "undisturbed").glob("*.png*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert same_rows(receipt(Folder(out)), receipt(Folder(tmp_path / "undisturbed")))
    assert not (out / "receipt.partial").exists()


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
    assert (summary["images_done"], summary["images_failed"], summary["images_skipped"]) == (len(rows) - 8, 8, 0)
    assert len(rows) == sum(path.is_file() for path in ODD.rglob("*"))
    reasons = {row["input"]: row["reason"] for row in rows}
    assert "3264x2448 is more than 7500000 pixels" in reasons["exif/jpg/mobile/jolla.jpg"]
    for row in rows:
        done = row["status"] == "done"
        assert done == (tmp_path / "out" / f"{row['input']}.depth.png").is_file()
        assert done or row["reason"].startswith(row["input"])


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
        np.testing.assert_allclose(depth_m, FakePipe.predict(rgb).planar_depth_m, rtol=5e-5)
    assert not [entry.key for entry in out.list() if entry.key.startswith("receipt.partial")]

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
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"out", ".out.lock"}
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
                time.sleep(1)  # the writers end meanwhile
                raise KeyboardInterrupt
            return super().__call__(image, **options)

    one = PARAMS.model_copy(update={"batch_size": 2})
    with pytest.raises(KeyboardInterrupt):
        run(source, f"s3://{s3_bucket}/out", Dying(), params=one)
    pipe = FakePipe()
    assert run(source, f"s3://{s3_bucket}/out", pipe, params=one)["images_done"] == 9
    assert sum(pipe.calls) <= 9


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
