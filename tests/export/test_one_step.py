"""One-step models as one graph: equal to the pipeline, or no file at all."""

import numpy as np
import pytest

from metricgold.export.one_step import differs_at_most, export_onnx, export_torch, load_for_export
from metricgold.model import load_pipeline


@pytest.fixture
def one_step(tiny_model, tmp_path):
    pipe = load_pipeline(tiny_model)
    pipe.register_to_config(objective="one-step")
    pipe.save_pretrained(tmp_path / "one-step")
    return tmp_path / "one-step"


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
        differs_at_most(run, pipe)


@pytest.mark.slow
def test_an_onnx_file_gives_the_pipeline_s_depth_for_any_size(one_step, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    answer = export_onnx(one_step, tmp_path / "depth.onnx")
    assert answer["max_difference"] <= 1e-3 and answer["opset"] == "20"
    session = runtime.InferenceSession(tmp_path / "depth.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["model_digest"] == answer["model_digest"]
    for height, width in ((32, 48), (64, 24)):
        image = np.zeros((height, width, 3), np.uint8)
        depth_m, _, valid_mask = session.run(None, {"image": image, "focal_px": np.float32([40])[0:1].reshape(())})
        assert depth_m.shape == valid_mask.shape == (height, width) and (depth_m > 0).all()


@pytest.mark.slow
def test_a_program_of_torch_export_gives_the_pipeline_s_depth(one_step, tmp_path):
    answer = export_torch(one_step, tmp_path / "depth.pt2")
    assert answer["max_difference"] <= 1e-3 and (tmp_path / "depth.pt2").is_file()
