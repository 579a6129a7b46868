"""A model calibrated after its training on held-out frames, and what it then states."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from metricgold.datasets import list_frames, read_frame
from metricgold.evaluate import held_out_calibration
from metricgold.evaluate.ours import SIGMA_OF_MAD, estimate_of
from metricgold.model import MetricGoldPipeline
from metricgold.model.uncertainty import MOST_UNLIKE
from metricgold.params import Train, Uncertainty
from metricgold.train import train

PARAMS = Uncertainty(split="test", num_inference_steps=2, ensemble_size=3, batch_size=6)


@pytest.fixture(scope="module")
def raw(tiny_raw):
    return tiny_raw


@pytest.fixture(scope="module")
def calibrated(tiny, raw, tiny_latents, tiny_backbone, tmp_path_factory):
    """The folder of a model that was trained for 12 steps, and then calibrated."""
    params = Train.model_validate(tiny.train.model_dump() | {"uncertainty": PARAMS.model_dump()})
    out = tmp_path_factory.mktemp("models") / "calibrated"
    calibrate = held_out_calibration(PARAMS, {tiny.datasets[0]: raw})
    return train(params, tiny.log_depth, {tiny.datasets[0]: tiny_latents}, tiny_backbone, out, calibrate=calibrate)


def test_a_trained_folder_holds_its_calibration(calibrated):
    stored = json.loads((calibrated / "model_index.json").read_text())["uncertainty_scale"]
    assert len(stored["by_members"]) == 3 and len(stored["mean"]) == 8
    pipe = MetricGoldPipeline.from_pretrained(calibrated)
    assert pipe.uncertainty_scale.model_dump() == stored


def test_most_held_out_pixels_lie_within_what_it_states(calibrated, tiny, raw):
    """Those it was fitted to: how many of others do, only many scenes can tell."""
    pipe = MetricGoldPipeline.from_pretrained(calibrated)
    frames = [read_frame(ref) for ref in list_frames(tiny.datasets[0], raw, split="test").frames]
    for num_members in (1, 3):
        found = pipe([frame.rgb for frame in frames], num_inference_steps=2, ensemble_size=num_members)
        assert all(one.uncertainty_calibrated and np.isfinite(one.uncertainty).all() for one in found)
        assert all(1 <= one.unlikeness <= MOST_UNLIKE for one in found)
        shares = []
        for frame, one in zip(frames, found, strict=True):
            counts = frame.valid_mask & (frame.planar_depth_m <= PARAMS.max_m)
            error = np.abs(np.log(one.planar_depth_m / np.where(counts, frame.planar_depth_m, 1)))
            shares.append(np.mean((error <= one.uncertainty)[counts]))
        assert np.mean(shares) == pytest.approx(0.683, abs=0.05)


def test_auto_stops_where_more_members_would_not_lower_it(calibrated):
    pipe = MetricGoldPipeline.from_pretrained(calibrated)
    rgb = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    options = {"num_inference_steps": 2, "ensemble_size": "auto", "uncertainty_target": 1e-6}
    few = pipe(rgb, **options).num_members
    pipe.uncertainty_scale = None
    assert few < 10 == pipe(rgb, **options).num_members


def test_merged_latents_and_models_that_were_not_calibrated_state_what_they_did(calibrated, tiny_model):
    rgb = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    pipe = MetricGoldPipeline.from_pretrained(calibrated)
    merged = pipe(rgb, 2, 3, merge="latent")
    assert not merged.uncertainty_calibrated and np.isnan(merged.uncertainty).all()
    plain = MetricGoldPipeline.from_pretrained(tiny_model)(rgb, 2, 1)
    assert not plain.uncertainty_calibrated and np.isnan(plain.uncertainty).all() and plain.unlikeness is None


def test_a_calibrated_uncertainty_is_a_standard_deviation_already():
    depth_m, uncertainty = np.ones((2, 3), np.float32), np.full((2, 3), 0.1, np.float32)
    np.testing.assert_array_equal(estimate_of(depth_m, uncertainty, True).uncertainty, uncertainty)
    raw = estimate_of(depth_m, uncertainty, False).uncertainty
    np.testing.assert_allclose(raw, 0.1 * SIGMA_OF_MAD, rtol=1e-6)


def test_what_cannot_be_calibrated_is_refused(tiny, raw, tiny_latents, tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match=r"has no split 'val'"):
        held_out_calibration(Uncertainty(), {tiny.datasets[0]: raw})
    with pytest.raises(ValidationError, match=r"uncertainty\.num_inference_steps 1, got 2"):
        Train.model_validate({"objective": "one-step", "uncertainty": {"num_inference_steps": 2}})
    params = Train.model_validate(tiny.train.model_dump() | {"uncertainty": PARAMS.model_dump()})
    with pytest.raises(ValueError, match="nothing to calibrate with"):
        train(params, tiny.log_depth, {tiny.datasets[0]: tiny_latents}, tiny_backbone, tmp_path / "model")
