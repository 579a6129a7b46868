"""Our figures and those of two packages where they have the same; docs/figures.md says which of theirs differ.

Both bring far more than they are compared for (torchvision, lpips, timm, a second OpenCV), so that they are no
dependency: `pip install --no-deps euler-eval==2.30.0 depth-estimation==0.1.3` is enough for these tests.
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from metricgold.metrics import align, image_figures

NEEDS = "is not installed; `pip install --no-deps euler-eval==2.30.0 depth-estimation==0.1.3` makes this test run"
CASES = range(1000)
ALIKE = ("mae_m", "rmse_m", "rmse_log", "log10", "delta1", "delta2", "delta3")


def one_file_of(package: str, path: str) -> ModuleType:
    """The file of an installed package that has the figures, without all that the package imports."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} {NEEDS}")
    file = spec_from_file_location(f"{package}_figures", Path(spec.origin).parent / path)
    module = module_from_spec(file)
    file.loader.exec_module(module)
    return module


def an_image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true_m = np.exp(rng.uniform(-2, 4, (5, 6)))
    return true_m * np.exp(rng.normal(0.1, 0.3, true_m.shape)), true_m, rng.random(true_m.shape) < 0.8


def test_euler_eval():
    package = one_file_of("euler_eval", "metrics/depth_standard.py")
    for seed in CASES:
        pred, true_m, valid = an_image(seed)
        ours = image_figures(pred, true_m, valid)
        theirs, _ = package.compute_standard_depth_metrics(pred, true_m, valid)
        expected = {key: theirs[key.removesuffix("_m")] for key in ALIKE}
        expected |= {"abs_rel": theirs["absrel"], "sq_rel": theirs["sqrel"], "silog": 100 * theirs["silog"]}
        got = {key: ours[f"metric/{key}"] for key in expected}
        assert got == pytest.approx(expected, rel=1e-6)


def test_depth_estimation():
    package = one_file_of("depth_estimation", "evaluation/metrics.py")
    measure = package.DepthMetrics()
    for seed in CASES:
        pred, true_m, valid = an_image(seed)
        pred, true_m = pred.astype(np.float32), true_m.astype(np.float32)
        ours = image_figures(pred, true_m, valid)
        theirs = measure(*map(torch.from_numpy, (pred, true_m, valid)))
        theirs["rmse_m"] = theirs.pop("rmse")
        got = {key: ours[f"metric/{key}"] for key in theirs}
        assert got == pytest.approx(theirs, rel=1e-6)
        scale, shift = package.align_least_squares(pred, true_m, valid)
        inside = valid & (scale * pred + shift > true_m[valid].min())
        fitted = align(pred, true_m, valid, "affine_depth")
        np.testing.assert_allclose(fitted[inside], scale * pred[inside].astype(float) + shift, rtol=1e-6)
