"""Model folders and registered versions from before the wings: `metricgold.model` and `metricgold.registry` were files.

The texts are those that this project wrote at commit 37cfd35, the weights are tiny and new.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from metricgold import MetricGoldPipeline
from metricgold.model.pipeline import load_pipeline
from metricgold.registry import fetch_model
from tests.support import ROOT

MODEL_INDEX = """\
{
  "_class_name": "MetricGoldPipeline",
  "_diffusers_version": "0.42.1",
  "empty_prompt": [
    "metricgold.model",
    "EmptyPrompt"
  ],
  "far_m": 80.0,
  "near_m": 0.5,
  "objective": "diffusion",
  "processing_height": 32,
  "processing_width": 48,
  "scheduler": [
    "diffusers",
    "DDIMScheduler"
  ],
  "unet": [
    "diffusers",
    "UNet2DConditionModel"
  ],
  "vae": [
    "diffusers",
    "AutoencoderKL"
  ]
}
"""
EMPTY_PROMPT = """\
{
  "_class_name": "EmptyPrompt",
  "_diffusers_version": "0.42.1",
  "_name_or_path": "",
  "num_tokens": 2,
  "width": 8
}
"""
SCHEDULER = """\
{
  "_class_name": "DDIMScheduler",
  "_diffusers_version": "0.42.1",
  "_name_or_path": "",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": false,
  "clip_sample_range": 1.0,
  "dynamic_thresholding_ratio": 0.995,
  "num_train_timesteps": 1000,
  "prediction_type": "v_prediction",
  "rescale_betas_zero_snr": true,
  "sample_max_value": 1.0,
  "set_alpha_to_one": false,
  "steps_offset": 1,
  "thresholding": false,
  "timestep_spacing": "trailing",
  "trained_betas": null
}
"""
TEXTS = {
    "model_index.json": MODEL_INDEX,
    "empty_prompt/config.json": EMPTY_PROMPT,
    "scheduler/scheduler_config.json": SCHEDULER,
}
FILES = {
    *TEXTS,
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("empty_prompt", "unet", "vae")),
    *(f"{part}/config.json" for part in ("unet", "vae")),
    "lineage.json",
}

# MLflow's ids differ from version to version.
MLMODEL = """\
artifact_path: {location}
flavors:
  python_function:
    code: code
    data: data/metricgold
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: metricgold.registry
    python_version: 3.11.7
    streamable: false
is_signature_from_type_hint: false
metadata:
  input: uint8 [H, W, 3] or [N, H, W, 3]
  output: planar depth in metres, float32
mlflow_version: 3.17.2
model_id: {model_id}
model_size_bytes: 16326796
model_uuid: {model_id}
prompts: null
run_id: {run_id}
signature:
  inputs: null
  outputs: '[{{"type": "tensor", "tensor-spec": {{"dtype": "float32", "shape": [-1,
    -1, -1]}}}}]'
  params: '[{{"name": "num_inference_steps", "default": 2, "shape": null, "type": "integer"}},
    {{"name": "ensemble_size", "default": 4, "shape": null, "type": "integer"}}, {{"name":
    "seed", "default": 0, "shape": null, "type": "integer"}}]'
