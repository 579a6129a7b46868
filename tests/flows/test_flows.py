"""The flows against a real server: deployed, run by a worker, run in process, failed and cancelled."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml

from flows import hooks
from flows.child_processes import ChildFailed
from metricgold.params.words import PRESETS, Preset
from metricgold.prefect_plugin import DEPLOYMENTS, setup_environment
from metricgold.storage import write_json
from tests.flows.toy import ROOT, calls
from tests.support.interruptible import interruptible
from tests.support.waiting import wait_until

GRAPH = """
stages:
  train:
    cmd: metricgold train
    params: [train]
    outs: [models/metricgold]
  evaluate:
    cmd: metricgold evaluate
    deps: [models/metricgold]
    metrics: [{metrics/evaluate.json: {cache: false}}]
"""


@pytest.fixture
def small(project):
    """A toy project of two stages: what the whole graph does is tested without a server."""
    Path("dvc.yaml").write_text(GRAPH)
    subprocess.run(["git", "commit", "-qam", "two stages"], check=True)
    return project


def _words(project: Path) -> list[str]:
    return [line.split()[0] for line in calls(project)]


def test_plugin_knows_the_deployments_of_prefect_yaml():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} == DEPLOYMENTS == set(hooks.FLOWS)
    from prefect.flows import load_flow_from_entrypoint

    for deployment in deployments:
        path, _, function = deployment["entrypoint"].partition(":")
        assert load_flow_from_entrypoint(f"{ROOT / path}:{function}").name == deployment["name"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("deployment run train-metricgold", "deployment run train-metricgold/train-metricgold"),
        ("deployment run -p promote=true batch-depth", "deployment run -p promote=true batch-depth/batch-depth"),
        ("deployment run other", "deployment run other"),
        ("deployment run other/train-metricgold", "deployment run other/train-metricgold"),
        ("deployment inspect train-metricgold", "deployment inspect train-metricgold"),
        ("deployment run", "deployment run"),
        ("", ""),
    ],
)
def test_plugin_writes_out_our_short_names_only(monkeypatch, typed, read):
    monkeypatch.setattr(sys, "argv", ["prefect", *typed.split()])
    setup_environment(ctx=None)
    assert sys.argv == ["prefect", *read.split()]


@pytest.mark.slow
def test_deployed_and_run_by_both_names(server, small, tmp_path):
    for pool, limit in (("metricgold-gpu", 1), ("metricgold-cpu", None)):
        server.make_pool(pool, limit)
    since = datetime.now(UTC)
    for command, folder in (
        ("--no-prompt deploy --all", small),
        ("deployment run train-metricgold", small),
        ("deployment run train-metricgold/train-metricgold", tmp_path),
    ):
        done = server.run("prefect", *command.split(), cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    with _worker(server, "metricgold-gpu", tmp_path):
        runs = _wait_for_runs(server, "train-metricgold", 2, since)
    assert [run["state"]["type"] for run in runs] == ["COMPLETED"] * 2, runs
    assert _words(small) == ["train", "evaluate", "register", "register"]  # the second run found all stages fresh
    tasks = server.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}})
    names = {task["name"] for task in tasks}
    assert names == {"train", "evaluate", "register"}
    logs = server.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    assert any("metricgold train: at work" in line["message"] for line in logs)


@contextmanager
def _worker(server, pool: str, folder: Path):
    log = folder / "worker.log"
    command = interruptible("prefect", "worker", "start", "--pool", pool)
    env = server.env | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    worker = subprocess.Popen(command, cwd=folder, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(60)


def _wait_for_runs(server, deployment: str, count: int, since: datetime) -> list[dict]:
    """Those that were made since: other tests of this server have runs of their own."""
    wanted = {
        "deployments": {"name": {"any_": [deployment]}},
        "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }

    def finished() -> list[dict] | None:
        runs = server.ask("POST", "/flow_runs/filter", wanted)
        final = [run for run in runs if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
        return final if len(final) == count else None

    return wait_until(finished, every_s=1, what=f"the end of {count} runs of {deployment}")


def test_a_lock_file_torn_before_a_flow_repeats_nothing(at_server, small):
    from prefect import flow

    from flows.dvc_stages import run_stages

    walk = flow(name="stages")(lambda: run_stages())
    assert set(walk()) == {"train", "evaluate"}
    lock = Path("dvc.lock")
    whole = lock.read_bytes()
    lock.write_bytes(whole[: len(whole) // 2])
    assert walk() == {}
    assert _words(small) == ["train", "evaluate"]
    assert lock.read_bytes() == whole


@pytest.mark.slow
def test_train_measures_registers_and_promotes(at_server, small):
    from flows.train_metricgold import train_metricgold

    _list_benchmarks("nyuv2-synthetic")
    figures = {"protocol": "nyuv2-eigen", "num_frames": 28, "abs_rel": 0.3, "abs_rel_low": 0.2, "abs_rel_high": 0.4}
    write_json(Path("metrics/benchmark/nyuv2-synthetic.json"), figures)
    outcome = train_metricgold(promote=True)
    assert outcome["registered"]["version"] == "1" and outcome["promoted"]["alias"] == "champion"
    assert outcome["metrics"]["abs_rel"] == 0.2
    assert _words(small) == ["train", "evaluate", "register", "promote"]
    artifacts = at_server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["metrics"]}}})
    assert "| hypersim-synthetic | 0.2 | 0.7 |" in artifacts[0]["data"]
    assert outcome["benchmarks"] == {"nyuv2-synthetic": figures}
    artifacts = at_server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["benchmarks"]}}})
    assert "| nyuv2-synthetic | nyuv2-eigen | 28 | 0.3 (0.2 to 0.4) |  |" in artifacts[0]["data"]


def _list_benchmarks(*names: str) -> None:
    text = Path("params.yaml").read_text()
    assert "benchmarks: []" in text
    listed = "\n".join(["benchmarks:", *(f"- {name}" for name in names)])
    Path("params.yaml").write_text(text.replace("benchmarks: []", listed))


@pytest.mark.slow
def test_failed_stage_fails_the_run_with_its_last_lines_and_stops_what_needs_it(at_server, small, monkeypatch):
    from flows.train_metricgold import train_metricgold

    Path("fail").touch()
    write_json(Path("models/metricgold.state/mlflow.json"), {"run_id": "2372"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://somebody:canary@example.org")
    with pytest.raises(Exception, match=r"(?s)repro --single-item train.*loss is not a number"):
        train_metricgold()
    assert _words(small) == ["train"]
    artifacts = at_server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["how-it-ended"]}}})
    page = artifacts[0]["data"]
    for told in (
        "# train-metricgold: Failed",
        "loss is not a number",
        "prefect deployment run train-metricgold",
        "2372",
    ):
        assert told in page
    assert "DVC revision: `" in page and "canary" not in page


@pytest.mark.slow
def test_prepare_data_stops_after_the_download(at_server, project):
    from flows.prepare_data import prepare_data

    seconds = prepare_data(["vkitti2-synthetic"])
    assert calls(project) == ["synthesize vkitti2-synthetic", "download vkitti2-synthetic"]
    assert set(seconds) == {"synthesize@vkitti2-synthetic", "download@vkitti2-synthetic"}
    _list_benchmarks("nyuv2-synthetic")
    assert set(prepare_data(["nyuv2-synthetic"])) == {"benchmark-data@nyuv2-synthetic"}
    assert calls(project) == ["synthesize nyuv2-synthetic", "download nyuv2-synthetic"]


def test_an_unlisted_data_set_is_refused_before_anything_is_made(project):
    from flows.prepare_data import prepare_data

    with pytest.raises(ValueError, match=r"params\.yaml lists no data set diode, hypersim"):
        prepare_data.fn(["vkitti2-synthetic", "hypersim", "diode"], accept_licence=True)
    assert not Path("data").exists() and calls(project) == []


def test_a_task_that_waits_is_called_as_its_stage():
    from flows.dvc_stages import task_of

    assert {stage: task_of(stage).name for stage in ("train", "download@hypersim")} == {
        "train": "train",
        "download@hypersim": "download@hypersim",
    }


def test_a_licence_is_asked_for_before_anything_starts(project):
    """In the flow's own words, at once, and not again after an hour."""
    from flows.dvc_stages import check_licences

    with pytest.raises(ValueError, match=r"hypersim is under CC BY-SA 3\.0 .* --accept-licence"):
        check_licences(["vkitti2-synthetic", "hypersim"])
    assert calls(project) == []
    check_licences(["hypersim"], accept=True)
    check_licences(["hypersim"])
    assert (project / "data/raw/hypersim/.ledger/licence.json").exists()


