"""The registry against a real MLflow on SQLite: versions, gate and aliases."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.registry.promotion import promote, rollback
from metricgold.registry.pyfunc import fetch_model
from metricgold.registry.versions import register
from metricgold.storage.files import digest_folder
from tests.registry.project import GATE, PARAMS, change_model, mlflow_client, register_scores
from tests.support import ROOT
from tests.support.tries import drawn


def test_first_use_by_two_processes_at_once(first_use):
    folder, outcomes = first_use
    assert [done.returncode for done in outcomes] == [0, 0], outcomes
    assert (folder / "mlflow.db").is_file()


def test_version_holds_scores_params_and_curve(project):
    answer = register_scores()
    run = mlflow_client().get_run(answer["run_id"]).data
    assert run.metrics["abs_rel"] == 0.2
    assert run.metrics["hypersim-synthetic/abs_rel"] == 0.2
    assert run.params["train.lr"] == "3e-05"
    curve = mlflow_client().get_metric_history(answer["run_id"], "train/loss")
    assert curve[0].step == 1 and curve[-1].step == 1500 and 100 <= len(curve) <= 202
    version = mlflow_client().get_model_version_by_alias("metricgold", "candidate")
    assert str(version.version) == answer["version"]
    assert version.tags["model_digest"] == answer["model_digest"]
    assert not list(project.rglob("*.pkl"))


def test_same_bytes_give_the_same_version_with_the_newest_scores(project):
    first = register_scores()
    second = register_scores()
    measured_again = register_scores(abs_rel=0.15, digest="other evaluation")
    assert first["created"] and not second["created"] and not measured_again["created"]
    assert first["version"] == second["version"] == measured_again["version"]
    assert mlflow_client().get_run(first["run_id"]).data.metrics["abs_rel"] == 0.15
    change_model()
    assert register_scores()["version"] != first["version"]


def test_two_that_name_the_first_candidate_at_once_both_do(project, monkeypatch):
    """PostgreSQL refuses the second row of one alias; asked again it changes the first. What else fails, fails."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

    set_it, refusals = MlflowClient.set_registered_model_alias, [BAD_REQUEST]

    def refused_first(*words):
        if refusals:
            raise MlflowException("duplicate key value violates unique constraint", error_code=refusals.pop())
        return set_it(*words)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refused_first)
    assert register_scores(0.2)["version"] == "1"
    assert mlflow_client().get_model_version_by_alias("metricgold", "candidate").version == 1
    refusals.append(TEMPORARILY_UNAVAILABLE)
    with pytest.raises(ValueError, match="duplicate key"):
        register_scores(0.2)


def test_an_experiment_s_version_has_its_name_and_leaves_known_versions_alone(project):
    plain = register_scores()
    measured_otherwise = register_scores("other-ruler", abs_rel=0.1, digest="other evaluation")
    assert measured_otherwise["version"] == plain["version"]
    assert mlflow_client().get_run(plain["run_id"]).data.metrics["abs_rel"] == 0.2
    change_model()
    made = register_scores("slower")
    tags = [mlflow_client().get_model_version("metricgold", one["version"]).tags for one in (plain, made)]
    assert [one.get("experiment") for one in tags] == [None, "slower"]


@pytest.mark.parametrize("named", [None, "", "of another training"])
def test_scores_that_do_not_name_this_checkpoint_are_refused(project, named):
    with pytest.raises(ValueError, match=r"metrics/evaluate\.json (does not say which|is about another) checkpoint"):
        register_scores(model_digest=named)
    assert not Path("mlruns").exists() and not versions()


def test_a_training_written_again_keeps_the_scores_of_each_checkpoint_apart(project):
    """As with another calibration: the same run of training, another checkpoint."""
    run = start_training_run()
    first = register_scores(abs_rel=0.3)
    change_model("another calibration")
    mlflow_client().set_tag(run, "model_digest", digest_folder(Path("models/metricgold")))
    second = register_scores(abs_rel=0.1)
    assert first["run_id"] == run != second["run_id"]
    measured = [mlflow_client().get_run(one["run_id"]).data.metrics["abs_rel"] for one in (first, second)]
    assert measured == [0.3, 0.1]
    assert [promote(GATE, version=version)["passed"] for version in ("1", "2")] == [False, True]


def start_training_run():
    """A run as the tracking of a training leaves it."""
    client = mlflow_client()
    tags = {"model_digest": digest_folder(Path("models/metricgold"))}
    run_id = client.create_run(client.create_experiment("metricgold"), tags=tags, run_name="train").info.run_id
    client.set_terminated(run_id)
    return run_id


def versions():
    return mlflow_client().search_model_versions("name = 'metricgold'")


def candidate():
    return mlflow_client().get_model_version_by_alias("metricgold", "candidate").version


def copies():
    """Folders of models in MLflow's store."""
    return sorted(path.name for path in Path("mlruns").glob("*/models/m-*") if any(path.rglob("*.safetensors")))


REGISTER = "from tests.registry.project import register_scores; import json; print(json.dumps(register_scores()))"
KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from mlflow.models import Model
from tests.registry.project import register_scores