type_hint_from_example: false
utc_time_created: '2026-11-28 11:09:09.381862'
"""
# What a version's own package was then. Old code must not be needed: it says so when it is imported.
OLD_CODE = {"__init__.py": "", "model.py": "", "registry.py": "raise RuntimeError('the old code of a version ran')\n"}


@pytest.fixture(scope="module")
def old_folder(tiny_model, tmp_path_factory):
    """A checkpoint folder as it was then: its texts over tiny weights of today."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("old") / "metricgold"))
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def expected_m(old_folder):
    """Depth of `image` by the same weights, put together without any file of the pipeline's own."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from metricgold.model import EmptyPrompt

    prompt = EmptyPrompt(2, 8)
    prompt.load_state_dict(load_file(old_folder / "empty_prompt" / "diffusion_pytorch_model.safetensors"))
    parts = [
        kind.from_pretrained(old_folder / name)
        for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("scheduler", DDIMScheduler))
    ]
    pipe = MetricGoldPipeline(*parts, prompt, 0.5, 80.0, 32, 48)
    return pipe(image(), num_inference_steps=2, ensemble_size=4).planar_depth_m


def image():
    return np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("load", [MetricGoldPipeline.from_pretrained, load_pipeline])
def test_a_folder_from_before_the_wings_loads(old_folder, expected_m, load):
    pipe = load(old_folder)
    assert (pipe.log_depth.near_m, pipe.log_depth.far_m) == (0.5, 80.0)
    assert type(pipe.empty_prompt).__module__ == "metricgold.model"
    np.testing.assert_allclose(pipe(image(), 2, 4).planar_depth_m, expected_m, rtol=1e-5)


SINCE = {  # keys of model_index.json that folders of before lack, and what stands there for what they had
    "camera": "none",
    "camera_token": [None, None],
    "no_surface_from": 1.0,
    "trained_aspects": [1.5, 1.5],
    "uncertainty_scale": None,
}


def test_a_folder_of_today_has_the_same_texts_but_for_new_keys(tiny_model):
    """Each change of them gives a model that is trained again another digest, and so another version."""
    from diffusers import __version__

    assert {path.relative_to(tiny_model).as_posix() for path in tiny_model.rglob("*") if path.is_file()} == FILES
    with_new_keys = json.dumps(json.loads(MODEL_INDEX) | SINCE, indent=2, sort_keys=True) + "\n"
    for name, text in (TEXTS | {"model_index.json": with_new_keys}).items():
        assert (tiny_model / name).read_text() == text.replace("0.42.1", __version__), name


@pytest.fixture(scope="module")
def old_store(old_folder, tmp_path_factory):
    """A working folder with mlflow.db and mlruns/ and one version, registered as it was then, called champion."""
    import mlflow

    store = tmp_path_factory.mktemp("store")
    package = store / "then" / "metricgold"
    package.mkdir(parents=True)
    for name, text in OLD_CODE.items():
        (package / name).write_text(text)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    try:
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("metricgold", (store / "mlruns" / "1").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            logged = mlflow.pyfunc.log_model(
                name="metricgold",
                loader_module="metricgold.registry",
                data_path=str(old_folder),
                code_paths=[str(package)],
                pip_requirements=["torch"],
            )
        client.create_registered_model("metricgold")
        client.create_model_version("metricgold", logged.model_uri, run.info.run_id, model_id=logged.model_id)
        client.set_registered_model_alias("metricgold", "champion", 1)
        location = Path(mlflow.get_logged_model(logged.model_id).artifact_location.removeprefix("file://"))
    finally:
        mlflow.set_tracking_uri(before)
    text = MLMODEL.format(location=location, model_id=logged.model_id, run_id=run.info.run_id)
    now, then = yaml.safe_load((location / "MLmodel").read_text()), yaml.safe_load(text)
    assert set(now) <= set(then) | {"signature"} and (location / "code" / "metricgold" / "registry.py").is_file()
    (location / "MLmodel").write_text(text)
    return store, location


def test_a_version_from_before_the_wings_is_fetched(old_store, expected_m, monkeypatch):
    store, location = old_store
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for which in ("metricgold@champion", "metricgold/1"):
        folder, name = fetch_model(f"models:/{which}")
        assert (folder, name) == (location / "data" / "metricgold", "metricgold/1")
    np.testing.assert_allclose(load_pipeline(folder)(image(), 2, 4).planar_depth_m, expected_m, rtol=1e-5)


# MLflow puts a version's own code first on the path; a program that uses the package already has the installed one.
SERVE = """\
import sys, numpy as np, metricgold, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/metricgold@champion")
image = np.load(sys.argv[1])
np.save(sys.argv[2], model.predict(image))
np.save(sys.argv[3], model.predict(np.stack([image, image]), params={"ensemble_size": 4}))
"""


def test_mlflow_loads_a_version_from_before_the_wings(old_store, expected_m, tmp_path):
    """In a process of its own, for MLflow changes the path of modules; with the version's params as defaults."""
    store, _ = old_store
    np.save(tmp_path / "image.npy", image())
    paths = [tmp_path / name for name in ("image.npy", "one.npy", "two.npy")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *paths], cwd=store, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(paths[1]), expected_m, rtol=1e-5)
    np.testing.assert_allclose(np.load(paths[2]), [expected_m, expected_m], rtol=1e-5)


BROKEN = """\
import sys
from metricgold.model import MetricGoldPipeline, load_pipeline
assert False, "asserts are on"
for load in (MetricGoldPipeline.from_pretrained, load_pipeline):
    try:
        load(sys.argv[1])
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow  # the first time, Python compiles all of torch without asserts
def test_a_range_of_depth_that_is_none_is_refused_without_asserts(old_folder, tmp_path):
    folder = shutil.copytree(old_folder, tmp_path / "model")
    index = json.loads(MODEL_INDEX) | {"near_m": 0.5, "far_m": 0.4}
    (folder / "model_index.json").write_text(json.dumps(index))
    command = [sys.executable, "-O", "-c", BROKEN, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = f"{folder} is not a complete checkpoint: log depth needs 0 < near_m < far_m, got near_m=0.5, far_m=0.4"
    assert (done.returncode, done.stdout.splitlines()) == (0, [expected] * 2), done.stderr