def test_a_download_is_tried_again():
    from flows.dvc_stages import task_of

    assert task_of("download@hypersim").retries == 3
    assert task_of("download@hypersim").retry_delay_seconds == [60, 600, 3600]
    assert task_of("benchmark-data@nyuv2").retries == 3
    assert task_of("train").retries == 0


@pytest.mark.slow
def test_a_study_is_the_command_and_shows_its_part_of_the_page(at_server, small):
    from prefect.artifacts import Artifact

    from flows.study import study

    assert study("decoder", jobs=2)["measured"] == 8
    assert calls(small) == ["study decoder --jobs 2 --json"]
    assert "**Question.** Does fine-tuning the VAE" in Artifact.get("study").data
    with pytest.raises(ValueError, match="no study 'nobody'"):
        study("nobody")


@pytest.mark.slow
def test_batch_depth_and_promote_model(at_server, small):
    from prefect.exceptions import ParameterTypeError

    from flows.batch_depth import batch_depth
    from flows.promote_model import promote_model
    from flows.rollback_model import rollback_model

    asked = {"preset": "fast", "ensemble_size": "auto", "include": ["*.jpg", "a b/**"], "outputs": ["npz"]}
    asked |= {"max_failed": 0.5, "dask": "local:2", "seed": 3, "calibration": "c.json"}
    assert batch_depth("photos", "depth", **asked)["images_done"] == 2
    pages = {page["key"]: page["description"] for page in at_server.ask("POST", "/artifacts/filter", {})}
    assert {"batch-depth", "by-day-depth"} <= set(pages) and pages["predict"] == "predict: 1 of 3 images"
    assert promote_model()["passed"]
    assert calls(small) == [
        "predict photos depth --model models:/metricgold@champion --preset=fast --ensemble=auto --seed=3 --write=npz"
        " --include=*.jpg --include=a b/** --max-failed=0.5 --dask=local:2 --calibration=c.json --json",
        "promote --json --dry-run",
    ]
    for version in (99, "99"):
        assert promote_model(version=version, dry_run=False, why="a trial")["passed"]
    assert rollback_model(dry_run=False, why="--json")["previous"] == "2"
    assert rollback_model()["alias"] == "champion"
    assert calls(small) == [
        *["promote --json --version=99 --why=a trial"] * 2,
        "rollback --json --why=--json",
        "rollback --json --dry-run",
    ]
    Path("refuse").touch()
    with pytest.raises(ValueError, match=r"not promoted: abs_rel 0.3 against 0.25"):
        promote_model(dry_run=False)
    with pytest.raises(ValueError, match="1 of 2 images failed"):
        batch_depth("photos", "depth")
    for wrong in ({"ensemble_size": 0}, {"preset": "slow"}, {"outputs": ["gif"]}, {"max_failed": 1.5}):
        with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
            batch_depth("photos", "depth", **wrong)


