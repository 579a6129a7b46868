"""DVC as a team uses it, on a real S3 server: a colleague's clone, pull and repro; commits and experiments compared."""

# ruff: noqa: F811

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from metricgold.evaluate.stage import evaluate
from tests.conftest import DATASET, TINY
from tests.flows.test_dvc import _change, _repro
from tests.flows.toy import SCRIPTS, make_project, quiet_environment
from tests.support.s3 import s3_bucket, s3_environment  # noqa: F401

pytestmark = pytest.mark.slow


def _run(folder: Path, *command: str) -> str:
    """Standard output of a command in a folder, by the stand-in for our own stages."""
    done = subprocess.run(command, cwd=folder, env=quiet_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _dvc(folder: Path, *words: str) -> str:
    return _run(folder, sys.executable, "-m", "dvc", *words)


def _commit(folder: Path, message: str) -> None:
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", message)


def _clone(project: Path, target: Path) -> Path:
    """What a colleague has after `git clone` and `dvc pull`."""
    _run(project, "git", "clone", "-q", str(project), str(target))
    _dvc(target, "pull")
    return target


def _remote(project: Path, bucket: str) -> None:
    """The one command of the manual."""
    _dvc(project, "remote", "add", "--default", "storage", f"s3://{bucket}/metricgold")


def test_a_colleague_clones_pulls_and_repeats_nothing(project, s3_bucket, tmp_path):
    _change(project, benchmarks=["nyuv2-synthetic"])
    _remote(project, s3_bucket)
    _repro(project)
    _commit(project, "first")
    _dvc(project, "push")

    theirs = _clone(project, tmp_path / "theirs")
    raw = [path.name for path in (theirs / "data/raw").rglob("*") if path.is_file()]
    assert set(raw) == {"ledger.json"}
    assert _repro(theirs) == []
    assert _run(theirs, "git", "status", "--porcelain") == ""
    _change(theirs, evaluate={"seed": 7})  # and goes on from there
    assert _repro(theirs) == ["evaluate", "headline"]
    _dvc(tmp_path, "get", str(project), "models/metricgold", "--out", str(tmp_path / "model"))
    assert (tmp_path / "model/weights").is_file()
    with Repo(str(project)) as repo:  # by its name, for who looks for models and not for paths
        (named,) = repo.artifacts.read().values()
    assert named["metricgold"].path == "models/metricgold" and named["metricgold"].type == "model"


def test_commits_and_experiments_are_compared_by_few_figures(project):
    _repro(project)
    _commit(project, "first")
    _change(project, evaluate={"seed": 5})
    _repro(project)
    _commit(project, "second")
    changes = json.loads(_dvc(project, "metrics", "diff", "HEAD~1", "--json"))
    assert list(changes) == ["reports/headline.json"]
    assert changes["reports/headline.json"]["abs_rel"] == {"old": 0.2, "new": 0.25, "diff": pytest.approx(0.05)}
    plots = project / "dvc_plots/index.html"
    _dvc(project, "plots", "diff", "HEAD~1", "--targets", "plots/evaluate_by_depth.csv")
    assert "evaluate_by_depth" in plots.read_text() and "HEAD~1" in plots.read_text()

    _dvc(project, "exp", "run", "--name", "eight", "-S", "evaluate.seed=8")
    table = _dvc(project, "exp", "show", "--csv", "--only-changed").splitlines()
    assert any("eight" in line and "0.28" in line for line in table)
    compared = json.loads(_dvc(project, "exp", "diff", "HEAD", "eight", "--json"))
    assert compared["metrics"]["reports/headline.json"]["abs_rel"]["new"] == 0.28
    assert _run(project, "git", "log", "--oneline").count("\n") == 3


def test_the_real_commands_work_on_what_was_pulled(tmp_path, tiny_raw, tiny_model, s3_environment, s3_bucket):
    project = make_project(tmp_path / "project")
    (project / "params.yaml").write_text(yaml.safe_dump(TINY.model_dump(mode="json"), sort_keys=False))
    _remote(project, s3_bucket)
    _repro(project)
    shutil.rmtree(project / "models/metricgold")
    shutil.copytree(tiny_model, project / "models/metricgold")
    raw = {DATASET: tiny_raw}
    evaluate(TINY.evaluate, raw, project / "models/metricgold", project / "metrics/evaluate.json", project / "plots")
    _dvc(project, "commit", "--force")
    _commit(project, "measured")
    _dvc(project, "push")

    theirs = _clone(project, tmp_path / "theirs")
    assert _repro(theirs) == []
    refused = _metricgold(theirs, "evaluate")
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert refused.returncode == 1 and f"metricgold download {DATASET}" in line
    answer = _metricgold(theirs, "register", "--json")
    assert answer.returncode == 0 and json.loads(answer.stdout)["created"], answer.stderr
    shutil.copytree(tiny_raw, theirs / "data/raw" / DATASET, dirs_exist_ok=True)  # as a download brings them
    measured = _metricgold(theirs, "evaluate")
    assert measured.returncode == 0, measured.stderr
    ours, here = (json.loads((folder / "metrics/evaluate.json").read_text()) for folder in (project, theirs))
    assert here["abs_rel"] == pytest.approx(ours["abs_rel"], rel=1e-6)


def _metricgold(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The real command, not the stand-in."""
    command = [str(SCRIPTS / "metricgold"), *words]
    return subprocess.run(command, cwd=folder, env=quiet_environment(), capture_output=True, text=True)
