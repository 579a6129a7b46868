"""Runs with other values: a workspace each, an experiment in the end, and a project that stays as it was."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from metricgold.params import load_params
from metricgold.storage import write_json
from tests.flows.toy import calls
from tests.support.waiting import PATIENCE_S, wait_until

GRAPH = """
stages:
  encode:
    cmd: metricgold encode a
    deps: [data/raw/a/ledger.json]
    params: [encode]
    outs: [data/latents/a]
  train:
    cmd: metricgold train
    deps: [data/latents]
    params: [train]
    outs: [models/metricgold]
  evaluate:
    cmd: metricgold evaluate
    deps: [models/metricgold]
    metrics: [{metrics/evaluate.json: {cache: false}}]
"""
HOME = Path(".dvc/tmp/metricgold")


@pytest.fixture
def fresh(project, monkeypatch):
    """A toy project of three stages, all up to date and not committed, beside a number in params.yaml that is not."""
    monkeypatch.setenv("CALLS", str(project.parent / "calls.log"))
    Path("dvc.yaml").write_text(GRAPH)
    Path("models/backbone/vae").mkdir(parents=True)
    Path("models/backbone/vae/weights").write_text("weights")
    Path("data/raw/a/scene").mkdir(parents=True)
    Path("data/raw/a/scene/frame.png").write_bytes(b"pixels")
    write_json(Path("data/raw/a/ledger.json"), {"archives": {}})
    subprocess.run(["git", "commit", "-qam", "three stages"], check=True)
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("num_steps: 1650", "num_steps: 1640"))
    Path("encode-anywhere").symlink_to("/")  # not Git's, and no copy of it is wanted
    return project


def _dvc(*words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _state() -> dict[str, str]:
    """What a run with other values must leave as it is."""
    files = [Path(name) for name in ("params.yaml", "dvc.lock", "models/metricgold/weights", "metrics/evaluate.json")]
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return {str(file): file.read_text() for file in files if file.is_file()} | {"status": status}


def _experiments() -> dict[str, dict]:
    """By name, data of each experiment that `dvc exp show` lists."""
    baseline = json.loads(_dvc("exp", "show", "--json"))[-1]
    return {one["revs"][0]["name"]: one["revs"][0]["data"] for one in (baseline["experiments"] or [])}


def _workspaces() -> list[Path]:
    return [one for one in HOME.glob("*-*") if one.is_dir()]


@pytest.mark.slow
def test_a_run_with_other_values_becomes_an_experiment_and_nothing_else(at_server, fresh):
    from flows.train_metricgold import train_metricgold

    train_metricgold()
    seconds = Path("reports/seconds.json").read_text()
    assert [line.split()[0] for line in calls(fresh.parent)] == ["encode", "train", "evaluate", "register"]
    before = _state()
    overrides = {"train.num_steps": 7, "train.seed": 3, "train.weights.vkitti2-synthetic": 0.5}
    outcome = train_metricgold(overrides=overrides)
    name = outcome["experiment"]
    assert calls(fresh.parent) == ["train", "evaluate", f"register --json --experiment={name}"]
    assert _state() == before and not _workspaces()
    data = _experiments()[name]
    assert data["params"]["params.yaml"]["data"]["train"]["num_steps"] == 7
    assert data["params"]["params.yaml"]["data"]["train"]["seed"] == 3
    assert data["metrics"]["metrics/evaluate.json"]["data"]["abs_rel"] == 0.2
    assert train_metricgold()["experiment"] is None
    assert calls(fresh.parent) == ["register --json"], "values of the experiment are not those of the next run"
    assert Path("reports/seconds.json").read_text() == seconds, "a run without work has no seconds"
    _dvc("exp", "apply", name)
    assert "num_steps: 7" in Path("models/metricgold/weights").read_text()


@pytest.mark.slow
def test_a_cancelled_and_a_killed_run_leave_the_project_as_it_was(server, fresh):
    Path("wait").touch()
    subprocess.run(["git", "add", "wait"], check=True)
    subprocess.run(["git", "commit", "-qm", "trainers wait"], check=True)
    before = _state()
    code = "from flows.train_metricgold import train_metricgold as t; t(overrides={'train.num_steps': 7})"

    def start() -> subprocess.Popen:
        run = subprocess.Popen([sys.executable, "-c", code], env=server.env | {"CALLS": os.environ["CALLS"]})
        wait_until(lambda: list(HOME.glob("*/started")) or run.poll() is not None, what="the trainer")
        assert run.poll() is None
        return run

    cancelled = start()
    cancelled.send_signal(signal.SIGTERM)
    assert cancelled.wait(30) != 0
    assert _state() == before and not _workspaces()

    killed = start()
    below = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait(30)
    for child in below:
        with suppress(psutil.NoSuchProcess):  # it ends with its parent, too
            child.kill()
    psutil.wait_procs(below, timeout=PATIENCE_S)
    assert _state() == before and len(_workspaces()) == 1

    from flows.experiments import clear_workspaces

    (left,) = _workspaces()
    (left / "models/metricgold.state").mkdir(parents=True)
    clear_workspaces()
    assert not _workspaces() and [path.name for path in HOME.glob("states/*")] == [left.name.partition("-")[0]]
    assert not list(HOME.glob("*.lock")) and _experiments() == {}


@pytest.mark.parametrize("which", [1, 2])
def test_a_signal_that_comes_while_the_workspace_is_cleared_leaves_nothing(fresh, monkeypatch, which):
    from flows import experiments

    rmtree, calls = shutil.rmtree, []

    def interrupted(folder, **options):
        calls.append(folder)
        if len(calls) == which:
            raise KeyboardInterrupt
        rmtree(folder, **options)

    with pytest.raises(KeyboardInterrupt), experiments.experiment_workspace({"train.num_steps": 7}, "") as workspace:
        (workspace.folder / "models/metricgold.state").mkdir(parents=True)
        monkeypatch.setattr(experiments.shutil, "rmtree", interrupted)
        raise ValueError("the run failed")
    assert not _workspaces() and len(list(HOME.glob("states/*"))) == 1 and not list(HOME.glob("*.lock"))


@pytest.mark.slow
def test_two_runs_with_other_values_at_once(server, fresh):
    env = server.env | {"CALLS": os.environ["CALLS"]}
    code = "from flows.train_metricgold import train_metricgold as t; t(overrides={'train.num_steps': %d})"
    runs = [subprocess.Popen([sys.executable, "-c", code % steps], env=env) for steps in (7, 8)]
    assert [run.wait(150) for run in runs] == [0, 0]
    found = [one["params"]["params.yaml"]["data"]["train"]["num_steps"] for one in _experiments().values()]
    assert sorted(found) == [7, 8] and load_params().train.num_steps == 1640 and not _workspaces()


@pytest.mark.parametrize(
    "overrides",
    [
        {"datasets": ["x; touch PWNED"]},
        {"dvc.yaml:stages": "x"},
        {"train.num_steps": "x; touch PWNED"},
        {"train.no_such_key": 1},
    ],
)
def test_values_are_checked_before_anything_starts(fresh, overrides):
    from flows.train_metricgold import train_metricgold

    before = _state()
    with pytest.raises(ValueError, match=r"params\.yaml: "):
        train_metricgold.fn(overrides=overrides)
    assert calls(fresh.parent) == [] and _state() == before and not HOME.exists()


def test_a_project_without_a_commit_is_told_what_an_experiment_needs(tmp_path, monkeypatch):
    from flows.experiments import experiment_workspace

    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    needs = pytest.raises(ValueError, match="an experiment, which needs a Git repository with a commit")
    with needs, experiment_workspace({"train.num_steps": 7}, "name"):
        pass


def test_a_workspace_has_the_work_as_it_is_and_shares_what_is_large(fresh, monkeypatch):
    from flows.experiments import experiment_workspace

    _dvc("repro", "encode")
    md5 = hashlib.md5(Path("data/latents/a/shard").read_bytes(), usedforsecurity=False).hexdigest()
    shard = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    index = Path(".git/index").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///there.db")
    overrides = {"train.seed": 3, "backbone.revision": "it's ${x}", "download.limit_gb.hypersim": 2.5}
    with experiment_workspace(overrides, "a name: 3") as workspace:
        params = load_params(workspace.folder / "params.yaml")
        assert (params.train.num_steps, params.train.seed) == (1640, 3)
        assert params.backbone.revision == "it's ${x}" and params.download.limit_gb == {"hypersim": 2.5}
        assert "# in place of log_depth" in (workspace.folder / "params.yaml").read_text()
        inodes = {name: (workspace.folder / name).stat().st_ino for name in ("data/raw/a/scene/frame.png",)}
        assert inodes == {name: Path(name).stat().st_ino for name in inodes}
        ledger = "data/raw/a/ledger.json"
        assert not Path(ledger).samefile(workspace.folder / ledger)
        assert Path(ledger).read_text() == (workspace.folder / ledger).read_text()
        assert (workspace.folder / "data/latents/a/shard").samefile(shard)
        assert not (workspace.folder / "encode-anywhere").is_symlink()
        assert workspace.experiment == "a-name-3"
        assert dict(workspace.variables) == {"MLFLOW_TRACKING_URI": f"sqlite:///{fresh / 'there.db'}"}
    assert Path(".git/index").read_bytes() == index and not _workspaces()


def test_a_workspace_of_a_project_inside_a_repository(fresh):
    from flows.experiments import experiment_workspace

    inside = fresh / "team/project"
    inside.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", ".dvc"):
        subprocess.run(["git", "mv", name, str(inside / name)], check=True)
    subprocess.run(["git", "commit", "-qam", "moved"], check=True)
    os.chdir(inside)
    with experiment_workspace({"train.seed": 3}, "name") as workspace:
        assert workspace.folder.parts[-2:] == ("team", "project")
        assert load_params(workspace.folder / "params.yaml").train.seed == 3
    assert not _workspaces()
