"""Figures of one estimate under a protocol, on frames whose figures are known."""

import numpy as np
import pytest

from metricgold.datasets import Frame
from metricgold.evaluate.methods import Estimate
from metricgold.evaluate.protocols import Protocol, load_protocol
from metricgold.evaluate.scoring import score
from metricgold.metrics import calibration, planarity

SIZE = (24, 32)
INTRINSICS = np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])


def frame_of(true_m: np.ndarray, **layers: np.ndarray) -> Frame:
    rgb = np.zeros((*SIZE, 3), np.uint8)
    return Frame(rgb, true_m.astype(np.float32), true_m > 0, INTRINSICS, "a/0", "a", layers)


def test_a_clip_without_a_far_end_keeps_its_floor_when_depth_is_aligned():
    """Marigold clips aligned depth of ETH3D to 1e-5 m and more, not to the nearest true depth."""
    rng = np.random.default_rng(0)
    true_m = rng.uniform(2, 9, SIZE)
    pred_m = (true_m + rng.normal(0, 0.1, SIZE)).astype(np.float32)
    pred_m[0, :3] = 0.1
    frame = frame_of(true_m, unmasked_depth_m=true_m.astype(np.float32))
    _, figures = score(load_protocol("eth3d-marigold"), frame, Estimate(pred_m, "depth_m"))
    g, p = frame.planar_depth_m.astype(np.float64).ravel(), pred_m.astype(np.float64).ravel()
    (scale, shift), *_ = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), g, rcond=None)
    aligned = scale * p + shift
    assert aligned.min() < 1 < g.min()
    expected = np.mean(np.abs(np.clip(aligned, 1e-5, None) - g) / g)
    assert figures["affine_depth/abs_rel"] == pytest.approx(expected, rel=1e-9)


def test_the_curve_comes_with_the_other_figures_of_uncertainty(monkeypatch):
    """It was computed twice."""
    calls = []
    whole = calibration._sparsification
    monkeypatch.setattr(calibration, "_sparsification", lambda *given: calls.append(1) or whole(*given))
    true_m = np.linspace(1, 9, 24 * 32).reshape(SIZE)
    error = np.linspace(0.01, 0.5, 24 * 32).reshape(SIZE).astype(np.float32)
    protocol = Protocol(name="whole", benchmark="mine", title="", source=["here"])
    _, figures = score(
        protocol, frame_of(true_m), Estimate((true_m * (1 + error)).astype(np.float32), "depth_m", error)
    )
    curve = [figures[f"sparsification/{share:g}"] for share in np.arange(10) / 10]
    kept = [np.sort(error.ravel())[: 768 - 768 * (5 * step) // 50].mean() for step in range(10)]
    assert curve == pytest.approx(kept, rel=1e-5)
    assert len(calls) == 1


def test_errors_of_planes_come_with_the_number_of_planes():
    """Two walls and a floor: the mean of all is over three planes, not over two kinds."""
    rng = np.random.default_rng(1)
    true_m = np.full(SIZE, 4.0)
    pred_m = (true_m + rng.normal(0, 1, SIZE) * np.linspace(0.01, 0.3, 32)).astype(np.float32)
    wall, floor, table = (np.zeros(SIZE, np.int32) for _ in range(3))
    wall[:12, :16], wall[:12, 16:], floor[12:] = 1, 2, 1
    layers = {"mask_wall": wall, "mask_floor": floor, "mask_table": table}
    protocol = Protocol(name="planes", benchmark="mine", title="", source=["here"], figures=["planarity"])
    frame = frame_of(true_m, **layers)
    _, figures = score(protocol, frame, Estimate(pred_m, "depth_m"))
    each = [
        planarity(pred_m, frame.planar_depth_m, mask == n, INTRINSICS) for mask, n in ((wall, 1), (wall, 2), (floor, 1))
    ]
    assert figures["planarity/all_cm"] == pytest.approx(np.mean([one.plan_cm for one in each]))
    assert figures["planarity/all_deg"] == pytest.approx(np.mean([one.orientation_deg for one in each]))
    numbers = {kind: figures[f"planarity/{kind}_num_planes"] for kind in ("wall", "floor", "table", "all")}
    assert numbers == {"wall": 2, "floor": 1, "table": 0, "all": 3}
    assert np.isnan(figures["planarity/table_cm"])
