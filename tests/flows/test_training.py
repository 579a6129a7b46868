"""Training through the flows: one job per card, stopped and gone on with, and what its page shows."""

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
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from flows import dvc_stages as stages, gpu_slots as cards, run_page as pages
from flows.child_processes import ChildFailed
from flows.gpu_slots import LIMIT, card
from tests.conftest import DATASET, write_tartanair
from tests.flows.toy import SCRIPTS, make_project

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
    for _ in range(1200):
        if _position() >= step:
            return
        assert child is None or child.poll() is None, f"ended at step {_position()}"
        time.sleep(0.05)
    raise TimeoutError(f"at step {_position()} after a minute")


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
    monkeypatch.setattr(stages, "RESUME_AFTER_S", 0.1)

    log = (tmp_path / "log").open("w")
    cancelled = subprocess.Popen([sys.executable, "-m", "flows.train_metricgold"], env=env, stdout=log, stderr=log)
    _wait_for_step(5, cancelled)
    cancelled.send_signal(signal.SIGTERM)
    assert cancelled.wait(28) != 0
    saved = _position()
    assert saved >= 5 and not Path("models/metricgold").exists()
    assert "going on, " not in (tmp_path / "log").read_text()

    stopper = threading.Thread(target=_stop_trainer_after, args=[saved + 10])
    stopper.start()
    from prefect import flow

    flow(name="train-only")(lambda: stages.run_stages(stages.stage_graph()))()
    stopper.join()
    rows = [json.loads(line) for line in (STATE / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert Path("models/metricgold/unet").is_dir()

    said = at_server.ask("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC"})
    assert any("told to stop from outside, it saved; going on, 2 more times" in line["message"] for line in said)
    shown = {key: _artifact(at_server, key) for key in ("train", "validation", "validation-picture")}
    assert shown["train"]["data"] == 100
    lines = shown["validation"]["data"].splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["step", "---", "20", "40", "60"]
    assert "abs_rel" in lines[0]
    kind, _, data = shown["validation-picture"]["data"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == pages.PICTURE_PX


def _artifact(server, key: str) -> dict:
    found = server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    assert len(found) == 1, key
    return found[0]


@pytest.mark.slow
def test_one_job_on_a_card_at_a_time(at_server, tmp_path, monkeypatch):
    from prefect import flow, task

    monkeypatch.setenv("METRICGOLD_CARDS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spans, said = [], []

    @task
    def work():
        with card(said.append) as variables:
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
    assert any(f"the server had no limit {LIMIT}: created, 1 at a time" in line for line in said)


def test_without_a_card_nothing_waits_and_no_server_is_asked(monkeypatch):
    monkeypatch.setenv("METRICGOLD_CARDS", "0")
    with card(print) as one, card(print) as other:
        assert one == other == {}


def test_who_waits_for_a_card_ends_with_its_flow(monkeypatch):
    def busy(*_, **__):
        raise TimeoutError

    asked, said = iter([False, True]), []
    monkeypatch.setenv("METRICGOLD_CARDS", "1")
    monkeypatch.setattr(cards, "concurrency", busy)
    monkeypatch.setattr(cards, "get_client", busy)
    monkeypatch.setattr(cards, "is_ending", lambda: next(asked))
    with pytest.raises(ChildFailed, match="the flow ended while it waited for a card"), card(said.append):
        pass
    assert said == [f"no limit {LIMIT} created: "]


def test_work_that_was_told_to_stop_goes_on_a_few_times(monkeypatch):
    stopped = ["ERROR: stopped at step 5 of 9; the same command goes on", "exited with 143"]
    outcomes, said = [], []

    def run_child(command, log, **variables):
        outcomes.append(command)
        if len(outcomes) < ends_after:
            raise ChildFailed("\n".join(stopped))

    monkeypatch.setattr(stages, "run_child", run_child)
    monkeypatch.setattr(stages, "RESUME_AFTER_S", 0.0)
    ends_after = 3
    stages.run_until_done(["train"], said.append)
    assert len(outcomes) == 3 and len(said) == 2
    outcomes, ends_after = [], 99
    with pytest.raises(ChildFailed, match="143"):
        stages.run_until_done(["train"], said.append)
    assert len(outcomes) == 1 + stages.RESUMES
    outcomes, stopped = [], ["loss is not a number"]
    with pytest.raises(ChildFailed, match="not a number"):
        stages.run_until_done(["train"], said.append)
    assert len(outcomes) == 1
    outcomes, stopped = [], ["; the same command goes on"]
    monkeypatch.setattr(stages, "is_ending", lambda _within_s: True)
    with pytest.raises(ChildFailed):
        stages.run_until_done(["train"], said.append)
    assert len(outcomes) == 1


def test_shares_of_work_become_progress(monkeypatch):
    shown, logged = [], []
    monkeypatch.setattr(pages, "update_progress_artifact", lambda _artifact, percent: shown.append(percent))
    monkeypatch.setattr(pages, "create_progress_artifact", lambda percent, key, **_: shown.append((percent, key)) or 1)
    show = pages.show_lines("download@hypersim", logged.append)
    for line in ("progress 4.4 %: hypersim, 12.3 of 280.1 GB", "a line", "progress 100.0 %: hypersim"):
        show(line)
    assert shown == [(4.4, "download-hypersim"), 100.0]
    assert len(logged) == 3
    shown.clear()
    show = pages.show_lines("train", logged.append)
    for line in ("INFO going on from step 300 of 1200", "INFO step 600 of 1200, loss 0.1, lr 1e-3", "step 7 left out"):
        show(line)
    assert shown == [(25.0, "train"), 50.0]


def test_a_server_that_is_away_does_not_end_the_work(monkeypatch):
    def refuse(*_, **__):
        raise OSError("connection refused")

    monkeypatch.setattr(pages, "create_progress_artifact", refuse)
    logged = []
    show = pages.show_lines("train", logged.append)
    for step in (1, 2):
        show(f"step {step} of 9")
    assert logged == ["step 1 of 9", "the run's page lacks something of train: connection refused", "step 2 of 9"]
