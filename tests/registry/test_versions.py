"""The registry against a real MLflow on SQLite: versions, gate, aliases, and a model that loads elsewhere."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from metricgold.params.sections import Params, Predict, Promote
from metricgold.registry import versions as registry
from metricgold.registry.versions import fetch_model, promote, register, rollback, track

PARAMS = Params(datasets=["hypersim-synthetic"], predict=Predict(num_inference_steps=2, ensemble_size=1))
GATE = Promote(max_abs_rel=0.25, min_delta1=0.6, max_constant_ratio=0.34, max_vae_floor_abs_rel=0.05)
SCORES = {
    "abs_rel": 0.2,
    "delta1": 0.7,
    "rmse_m": 3.0,
    "constant_abs_rel": 0.8,
    "vae_floor_abs_rel": 0.04,
    "num_frames": 24,
    "datasets": {"hypersim-synthetic": {"abs_rel": 0.2}},
    "digest": "same evaluation",
}


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """A folder where two processes made MLflow's database at the same moment, and what became of them."""
    folder = tmp_path_factory.mktemp("store")
    code = "from metricgold.registry.versions import _client\nwith _client() as client: client.search_experiments()"
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}

    def start(_):
        return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        return folder, list(pool.map(start, range(2)))


def test_first_use_by_two_processes_at_once(first_use):
    folder, outcomes = first_use
    assert [done.returncode for done in outcomes] == [0, 0], outcomes
    assert (folder / "mlflow.db").is_file()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from metricgold.model.pipeline import EmptyPrompt, MetricGoldPipeline

    torch.manual_seed(0)
    channels = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **channels
    )
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        **channels,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    folder = tmp_path_factory.mktemp("model") / "metricgold"
    MetricGoldPipeline(unet, vae, scheduler, EmptyPrompt(2, 8), 0.5, 80.0, 16, 16).save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path, first_use, tiny_model, monkeypatch):
    """A working folder as `metricgold register` finds it after `dvc repro`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(first_use[0] / "mlflow.db", tmp_path)
    shutil.copytree(tiny_model, "models/metricgold")
    Path("models/metricgold/lineage.json").write_text(json.dumps({"datasets": {"hypersim-synthetic": "abc"}}))
    state = Path("models/metricgold.state")
    state.mkdir()
    rows = [{"step": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 1501)]
    (state / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("dvc.lock").write_text(
        yaml.safe_dump({"stages": {"train": {"outs": [{"path": "models/metricgold", "md5": "0f.dir"}]}}})
    )
    return tmp_path


def _register(**scores):
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/evaluate.json").write_text(json.dumps(SCORES | scores))
    return register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"))


def _another_model(text="again"):
    Path("models/metricgold/lineage.json").write_text(json.dumps({"note": text}))


def _client():
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")


def test_version_holds_scores_params_curve_and_lineage(project):
    answer = _register()
    run = _client().get_run(answer["run_id"]).data
    assert run.metrics["abs_rel"] == 0.2
    assert run.metrics["hypersim-synthetic/abs_rel"] == 0.2
    assert run.params["train.lr"] == "3e-05"
    curve = _client().get_metric_history(answer["run_id"], "train/loss")
    assert curve[0].step == 1 and curve[-1].step == 1500 and 100 <= len(curve) <= 202
    version = _client().get_model_version_by_alias("metricgold", "candidate")
    assert str(version.version) == answer["version"]
    assert version.tags["dvc/models/metricgold"] == "0f.dir"
    assert version.tags["lineage.datasets.hypersim-synthetic"] == "abc"
    assert version.tags["model_digest"] == answer["model_digest"]
    assert not list(project.rglob("*.pkl"))


def test_same_bytes_give_the_same_version_with_the_newest_scores(project):
    first = _register()
    second = _register()
    measured_again = _register(abs_rel=0.15, digest="other evaluation")
    assert first["created"] and not second["created"] and not measured_again["created"]
    assert first["version"] == second["version"] == measured_again["version"]
    assert _client().get_run(first["run_id"]).data.metrics["abs_rel"] == 0.15
    _another_model()
    assert _register()["version"] != first["version"]


def test_loads_as_pyfunc_in_another_process_and_folder(project, tmp_path_factory):
    _register()
    promote(GATE)
    code = """
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/metricgold@champion")
images = np.random.default_rng(0).integers(0, 256, (2, 20, 28, 3), dtype=np.uint8)
batch = model.predict(images, params={"num_inference_steps": 1, "seed": 3})
one = model.predict(images[1], params={"num_inference_steps": 1, "seed": 3})
assert batch.shape == (2, 20, 28) and batch.dtype == np.float32 and np.isfinite(batch).all() and (batch > 0).all()
np.testing.assert_allclose(one, batch[1], rtol=1e-3)
try:
    model.predict(images / 255)