def killed(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

name, before = sys.argv[1], sys.argv[2] == "before"
owner = Model if name == "log" else MlflowClient
call = getattr(owner, name)
setattr(owner, name, killed if before else lambda *args, **options: (call(*args, **options), killed()))
register_scores()
"""


def child(code, *words, cwd=None):
    env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{Path.cwd() / 'mlflow.db'}"}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=env, cwd=cwd, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_three_at_once_make_one_version(project, tmp_path_factory, elsewhere):
    """Of one folder, or of equal ones as on several machines, which share no lock."""
    folders = [project] * 3
    if elsewhere:
        folders = [tmp_path_factory.mktemp("other") / "project" for _ in range(3)]
        for folder in folders:
            shutil.copytree(project / "models", folder / "models")
    children = [child(REGISTER, cwd=folder) for folder in folders]
    said = [json.loads(one.communicate()[0].splitlines()[-1]) for one in children]
    assert [one.returncode for one in children] == [0, 0, 0]
    (version,) = versions()
    assert {one["version"] for one in said} == {str(version.version)} and sum(one["created"] for one in said) == 1
    assert version.tags["model_digest"] == said[0]["model_digest"] and candidate() == version.version


CALLS = [
    ("create_run", "after"),
    ("log_batch", "after"),
    ("log", "before"),
    ("finalize_logged_model", "before"),
    ("log", "after"),
    ("create_registered_model", "after"),
    ("create_model_version", "before"),
    ("create_model_version", "after"),
    ("set_registered_model_alias", "before"),
]


@pytest.mark.slow
@pytest.mark.parametrize("call", drawn(CALLS), ids="-".join)
def test_killed_anywhere_the_next_call_makes_one_version(project, call):
    killed = child(KILLED, *call)
    killed.communicate()
    assert killed.returncode == -9
    answer = register_scores()
    (version,) = versions()
    assert str(version.version) == answer["version"] and candidate() == version.version
    assert len(copies()) == 1
    folder, _ = fetch_model("models:/metricgold@candidate")
    assert (folder / "model_index.json").is_file()
    assert not list(project.glob(".*.part"))


@pytest.mark.parametrize(
    ("scores", "failing"),
    [
        ({"abs_rel": 0.26}, "abs_rel"),
        ({"delta1": 0.59}, "delta1"),
        ({"constant_abs_rel": 0.5}, "constant_ratio"),
        ({"vae_floor_abs_rel": 0.06}, "vae_floor_abs_rel"),
    ],
)
def test_gate_refuses_and_moves_nothing(project, scores, failing):
    register_scores(**scores)
    outcome = promote(GATE)
    assert not outcome["passed"]
    assert failing in [check["name"] for check in outcome["checks"] if not check["passed"]]
    with pytest.raises(ValueError, match="champion"):
        fetch_model("models:/metricgold@champion")


def test_gate_refuses_a_missing_score(project):
    Path("metrics").mkdir()
    scores = {"abs_rel": 0.1, "model_digest": digest_folder(Path("models/metricgold"))}
    Path("metrics/evaluate.json").write_text(json.dumps(scores))
    register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"))
    assert [c["name"] for c in promote(GATE)["checks"] if not c["passed"]] == [
        "delta1",
        "constant_ratio",
        "vae_floor_abs_rel",
    ]


def test_champion_previous_and_back(project):
    one = register_scores()["version"]
    assert promote(GATE, dry_run=True)["passed"]
    with pytest.raises(ValueError, match="no version of metricgold has the alias previous"):
        rollback()
    assert promote(GATE)["previous"] is None
    change_model()
    two = register_scores(abs_rel=0.19)["version"]
    assert promote(GATE) | {"checks": []} == {
        "passed": True,
        "checks": [],
        "version": two,
        "alias": "champion",
        "previous": one,
        "dry_run": False,
    }
    assert promote(GATE)["version"] == two  # promoting the champion again changes nothing
    back = {"version": one, "alias": "champion", "previous": two}
    assert rollback(dry_run=True) == back | {"dry_run": True}
    assert fetch_model("models:/metricgold@champion")[1] == f"metricgold/{two}"
    assert rollback() == back | {"dry_run": False}
    assert fetch_model("models:/metricgold@champion")[1] == f"metricgold/{one}"
    assert rollback()["version"] == two


def test_no_regression_against_a_champion_of_the_same_evaluation(project):
    register_scores(abs_rel=0.15)
    promote(GATE)
    change_model()
    worse = register_scores(abs_rel=0.2)["version"]
    outcome = promote(GATE)
    assert [c["name"] for c in outcome["checks"] if not c["passed"]] == ["regression"]
    assert outcome["checks"][-1]["value"] == pytest.approx(0.2 / 0.15 - 1)
    register_scores(abs_rel=0.2, digest="other evaluation")
    assert promote(GATE, version=worse)["passed"]


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model_index\.json.*dvc repro train"):
        register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"))


def test_the_command_rollback(project):
    def run(*options: str):
        return CliRunner().invoke(main, ["rollback", *options])

    register_scores()
    promote(GATE)
    none = run("--json")
    assert (none.exit_code, none.output) == (1, "Error: no version of metricgold has the alias previous\n")
    change_model()
    register_scores(abs_rel=0.19)
    promote(GATE)
    assert json.loads(run("--json", "--dry-run").output)["dry_run"]
    assert fetch_model("models:/metricgold@champion")[1] == "metricgold/2"
    moved = {"version": "1", "alias": "champion", "previous": "2", "dry_run": False}
    assert json.loads(run("--json").output) == moved
    assert fetch_model("models:/metricgold@champion")[1] == "metricgold/1"
    assert run().output == "version: 2\nalias: champion\nprevious: 1\ndry_run: False\n"


def test_the_extra_is_named_where_mlflow_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        ValueError, match=r"mlflow is not installed, which this needs: pip install 'metricgold\[pipeline\]'"
    ):
        rollback()