@pytest.mark.slow
def test_a_job_whose_store_is_away_is_tried_again_and_no_other(at_server, small, monkeypatch):
    from flows import batch_depth

    monkeypatch.setattr(batch_depth, "predict", batch_depth.predict.with_options(retry_delay_seconds=0))
    Path("code").write_text("69")
    assert batch_depth.batch_depth("photos", "depth")["images_done"] == 2
    assert _words(small) == ["predict"] * 2
    Path("code").write_text("77")  # access is denied
    with pytest.raises(ChildFailed, match="code 77"):
        batch_depth.batch_depth("photos", "depth")
    assert _words(small) == ["predict"]


@pytest.mark.slow
def test_a_benchmark_is_measured_with_what_it_needs_and_shown(at_server, project):
    from flows.benchmark import benchmark

    graph = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    stages = yaml.safe_load(GRAPH)["stages"] | {name: graph[name] for name in ("benchmark-data", "benchmark")}
    stages["benchmark"]["deps"].remove("data/raw")  # what trains is not made here
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    _list_benchmarks("nyuv2-synthetic", "ibims1-synthetic")
    with pytest.raises(ValueError, match=r"\['kitti'\] cannot be measured"):
        benchmark(["kitti"])
    assert calls(project) == []
    assert benchmark(["nyuv2-synthetic"])["nyuv2-synthetic"]["abs_rel"] == 0.3
    words = [f"{word} nyuv2-synthetic" for word in ("synthesize", "download", "benchmark")]
    assert sorted(calls(project)) == sorted([*words, "train"])  # neither the other benchmark nor `evaluate`
    artifacts = at_server.ask("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["benchmarks"]}}})
    assert "| nyuv2-synthetic | p | 2 | 0.3 (0.2 to 0.4) |  |" in artifacts[0]["data"]
    assert benchmark(["nyuv2-synthetic"]) and calls(project) == []


@pytest.mark.slow
@pytest.mark.parametrize("approves", [True, False])
def test_a_person_approves_of_what_was_checked(at_server, small, monkeypatch, approves):
    from flows import approval
    from flows.promote_model import promote_model

    monkeypatch.setattr(approval, "ASK_EVERY_S", 1)
    monkeypatch.setattr(approval, "DAY_S", 120)
    paused = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}

    said = {"approve": approves, "by": "Lea", "why": "I looked"}

    def resumed():  # refused until the form is there too, a moment after the run pauses
        try:
            runs = at_server.ask("POST", "/flow_runs/filter", paused) or []
            answers = [at_server.ask("POST", f"/flow_runs/{run['id']}/resume", {"run_input": said}) for run in runs]
        except httpx.HTTPStatusError:  # of a server that is busy
            return False
        return any(answer["status"] == "ACCEPT" for answer in answers if answer)

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(wait_until, resumed, every_s=0.5)
        if approves:
            assert promote_model(dry_run=False, why="a trial", approval=True)["passed"]
        else:
            with pytest.raises(ValueError, match="version 1 was not promoted: refused by Lea: I looked"):
                promote_model(dry_run=False, approval=True)
        answered.result()
    last = "promote --json --version=1 --instead-of=2 --why=a trial; approved by Lea: I looked"
    assert calls(small) == ["promote --json --dry-run", *([last] if approves else [])]


