"""Training through the flows: one job per GPU, stopped and resumed, and what its page shows."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from flows import dvc_stages, gpu_slots, run_page
from flows.child_processes import ChildFailed
from flows.gpu_slots import LIMIT, gpu_slot
from flows.run_page import StagePage
from metricgold.storage.files import row_line
from metricgold.storage.progress import StageProgress, write_exit_code, write_progress
from tests.conftest import DATASET, write_tartanair
from tests.flows.toy import SCRIPTS, make_project
from tests.support.waiting import wait_until

GRAPH = """
stages:
  train:
    cmd: OMP_NUM_THREADS=1 metricgold train --no-track
    params: [train]
    outs: [models/metricgold]
"""
STATE = Path("models/metricgold.state")


def _project(folder, params, latents, backbone) -> Path:
    """A project of the one stage, with the real trainer."""
    (make_project(folder) / "dvc.yaml").write_text(GRAPH)
    values = params.model_dump(mode="json")
    values["train"] |= {"num_steps": 60, "decay_steps": 60, "checkpoint_every": 5, "log_every": 1}
    values["train"]["validation"] = {"every": 20, "split": "test", "frames_per_dataset": 1, "num_inference_steps": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(backbone, folder / "models/backbone")
    shutil.copytree(latents, folder / "data/latents" / DATASET)
    write_tartanair(folder / "data/raw" / DATASET, frames_per_scene=1)
    return folder


def _position() -> int:
    return max((int(path.name[5:]) for path in STATE.glob("step-*")), default=0)


def _wait_for_step(step: int, child: subprocess.Popen | None = None) -> None:
    def is_there() -> bool:
        assert child is None or child.poll() is None, f"ended at step {_position()}"
        return _position() >= step

    wait_until(is_there, every_s=0.05, what=f"step {step}")


def _stop_trainer_after(step: int) -> None:
    _wait_for_step(step)
    for process in psutil.Process().children(recursive=True):
        if str(SCRIPTS / "metricgold") in process.cmdline():
            process.terminate()


@pytest.mark.slow
def test_a_cancelled_flow_saves_and_a_stopped_trainer_is_started_again(
    at_server, tmp_path, monkeypatch, tiny, tiny_latents, tiny_backbone
):
    folder = _project(tmp_path / "project", tiny, tiny_latents, tiny_backbone)
    env = at_server.env | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}  # the real console script
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dvc_stages, "RESUME_AFTER_S", 0.1)

    log = (tmp_path / "log").open("w")
    cancelled = subprocess.Popen([sys.executable, "-m", "flows.train_metricgold"], env=env, stdout=log, stderr=log)
    _wait_for_step(5, cancelled)
    cancelled.send_signal(signal.SIGTERM)
    assert cancelled.wait(28) != 0
    saved = _position()
    assert saved >= 5 and not Path("models/metricgold").exists()
    assert "it resumes, " not in (tmp_path / "log").read_text()

    stopper = threading.Thread(target=_stop_trainer_after, args=[saved + 10])
    stopper.start()
    from prefect import flow

    flow(name="train-only")(lambda: dvc_stages.run_stages())()
    stopper.join()
    rows = [json.loads(line) for line in (STATE / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert Path("models/metricgold/unet").is_dir()

    logged = at_server.ask("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC"})
    resumed = "train was stopped from outside and saved; it resumes, 2 more times"
    assert any(resumed in line["message"] for line in logged)
    shown = {key: _artifact(at_server, key) for key in ("train", "validation", "validation-picture")}
    assert shown["train"]["data"] == 100
    lines = shown["validation"]["data"].splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["step", "---", "20", "40", "60"]
    assert "abs_rel" in lines[0]
    kind, _, data = shown["validation-picture"]["data"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == run_page.PICTURE_PX


def _artifact(server, key: str) -> dict:
    found = server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    assert len(found) == 1, key
    return found[0]


@pytest.mark.slow
def test_one_job_on_a_gpu_at_a_time(at_server, tmp_path, monkeypatch):
    from prefect import flow, task

    monkeypatch.setenv("METRICGOLD_CARDS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    at_server.forget_limit(LIMIT)
    spans, logged = [], []

    @task
    def work():
        with gpu_slot(logged.append) as variables:
            assert variables == {"CUDA_VISIBLE_DEVICES": "0"}
            started = time.monotonic()
            time.sleep(0.3)
            spans.append((started, time.monotonic()))

    @flow
    def two():
        for future in [work.submit(), work.submit()]:
            future.result()

    two()
    (_, first_end), (second_start, _) = sorted(spans)
    assert first_end <= second_start
    limit = at_server.ask("GET", f"/v2/concurrency_limits/{LIMIT}")
    assert (limit["limit"], limit["active_slots"]) == (1, 0)
    assert any(f"the server had no limit {LIMIT}: created, 1 at a time" in line for line in logged)


def test_without_a_gpu_nothing_waits_and_no_server_is_asked(monkeypatch):
    monkeypatch.setenv("METRICGOLD_CARDS", "0")
    with gpu_slot(print) as one, gpu_slot(print) as other:
        assert one == other == {}


def test_a_flow_that_waits_for_a_gpu_can_end(monkeypatch):
    def busy(*_, **__):
        raise TimeoutError

    ending, logged = iter([False, True]), []
    monkeypatch.setenv("METRICGOLD_CARDS", "1")
    monkeypatch.setattr(gpu_slots, "concurrency", busy)
    monkeypatch.setattr(gpu_slots, "get_client", busy)
    monkeypatch.setattr(gpu_slots, "is_ending", lambda: next(ending))
    with pytest.raises(ChildFailed, match="the flow ended while it waited for a GPU"), gpu_slot(logged.append):
        pass
    assert logged == [f"no limit {LIMIT} created: "]


STAGE = """
import sys
from pathlib import Path
from metricgold.cli import main

