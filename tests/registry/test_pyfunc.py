"""Versions as files: a model that loads elsewhere, in place or downloaded once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metricgold.params.sections import Predict
from metricgold.predict.entries import predict_entries
from metricgold.predict.stage import predict_all
from metricgold.registry.promotion import promote
from metricgold.registry.pyfunc import checkpoint_in, fetch_model
from metricgold.registry.scoring import ArraysOnly
from metricgold.storage.files import digest_folder, read_rows, write_json
from tests.registry.project import GATE, change_model, register_scores
from tests.support import ROOT


def test_loads_as_pyfunc_in_another_process_and_folder(project, tmp_path_factory):
    register_scores()
    promote(GATE)
    code = """
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/metricgold@champion")
images = np.random.default_rng(0).integers(0, 256, (2, 20, 28, 3), dtype=np.uint8)
batch = model.predict(images, params={"num_inference_steps": 1, "seed": 3})
one = model.predict(images[1], params={"num_inference_steps": 1, "seed": 3})
assert len(batch) == 2
for depth_m in (answer["depth"] for answer in batch):
    assert depth_m.shape == (20, 28) and depth_m.dtype == np.float32
    assert np.isfinite(depth_m).all() and (depth_m > 0).all()
np.testing.assert_allclose(one["depth"], batch[1]["depth"], rtol=1e-3)
try:
    model.predict(images / 255)
except Exception as error:
    assert str(error) == "inputs[0]: an image must be uint8 [H, W, 3], got float64 [20, 28, 3]", error
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
    answer = register_scores()
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

    answer = register_scores()
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
    for thin in (lambda: shutil.rmtree(folder / "unet"), lambda: next((project / "cache").rglob("MLmodel")).unlink()):
        thin()  # as cleaners of caches do
        assert fetch_model("models:/metricgold@candidate") == (folder, name) and (folder / "unet").is_dir()
    assert len(asked) == 3
    assert fetch_model("models:/metricgold@candidate") == (folder, name) and len(asked) == 3
    alter(folder)
    write_json(next((project / "cache").rglob("digest.json")), digest_folder(folder))
    assert fetch_model("models:/metricgold@candidate")[0] == folder and len(asked) == 4
    assert digest_folder(folder) == answer["model_digest"]
    alter(checkpoint_in(Path(local)))  # on the server too
    shutil.rmtree(project / "cache")
    with pytest.raises(ValueError, match=r"metricgold/1 was altered since it was registered: .*expected"):
        fetch_model("models:/metricgold@candidate")


def alter(folder):
    """A U-Net of other numbers that loads as before."""
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(path).items()}, path)


def test_an_altered_version_on_this_disk_is_refused(project):
    register_scores()
    folder, _ = fetch_model("models:/metricgold@candidate")
    alter(folder)
    with pytest.raises(ValueError, match=rf"metricgold/1 was altered since it was registered: {folder}"):
        fetch_model("models:/metricgold/1")


def test_a_promotion_during_a_job_changes_nothing_in_it(project):
    """The alias is looked up once; every row has version and digest of then."""
    first = register_scores()
    promote(GATE)
    Path("photos").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(f"photos/{name}.png")
    folder, name = fetch_model("models:/metricgold@champion")

    def predict_and_promote(job, entries, **options):
        for row in predict_entries(job, entries, **options):
            yield row
            change_model()
            register_scores(abs_rel=0.1)
            promote(GATE)

    params = Predict(num_inference_steps=1, ensemble_size=1, batch_size=1, gallery=0)
    summary = predict_all(params, folder, "photos", "depth", model_name=name, run_entries=predict_and_promote)
    assert fetch_model("models:/metricgold@champion")[1] == "metricgold/2"
    rows = read_rows(Path("depth/receipt.jsonl"))
    expected = ("metricgold/1", first["model_digest"])
    assert [(row["model"], row["model_digest"]) for row in (*rows, summary)] == [expected] * 3
    assert [row["status"] for row in rows] == ["done", "done"]


def test_password_of_a_tracking_server_is_not_shown(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:sesame@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError) as caught:
        fetch_model("models:/metricgold@champion")
    assert "sesame" not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_a_version_of_before_refuses_what_is_no_image():
    depth = ArraysOnly.__new__(ArraysOnly)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.full((4, 4, 3), 300)):
        with pytest.raises(ValueError, match="expected"):
            depth.predict(wrong)


def test_the_logged_code_is_enough_on_its_own(project, tmp_path_factory):
    """Faces read their .pyi when they are used, so a logged package needs those too."""
    register_scores()
    code = """
import importlib.util, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path = [path for path in sys.path if Path(path).resolve() != root]
spec = importlib.util.find_spec("metricgold")
assert spec is None or spec.origin is None  # an editable install leaves a folder without code
import mlflow, numpy as np
model = mlflow.pyfunc.load_model("models:/metricgold@candidate")
depth_m = model.predict(np.zeros((20, 28, 3), np.uint8), params={"num_inference_steps": 1})["depth"]
assert depth_m.shape == (20, 28)
import metricgold
print(metricgold.__file__)
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{project / 'mlflow.db'}"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", code, str(ROOT)]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = Path(done.stdout.strip()).parent
    assert package.is_relative_to(project) and (package / "model" / "__init__.pyi").is_file()