def test_presets_and_options_of_the_flow_are_the_command_line_s():
    from typing import get_args

    from flows.batch_depth import batch_depth
    from metricgold.cli import main

    assert get_args(Preset) == tuple(PRESETS)
    known = {option for parameter in main.commands["predict"].params for option in parameter.opts}
    words = {"num_inference_steps": "steps", "ensemble_size": "ensemble", "outputs": "write"}
    asked = set(batch_depth.parameters.properties) - {"input", "output"}
    assert {f"--{words.get(name, name).replace('_', '-')}" for name in asked} <= known


@pytest.mark.slow
def test_a_run_that_was_cancelled_meanwhile_moves_nothing(at_server, small):
    """As when it is cancelled while nobody can tell it: it works on, and asks before it touches the registry."""
    from prefect import flow
    from prefect.runtime import flow_run

    from flows.registry_tasks import promote_version, register_version, rollback_champion

    @flow
    def works_on():
        cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
        at_server.ask("POST", f"/flow_runs/{flow_run.id}/set_state", cancelled)
        for move, words in ((register_version, ()), (promote_version, ("1", False)), (rollback_champion, (False,))):
            with pytest.raises(RuntimeError, match="nothing was registered or moved: the run is Cancelled"):
                move(*words)
        assert promote_version("1", dry_run=True)["passed"]

    works_on(return_state=True)
    assert calls(small) == ["promote --json --version=1 --dry-run"]


@pytest.mark.slow
def test_each_promotion_starts_batch_depth_with_the_automation_of_the_manual(at_server, small):
    from flows.promote_model import promote_model

    flow_id = at_server.ask("POST", "/flows/", {"name": "batch-depth"})["id"]
    deployed = at_server.ask("POST", "/deployments/", {"name": "after-promotion", "flow_id": flow_id})["id"]
    manual = (ROOT / "docs/registry-and-promotion.md").read_text()
    (automation,) = re.findall(r'```yaml title="depth-after-promotion.yaml"\n(.*?)```', manual, re.DOTALL)
    Path("automation.yaml").write_text(re.sub("deployment_id: .*", f"deployment_id: {deployed}", automation))
    done = at_server.run("prefect", "automation", "create", "--from-file", "automation.yaml", cwd=small)
    assert done.returncode == 0, done.stdout + done.stderr

    def started():
        wanted = {"deployments": {"id": {"any_": [deployed]}}}
        return [run["parameters"]["model"] for run in at_server.ask("POST", "/flow_runs/filter", wanted)]

    promote_model(dry_run=True)
    promote_model(dry_run=False)
    assert wait_until(started) == ["models:/metricgold/1"]


@pytest.mark.slow
def test_sigterm_lets_the_trainer_save(server, small):
    Path("wait").touch()
    run = subprocess.Popen([sys.executable, "-m", "flows.train_metricgold"], env=server.env)
    try:
        wait_until(lambda: Path("started").exists() or run.poll() is not None)
        assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        assert run.wait(28) != 0
    finally:
        run.kill()
    assert Path("saved").exists()
    assert "evaluate" not in _words(small)
