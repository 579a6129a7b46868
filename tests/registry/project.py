"""A project as the registry finds it, and what it says to MLflow: constants and helpers of these tests."""

import json
from pathlib import Path

from metricgold.params.sections import Params, Predict, Promote
from metricgold.registry.versions import register
from metricgold.storage import digest_folder

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


def register_scores(experiment=None, **scores):
    Path("metrics").mkdir(exist_ok=True)
    named = {"model_digest": digest_folder(Path("models/metricgold"))}
    Path("metrics/evaluate.json").write_text(json.dumps(SCORES | named | scores))
    return register(PARAMS, Path("models/metricgold"), Path("metrics/evaluate.json"), experiment)


def change_model(text="again"):
    Path("models/metricgold/lineage.json").write_text(json.dumps({"note": text}))


def mlflow_client():
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
