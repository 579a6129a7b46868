"""A one-step model as an ONNX file under onnxruntime, against the pipeline that it was made from; both on one core."""

from pathlib import Path

import numpy as np

from metricgold.export import export_onnx
from metricgold.model import load_pipeline

from . import CannotRun, least_seconds
from .serve import HEIGHT, WIDTH, write_model


def one_graph(folder: Path) -> dict[str, float]:
    """How much faster the file is than a call of the pipeline with the same image, its time, and its size."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter's
    except ImportError as error:
        raise CannotRun(f"{error.name} is not installed") from error
    model, path = write_model(folder / "model"), folder / "depth.onnx"
    export_onnx(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pipe, focal_px = load_pipeline(model), np.array(100, np.float32)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    graph_s, call_s = least_seconds(
        lambda: session.run(None, {"image": image, "focal_px": focal_px}),
        lambda: pipe(image, focal_px=100.0, windows="never"),
        rounds=30,
    )
    return {
        "export.onnx_speedup": call_s / graph_s,
        "export.onnx_ms": 1000 * graph_s,
        "export.pipeline_ms": 1000 * call_s,
        "export.onnx_mb": path.stat().st_size / 1e6,
    }
