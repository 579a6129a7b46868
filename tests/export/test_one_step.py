"""One-step models as one graph: equal to the pipeline, or no file at all."""

import json
import os
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from metricgold.export.one_step import differs_at_most, export_onnx, export_torch, load_for_export, picture
from metricgold.model import MetricGoldPipeline, load_pipeline
from metricgold.model.camera_token import new_camera_token
from tests.support.pickles import is_pickle
from tests.support.venvs import python_with

SCALE = {  # of uncertainty: two ranges, and a whitening of what is known of four latent channels
    "edges_m": [8.0],
    "by_members": [{"factors": [0.5, 2.0], "floor": 0.1, "spread": 0.7, "slope": 0.4}],
    "mean": [0.1] * 8,
    "whitening": (np.eye(8) * 0.5 + 0.1).tolist(),
}


@pytest.fixture
def one_step(tiny_model, tmp_path):
    pipe = load_pipeline(tiny_model)
    pipe.register_to_config(objective="one-step")
    pipe.save_pretrained(tmp_path / "one-step")
    return tmp_path / "one-step"


def of_camera(folder, camera, scale=None):
    """The same model, as one that is told of its lens, with a token of random weights; and perhaps calibrated."""
    pipe, token = load_pipeline(folder), None
    if "token" in camera:
        token = new_camera_token(pipe.empty_prompt.embedding.shape[1], 0, camera)
        torch.nn.init.normal_(token.embed[-1].weight)
    parts = {name: part for name, part in pipe.components.items() if name != "camera_token"}
    numbers = {name: pipe.config[name] for name in ("near_m", "far_m", "processing_height", "processing_width")}
    told = MetricGoldPipeline(
        **parts, **numbers, objective="one-step", camera=camera, camera_token=token, uncertainty_scale=scale
    )
    told.save_pretrained(folder.with_name("told"))
    return folder.with_name("told")


@pytest.mark.parametrize("export", [load_for_export, lambda model: export_torch(model, model / "graph.pt2")])
def test_a_model_of_many_steps_is_refused_with_advice(tiny_model, export):
    with pytest.raises(ValueError, match=r"was trained for many steps.*train with train.objective one-step"):
        export(tiny_model)
    assert not (tiny_model / "graph.pt2").exists()


def test_a_graph_that_differs_is_refused(one_step):
    pipe = load_pipeline(one_step)

    def run(image, focal_px):
        prediction = pipe(image, focal_px=float(focal_px), windows="never")
        return [prediction.planar_depth_m * np.float32(1.002), prediction.uncertainty, prediction.valid_mask]

    with pytest.raises(ValueError, match=r"the graph differs from the pipeline by 2\.0e-03, more than 0\.001: no file"):
        differs_at_most(run, pipe, 1e-3)
    assert differs_at_most(run, pipe, 2e-2) == pytest.approx(2e-3, rel=1e-3)

    def without_mask(image, focal_px):
        depth_m, uncertainty, valid_mask = run(image, focal_px)
        return [depth_m, uncertainty, ~valid_mask]

    with pytest.raises(ValueError, match=r"uncertainty or mask differs in 100\.0% of the pixels: no file"):
        differs_at_most(without_mask, pipe, 2e-2)


ALONE = """\
import importlib.util, json, sys
assert not any(map(importlib.util.find_spec, ["torch", "diffusers", "onnx", "onnxscript", "metricgold"]))
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
image = np.load("image.npy")
depth_m, uncertainty, valid_mask = session.run(None, {"image": image, "focal_px": np.array(40, np.float32)})
np.savez("answer.npz", depth_m=depth_m, uncertainty=uncertainty, valid_mask=valid_mask)
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("camera", "scale", "dtype"),
    [
        ("canonical", SCALE, "float16"),
        ("canonical+token", SCALE, "float32"),
    ],
)
def test_onnxruntime_alone_gives_the_pipeline_s_metres(one_step, tmp_path, camera, scale, dtype):
    """In an environment without torch and this package, at a size and a lens that the export did not try."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = of_camera(one_step, camera, scale)
    answer = export_onnx(model, tmp_path / "depth.onnx", dtype=dtype)
    allowed = {"float32": 1e-3, "float16": 2e-2}[dtype]
    assert answer["max_difference"] <= allowed and (answer["opset"], answer["dtype"]) == ("20", dtype)
    image = picture(32, 48, 7)
    np.save(tmp_path / "image.npy", image)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python_with(tmp_path / "venv", "onnxruntime", "numpy"), "-c", ALONE, "depth.onnx"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["model_digest"] == answer["model_digest"] and facts["camera"] == camera and facts["dtype"] == dtype
    pipe = load_pipeline(model)
    prediction = pipe(image, focal_px=40.0, windows="never")
    assert prediction.planar_depth_m.shape == (32, 48)
    with np.load(tmp_path / "answer.npz") as found:
        np.testing.assert_allclose(found["depth_m"], prediction.planar_depth_m, rtol=allowed)
        agrees = np.isclose(found["uncertainty"], prediction.uncertainty, rtol=allowed, equal_nan=True)
        assert agrees.mean() > 1 - allowed
        assert np.isfinite(found["uncertainty"]).all() == (scale is not None)
        assert (found["valid_mask"] == prediction.valid_mask).mean() > 1 - allowed


@pytest.mark.slow
def test_a_program_of_torch_export_gives_the_pipeline_s_depth_and_holds_no_pickle(one_step, tmp_path):
    path = tmp_path / "depth.pt2"
    answer = export_torch(of_camera(one_step, "token"), path)
    assert answer["max_difference"] <= 1e-3
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert all(str(os.getpid()) not in name for name in names)
        for name in names:
            data = archive.read(name)
            assert not data.startswith(b"PK") and not is_pickle(data), f"{name} is a pickle, or what torch.save wrote"