runs = Path("runs")
runs.write_text(runs.read_text() + "." if runs.exists() else ".")
code, until = int(sys.argv[1]), int(sys.argv[2])
print("at work", flush=True)


@main.command()
def work():
    raise SystemExit(code if len(runs.read_text()) < until else 0)


main(["work"])
"""


@pytest.mark.parametrize(
    ("code", "succeeds_at", "ends_after"),
    [
        pytest.param(143, 3, 3, id="stopped-twice"),
        pytest.param(143, 99, 1 + dvc_stages.RESUMES, id="stopped-each-time"),
        pytest.param(1, 99, 1, id="failed"),
    ],
)
def test_a_stage_that_was_stopped_resumes_by_its_exit_code(project, shown, monkeypatch, code, succeeds_at, ends_after):
    """Through DVC, which keeps the code of its stage to itself."""
    monkeypatch.setattr(dvc_stages, "RESUME_AFTER_S", 0.0)
    Path("stage.py").write_text(STAGE)
    Path("dvc.yaml").write_text(f"stages: {{work: {{cmd: {sys.executable} stage.py {code} {succeeds_at}}}}}")
    logged = []
    command = [*dvc_stages.DVC, "repro", "--single-item", "work"]
    if ends_after < succeeds_at:
        with pytest.raises(ChildFailed, match="code 255"):
            dvc_stages.run_until_done("work", command, logged.append)
    else:
        dvc_stages.run_until_done("work", command, logged.append)
    assert len(Path("runs").read_text()) == logged.count("at work") == ends_after
    assert shown == []
    assert sum("work was stopped from outside and saved; it resumes" in line for line in logged) == ends_after - 1


def test_a_stage_that_stops_with_its_flow_does_not_resume(project, shown, monkeypatch):
    monkeypatch.setattr(dvc_stages, "is_ending", lambda _within_s: True)
    Path("stage.py").write_text(STAGE)
    with pytest.raises(ChildFailed, match="code 143"):
        dvc_stages.run_until_done("work", [sys.executable, "stage.py", "143", "99"], [].append)
    assert len(Path("runs").read_text()) == 1


@pytest.fixture
def shown(monkeypatch):
    """What a page shows, instead of a server: (kind, key, data) of a new artifact, (None, text, data) of an update."""
    shown = []
    monkeypatch.setattr(run_page, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(
        run_page,
        "update_progress_artifact",
        lambda _artifact, percent, description: shown.append((None, description, percent)),
    )

    def create(kind: str, data: object, key: str, **_) -> str:
        shown.append((kind, key, data))
        return key

    for kind in ("progress", "markdown", "image"):
        monkeypatch.setattr(run_page, f"create_{kind}_artifact", partial(create, kind))
    return shown


def test_the_progress_file_becomes_a_bar(tmp_path, monkeypatch, shown):
    path, logged = tmp_path / "progress.json", []
    monkeypatch.setenv("METRICGOLD_PROGRESS", str(path))
    page = StagePage("download@hypersim", path, logged.append)
    page.log_line("begins")
    assert shown == []
    write_progress(StageProgress(12.3, 280.1, "GB"))
    page.log_line("progress 99 %, step 7 of 9: words change nothing")
    page.log_line("nothing new")
    write_progress(StageProgress(280.1, 280.1, "GB"))
    write_exit_code(1)
    page.refresh()
    says = "download@hypersim: 280.1 of 280.1 GB"
    assert shown == [("progress", "download-hypersim", 4.4), (None, says, 100.0)]
    assert len(logged) == 3


def test_rows_of_validation_become_a_table_and_a_picture(tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    (STATE / "samples").mkdir(parents=True)
    Image.new("RGB", (2000, 100)).save(STATE / "samples/step-000040.png")
    rows = [{"step": 20, "loss": 0.5, "val_abs_rel": 0.2, "val_delta1": 0.7}, {"step": 21, "loss": 0.5}]
    (STATE / "metrics.jsonl").write_text("".join(map(row_line, rows)))
    page = StagePage("train", tmp_path / "none.json", [].append)
    page.log_line("step 20, validation: {'abs_rel': 0.2}")
    assert shown == [], "an earlier run has shown these rows"
    with (STATE / "metrics.jsonl").open("a") as file:
        file.write(row_line({"step": 40, "loss": 0.4, "val_abs_rel": 0.1, "val_delta1": None}) + '{"step": 60, "val_ab')
    page.log_line("step 40 is done")
    page.log_line("nothing new")
    (kind, key, table), (picture_kind, picture_key, picture) = shown
    assert (kind, key, picture_kind, picture_key) == ("markdown", "validation", "image", "validation-picture")
    lines = ["| step | abs_rel | delta1 |", "|---|---|---|", "| 20 | 0.2 | 0.7 |", "| 40 | 0.1 |  |"]
    assert table.splitlines() == lines
    assert picture.startswith("data:image/jpeg;base64,")
    shown.clear()
    StagePage("vae-floor", tmp_path / "none.json", [].append).refresh()
    assert shown == [], "the rows belong to the trainer's page"


def test_a_server_that_is_away_does_not_end_the_work(tmp_path, monkeypatch, shown):
    def refuse(*_, **__):
        raise OSError("connection refused")

    monkeypatch.setattr(run_page, "create_progress_artifact", refuse)
    path, logged = tmp_path / "progress.json", []
    monkeypatch.setenv("METRICGOLD_PROGRESS", str(path))
    write_progress(StageProgress(1, 9, "steps"))
    page = StagePage("train", path, logged.append)
    for line in ("first", "second"):
        page.log_line(line)
    assert logged == ["first", "the page of the run does not show all of train: connection refused", "second"]