except Exception as error:
    assert "expected uint8" in str(error), error
else:
    raise AssertionError("floats were taken")
"""
    env = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fetch_model_names_folders_and_versions(project):
    answer = _register()
    assert fetch_model("models/metricgold") == (Path("models/metricgold"), "metricgold")
    folder, name = fetch_model("models:/metricgold@candidate")
    assert name == f"metricgold/{answer['version']}"
    assert (folder / "model_index.json").read_bytes() == Path("models/metricgold/model_index.json").read_bytes()
    assert fetch_model(f"models:/metricgold/{answer['version']}") == (folder, name)
    for missing in ("models:/metricgold@champion", "models:/metricgold/77", "models:/nothing@champion", "models:/x"):
        with pytest.raises(ValueError, match=r"models:/|metricgold|nothing"):
            fetch_model(missing)
    with pytest.raises(ValueError, match="nowhere"):
        fetch_model("nowhere")


def test_version_on_a_remote_store_is_downloaded_once(project, monkeypatch):
    import mlflow

    answer = _register()
    local = mlflow.artifacts.download_artifacts(answer["model_uri"])
    asked = []

    def download(artifact_uri, dst_path):
        asked.append(artifact_uri)
        return shutil.copytree(local, Path(dst_path) / "artifacts")

    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    monkeypatch.setattr(
        mlflow.MlflowClient, "get_model_version_download_uri", lambda *_: "s3://bucket/models/m-1/artifacts"
    )
    folders = {fetch_model("models:/metricgold@candidate") for _ in range(2)}
    assert asked == ["s3://bucket/models/m-1/artifacts"]
    ((folder, name),) = folders
    assert name == "metricgold/1" and folder.is_relative_to(project / "cache")
    assert (folder / "unet").is_dir()


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
    _register(**scores)
    outcome = promote(GATE)
    assert not outcome["passed"]
    assert failing in [check["name"] for check in outcome["checks"] if not check["passed"]]
    with pytest.raises(ValueError, match="champion"):
        fetch_model("models:/metricgold@champion")


def test_gate_refuses_a_missing_score(project):
    Path("metrics").mkdir()
    Path("metrics/evaluate.json").write_text(json.dumps({"abs_rel": 0.1}))
    register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"))
    assert [c["name"] for c in promote(GATE)["checks"] if not c["passed"]] == [
        "delta1",
        "constant_ratio",
        "vae_floor_abs_rel",
    ]


def test_champion_previous_and_back(project):
    one = _register()["version"]
    assert promote(GATE, dry_run=True)["passed"]
    with pytest.raises(ValueError, match="no version of metricgold has the alias previous"):
        rollback()
    assert promote(GATE)["previous"] is None
    _another_model()
    two = _register(abs_rel=0.19)["version"]
    assert promote(GATE) | {"checks": []} == {
        "passed": True,
        "checks": [],
        "version": two,
        "alias": "champion",
        "previous": one,
        "dry_run": False,
    }
    assert promote(GATE)["version"] == two  # promoting the champion again changes nothing
    assert rollback() == {"version": one, "alias": "champion", "previous": two}
    assert fetch_model("models:/metricgold@champion")[1] == f"metricgold/{one}"
    assert rollback()["version"] == two


def test_no_regression_against_a_champion_of_the_same_evaluation(project):
    _register(abs_rel=0.15)
    promote(GATE)
    _another_model()
    worse = _register(abs_rel=0.2)["version"]
    outcome = promote(GATE)
    assert [c["name"] for c in outcome["checks"] if not c["passed"]] == ["regression"]
    assert outcome["checks"][-1]["value"] == pytest.approx(0.2 / 0.15 - 1)
    _register(abs_rel=0.2, digest="other evaluation")
    assert promote(GATE, version=worse)["passed"]


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model_index\.json.*dvc repro train"):
        register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"))


def test_password_of_a_tracking_server_is_not_shown(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError) as caught:
        fetch_model("models:/metricgold@champion")
    assert "sesame" not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_pyfunc_refuses_what_is_no_image():
    from metricgold.registry.versions import _Depth

    depth = _Depth.__new__(_Depth)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.full((4, 4, 3), 300)):
        with pytest.raises(ValueError, match="expected"):
            depth.predict(wrong)


# A training, live


STATE = Path("models/metricgold.state")


@pytest.fixture
def fresh(project, monkeypatch):
    """A project whose trainer has written nothing yet."""
    monkeypatch.setattr(registry, "SEND_EVERY_S", 0.1)
    (STATE / "metrics.jsonl").unlink()
    return project


def _row(step, **more):
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": 1.0, **more}


def _run_of_state():
    return _client().get_run(json.loads((STATE / "mlflow.json").read_text())["run_id"])


def _steps(name="train/loss"):
    return [metric.step for metric in _client().get_metric_history(_run_of_state().info.run_id, name)]


def _train(steps, then=None):
    with track(PARAMS, STATE) as report:
        for step in steps:
            report(_row(step))
        if then is not None:
            raise then


def test_training_is_seen_while_it_runs(fresh):
    with track(PARAMS, STATE) as report:
        assert not (STATE / "mlflow.json").exists()  # the trainer may still clear its folder
        report(_row(10))
        (STATE / "samples").mkdir()
        (STATE / "samples/step-000020.png").write_bytes(b"picture")
        report(_row(20, val_abs_rel=0.3))
        for _ in range(200):
            if (STATE / "mlflow.json").exists() and _steps("val/abs_rel"):
                break
            time.sleep(0.1)
        assert (_run_of_state().info.status, _steps()) == ("RUNNING", [10, 20])
    run = _run_of_state()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "train")
    assert run.data.params["train.lr"] == "3e-05" and "evaluate.seed" not in run.data.params
    assert [file.path for file in _client().list_artifacts(run.info.run_id, "samples")] == ["samples/step-000020.png"]


def test_a_stopped_training_goes_on_in_its_run_and_its_checkpoint_is_registered_there(fresh):
    with pytest.raises(SystemExit):
        _train([10, 20, 30], SystemExit(143))
    assert _run_of_state().info.status == "KILLED"
    with pytest.raises(ValueError, match="loss"):
        _train([20, 30, 40], ValueError("loss"))  # from a checkpoint at step 10
    assert (_run_of_state().info.status, _steps()) == ("FAILED", [10, 20, 30, 40])
    # What a killed process had not sent is on the disk.
    (STATE / "metrics.jsonl").write_text("".join(json.dumps(_row(step)) + "\n" for step in (30, 40, 50, 60)))
    _train([])
    assert (_run_of_state().info.status, _steps()) == ("FINISHED", [10, 20, 30, 40, 50, 60])
    answer = _register()
    run = _run_of_state()
    assert answer["run_id"] == run.info.run_id and run.info.status == "FINISHED"
    assert run.data.metrics["abs_rel"] == 0.2 and run.data.params["evaluate.seed"] == "0"
    assert len(_steps()) == 6
    assert not _register()["created"]


def test_a_run_that_is_not_there_is_made_anew_with_all_rows(fresh):
    (STATE / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
    (STATE / "metrics.jsonl").write_text(json.dumps(_row(10)) + "\n")
    _train([20])
    assert _steps() == [10, 20]


def test_training_does_not_mind_that_mlflow_is_down(fresh, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING), track(PARAMS, STATE) as report:
        for step in (10, 20):
            report(_row(step))
            time.sleep(0.5)
    said = [record.getMessage() for record in caplog.records if record.name == "metricgold.registry.versions"]
    assert len(said) == 1 and "127.0.0.1:1" in said[0] and "metrics.jsonl" in said[0]
    assert "sesame" not in caplog.text


def test_a_server_that_hangs_stalls_nothing(fresh, monkeypatch, caplog):
    gate = threading.Event()
    monkeypatch.setattr(registry, "_client", gate.wait)
    monkeypatch.setattr(registry, "END_S", 0.2)
    started = time.monotonic()
    _train(range(1, 1000))
    assert time.monotonic() - started < 5
    assert "no answer within 0 s" in caplog.text
    gate.set()


@pytest.mark.parametrize(
    ("options", "variables", "tracked"), [([], {}, True), (["--no-track"], {}, False), ([], {"RANK": "1"}, False)]
)
def test_the_command_train_is_tracked_once_unless_told_not_to(fresh, monkeypatch, options, variables, tracked):
    from click.testing import CliRunner

    from metricgold.cli import main

    Path("params.yaml").write_text(yaml.safe_dump({"datasets": ["hypersim-synthetic"]}))
    for key, value in variables.items():
        monkeypatch.setenv(key, value)

    def train(*_, report, **__):
        if report is not None:
            report(_row(10))

    monkeypatch.setattr("metricgold.train.stage.train", train)
    done = CliRunner().invoke(main, ["train", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (STATE / "mlflow.json").exists() == tracked
