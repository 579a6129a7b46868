import numpy as np
import pytest

from demo import calibration
from demo.calibration import Depths, run_trials, table_of


def depths(scene: int, scale: float) -> Depths:
    rng = np.random.default_rng(scene)
    true_m = rng.uniform(1, 10, 200)
    return Depths(f"scene {scene}", (true_m / scale * np.exp(rng.normal(0, 0.05, 200))).astype(np.float32), true_m)


def test_a_lens_is_mended_and_a_right_camera_left_alone(monkeypatch):
    monkeypatch.setattr(calibration, "TRIALS", 10)
    trials = {f"{scale:g}": run_trials([depths(scene, scale) for scene in range(16)]) for scale in (0.5, 1.0)}
    for column in ("5", "10", "10, two wrong"):
        assert np.mean([trial.after for trial in trials["0.5"][column]]) < 0.15
        assert np.mean([trial.before for trial in trials["0.5"][column]]) == pytest.approx(1.0, abs=0.05)
        assert np.mean([trial.after for trial in trials["1"][column]]) < 0.06
    head, _, first, second = table_of(trials).splitlines()
    assert head.startswith("| camera | before | 3 points | 5 |") and first.startswith("| 0.5 | 1.0")
    assert second.count("|") == head.count("|")
