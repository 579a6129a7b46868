"""A server whose depth a calibration corrects: its answers say so, and photographs of other cameras are refused."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from metricgold.cli import main
from metricgold.params.sections import Predict
from metricgold.predict.calibration import Calibration
from metricgold.predict.job import BatchJob
from metricgold.serve.model import ServedModel
from metricgold.storage import write_json
from tests.serve.test_app import ask, metres
from tests.support.serving import DIGEST, CountingModel, depth_of, photograph, serving

HALVED = Calibration(
    model="metricgold/3",
    model_digest=DIGEST,
    params={},
    camera={"relative_focal": 1.0},
    kind="scale",
    scale=0.5,
    scale_error=0.01,
    power=1.0,
    power_error=0.0,
    pivot_m=2.0,
    near_m=0.5,
    far_m=80.0,
    abs_rel=dict(left_out="image", before=0.5, after=0.1, improvement=0.4, interval_90=(0.3, 0.5), models={}),
    num_points=9,
    num_used=9,
    points=[],
    date="2026-01-01",
)


def test_depth_is_corrected_and_says_by_what():
    job = BatchJob(Predict(num_inference_steps=2), "", "", Path("m"), "metricgold/3", DIGEST, calibration=HALVED)
    with serving(ServedModel.of(job, CountingModel())) as (client, _):
        focal_px = (48 * 64) ** 0.5
        answer = ask(client, focal_px=focal_px)
        np.testing.assert_allclose(metres(answer), depth_of(photograph()) / 2, rtol=1e-4)
        for preset in ("fast", "balanced"):
            said = ask(client, format="json", focal_px=focal_px, preset=preset).json()["calibration"]
            assert said == HALVED.facts
        assert client.get("/v1/model").json()["calibration"] == HALVED.facts
        other = ask(client, focal_px=2 * focal_px)
        assert other.status_code == 422
        assert other.json() == {
            "error": "the calibration is another camera's: this one is of relative focal length 2.000, not 1.000"
        }


def test_a_calibration_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the calibration is of the model metricgold/3 .*calibrate again"):
        ServedModel.load(Predict(), tmp_path, "metricgold/4", HALVED)
    write_json(tmp_path / "c.json", HALVED.model_dump(mode="json"))
    words = ["serve", "--model", "models:/metricgold@champion", "--follow-alias", "--calibration", tmp_path / "c.json"]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 2 and "--calibration is of one model" in done.output
